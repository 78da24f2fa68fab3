"""Scenes: the same pixels everywhere, and boxes that the pixels themselves confirm."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from bam_exp.data import Scenes
from bam_exp.data.dataset import Split

SMALL = {"train_size": 200, "test_size": 100}


@pytest.mark.parametrize(
    ("split", "sha256"),
    [
        ("train", "35db561621498fcfe586a9241fff80a9da4c47561125ead60238a6ff92d989e5"),
        ("test", "881b6dbaa4279249f018f631e604a70223ce655280fbca4d201294c3e97eb69d"),
    ],
)
def test_pixels_and_boxes_are_pinned(split: Split, sha256: str) -> None:
    """Whoever changes a pixel or a box raises VERSION, so that earlier runs are not taken for new ones."""
    images, annotations = Scenes(Path(), **SMALL).load(split)
    content = images.numpy().tobytes() + annotations.boxes.tobytes() + annotations.labels.tobytes()
    assert hashlib.sha256(content).hexdigest() == sha256


def test_there_are_one_to_four_objects_apart_and_inside() -> None:
    data = Scenes(Path())
    annotations = data.annotations("train")
    counts = np.diff(annotations.first)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert np.bincount(annotations.labels)[1:].min() > 0.17 * len(annotations.labels)
    annotations.check(str)
    for i in range(200):
        boxes = annotations.boxes[annotations.objects(i)]
        for j, one in enumerate(boxes):
            for other in boxes[j + 1 :]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    assert (sides.min(), sides.max()) == (7, 23)


def test_mean_and_std_are_those_of_the_pixels() -> None:
    data = Scenes(Path())
    pixels = data.load("train").images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=0.01)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=0.01)


def test_an_image_depends_on_seed_split_and_number_alone() -> None:
    many, few = Scenes(Path(), train_size=300, test_size=300), Scenes(Path(), train_size=130)
    train = many.load("train").images
    assert torch.equal(train[:130], few.load("train").images)
    for other in (many.load("test").images, Scenes(Path(), seed=1, train_size=300).load("train").images):
        assert (other != train[:300]).flatten(1).any(1).all()


def test_a_mirrored_box_lies_on_the_mirrored_object() -> None:
    data = Scenes(Path(), **SMALL)
    plain = {
        t.number: (image, t) for images, ts in _loader(data, flip=False) for image, t in zip(images, ts, strict=True)
    }
    mirrored = 0
    for images, targets in _loader(data, flip=True):
        for image, target in zip(images, targets, strict=True):
            original, own = plain[target.number]
            if torch.equal(image, original):
                assert torch.equal(target.boxes, own.boxes)
                continue
            mirrored += 1
            assert torch.equal(image, original.flip(2))
            boxes = own.boxes.clone()
            boxes[:, 0], boxes[:, 2] = 64 - own.boxes[:, 2], 64 - own.boxes[:, 0]
            assert torch.equal(target.boxes, boxes)
    assert 70 < mirrored < 130


def _loader(data: Scenes, *, flip: bool):  # type: ignore[no-untyped-def]
    return Scenes(Path(), **SMALL, flip=flip).loader("train", batch_size=16, seed=0, device="cpu")


def test_an_epoch_goes_on_where_it_was_left() -> None:
    loader = Scenes(Path(), **SMALL).loader("train", batch_size=16, seed=0, device="cpu")
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    images, targets = next(iterator)
    other = Scenes(Path(), **SMALL).loader("train", batch_size=16, seed=0, device="cpu")
    other.load_state_dict(state)
    again, same = next(iter(other))
    assert torch.equal(images, again)
    assert [one.number for one in targets] == [one.number for one in same]
