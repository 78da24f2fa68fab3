"""Batches of photos with boxes are the same however they are made: by workers, by shares, after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bam_exp.data import COCO, VOC
from bam_exp.data.target import Target
from bam_exp.errors import DataError

Batch = tuple[Tensor, list[Target]]


def batches(data: COCO | VOC, *, epoch: int = 0, **knobs: Any) -> list[Batch]:
    loader = data.loader("train", **{"batch_size": 9, "seed": 3, "device": "cpu", "workers": 0, **knobs})
    loader.set_epoch(epoch)
    return [batch for batch, _ in zip(loader, range(3), strict=False)]


def assert_same(first: Batch, second: Batch) -> None:
    assert torch.equal(first[0], second[0])
    for one, other in zip(first[1], second[1], strict=True):
        assert (one.number, one.size, one.seed) == (other.number, other.size, other.seed)
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def voc(voc_mini: Path) -> VOC:
    return VOC(voc_mini, official=False, train=["VOC2007/trainval"])


@pytest.fixture(scope="module")
def coco(tiny_coco: Path) -> COCO:
    return COCO(tiny_coco, official=False, size=120, long_side=200)


def test_workers_make_the_same_batches(voc: VOC) -> None:
    for first, second in zip(batches(voc), batches(voc, workers=2), strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("which", ["voc", "coco"])
def test_the_shares_of_two_processes_are_the_batch(which: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(which)
    shares = [batches(data, rank=rank, world_size=2) for rank in range(2)]
    for whole, left, right in zip(batches(data), *shares, strict=True):
        assert_same(whole, (torch.cat([left[0], right[0]]), left[1] + right[1]))


def test_an_epoch_goes_on_where_it_was_left(voc: VOC) -> None:
    loader = voc.loader("train", batch_size=8, seed=3, device="cpu", workers=0)
    loader.set_epoch(1)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    following = next(iterator)
    other = voc.loader("train", batch_size=8, seed=3, device="cpu", workers=0)
    other.load_state_dict(state)
    assert_same(next(iter(other)), following)


def test_epochs_and_seeds_differ(voc: VOC) -> None:
    first = batches(voc)[0][0]
    assert not torch.equal(first, batches(voc, epoch=1)[0][0])
    assert not torch.equal(first, batches(voc, seed=4)[0][0])
    seeds = [one.seed for epoch in range(2) for _, targets in batches(voc, epoch=epoch) for one in targets]
    assert len(set(seeds)) == len(seeds) == 2 * 27


def test_inputs_of_different_sizes_are_padded_with_zeros(coco: COCO) -> None:
    images, targets = batches(coco)[0]
    assert images.shape[2] % 32 == images.shape[3] % 32 == 0
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert len({target.size for target in targets}) > 1
    for image, target in zip(images, targets, strict=True):
        height, width = target.size
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert image[:, :height, :width].abs().sum() > 0
        assert (target.boxes[:, 2:] <= torch.tensor([width, height]) + 1).all()


def test_the_test_set_is_in_order_and_as_it_is(voc: VOC) -> None:
    loader = voc.loader("test", batch_size=50, seed=0, device="cpu", workers=0)
    numbers = []
    for images, targets in loader:
        numbers += [target.number for target in targets]
        assert images.shape[2:] == (300, 300)
    assert numbers == list(range(voc.test_size))


@pytest.mark.parametrize("damage", ["cut", "resized"])
def test_a_damaged_photo_is_named(voc_mini: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    from PIL import Image

    root = tmp_path / "copy"
    shutil.copytree(voc_mini, root)
    folder = root / "VOCdevkit/VOC2007"
    name = (folder / "ImageSets/Main/test.txt").read_text().split()[2]
    path = folder / f"JPEGImages/{name}.jpg"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        Image.new("RGB", (17, 19)).save(path)
    data = VOC(root, official=False, train=["VOC2007/trainval"])
    with pytest.raises(DataError, match=name):
        next(iter(data.loader("test", batch_size=4, seed=0, device="cpu", workers=0)))
