"""CIFAR-100 (Krizhevsky 2009): reading the official `cifar-100-python` folder, and downloading it."""

import gzip
import hashlib
import io
import pickle
import shlex
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from bam_exp.data.dataset import Split
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

_verified: set[tuple[Path, int, int]] = set()
"""Path, size and modification time of files whose digest this process has found right."""


class CIFAR100(OnDevice):
    """50,000 training and 10,000 test images, 3 x 32 x 32, with the 100 fine labels.

    Augmentation of the training set: zero padding, a random crop and a random horizontal flip [He et al. 2016, section
    4.2]. `mean` and `std` are those of the training set's pixels, scaled to 0 ... 1.

    Args:
        root: the folder that holds `cifar-100-python/` with the official files train, test and meta.
        pad: zero pixels added on each side before the crop.
        flip: whether images are mirrored with probability 0.5.
    """

    reads = ()
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
        """Check the digests of the files, each once per process unless its size or time changes. Raises DataError."""
        for name in MD5:
            if self._stamp(name) not in _verified:
                self._bytes(name)

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the images, uint8 N x 3 x 32 x 32, and fine labels, int64 N, in the file's order. Raises DataError."""
        content = self._content(split)
        return torch.from_numpy(content["data"]).view(-1, 3, 32, 32), torch.tensor(content["fine_labels"])

    def class_names(self) -> list[str]:
        """Names of the fine labels, in the order of the labels. Raises DataError."""
        names: list[str] = self._content("meta")["fine_label_names"]
        return names

    def _content(self, name: str) -> dict[str, Any]:
        return unpickle(self._bytes(name))

    def _stamp(self, name: str) -> tuple[Path, int, int]:
        """Path, size and modification time of a file. Raises DataError."""
        path = (self.root / FOLDER / name).absolute()
        try:
            status = path.stat()
        except OSError as error:
            raise self._unreadable(name, error) from error
        return path, status.st_size, status.st_mtime_ns

    def _bytes(self, name: str) -> bytes:
        """Read a file and check its digest, unless this process has done so before. Raises DataError."""
        stamp, path = self._stamp(name), self.root / FOLDER / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from error
        if stamp not in _verified:
            md5 = hashlib.md5(content).hexdigest()
            if md5 != MD5[name]:
                raise DataError(
                    f"{path}: its md5 is {md5} ({len(content):,} bytes) and should be {MD5[name]}; "
                    f"{self._command()} replaces it"
                )
            _verified.add(stamp)
        return content

    def _unreadable(self, name: str, error: OSError) -> DataError:
        return DataError(
            f"{self.root / FOLDER / name}: {error.strerror}; data_root must be the folder that holds {FOLDER}/, "
            f"and {self._command()} downloads it there"
        )

    def _command(self) -> str:
        return f"`bam-data cifar100 {shlex.quote(str(self.root))}`"


def download(root: Path, *, mirror: str | None = None) -> None:
    """Download the official archive and unpack its files to `root`/cifar-100-python, unless they are there and right.

    An interrupted download continues. The archive stays in `root`, so that a file damaged later needs no second download.
    mirror: https address of a folder that holds the archive; None for the official one. Raises DataError.
    """
    folder, archive = root / FOLDER, root / ARCHIVE
    try:
        if all((folder / name).is_file() and md5_of(folder / name) == md5 for name, md5 in MD5.items()):
            return
        if mirror is None and not archive.exists():
            print(f"169 MB from {HOST}, which sends 50 to 80 kB/s: 35 to 60 minutes", file=sys.stderr)
        fetch(f"{(mirror or HOST).rstrip('/')}/{ARCHIVE}", archive, md5=ARCHIVE_MD5, size=ARCHIVE_SIZE)
        unpack(archive, folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error


def unpack(archive: Path, folder: Path) -> None:
    """Extract train, test and meta, and nothing else, from the archive into `folder`. Raises DataError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for name in MD5:
                    tar.extract(f"{FOLDER}/{name}", temporary, filter="data")
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, KeyError) as error:
            raise DataError(f"{archive}: cannot be unpacked ({' '.join(str(error).split())})") from error
        for name, md5 in MD5.items():
            extracted = Path(temporary, FOLDER, name)
            if (actual := md5_of(extracted)) != md5:
                raise DataError(f"{archive}: the md5 of its {FOLDER}/{name} is {actual} and should be {md5}")
            extracted.replace(folder / name)


def unpickle(content: bytes) -> dict[str, Any]:
    """Load a pickle of plain values and arrays as Python 2 wrote CIFAR's. Raises DataError if it names anything else."""
    return dict(_PlainUnpickler(io.BytesIO(content), encoding="latin1").load())


# NumPy 2 moved `_reconstruct`; the `__reduce__` of an array refers to it in any version.
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
