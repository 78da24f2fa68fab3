"""Downloading and unpacking COCO 2017 and PASCAL VOC into the folders that `COCO` and `VOC` read."""

import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from bam_exp.data.download import fetch, only_process
from bam_exp.errors import DataError


@dataclass(frozen=True)
class Archive:
    """A file on a server."""

    url: str
    md5: str
    kept: tuple[str, ...]
    """Prefixes of the paths that are unpacked; no other file is."""


_COCO = "https://s3.amazonaws.com/images.cocodataset.org"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"

ARCHIVES = {
    "coco": (
        Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            "f4bbac642086de4f52a3fdda2de5fa2c",
            ("annotations/instances_",),
        ),
        Archive(f"{_COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", ("val2017/",)),
        Archive(f"{_COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", ("train2017/",)),
    ),
    "voc": tuple(
        Archive(f"{_VOC}/{path}", md5, (f"VOCdevkit/VOC{year}/",))
        for path, md5, year in (
            ("voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 2007),
            ("voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 2007),
            ("voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 2012),
        )
    ),
}


def download(name: str, root: Path, *, mirror: str | None = None) -> Path:
    """Download the archives of "coco" (19 GB) or "voc" (3 GB), unpack them below `root`, and return the folder of the data.

    An interrupted call continues. An archive is deleted once it is unpacked, and a file `.<archive>.unpacked` says so.
    mirror: https address of a folder that holds the archives; None for the official ones. Raises DataError.
    """
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_process(folder / ".lock", f"to fill {folder}"):
            for archive in ARCHIVES[name]:
                file = PurePosixPath(archive.url).name
                done, path = folder / f".{file}.unpacked", folder / file
                if done.is_file():
                    continue
                url = f"{mirror.rstrip('/')}/{file}" if mirror else archive.url
                fetch(url, path, md5=archive.md5)
                print(f"unpacking {path}", file=sys.stderr, flush=True)
                unpack(path, folder, archive.kept)
                done.touch()
                path.unlink()
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}; the same command again continues"
        ) from error
    return folder


def unpack(path: Path, folder: Path, kept: tuple[str, ...]) -> None:
    """Unpack the files of a zip or tar whose paths begin with one of `kept`. Raises DataError, OSError."""
    try:
        for name, source in _files(path):
            if not name.startswith(kept) or ".." in PurePosixPath(name).parts:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            with part.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            part.replace(target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole archive ({error})") from error


def _files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each regular file in an archive; links and devices are left out."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                yield member.name, file
