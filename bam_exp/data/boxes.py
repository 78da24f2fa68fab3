"""From a photo with boxes to the input of a detector: SSD's augmentation, flips, resizing; and back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FILL = (123, 117, 104)
"""Colour around a photo that was zoomed out: the mean of ImageNet's pixels, as in the released SSD."""

STRIP = 48
"""Rows of a photo whose colours are distorted at once."""


class Sample(NamedTuple):
    """One input of a detector: uint8 3 x H x W, boxes float32 n x 4 and labels int64 n."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class View:
    """The augmentation that turns a photo into an input.

    `fit` "square": resized to size x size, whatever its shape. "short_side": resized so that the shorter side has `size`
    pixels, or fewer where the longer one would have more than `long_side`.
    `augment` "ssd": photometric distortion, zoom-out, crop and flip of SSD (Liu et al., section 2.2); "flip": a mirror
    image of every second photo; "none".
    """

    size: int
    fit: Literal["square", "short_side"] = "square"
    long_side: int = 1000
    augment: Literal["ssd", "flip", "none"] = "none"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the input of a photo that is not cropped."""
        if self.fit == "square":
            return self.size, self.size
        short, long = sorted((height, width))
        # As torchvision's resize with max_size rounds.
        new_short, new_long = self.size, int(self.size * long / short)
        if new_long > self.long_side:
            new_short, new_long = int(self.long_side * new_short / new_long), self.long_side
        return (new_short, new_long) if height <= width else (new_long, new_short)


def sample(photo: Sample, view: View, *, seed: int, epoch: int, index: int) -> Sample:
    """The input that photo `index` becomes in an epoch, a function of (seed, epoch, index).

    The draws, and so the distributions, are those of torchvision's v2 transforms of the same names, in the order of its
    reference for SSD; the pixels equal theirs to the bit. The global random state is left as it was.
    """
    if view.augment == "none":
        return _flipped_and_resized(photo, view, flip=False)
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"seed {seed}, epoch {epoch}, image {index}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big"))
        return augmented(photo, view)


def augmented(photo: Sample, view: View) -> Sample:
    """The photo under the augmentation of a view, by numbers from PyTorch's global generator."""
    if view.augment == "ssd":
        photo = _ssd_crop(photo)
    return _flipped_and_resized(photo, view, flip=bool(torch.rand(1) < 0.5))


@cache
def transforms() -> Mapping[str, Any]:
    """torchvision's transforms, whose import takes 1.7 seconds."""
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional
    from torchvision.tv_tensors import BoundingBoxes, Image

    return {
        "distort": v2.RandomPhotometricDistort(),
        "zoom_out": v2.RandomZoomOut(),
        "crop": v2.RandomIoUCrop(),
        "F": functional,
        "boxes": BoundingBoxes,
        "image": Image,
    }


def _ssd_crop(photo: Sample) -> Sample:
    """SSD's distortion, zoom-out and crop; only the pixels that remain are distorted, which no other pixel depends on."""
    lib = transforms()
    functional, (height, width) = lib["F"], photo.pixels.shape[1:]
    distortion = lib["distort"].make_params([photo.pixels])
    boxes = lib["boxes"](photo.boxes, format="XYXY", canvas_size=(height, width))
    left = top = 0
    if torch.rand(1) < lib["zoom_out"].p:
        padding = lib["zoom_out"].make_params([photo.pixels])["padding"]
        left, top = padding[:2]
        boxes = functional.pad(boxes, padding)
    y, x = 0, 0
    crop_height, crop_width = boxes.canvas_size
    if crop := _iou_crop(boxes.numpy(), *boxes.canvas_size):
        (y, x, crop_height, crop_width), inside = crop
        boxes = functional.crop(boxes, y, x, crop_height, crop_width)
        boxes[~torch.from_numpy(inside)] = 0
    boxes, kept = functional.sanitize_bounding_boxes(boxes)
    # The part of the photo inside the crop, in the photo's pixels.
    y1, x1 = max(0, y - top), max(0, x - left)
    y2, x2 = min(height, y - top + crop_height), min(width, x - left + crop_width)
    pixels = photo.pixels[:, y1 : max(y1, y2), x1 : max(x1, x2)]
    if pixels.numel():
        pixels = _distorted(photo.pixels, pixels, distortion, (slice(None), slice(y1, y2), slice(x1, x2)))
    if pixels.shape[1:] != (crop_height, crop_width):
        rows = np.empty((crop_height, crop_width * 3), dtype=np.uint8)
        rows[:] = np.tile(np.array(FILL, dtype=np.uint8), crop_width)
        around = torch.from_numpy(rows).view(crop_height, crop_width, 3).permute(2, 0, 1)
        around[:, y1 + top - y :, x1 + left - x :][:, : pixels.shape[1], : pixels.shape[2]] = pixels
        pixels = around
    return Sample(pixels, boxes.as_subclass(Tensor), photo.labels[kept])


def _iou_crop(boxes: Floats, height: int, width: int) -> tuple[tuple[int, int, int, int], Mask] | None:
    """torchvision's RandomIoUCrop: the same crop from the same draws, in NumPy's float32, which takes a fifth of the time.

    Returns top, left, height and width of the crop, and which boxes have their centre in it; None for no crop.
    """
    transform = transforms()["crop"]
    spread = np.float32(transform.max_scale - transform.min_scale)
    sides = np.array([width, height], dtype=np.float32)
    centres = np.float32(0.5) * (boxes[:, :2] + boxes[:, 2:])
    while True:
        least = transform.options[int(torch.randint(len(transform.options), (1,)))]
        if least >= 1:
            return None
        for _ in range(transform.trials):
            w, h = (sides * (np.float32(transform.min_scale) + spread * torch.rand(2).numpy())).astype(int).tolist()
            if not w or not h or not transform.min_aspect_ratio <= w / h <= transform.max_aspect_ratio:
                continue
            corner = ((sides - np.array([w, h], dtype=np.float32)) * torch.rand(2).numpy()).astype(int)
            end = corner + np.array([w, h])
            inside = ((corner < centres) & (centres < end)).all(1)
            if not inside.any():
                continue
            kept = boxes[inside]
            shared = (np.minimum(kept[:, 2:], end) - np.maximum(kept[:, :2], corner)).clip(0).prod(1)
            overlaps = shared / ((kept[:, 2:] - kept[:, :2]).prod(1) + w * h - shared)
            if overlaps.max() >= least:
                return (int(corner[1]), int(corner[0]), h, w), inside


def _distorted(photo: Tensor, part: Tensor, params: dict[str, Any], where: tuple[slice, ...]) -> Tensor:
    """`part`, which is photo[where], as it is after the distortion of the whole photo."""
    distort, functional = transforms()["distort"], transforms()["F"]
    contrast = params["contrast_factor"]
    colours = params["saturation_factor"] is not None or params["hue_factor"] is not None
    if contrast is None:
        return _in_strips(part, params)
    if colours and not params["contrast_before"]:  # the mean grey is that of the photo in its new colours
        before = _in_strips(photo, {**params, "contrast_factor": None, "channel_permutation": None})
        after = {**dict.fromkeys(params), "contrast_factor": contrast, "contrast_before": True}
        after = distort.transform(before, after)[where]
        return distort.transform(  # type: ignore[no-any-return]
            after, {**dict.fromkeys(params), "channel_permutation": params["channel_permutation"]}
        )
    brightness = {**dict.fromkeys(params), "brightness_factor": params["brightness_factor"]}
    grey = functional.rgb_to_grayscale(distort.transform(photo, brightness).float()).floor_()
    part = distort.transform(part, brightness)
    bound = part.mul(contrast).add_(grey.mean(), alpha=1.0 - contrast).clamp_(0, 255)
    return _in_strips(bound.to(torch.uint8), {**params, "brightness_factor": None, "contrast_factor": None})


def _in_strips(photo: Tensor, params: dict[str, Any]) -> Tensor:
    """A distortion without contrast, which no other pixel takes part in, by strips that stay in the cache."""
    transform = transforms()["distort"].transform
    return torch.cat([transform(strip, params) for strip in torch.split(photo, STRIP, dim=1)], dim=1)


def _flipped_and_resized(photo: Sample, view: View, *, flip: bool) -> Sample:
    """Resize, then mirror: the order of the released SSD."""
    functional = transforms()["F"]
    height, width = photo.pixels.shape[1:]
    new_height, new_width = view.resized(height, width)
    # Channels last, which a view of a photo does not say with N = 1: several times faster, the same pixels.
    pixels = photo.pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    pixels = functional.resize(pixels, [new_height, new_width], antialias=True)[0]
    boxes = photo.boxes * torch.tensor([new_width / width, new_height / height]).repeat(2)
    if flip:
        pixels = pixels.flip(2)
        boxes = torch.stack([new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]], dim=1)
    return Sample(pixels, boxes, photo.labels)


def to_photo(boxes: Tensor, size: tuple[int, int], photo: tuple[int, int]) -> Tensor:
    """Boxes n x 4 in pixels of an input of this height and width, in those of its photo."""
    return boxes * boxes.new_tensor([photo[1] / size[1], photo[0] / size[0]]).repeat(2)
