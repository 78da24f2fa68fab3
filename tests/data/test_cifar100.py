"""CIFAR100 reads the official files and no others."""

import hashlib
import inspect
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import REPOSITORY
from torchvision.transforms.v2.functional import pil_to_tensor

from bam_exp.data import CIFAR100, DataError, cifar100

# --- The real files


@pytest.fixture(scope="session")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_root with the whole of CIFAR-100."""
    root = tmp_path_factory.mktemp("cifar100")
    subprocess.run(
        [sys.executable, shared / "data" / "cifar100" / "unpack.py", root], check=True, stdout=subprocess.DEVNULL
    )
    return root


def test_real_files_are_complete_and_balanced(real: Path) -> None:
    data = CIFAR100(real)
    data.prepare()
    splits: list[tuple[Literal["train", "test"], int]] = [("train", data.train_size), ("test", data.test_size)]
    for split, count in splits:
        images, labels = data.load(split)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (count, 3, data.size, data.size)
        assert labels.bincount().tolist() == [count // 100] * data.num_classes


def test_mean_and_std_are_the_train_sets(real: Path) -> None:
    images, _ = CIFAR100(real).load("train")
    pixel = torch.arange(256) / 255
    for channel in range(3):
        frequency = images[:, channel].flatten().bincount(minlength=256) / images[:, channel].numel()
        mean = (frequency * pixel).sum()
        assert CIFAR100.mean[channel] == pytest.approx(mean.item(), abs=6e-5)
        assert CIFAR100.std[channel] == pytest.approx((frequency * (pixel - mean) ** 2).sum().sqrt().item(), abs=6e-5)


def test_real_images_and_names_are_torchvisions(real: Path) -> None:
    images, labels = CIFAR100(real).load("test")
    theirs = torchvision.datasets.CIFAR100(real, train=False)
    assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
    assert labels.tolist() == theirs.targets
    assert CIFAR100(real).class_names() == theirs.classes
    first, _ = CIFAR100(real).load("train")
    image, _ = torchvision.datasets.CIFAR100(real, train=True)[0]
    assert torch.equal(first[0], pil_to_tensor(image))


@pytest.mark.parametrize("name", ["test", "meta"])
def test_an_altered_file_is_named_with_both_digests(real: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(real / cifar100.FOLDER, tmp_path / cifar100.FOLDER)
    path = tmp_path / cifar100.FOLDER / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-1], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            CIFAR100(tmp_path).prepare()
        message = str(error.value)
        assert "\n" not in message
        for part in (
            str(path),
            hashlib.md5(damaged).hexdigest(),
            cifar100.MD5[name],
            f"`bam-data cifar100 {tmp_path}`",
        ):
            assert part in message


# --- Without the files


def test_missing_data_says_what_to_type(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    data = CIFAR100(root)
    for use in (data.prepare, data.class_names, lambda: data.load("train")):
        with pytest.raises(DataError, match=r"data_root must be") as error:
            use()
        assert f"`bam-data cifar100 '{root}'`" in str(error.value)
        assert "\n" not in str(error.value)


def test_config_is_the_signature() -> None:
    config = yaml.safe_load((REPOSITORY / "conf" / "data" / "cifar100.yaml").read_text())
    assert config.pop("_target_") == "bam_exp.data.CIFAR100"
    parameters = inspect.signature(CIFAR100).parameters.values()
    assert config == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    with pytest.raises(ValueError, match="pad"):
        CIFAR100(Path(), pad=-1)


class Malicious:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("function", [eval, print, Path.touch, torch.load, np.load, getattr])
def test_a_pickle_that_calls_anything_is_refused(function: object) -> None:
    content = pickle.dumps({"data": Malicious(function, "1")}, protocol=2)
    with pytest.raises(DataError, match=r"^refused a pickle that names [^\n]*$"):
        cifar100.unpickle(content)
