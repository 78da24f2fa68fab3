"""Real photos for the tests of data."""

import shutil
import tarfile
from pathlib import Path

import pytest


def unpacked(tar: Path, folder: Path) -> Path:
    with tarfile.open(tar) as content:
        content.extractall(folder, filter="data")
    return folder / tar.stem


@pytest.fixture(scope="session")
def imagenette(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, 150 train and 40 val photos each."""
    return unpacked(shared / "data/imagenette2-mini.tar", tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def mini(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of each of the 1,000 classes, in val."""
    return unpacked(shared / "data/imagenet-1k-mini.tar", tmp_path_factory.mktemp("photos"))


@pytest.fixture
def small(imagenette: Path, tmp_path: Path) -> Path:
    """Copies of four classes: 7 train and 2 val photos each."""
    for split, count in (("train", 7), ("val", 2)):
        for folder in sorted((imagenette / split).iterdir())[:4]:
            copy = tmp_path / "small" / split / folder.name
            copy.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, copy)
    return tmp_path / "small"
