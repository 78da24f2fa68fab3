"""Folders of photos, a folder a class: what is in them, kept so that a million files are looked through once."""

import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bam_exp.data.photos.crops import decoded, read
from bam_exp.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What the name of a photo ends in, in any case."""

KEPT_FROM = 10_000
"""Photos from which on it is worth a file to remember what was found."""

TICK = 2 * 10**9
"""Nanoseconds within which two changes of a folder may have one time."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a split in their order: by the name of the class, then by their own.

    Arrays, not lists: worker processes then share them with the process that they were forked from.
    """

    folder: Path
    classes: tuple[str, ...]
    names: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    """Bytes."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of a photo."""
        name: bytes = self.names[index]
        return self.folder / self.classes[int(self.labels[index])] / os.fsdecode(name)

    @cached_property
    def digest(self) -> str:
        """Of the classes, names and sizes; no pixel is read."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for part in (self.names, self.labels, self.sizes):
            digest.update(str(part.dtype).encode() + part.tobytes())
        return digest.hexdigest()[:16]

    def check(self) -> None:
        """Refuse files that are cut off, empty or no photos at all, by their first and last bytes.

        Damage inside a file goes unnoticed. What has passed is not looked at again. Raises DataError.
        """
        passed = _cache_folder() / f"passed-{self.digest}"
        if passed.is_file():
            return
        if len(self) >= KEPT_FROM:
            print(
                f"{self.folder}: looking at both ends of {len(self):,} photos, this once", file=sys.stderr, flush=True
            )
        with ThreadPoolExecutor(16) as readers:
            portions = readers.map(self._wrong, (range(len(self))[i : i + 500] for i in range(0, len(self), 500)))
            wrong = [line for portion in portions for line in portion]
        if wrong:
            more = f", and {len(wrong) - 1} more such files" if len(wrong) > 1 else ""
            raise DataError(f"{wrong[0]}{more}; replace what is damaged, or data.broken=skip leaves it out")
        if len(self) >= KEPT_FROM:
            _remember(passed, Path.touch)

    def _wrong(self, indices: range) -> list[str]:
        found = []
        for path in map(self.path, indices):
            try:
                if not _begins_and_ends_as_a_jpeg(path):
                    decoded(read(path), path)
            except DataError as error:
                found.append(str(error))
        return found


def photos_in(folder: Path) -> Photos | None:
    """What a folder of class folders holds; None if there is no such folder.

    A class is a folder whose name does not begin with a dot, a photo a file in it with one of the `SUFFIXES`. Large
    listings are kept in $XDG_CACHE_HOME/bam_exp (~/.cache) until a file is added to or taken from a class.
    """
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        classes = sorted(
            (entry.name, entry.stat().st_mtime_ns)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )
    if any(changed > time.time_ns() - TICK for _, changed in classes):
        return _listed(folder.absolute(), [name for name, _ in classes])
    return _remembered(folder.absolute(), tuple(classes))


@lru_cache(maxsize=4)
def _remembered(folder: Path, classes: tuple[tuple[str, int], ...]) -> Photos:
    """What a folder with these classes, last changed at these times, is known to hold."""
    stamp = hashlib.sha256(repr((str(folder), classes)).encode()).hexdigest()
    kept = _cache_folder() / f"photos-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.npz"
    names = [name for name, _ in classes]
    try:
        with np.load(kept) as content:
            if content["stamp"] == stamp:
                return Photos(folder, tuple(names), content["names"], content["labels"], content["sizes"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    found = _listed(folder, names)
    if len(found) >= KEPT_FROM:
        _remember(kept, _writer(stamp=np.array(stamp), names=found.names, labels=found.labels, sizes=found.sizes))
    return found


def _listed(folder: Path, classes: Sequence[str]) -> Photos:
    names: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            files = sorted(
                (os.fsencode(entry.name), entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            )
        names += [file for file, _ in files]
        sizes += [size for _, size in files]
        labels += [label] * len(files)
    return Photos(
        folder,
        tuple(classes),
        np.array(names, dtype=np.bytes_),
        np.array(labels, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
    )


def _writer(**arrays: npt.NDArray[Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # given a path, NumPy appends .npz
            np.savez(file, allow_pickle=False, **arrays)

    return write


def _begins_and_ends_as_a_jpeg(path: Path) -> bool:
    """Whether it begins as a JPEG and has the end marker among its last bytes (some are followed by a few more)."""
    try:
        with path.open("rb", buffering=0) as file:
            begin = file.read(3)
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            return begin == b"\xff\xd8\xff" and b"\xff\xd9" in file.read(64)
    except OSError:
        return False


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bam_exp"


def _remember(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that saves time later, if this machine lets us."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError:
        pass
