"""Every data set keeps the contract, and is checked once."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY

from bam_exp import data
from bam_exp.data import CIFAR100, DataSet, Shapes, cifar100, imagenet
from bam_exp.data.photos import folder

from .photos import data as imagenet_of

CHOICES = sorted(REPOSITORY.glob("conf/data/*.yaml"))


@pytest.mark.parametrize("choice", CHOICES, ids=lambda path: path.stem)
def test_a_data_set_offers_the_contract_without_any_files(choice: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(choice.read_text())
    package, _, name = settings.pop("_target_").rpartition(".")
    assert package == "bam_exp.data"
    data_set = getattr(data, name)(tmp_path, **settings)
    members = [member for member in vars(DataSet) if not member.startswith("_")]
    assert len(members) == 8
    for member in members:
        getattr(data_set, member)
    assert all(isinstance(size, int) for size in (data_set.train_size, data_set.test_size, data_set.size))
    assert isinstance(data_set.digest, str)


def test_batches_are_images_and_labels_as_the_contract_says() -> None:
    shapes: DataSet = Shapes(Path(), train_size=40, test_size=20)
    [(images, labels)] = shapes.loader("test", batch_size=32, seed=0, device="cpu")
    assert (images.dtype, images.shape) == (torch.float32, (20, 3, shapes.size, shapes.size))
    assert (labels.dtype, len(shapes.class_names())) == (torch.int64, shapes.num_classes)


def test_cifars_files_are_hashed_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / cifar100.FOLDER).mkdir()
    for name in cifar100.MD5:
        (tmp_path / cifar100.FOLDER / name).write_bytes(name.encode())
        monkeypatch.setitem(cifar100.MD5, name, cifar100.hashlib.md5(name.encode()).hexdigest())
    hashed: list[int] = []
    md5 = cifar100.hashlib.md5
    monkeypatch.setattr(cifar100.hashlib, "md5", lambda content: (hashed.append(len(content)), md5(content))[1])
    for _ in range(3):
        CIFAR100(tmp_path).prepare()
    assert hashed == [5, 4, 4]
    (tmp_path / cifar100.FOLDER / "test").write_bytes(b"TEST")
    for _ in range(2):
        with pytest.raises(data.DataError, match="test: its md5 is"):
            CIFAR100(tmp_path).prepare()
    (tmp_path / cifar100.FOLDER / "meta").unlink()
    (tmp_path / cifar100.FOLDER / "test").write_bytes(b"test")
    with pytest.raises(data.DataError, match="meta: No such file"):
        CIFAR100(tmp_path).prepare()


def test_photos_are_looked_at_once_and_again_when_they_change(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = folder._begins_and_ends_as_a_jpeg
    monkeypatch.setattr(folder, "_begins_and_ends_as_a_jpeg", lambda path: (seen.append(path), original(path))[1])
    for _ in range(3):
        imagenet_of(small).prepare()
    assert len(seen) == 36
    next(small.rglob("val/*/*.JPEG")).write_bytes(b"")
    with pytest.raises(data.DataError, match="the file is empty"):
        imagenet_of(small).prepare()


def test_the_classes_of_imagenet_are_a_thousand_in_the_order_of_the_labels() -> None:
    classes = imagenet.official_classes()
    assert (len(classes), len(set(classes.values()))) == (1000, 999)  # there are two cranes
    assert list(classes) == sorted(classes)
    assert all(name[0] == "n" and name[1:].isdecimal() and len(name) == 9 for name in classes)
    names = list(classes.values())
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca", "golden retriever", "toilet tissue, toilet paper, bathroom tissue",
    )  # fmt: skip
