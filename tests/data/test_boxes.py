"""Augmentation with boxes equals torchvision's transforms on the same draws, and depends on seed, epoch and index alone."""

import json
from pathlib import Path

import pytest
import torch
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from bam_exp.data.boxes import FILL, Sample, View, augmented, sample, to_photo

SSD = View(300, augment="ssd")
REFERENCE = v2.Compose(
    [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill={tv_tensors.Image: FILL, "others": 0}),
        v2.RandomIoUCrop(),
        v2.SanitizeBoundingBoxes(),
        v2.Resize((300, 300)),
        v2.RandomHorizontalFlip(),
    ]
)
"""torchvision's reference for SSD, with the resizing that its network does."""


@pytest.fixture(scope="module")
def photos(tiny_coco: Path) -> list[Sample]:
    content = json.loads((tiny_coco / "annotations/instances_train2017.json").read_text())
    samples = []
    for image in content["images"][:20]:
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"] and not row["iscrowd"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pixels = read_image(str(tiny_coco / "train2017" / image["file_name"]), mode=ImageReadMode.RGB)
        samples.append(Sample(pixels, boxes, torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)))
    return samples


@pytest.mark.parametrize("seed", range(6))
def test_the_augmentation_of_ssd_is_torchvisions_to_the_bit(photos: list[Sample], seed: int) -> None:
    for i, photo in enumerate(photos):
        torch.manual_seed(1000 * seed + i)
        size = photo.pixels.shape[1:]
        boxes = tv_tensors.BoundingBoxes(photo.boxes, format="XYXY", canvas_size=size)
        theirs = REFERENCE({"image": tv_tensors.Image(photo.pixels), "boxes": boxes, "labels": photo.labels})
        torch.manual_seed(1000 * seed + i)
        ours = augmented(photo, SSD)
        assert torch.equal(ours.pixels, theirs["image"])
        assert torch.equal(ours.labels, theirs["labels"])
        torch.testing.assert_close(ours.boxes, theirs["boxes"].as_subclass(torch.Tensor), rtol=0, atol=1e-3)


def test_it_is_a_function_of_seed_epoch_and_index(photos: list[Sample]) -> None:
    state = torch.get_rng_state()
    first = sample(photos[0], SSD, seed=1, epoch=2, index=3)
    torch.manual_seed(99)
    again = sample(photos[0], SSD, seed=1, epoch=2, index=3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (
        {"seed": 0, "epoch": 2, "index": 3},
        {"seed": 1, "epoch": 1, "index": 3},
        {"seed": 1, "epoch": 2, "index": 4},
    ):
        assert not torch.equal(sample(photos[0], SSD, **other).pixels, first.pixels)
    torch.set_rng_state(state)
    sample(photos[0], SSD, seed=1, epoch=2, index=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_photo_without_objects_passes(photos: list[Sample]) -> None:
    empty = photos[0]._replace(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    for index in range(20):
        made = sample(empty, SSD, seed=0, epoch=0, index=index)
        assert made.pixels.shape == (3, 300, 300)
        assert made.boxes.shape == (0, 4)


def test_boxes_stay_on_their_objects(photos: list[Sample]) -> None:
    """A white rectangle on black is where its box says, whatever was cropped, padded, resized and mirrored."""
    pixels = torch.zeros(3, 200, 320, dtype=torch.uint8)
    pixels[:, 60:120, 100:180] = 255
    photo = Sample(pixels, torch.tensor([[100.0, 60, 180, 120]]), torch.tensor([1]))
    for index in range(40):
        made = sample(photo, View(128, augment="flip"), seed=0, epoch=0, index=index)
        where = (made.pixels[0] > 127).nonzero()
        (y1, x1), (y2, x2) = where.min(0).values.tolist(), (where.max(0).values + 1).tolist()
        assert made.boxes[0].tolist() == pytest.approx([x1, y1, x2, y2], abs=1.0)


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (333, 1200), (51, 50), (600, 600)])
def test_the_short_side_is_resized_as_torchvision_does(size: tuple[int, int]) -> None:
    view = View(600, "short_side", 1000)
    resize = v2.Resize(600, max_size=1000)
    expected = tuple(resize(torch.zeros(3, *size, dtype=torch.uint8)).shape[1:])
    assert view.resized(*size) == expected
    transform = GeneralizedRCNNTransform(600, 1000, [0.0] * 3, [1.0] * 3)
    theirs = transform.resize(torch.zeros(3, *size))[0].shape[1:]
    assert all(abs(one - other) <= 1 for one, other in zip(view.resized(*size), theirs, strict=True))


def test_detections_go_back_to_the_photo() -> None:
    boxes = torch.tensor([[10.0, 20, 110, 120]])
    photo = Sample(torch.zeros(3, 240, 400, dtype=torch.uint8), boxes, torch.tensor([1]))
    made = sample(photo, View(300), seed=0, epoch=0, index=0)
    torch.testing.assert_close(to_photo(made.boxes, (300, 300), (240, 400)), boxes)
