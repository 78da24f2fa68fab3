"""Drawing many small pictures at once in integer arithmetic: the same pixels on every machine."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SHAPES = ("disc", "square", "triangle", "cross", "ring")

_DIRECTIONS = np.array([(1, 0), (0, 1), (1, 1), (1, -1)], dtype=np.int32)


class Numbers:
    """Random numbers for N pictures at once, from N x draws random words: each call takes the next word of each picture."""

    def __init__(self, raw: npt.NDArray[np.uint64]) -> None:
        self._columns: Iterator[npt.NDArray[np.uint64]] = iter(raw.T)

    def below(self, bound: int | Integers) -> Integers:
        """Uniform in 0 ... bound - 1, N."""
        return np.asarray(next(self._columns) % np.asarray(bound, dtype=np.uint64), dtype=np.int32)

    def colour(self, low: int, high: int) -> Integers:
        """Uniform in low ... high - 1 in each channel, N x 3."""
        return low + np.stack([self.below(high - low) for _ in range(3)], axis=1)

    def direction(self) -> Integers:
        """Right, down or a diagonal, N x 2."""
        return _DIRECTIONS[self.below(len(_DIRECTIONS))]


class Canvas:
    """Masks and colours of pictures of `size` x `size` pixels; coordinates and radii are int32 N, masks bool N x size x size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._y, self._x = np.mgrid[:size, :size].astype(np.int32)

    def gradient(self, corners: list[Integers]) -> Integers:
        """Bilinear between the colours of the four corners, N x 3 x size x size."""
        last, x, y = self.size - 1, self._x, self._y
        weights = ((last - y) * (last - x), (last - y) * x, y * (last - x), y * x)
        total = sum(corner[:, :, None, None] * weight for corner, weight in zip(corners, weights, strict=True))
        return np.asarray(total // last**2, dtype=np.int32)

    def along(self, x: Integers, y: Integers, direction: Integers) -> Integers:
        """The distance of each pixel from (x, y) along a direction."""
        right, down = direction[:, :1, None], direction[:, 1:, None]
        return np.asarray(right * (self._x - x[:, None, None]) + down * (self._y - y[:, None, None]), dtype=np.int32)

    def bar(self, x: Integers, y: Integers, direction: Integers, half_length: Integers) -> Mask:
        """A line about 3 pixels thick in a direction."""
        across = direction[:, ::-1] * np.array([-1, 1], dtype=np.int32)
        long = np.abs(self.along(x, y, direction)) <= half_length[:, None, None]
        return np.asarray(long & (np.abs(self.along(x, y, across)) <= 1))

    def dot(self, x: Integers, y: Integers) -> Mask:
        """3 x 3 pixels around (x, y)."""
        return np.asarray((np.abs(self._x - x[:, None, None]) <= 1) & (np.abs(self._y - y[:, None, None]) <= 1))

    def shape(self, kind: Integers, x: Integers, y: Integers, radius: Integers) -> Mask:
        """A shape, by its place in `SHAPES`, that reaches at most `radius` pixels from (x, y) in x and y."""
        r, dx, dy = radius[:, None, None], np.abs(self._x - x[:, None, None]), self._y - y[:, None, None]
        square_distance = dx**2 + dy**2
        disc = square_distance <= r**2 + r // 2
        square = (dx < r) & (np.abs(dy) < r)
        triangle = (np.abs(dy) <= r) & (2 * dx <= dy + r)
        cross = ((dx <= r // 3) | (np.abs(dy) <= r // 3)) & (dx <= r) & (np.abs(dy) <= r)
        ring = disc & (4 * square_distance > r**2 + r)
        return np.asarray(np.choose(kind[:, None, None], [disc, square, triangle, cross, ring]))

    def paint_striped(self, picture: Integers, shape: Mask, x: Integers, y: Integers, numbers: Numbers) -> None:
        """Paint a shape around (x, y) in stripes of a colour and half of it."""
        direction, width, phase = numbers.direction(), 2 + numbers.below(2), numbers.below(4)
        stripe = (self.along(x, y, direction) + phase[:, None, None]) // width[:, None, None]
        colour = numbers.colour(0, 200)
        paint(picture, shape, colour)
        paint(picture, shape & (stripe % 2 == 1), colour // 2)


def paint(picture: Integers, where: Mask, colour: Integers) -> None:
    """Give the pixels of a mask one colour, N x 3."""
    np.copyto(picture, colour[:, :, None, None], where=where[:, None])


def with_noise(picture: Integers, noise: Bytes) -> Bytes:
    """The pictures under uniform noise of -32 ... 31, as bytes."""
    picture += noise.astype(np.int32) % 64 - 32
    return np.clip(picture, 0, 255).astype(np.uint8)
