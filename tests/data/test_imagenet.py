"""ImageNet's folders: every wrong layout is refused by name, and a digest stands for the photos."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command

from bam_exp.data import DataError, ImageNet, imagenet
from bam_exp.data.imagenet import official_classes
from bam_exp.data.photos import folder
from bam_exp.data.photos.folder import Photos

from .photos import data, first_photo


def test_the_classes_are_the_official_ones(shared: Path) -> None:
    with tarfile.open(shared / "data/imagenet-1k-mini.tar") as tar:
        content = tar.extractfile("imagenet-1k-mini/synsets.txt")
        assert content is not None
        lines = [line.split("\t") for line in content.read().decode().splitlines()]
    assert list(official_classes().items()) == [(wnid, words) for wnid, words in lines]
    assert list(official_classes()) == sorted(official_classes())
    assert ImageNet(Path("nowhere")).class_names()[0] == "tench, Tinca tinca"


def test_root_is_the_folder_or_the_one_around_it(small: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    small.rename(tmp_path / "around/imagenet")
    around, itself = data(tmp_path / "around"), data(tmp_path / "around/imagenet")
    assert around.digest == itself.digest
    assert (around.train_size, around.test_size) == (28, 8)
    names = [
        "tench, Tinca tinca",
        "English springer, English springer spaniel",
        "cassette player",
        "chain saw, chainsaw",
    ]
    assert around.class_names() == names


def rename_a_class(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "n01440764").rename(root / split / "n99999999")


BAD_FOLDERS: dict[str, tuple[Any, str]] = {
    "no val": (lambda root: shutil.rmtree(root / "val"), r"val: no such folder; data_root must be"),
    "no train": (lambda root: shutil.rmtree(root / "train"), r"train: no such folder"),
    "nothing": (shutil.rmtree, r"imagenet/train: no such folder"),
    "an empty class": (
        lambda root: [file.unlink() for file in (root / "train/n01440764").iterdir()],
        r"train/n01440764: holds no photos",
    ),
    "a class in train only": (
        lambda root: (root / "val/n02979186").rename(root / "val/n02979187"), r"class n02979186 .cassette player. is in train only"
    ),
    "too few classes": (
        lambda root: shutil.rmtree(root / "train/n01440764"),
        r"train: has 3 class folders for data.classes=4; class n01440764 \(tench\) is in val only",
    ),
    "files, not folders": (
        lambda root: (shutil.rmtree(root / "val"), (root / "val").mkdir(), (root / "val/1.JPEG").touch()),
        r"val: holds files but no class folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(small: Path, name: str) -> None:
    spoil, message = BAD_FOLDERS[name]
    spoil(small)
    with pytest.raises(DataError, match=message) as refused:
        data(small).prepare()
    assert "\n" not in str(refused.value)


def test_one_class_of_a_thousand_missing_or_misspelt_is_named(mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini / "val", tmp_path / "train", copy_function=os.link)
    shutil.copytree(mini / "val", tmp_path / "val", copy_function=os.link)
    ImageNet(tmp_path).prepare()
    (tmp_path / "train/n01440764").rename(tmp_path / "train/n01440765")
    with pytest.raises(
        DataError, match=r"train: n01440765 is no class of ImageNet-1K, and n01440764 \(tench\) is missing"
    ):
        ImageNet(tmp_path).prepare()
    shutil.rmtree(tmp_path / "train/n01440765")
    with pytest.raises(DataError, match=r"has 999 class folders for data.classes=1000, n01440764 \(tench\) is missing"):
        ImageNet(tmp_path).prepare()


def test_a_run_on_bad_folders_ends_in_one_line(bam_train: Command, small: Path) -> None:
    ended = bam_train(f"data_root={small}", "data=imagenet", "recipe=imagenet", "backbone=resnet18_imagenet")
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert "has 4 class folders for data.classes=1000" in line


def test_the_digest_is_of_names_and_sizes(small: Path) -> None:
    before = data(small).digest
    assert before.startswith("photos 28 ")
    path = first_photo(small)
    path.rename(path.with_name("other.JPEG"))
    renamed = data(small).digest
    path.with_name("other.JPEG").rename(path)
    assert renamed != before == data(small).digest
    shutil.copy(path, path.with_name("twice.JPEG"))
    assert data(small).train_size == 29
    (path.parent / ".hidden.JPEG").touch()
    (path.parent / "list.txt").touch()
    assert data(small).train_size == 29


def test_the_official_photos_and_no_photos_have_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of finished runs is made where the photos are not; photos made smaller are others."""
    absent = ImageNet(tmp_path)
    assert (absent.train_size, absent.test_size) == (1_281_167, 50_000)

    def made_up(share: float) -> dict[str, Photos]:
        found = {}
        for split, count in imagenet.COUNTS.items():
            labels = np.arange(count) % 1000
            sizes = np.full(count, int(imagenet.TARS[split] * share / count))
            name = imagenet.FOLDERS[split]  # type: ignore[index]
            found[name] = Photos(tmp_path, tuple(official_classes()), np.zeros(count, dtype="S1"), labels, sizes)
        return found

    official, smaller = made_up(0.9935), made_up(0.4)
    digest = absent.digest
    monkeypatch.setattr(imagenet, "photos_in", lambda folder: official[folder.name])
    assert ImageNet(tmp_path).digest == digest
    monkeypatch.setattr(imagenet, "photos_in", lambda folder: smaller[folder.name])
    assert ImageNet(tmp_path).digest != digest
    assert ImageNet(tmp_path / "a", classes=10).digest != digest


def test_a_large_listing_is_kept_until_a_folder_changes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "CACHED_FROM", 1)
    for class_folder in small.rglob("n0*"):
        os.utime(class_folder, (1, 1))
    before = data(small).digest
    [kept, _] = sorted((tmp_path / "cache/bam_exp").iterdir())
    for spoil in (lambda: None, lambda: kept.write_bytes(b"PK"), kept.unlink):
        spoil()
        folder._cached.cache_clear()
        assert data(small).digest == before
    folder._cached.cache_clear()
    with monkeypatch.context() as without:  # served from the file: the classes' folders are not read
        without.setattr(folder.os, "fsencode", pytest.fail)
        assert data(small).digest == before
    data(small).prepare()
    first_photo(small).write_bytes(bytes(first_photo(small).stat().st_size))
    data(small).prepare()  # what has passed is not looked at again
    (first_photo(small).parent / "more.JPEG").touch()
    assert data(small).digest != before
