"""Batches of photos: the same with any workers and ranks; broken photos are refused by name, or skipped and counted."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from PIL import Image
from torchvision.transforms.v2 import functional

from bam_exp.data import Batches, DataError
from bam_exp.data.photos import loader as photo_loader
from bam_exp.data.photos.crops import decoded, read
from bam_exp.data.photos.folder import photos_in
from bam_exp.data.photos.nvjpeg import decode_batch
from bam_exp.data.photos.workshop import BatchIndices, PhotoDataset

from .photos import cut, data, disguised, empty, equal, first_photo, headless, text, train


def test_every_photo_once_an_epoch_in_another_order_and_crop(small: Path) -> None:
    loader = train(small)
    first = list(loader)
    assert [len(labels) for _, labels in first] == [8, 8, 8, 4]
    assert len(loader) == 4
    assert torch.bincount(torch.cat([labels for _, labels in first])).tolist() == [7, 7, 7, 7]
    images, labels = first[0]
    assert (images.dtype, labels.dtype, images.shape) == (torch.float32, torch.int64, (8, 3, 32, 32))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert equal(loader, first)
    loader.sampler.set_epoch(1)
    assert not any(torch.equal(x, u) for (x, _), (u, _) in zip(loader, first, strict=True))
    assert not equal(train(small, seed=6), first)


def test_the_same_batches_on_any_workers_and_ranks(small: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(train(small))
    assert equal(train(small, workers=2), alone)
    assert equal(train(small, workers=1), alone)
    for world_size in (2, 3):
        shares = [train(small, rank=rank, world_size=world_size, workers=rank) for rank in range(world_size)]
        together = [[torch.cat(parts) for parts in zip(*batch, strict=True)] for batch in zip(*shares, strict=True)]
        assert equal(together, alone)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("handed_out", "workers"), [(0, 0), (1, 0), (2, 2), (3, 0), (4, 1)])
def test_an_interrupted_epoch_goes_on_bitwise(small: Path, handed_out: int, workers: int) -> None:
    loader = train(small, workers=workers)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(handed_out):
        next(batches)
    resumed = train(small)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert resumed.state_dict() == {"epoch": 2, "batch": handed_out}
    assert equal(batches, resumed)
    assert equal(loader, resumed)  # the same epoch again is whole


def test_a_run_trains_on_photos_and_hears_of_every_epoch(
    bam_train: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = []
    original = Batches.set_epoch
    monkeypatch.setattr(Batches, "set_epoch", lambda self, epoch: (announced.append(epoch), original(self, epoch)))
    words = (
        f"data_root={small}", "data=imagenet", "data.classes=4", "data.size=32", "backbone=resnet18_imagenet",
        "backbone.widen=0.125", "attention.reduction=4", "recipe=imagenet", "recipe.batch_size=8", "recipe.epochs=2",
        "trainer.device=cpu", "trainer.threads=1",
    )  # fmt: skip
    assert bam_train(*words).code == 0
    [result] = [json.loads(file.read_text()) for file in tmp_path.glob("runs/imagenet*/**/result.json")]
    assert set(announced) == {0, 1}
    assert result["figures_from"]["data_digest"] == data(small).digest
    assert result["metrics"]["top1_error"] in [100 * wrong / 8 for wrong in range(9)]


@pytest.mark.parametrize(
    ("cuda", "variables", "world_size", "expected"),
    [
        (True, {}, 1, 16),
        (True, {}, 8, 2),
        (True, {"LOCAL_WORLD_SIZE": "4"}, 8, 4),
        (True, {"SLURM_CPUS_PER_TASK": "16"}, 8, 16),
        (True, {}, 64, 1),
        (False, {}, 1, 2),
    ],
)
def test_workers_share_the_cores(
    cuda: bool, variables: dict[str, str], world_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert photo_loader.default_workers(torch.device("cuda" if cuda else "cpu"), world_size) == expected


# --- odd and broken photos ---


def test_odd_photos_are_those_that_pil_sees(small: Path) -> None:
    files = disguised(small)
    data(small).prepare()
    for file in files:
        seen = functional.pil_to_tensor(Image.open(file).convert("RGB"))
        assert torch.equal(decoded(read(file), file), seen)
    assert [len(labels) for _, labels in train(small)] == [8, 8, 8, 4]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut, "truncated"), (empty, "the file is empty"), (text, "cannot identify image file"), (headless, "")],
)
def test_a_broken_photo_is_refused_by_name_or_skipped_and_counted(
    small: Path, damage: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = first_photo(small)
    damage(path)
    if damage is not headless:
        with pytest.raises(DataError, match=rf"{path.name}: not a photo .*{reason}.*data.broken=skip"):
            data(small).prepare()
    for workers in (0, 2):
        with pytest.raises(DataError) as refused:
            list(train(small, workers=workers))
        assert path.name in str(refused.value)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
    loader = train(small, {"broken": "skip"}, workers=2)
    data(small, broken="skip").prepare()
    capfd.readouterr()
    for _ in range(2):  # epochs
        assert sum(len(labels) for _, labels in loader) == 27
    assert list(loader.skipped) == [line for line in loader.skipped if path.name in line]
    assert len(loader.skipped) == 1
    shown = capfd.readouterr().err
    assert shown.count(path.name) == 1
    assert "skipped (1 so far): " in shown
    assert "Traceback" not in shown


def test_photos_without_the_broken_one_stay_as_they_were(small: Path) -> None:
    whole = {tuple(image.flatten().tolist()) for images, _ in train(small) for image in images}
    cut(first_photo(small))
    rest = {tuple(image.flatten().tolist()) for images, _ in train(small, {"broken": "skip"}) for image in images}
    assert rest < whole
    assert len(whole - rest) == 1


def test_evaluation_leaves_a_broken_photo_out_and_keeps_the_labels_right(small: Path) -> None:
    cut(first_photo(small, "val"))
    loader = data(small, broken="skip").loader("test", batch_size=8, seed=0, device="cpu", workers=0)
    [(_, labels)] = loader
    assert labels.tolist() == [0, 1, 1, 2, 2, 3, 3]
    in_pairs = data(small, broken="skip").loader("test", batch_size=2, seed=0, device="cpu")
    assert [len(labels) for _, labels in in_pairs] == [1, 2, 2, 2]


def test_a_batch_of_nothing_but_broken_photos_is_refused(small: Path) -> None:
    for file in (small / "train").rglob("*.JPEG"):
        empty(file)
    with pytest.raises(DataError, match="too few photos of a batch of 8"):
        list(train(small, {"broken": "skip"}))


def test_a_photo_that_vanishes_is_named(small: Path) -> None:
    loader = train(small)
    first_photo(small).unlink()
    with pytest.raises(DataError, match=rf"{first_photo(small).parent.name}.*No such file"):
        list(loader)


def test_prepare_names_the_first_of_several_broken_photos(small: Path) -> None:
    for file in sorted((small / "train").rglob("*.JPEG"))[:3]:
        cut(file)
    with pytest.raises(DataError, match="and 2 more such files"):
        data(small).prepare()


# --- nvJPEG ---


def test_decoding_a_whole_batch_gives_the_same_batch(small: Path) -> None:
    """The form for nvJPEG, on the CPU with libjpeg: the same photos, labels and crops; broken photos are named."""
    disguised(small)
    cut(sorted((small / "train/n02102040").iterdir())[0])
    empty(sorted((small / "train/n02102040").iterdir())[1])
    found = photos_in(small / "train")
    assert found is not None
    request = BatchIndices(3, np.random.default_rng(0).permutation(28))
    batch = PhotoDataset(found, 32, 5, train=True, encoded=False)[request]
    encoded = PhotoDataset(found, 32, 5, train=True, encoded=True)[request]
    assert len(encoded.decoded) == 4  # CMYK and three PNGs
    ours = decode_batch(encoded, found, 32, torch.device("cpu"))
    assert torch.equal(ours.labels, batch.labels)
    assert len(batch.labels) == 26
    assert (ours.pixels.int() - batch.pixels.int()).abs().max() <= 1
    assert sorted(ours.broken) == sorted(batch.broken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_serves_nearly_the_cpus_batches(small: Path) -> None:
    disguised(small)
    on_gpu = train(small, device="cuda", workers=2)
    assert on_gpu.nvjpeg
    batches = list(on_gpu)
    for (images, labels), (other, same) in zip(batches, train(small), strict=True):
        assert images.is_cuda
        assert torch.equal(labels.cpu(), same)
        assert (images.cpu() - other).abs().mean() < 0.02  # a level is 0.017
    assert equal(on_gpu, batches)
