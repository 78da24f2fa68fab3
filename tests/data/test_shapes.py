"""Shapes: the same pixels everywhere, and labels and masks that the pixels themselves confirm."""

import hashlib
import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from conftest import REPOSITORY

from bam_exp.data import Shapes


@pytest.mark.parametrize(
    ("split", "sha256"),
    [
        ("train", "6a247f8b044a388b640c5a37292d0de057d9045665ebc581e15d59614a107aaf"),
        ("test", "6330f473b65545e8ab0eebf536079850228c91adafba154471761921478a6ec6"),
    ],
)
def test_pixels_are_pinned(split: Literal["train", "test"], sha256: str) -> None:
    """Whoever changes a pixel raises VERSION, so that earlier runs are not taken for new ones."""
    data = Shapes(Path())
    images, labels = data.load(split)
    assert images.shape == (data.train_size if split == "train" else data.test_size, 3, data.size, data.size)
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == sha256
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [len(images) // data.num_classes] * data.num_classes
    pixels = images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=0.01)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=0.01)


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    many, few = Shapes(Path(), train_size=600, test_size=300), Shapes(Path(), train_size=260)
    train = many.load("train")[0]
    assert torch.equal(train[:260], few.load("train")[0])
    for other in (many.load("test")[0], Shapes(Path(), seed=1, train_size=300).load("train")[0]):
        assert (other != train[:300]).flatten(1).any(1).all()


def test_the_digest_tells_data_apart() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"train_size": 20},
        {"test_size": 20},
        {"clutter": "little"},
        {"size": 24},
    ]
    assert len({Shapes(Path(), **choice).digest for choice in choices}) == len(choices)
    assert Shapes(Path("a"), pad=0).digest == Shapes(Path("b")).digest


def outline(shape: npt.NDArray[np.bool_]) -> str:
    """The kind of a shape, from its bounding box."""
    c = len(shape) // 2
    if shape.all():
        return "square"
    if shape[0].sum() < shape[-1].sum():
        return "triangle"
    if not shape[c, c + 2]:
        return "ring"
    corner = c // 3 + 1
    return "disc" if shape[c - corner, c - corner] else "cross"


def direction(right: float, down: float) -> str:
    """Where a dot lies from the centre of a shape."""
    if max(abs(right), abs(down)) < 1:
        return "inside"
    return "beside" if abs(right) > abs(down) else "above" if down < 0 else "below"


@pytest.mark.parametrize(("size", "clutter"), [(32, "much"), (24, "little")])
def test_labels_and_masks_are_what_the_pixels_show(size: Literal[24, 32], clutter: Literal["much", "little"]) -> None:
    data = Shapes(Path(), train_size=500, size=size, clutter=clutter)
    images, labels = data.load("train")
    seen = []
    for image, mask in zip(images.numpy(), data.masks("train").numpy(), strict=True):
        dot = mask & (image.min(0) >= 255 - 32)  # white under noise, which no shape is
        assert dot.sum() == 9
        rest = mask & ~dot
        rows, columns = rest.any(1).nonzero()[0], rest.any(0).nonzero()[0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        y, x = (np.mean(where) for where in dot.nonzero())
        seen.append(f"{outline(box)}-{direction(x - columns[[0, -1]].mean(), y - rows[[0, -1]].mean())}")
    assert seen == [data.class_names()[label] for label in labels]


@pytest.mark.parametrize("size", [24, 32])
def test_a_crop_leaves_the_target_whole(size: Literal[24, 32]) -> None:
    data = Shapes(Path(), train_size=2000, size=size)
    rows, columns = (data.masks("train").any(0).any(axis).nonzero() for axis in (1, 0))
    for place in (rows, columns):
        assert place.min() >= data.pad
        assert place.max() < data.size - data.pad


def test_config_is_the_signature() -> None:
    config = yaml.safe_load((REPOSITORY / "conf" / "data" / "shapes.yaml").read_text())
    assert config.pop("_target_") == "bam_exp.data.Shapes"
    parameters = inspect.signature(Shapes).parameters.values()
    assert config == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "wrong", [{"train_size": 30}, {"test_size": 0}, {"pad": 3}, {"seed": -1}, {"flip": 1}, {"clutter": "some"}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shapes(Path(), **wrong)
