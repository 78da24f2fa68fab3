"""Every row of Table 3(b) trains and is tested on photos of all 1,000 classes, through bam-train; its times are in its result."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from bam_exp import tables

ROWS = {row.name: row for row in tables.load_table("table3b").rows}
QUICK = ("resnet18_bam", "mobilenet_bam", "squeezenet_bam")
"""The others run by `make test-faults`."""

SMALL = (
    "data.size=64", "recipe=imagenet_short", "recipe.batch_size=8", "recipe.max_steps=2", "recipe.lr=0.01",
    "trainer.threads=1", "trainer.device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo of each of ImageNet's classes, to train and to test on."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(shared / "data/imagenet-1k-mini.tar") as tar:
        tar.extractall(folder, filter="data")
    (folder / "imagenet-1k-mini/train").symlink_to("val")
    return folder / "imagenet-1k-mini"


def result(folder: Path) -> dict[str, Any]:
    [path] = folder.glob("runs/**/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    for checkpoint in folder.glob("runs/**/checkpoint-*.pt"):
        checkpoint.unlink()  # up to 360 MB
    return found


@pytest.mark.parametrize(
    "row", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.faults) for name in ROWS]
)
def test_every_row_trains_and_is_tested(bam_train: Command, photos: Path, tmp_path: Path, row: str) -> None:
    ended = bam_train(f"+row/table3b={row}", f"data_root={photos}", *SMALL)
    assert ended.code == 0, ended.err
    assert " ms a step" in ended.err
    found = result(tmp_path)
    assert found["metrics"]["test_images"] == 16
    assert 0 < found["metrics"]["train_loss"] < 30
    printed = ROWS[row].paper["params"]
    assert found["params"] / 1e6 == pytest.approx(float(printed.rstrip("M")), abs=0.1)
    [times] = found["times"]
    assert (
        0 < times["data_wait_seconds"] < times["train_seconds"] == pytest.approx(2 * times["step_ms"] / 1000, abs=0.01)
    )
    assert 0 < times["test_seconds"] + times["train_seconds"] < found["seconds_per_epoch"]


def test_skipped_photos_are_counted_in_every_epoch(bam_train: Command, shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data/imagenette2-mini.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "imagenette2-mini"
    for folder in root.glob("*/*"):
        for photo in sorted(folder.iterdir())[6:]:
            photo.unlink()
    photo = min((root / "train").rglob("*.JPEG"))
    photo.write_bytes(photo.read_bytes()[:2000])
    words = ("recipe.epochs=2", "recipe.batch_size=16", "trainer.threads=1", "trainer.device=cpu", "trainer.devices=2")
    ended = bam_train(
        "data=imagenet",
        "data.classes=10",
        "data.broken=skip",
        "data.size=32",
        f"data_root={root}",
        "attention=none",
        *words,
    )
    assert ended.code == 0, ended.err
    assert ended.err.count("1 images skipped") == 2
    assert [epoch["train/skipped_images"] for epoch in result(tmp_path)["epochs"]] == [1, 1]
