"""Folders of photos with one subfolder for each class, and a cache of their listings."""

import hashlib
import os
import stat
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
from bam_exp.files import cache_file, write_cache

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""File name extensions of photos, in any case."""

SYSTEM_FOLDERS = frozenset(
    {
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "@Recycle",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)
"""Folders that file systems, archivers and storage servers leave behind. Like folders whose name begins with a dot, they
are not classes."""

CACHED_FROM = 10_000
"""Number of photos from which on a listing is cached on disk."""

TIME_RESOLUTION = 2 * 10**9
"""Nanoseconds within which a file system may give two changes of a folder the same time."""

_checked: set[tuple[Path, str]] = set()
"""Folder and digest of the splits that this process has checked."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a split, sorted by the name of the class and then by their own name.

    The listing is held in arrays rather than lists, so that forked worker processes share its memory.
    """

    folder: Path
    classes: tuple[str, ...]
    """Names of the class folders, sorted."""
    names: npt.NDArray[np.bytes_]
    """File name of each photo."""
    labels: npt.NDArray[np.int64]
    """Index into `classes` of each photo."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each file."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Path of a photo."""
        name: bytes = self.names[index]
        return self.folder / self.classes[int(self.labels[index])] / os.fsdecode(name)

    @cached_property
    def digest(self) -> str:
        """Digest of the names of the classes and of the names and sizes of the files; no pixel is read."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for array in (self.names, self.labels, self.sizes):
            digest.update(str(array.dtype).encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def check(self) -> None:
        """Refuse files that are empty, cut off or no photos at all, judging by their first and last bytes.

        Damage inside a file goes unnoticed. What has passed is not read again: a process remembers it, and for large
        folders the cache does. Raises DataError.
        """
        passed = cache_file(f"passed-{self.digest}") if len(self) >= CACHED_FROM else None
        if (self.folder, self.digest) in _checked or (passed is not None and passed.is_file()):
            return
        if len(self) >= CACHED_FROM:
            print(f"{self.folder}: checking both ends of {len(self):,} photos, once", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(16) as readers:
            portions = readers.map(self._broken, (range(len(self))[i : i + 500] for i in range(0, len(self), 500)))
            broken = [line for portion in portions for line in portion]
        if broken:
            more = f", and {len(broken) - 1} more such files" if len(broken) > 1 else ""
            raise DataError(f"{broken[0]}{more}; replace what is damaged, or set data.broken=skip to leave it out")
        _checked.add((self.folder, self.digest))
        if passed is not None:
            write_cache(passed, Path.touch)

    def _broken(self, indices: range) -> list[str]:
        """One line for each of these photos that is broken."""
        lines = []
        for path in map(self.path, indices):
            try:
                if not _begins_and_ends_as_a_jpeg(path):
                    decoded(read(path), path)
            except DataError as error:
                lines.append(str(error))
        return lines


def photos_in(folder: Path) -> Photos | None:
    """List the photos in a folder of class folders; None if there is no such folder.

    A class is a folder whose name neither begins with a dot nor is one of `SYSTEM_FOLDERS`; a photo is a file in it with one
    of the `SUFFIXES`. Large listings are cached in $XDG_CACHE_HOME/bam_exp (by default ~/.cache/bam_exp) until a file is
    added to a class or removed from it. Raises DataError if a folder cannot be read.
    """
    try:
        if not folder.is_dir():
            return None
        with os.scandir(folder) as entries:
            classes = sorted(
                (entry.name, entry.stat().st_mtime_ns)
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(".") and entry.name not in SYSTEM_FOLDERS
            )
        if any(changed > time.time_ns() - TIME_RESOLUTION for _, changed in classes):
            return _listed(folder.absolute(), [name for name, _ in classes])
        return _cached(folder.absolute(), tuple(classes))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=4)
def _cached(folder: Path, classes: tuple[tuple[str, int], ...]) -> Photos:
    """Return the listing of a folder with these classes and modification times, from the cache if it has it."""
    stamp = hashlib.sha256(repr((str(folder), classes)).encode()).hexdigest()
    file = cache_file(f"photos-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.npz")
    names = [name for name, _ in classes]
    if file is not None:
        try:
            with np.load(file) as content:
                if content["stamp"] == stamp:
                    return Photos(folder, tuple(names), content["names"], content["labels"], content["sizes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # There is no such file yet, or it is damaged: list the folder again.
    photos = _listed(folder, names)
    if file is not None and len(photos) >= CACHED_FROM:
        write_cache(file, _writer(stamp=np.array(stamp), names=photos.names, labels=photos.labels, sizes=photos.sizes))
    return photos


def _listed(folder: Path, classes: Sequence[str]) -> Photos:
    names: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            files = sorted(
                (os.fsencode(entry.name), size)
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES)
                and not entry.name.startswith(".")
                and (size := _size(entry)) is not None
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


def _size(entry: "os.DirEntry[str]") -> int | None:
    """Bytes of a file; 0 for a link that leads nowhere, which `check` then names; None for what is not a file."""
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _writer(**arrays: npt.NDArray[Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # Given a path, NumPy would append .npz to it.
            np.savez(file, allow_pickle=False, **arrays)

    return write


def _begins_and_ends_as_a_jpeg(path: Path) -> bool:
    """Whether a file begins as a JPEG and has the end marker among its last bytes (some files continue after it)."""
    try:
        with path.open("rb", buffering=0) as file:
            begin = file.read(3)
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            return begin == b"\xff\xd8\xff" and b"\xff\xd9" in file.read(64)
    except OSError:
        return False
