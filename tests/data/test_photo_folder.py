"""Listing photos: what file systems, archivers and people leave among the classes, and what cannot be read."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bam_exp.data import DataError, ImageNet
from bam_exp.data.photos import folder
from bam_exp.data.photos.folder import photos_in
from bam_exp.data.photos.workshop import BatchIndices, PhotoDataset, _identity, _init_worker


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of one photo each in both splits."""
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.png")
    return tmp_path


def data(root: Path, classes: int = 3, **settings: Any) -> ImageNet:
    return ImageNet(root, size=32, classes=classes, **settings)


def refusal(data: ImageNet) -> str:
    with pytest.raises(DataError) as refused:
        data.prepare()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"])
@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
def test_folders_of_the_system_are_no_classes(root: Path, name: str, splits: tuple[str, ...]) -> None:
    before = data(root).digest
    for split in splits:
        (root / split / name / "ant").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / split / name / "thumbnail.png")
    data(root).prepare()
    assert data(root).digest == before
    assert data(root).class_names() == ["ant", "bee", "cat"]


def test_the_advice_for_a_folder_without_photos_leads_on(root: Path) -> None:
    (root / "train/notes").mkdir()
    message = refusal(data(root))
    assert f"{root}/train/notes: holds no photos" in message
    assert "move it away" in message
    assert "would fit" not in message
    (root / "train/notes").rmdir()
    data(root).prepare()


def test_photos_in_subfolders_of_a_class_are_explained(root: Path) -> None:
    """The layout of Tiny ImageNet."""
    for name in ("ant", "bee", "cat"):
        photo = root / "train" / name / "0.png"
        (photo.parent / "images").mkdir()
        photo.rename(photo.parent / "images/0.png")
    message = refusal(data(root))
    assert "train/ant: holds no photos (.JPEG, .png, ...), and neither do 2 more folders" in message
    assert "photos in subfolders are not read" in message


def test_data_classes_is_advised_only_where_it_helps(root: Path) -> None:
    assert "data.classes=3 would fit" in refusal(data(root, classes=4))
    (root / "train/dog").mkdir()
    Image.new("RGB", (40, 40)).save(root / "train/dog/0.png")
    assert "train: has 4 class folders for data.classes=3; class dog is in train only" in refusal(data(root))
    assert "val: has 3 class folders for data.classes=4; class dog is in train only" in refusal(data(root, classes=4))


def test_a_link_that_leads_nowhere_is_named_and_not_left_out(root: Path) -> None:
    (root / "train/ant/1.png").symlink_to(root / "gone.png")
    assert data(root).train_size == 4
    assert f"{root}/train/ant/1.png: No such file" in refusal(data(root))
    data(root, broken="skip").prepare()
    loader = data(root, broken="skip").loader("train", batch_size=4, seed=0, device="cpu", workers=0)
    assert [len(labels) for _, labels in loader] == [3]
    assert "1.png" in next(iter(loader.skipped))


def test_what_is_no_file_is_no_photo(root: Path) -> None:
    """A pipe would block whoever opens it."""
    os.mkfifo(root / "train/ant/pipe.png")
    (root / "train/ant/folder.png").mkdir()
    (root / "train/ant/linked.png").symlink_to(root / "train/bee/0.png")
    data(root).prepare()
    assert data(root).train_size == 4


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: Path) -> Any:
        if path.name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", denied)
    assert f"{root}/train/bee: cannot be read (Permission denied)" in refusal(data(root))
    with pytest.raises(DataError, match="bee: cannot be read"):
        _ = data(root).digest


def test_a_user_without_a_home_needs_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number without a name."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(folder, "CACHED_FROM", 1)
    monkeypatch.setattr(folder, "TIME_RESOLUTION", -(10**18))

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    data(root).prepare()


def test_a_cache_that_cannot_be_written_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    monkeypatch.setattr(folder, "CACHED_FROM", 1)
    monkeypatch.setattr(folder, "TIME_RESOLUTION", -(10**18))
    data(root).prepare()


def test_workers_may_be_spawned(root: Path) -> None:
    """As on macOS, where their work is sent to them by pickle."""
    photos = photos_in(root / "train")
    assert photos is not None
    work = (
        PhotoDataset(photos, 32, 0, train=True, encoded=False),
        BatchIndices(0, photos.labels),
        _init_worker,
        _identity,
    )
    again, request, *_ = pickle.loads(pickle.dumps(work))
    assert again[request].pixels.equal(work[0][work[1]].pixels)


def test_the_library_needs_no_signal_or_affinity_of_linux() -> None:
    program = "import os; del os.sched_getaffinity; import bam_exp.data, bam_exp.weights"
    subprocess.run([sys.executable, "-c", program], check=True)
