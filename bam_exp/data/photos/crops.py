"""Turn the bytes of a photo into a square of pixels as torchvision's transforms do, on a CPU or batched on a GPU."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bam_exp.data.photos.jpeg import jpeg_decoder
from bam_exp.errors import DataError

Content = npt.NDArray[np.uint8]
"""The bytes of a file."""

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Parameters of torchvision's RandomResizedCrop: range of the area share, range of width / height, number of tries."""

_PIXELS_AT_ONCE = 4 << 20
"""Pixels of a channel that `random_squares` processes at once, which bounds its memory."""


class Crop(NamedTuple):
    """A rectangle of a photo in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def random_crop(seed: int, epoch: int, index: int, height: int, width: int) -> Crop:
    """Draw the crop of photo `index` in an epoch, distributed as torchvision's RandomResizedCrop and a horizontal flip.

    The random numbers are a function of (seed, epoch, index). They are raw words of Philox, which NumPy guarantees not to
    change between versions. height, width: of the photo.
    """
    key, counter = np.array([seed, epoch], dtype=np.uint64), np.array([0, index, 0, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(2 * TRIES + 3)
    *draws, y, x, side = ((words >> np.uint64(11)) * 2.0**-53).tolist()  # uniform in [0, 1)
    mirrored = side < 0.5
    low, high = (math.log(ratio) for ratio in RATIO)
    for area, shape in zip(draws[::2], draws[1::2], strict=True):
        target = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(y * (height - h + 1)), int(x * (width - w + 1)), h, w, mirrored)
    # No try fitted: take the middle of the photo, as much of it as the ratio allows.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return Crop((height - h) // 2, (width - w) // 2, h, w, mirrored)


def read(path: Path) -> Content:
    """Read a file. Raises DataError."""
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def decoded(content: Content, path: Path) -> Tensor:
    """Decode any photo that PIL reads to uint8 3 x H x W, stored as H x W x 3, with PIL's pixels. Raises DataError."""
    decode = jpeg_decoder() if content[:2].tobytes() == b"\xff\xd8" else None
    if decode is not None:
        try:
            return decode(torch.from_numpy(content))
        except RuntimeError:
            pass  # PIL may still decode it, or give a clear reason why not.
    return torch.from_numpy(np.array(_opened(content, path).convert("RGB"))).permute(2, 0, 1)


def header(content: Content, path: Path) -> tuple[int, int, bool]:
    """Return height, width, and whether the file is a JPEG with colours that nvJPEG decodes. Raises DataError."""
    photo = _opened(content, path, load=False)
    return photo.height, photo.width, photo.format == "JPEG" and photo.mode in ("RGB", "L")


def random_square(photo: Tensor, crop: Crop, size: int) -> Tensor:
    """Crop uint8 3 x H x W and resize it to 3 x size x size, equal to torchvision's `resized_crop` of a tensor to the bit."""
    top, left, height, width, mirrored = crop
    # Channels last is several times faster with the same pixels; with N = 1 a view of the photo would not count as such.
    part = photo.permute(1, 2, 0)[top : top + height, left : left + width].contiguous()[None].permute(0, 3, 1, 2)
    square = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
    return square.flip(2) if mirrored else square


def central_square(content: Content, path: Path, size: int) -> Tensor:
    """Resize the short side of a photo to 256 / 224 of `size` and take the central crop, uint8 3 x size x size.

    PIL does all of it, as in torchvision's reference evaluation, so that the pixels equal those of its published
    accuracies to the bit. Raises DataError.
    """
    from torchvision.transforms.v2 import functional

    photo = functional.resize(_opened(content, path).convert("RGB"), [round(size * 256 / 224)])
    return torch.from_numpy(np.array(functional.center_crop(photo, [size]))).permute(2, 0, 1)


def _opened(content: Content, path: Path, *, load: bool = True) -> Image.Image:
    try:
        photo = Image.open(io.BytesIO(content.data))
        if load:
            photo.load()
    except MemoryError:
        raise
    except Exception as error:  # A decoder that is given garbage may raise anything.
        reason = "the file is empty" if not len(content) else str(error).partition(" <")[0]
        raise DataError(f"{path}: not a photo that can be decoded ({reason})") from error
    return photo


def random_squares(photos: Sequence[Tensor], crops: Sequence[Crop], size: int) -> Tensor:
    """Apply `random_square` to many photos at once: uint8 N x 3 x size x size, channels last, on the photos' device.

    Resampling is a matrix product with the rows and one with the columns, so that a batch takes two products whatever the
    sizes of its photos. Differs from `random_square` by rounding: by 1 of 255 in few pixels.
    """
    squares = photos[0].new_empty((len(photos), size, size, 3)).permute(0, 3, 1, 2)
    for chosen in _portions(crops):
        part = [photos[i] for i in chosen]
        heights, widths, tops, lefts, crop_heights, crop_widths, mirrored = torch.tensor(
            [(*photo.shape[1:], *crops[i]) for i, photo in zip(chosen, part, strict=True)], device=squares.device
        ).T
        flat = torch.cat([photo.flatten() for photo in part])
        planes = (heights * widths)[:, None] * torch.arange(3, device=squares.device)
        planes[1:] += (3 * heights * widths).cumsum(0)[:-1, None]
        y = torch.arange(max(crops[i].height for i in chosen), device=squares.device)
        x = torch.arange(max(crops[i].width for i in chosen), device=squares.device)
        # Beyond the edge of a crop, its last row and column are repeated with weight zero.
        rows = (tops[:, None] + torch.minimum(y, crop_heights[:, None] - 1)) * widths[:, None]
        columns = lefts[:, None] + torch.minimum(x, crop_widths[:, None] - 1)
        pixels = flat[planes[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None, :]].float()
        down = _resampling(crop_heights, size, len(y))
        across = _resampling(crop_widths, size, len(x))
        across = torch.where(mirrored.bool()[:, None, None], across.flip(1), across)
        resized = down[:, None] @ pixels @ across[:, None].mT
        squares[torch.tensor(chosen, device=squares.device)] = resized.round_().clamp_(0, 255).to(torch.uint8)
    return squares


def _portions(crops: Sequence[Crop]) -> Iterator[list[int]]:
    """Group crops of similar size so that each group, padded to its largest crop, stays below `_PIXELS_AT_ONCE`."""
    group: list[int] = []
    for i in sorted(range(len(crops)), key=lambda i: crops[i].height * crops[i].width):
        height, width = (max(crops[j][side] for j in (*group, i)) for side in (2, 3))
        if group and height * width * (len(group) + 1) > _PIXELS_AT_ONCE:
            yield group
            group = []
        group.append(i)
    yield group


def _resampling(lengths: Tensor, size: int, padded: int) -> Tensor:
    """Return weights N x size x padded that resample `lengths` pixels to `size` as PIL and PyTorch do: bilinear, antialiased."""
    lengths = lengths[:, None, None].float()
    scale = lengths / size
    outputs = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale
    inputs = torch.arange(padded, device=lengths.device) + 0.5
    weights = (1 - (inputs - outputs).abs() / scale.clamp(min=1)).clamp(min=0) * (inputs < lengths)
    return weights / weights.sum(2, keepdim=True)
