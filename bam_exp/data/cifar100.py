"""CIFAR-100 (Krizhevsky 2009): the official `cifar-100-python` folder, read and, if asked to, fetched."""

import hashlib
import io
import pickle
import shlex
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from bam_exp.data.download import fetch, md5_of
from bam_exp.data.on_device import OnDevice
from bam_exp.errors import DataError
from bam_exp.schema import checked

HOST = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
ARCHIVE_SIZE = 169_001_437  # bytes
FOLDER = "cifar-100-python"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


class CIFAR100(OnDevice):
    """50,000 train and 10,000 test images, 3 x 32 x 32, with the 100 fine labels.

    root: the folder that holds `cifar-100-python/` with the official files train, test and meta; nothing is read
    before `prepare`, `load` or `class_names`. pad, flip: the augmentation of the train set, a random crop from that
    many zero pixels on each side and a random horizontal flip [He et al. 2016, section 4.2]. mean, std: of the train
    set's pixels in 0 ... 1.
    """

    num_classes = 100
    size = 32
    train_size, test_size = 50_000, 10_000
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    digest = f"cifar100 md5 {MD5['train']} {MD5['test']}"

    @checked
    def __init__(self, root: Path, *, pad: NonNegativeInt = 4, flip: bool = True) -> None:
        self.root, self.pad, self.flip = root, pad, flip

    def prepare(self) -> None:
        """Read the files and compare their digests; downloads nothing. Raises DataError."""
        for name in MD5:
            self._bytes(name)

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images uint8 N x 3 x 32 x 32 and fine labels int64 N, in the file's order. Raises DataError."""
        content = self._content(split)
        return torch.from_numpy(content["data"]).view(-1, 3, 32, 32), torch.tensor(content["fine_labels"])

    def class_names(self) -> list[str]:
        """Names of the fine labels in their order. Raises DataError."""
        names: list[str] = self._content("meta")["fine_label_names"]
        return names

    def _content(self, name: str) -> dict[str, Any]:
        return unpickle(self._bytes(name))

    def _bytes(self, name: str) -> bytes:
        """The content of a file whose digest is right."""
        path = self.root / FOLDER / name
        command = f"`python -m bam_exp.data cifar100 {shlex.quote(str(self.root))}`"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror}; data_root must be the folder that holds {FOLDER}/, "
                f"and {command} downloads it there"
            ) from error
        found = hashlib.md5(content).hexdigest()
        if found != MD5[name]:
            raise DataError(
                f"{path}: its md5 is {found} ({len(content):,} bytes) and should be {MD5[name]}; {command} replaces it"
            )
        return content


def download(root: Path, *, mirror: str | None = None) -> None:
    """Fetch the official archive and unpack its files to `root`/cifar-100-python, unless they are there and right.

    mirror: https address of a folder that holds the archive, in place of the official one. An interrupted download is
    continued; the archive stays in `root`, so that a file damaged later needs no second download. Raises DataError.
    """
    folder, archive = root / FOLDER, root / ARCHIVE
    if all((folder / name).is_file() and md5_of(folder / name) == md5 for name, md5 in MD5.items()):
        return
    if mirror is None and not archive.exists():
        print(f"169 MB from {HOST}, which sends 50 to 80 kB/s: 35 to 60 minutes", file=sys.stderr)
    fetch(f"{(mirror or HOST).rstrip('/')}/{ARCHIVE}", archive, md5=ARCHIVE_MD5, size=ARCHIVE_SIZE)
    try:
        unpack(archive, folder)
    except OSError as error:
        raise DataError(f"{folder}: {error}") from error


def unpack(archive: Path, folder: Path) -> None:
    """Put train, test and meta of the archive, and nothing else, into `folder`. Raises DataError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, tarfile.open(archive) as tar:
        for name, md5 in MD5.items():
            tar.extract(f"{FOLDER}/{name}", temporary, filter="data")
            extracted = Path(temporary, FOLDER, name)
            if (found := md5_of(extracted)) != md5:
                raise DataError(f"{archive}: the md5 of its {FOLDER}/{name} is {found} and should be {md5}")
            extracted.replace(folder / name)


def unpickle(content: bytes) -> dict[str, Any]:
    """Load a pickle of plain values and arrays as Python 2 wrote CIFAR's; DataError where it names anything else."""
    return dict(_PlainUnpickler(io.BytesIO(content), encoding="latin1").load())


# NumPy 2 moved `_reconstruct`: an array's own `__reduce__` knows it under any version.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise DataError(
                f"refused a pickle that names {module_name}.{global_name}: only plain values and arrays load"
            )
        return _ADMITTED[module_name, global_name]
