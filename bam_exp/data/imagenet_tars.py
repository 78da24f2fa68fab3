"""Unpacking the official tars of ImageNet-1K into the folders that `ImageNet` reads."""

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from bam_exp.data.download import md5_of, only_process
from bam_exp.errors import DataError

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
META = "ILSVRC2012_devkit_t12/data/meta.mat"
LABELS = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"

_DEVKIT_LIMIT = 64 << 20
"""Bytes that a file of the devkit may have; the official ones have less than 1 MB."""


def unpack(tars: Sequence[Path], root: Path, md5: Mapping[str, str] = MD5) -> Path:
    """Unpack both splits into `root`/imagenet/{train,val}/<wnid>/ and return the folder that holds them.

    A split that is there already is left alone, and an interrupted call continues: what is incomplete is called .part.
    tars: the three official files, or folders that hold them. md5: their expected digests. Raises DataError.
    """
    folder = root / "imagenet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_process(folder / ".lock", f"to unpack into {folder}"):
            if not (folder / "train").is_dir():
                unpack_train(_verified(tars, TRAIN, md5), folder / "train")
            if not (folder / "val").is_dir():
                labels = wnids_of_val(_verified(tars, DEVKIT, md5))
                unpack_val(_verified(tars, VAL, md5), labels, folder / "val")
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}; the same command again continues"
        ) from error
    return folder


def unpack_train(tar: Path, folder: Path) -> None:
    """Unpack the tar of the training set, which holds a tar for each class. Raises DataError, OSError."""
    part = folder.with_name("train.part")
    with _readable(tar), tarfile.open(tar) as outer:
        for number, (name, file) in enumerate(_files_of(outer, tar), start=1):
            wnid = name.removesuffix(".tar")
            if (part / wnid).is_dir():
                continue
            unfinished = part / f"{wnid}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            with tarfile.open(fileobj=file) as inner:
                for photo, content in _files_of(inner, tar):
                    write(unfinished / photo, content)
            unfinished.rename(part / wnid)
            print(f"train: {number} classes", end="\r", flush=True)
    part.rename(folder)
    print()


def wnids_of_val(devkit: Path) -> list[str]:
    """Return the class of each validation photo, in the order of their names. Raises DataError, OSError."""
    from scipy.io import loadmat

    with _readable(devkit):
        with tarfile.open(devkit) as tar:
            meta, labels = (_content(tar, name) for name in (META, LABELS))
        # The synsets include some that are not classes; those have children.
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        wnids = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets if int(entry["num_children"]) == 0
        }
        return [wnids[int(line)] for line in labels.split()]


def unpack_val(tar: Path, wnids: list[str], folder: Path) -> None:
    """Unpack the tar of the validation set, whose photos are numbered from 1 in their names. Raises DataError, OSError."""
    part, count = folder.with_name("val.part"), 0
    with _readable(tar), tarfile.open(tar) as outer:
        for count, (name, file) in enumerate(_files_of(outer, tar), start=1):
            number = name.removesuffix(".JPEG").rpartition("_")[2]  # ILSVRC2012_val_00000001.JPEG
            if not number.isdecimal() or not 1 <= int(number) <= len(wnids):
                raise DataError(f"{tar}: {name} is not one of the {len(wnids)} photos that the devkit has labels for")
            photo = part / wnids[int(number) - 1] / name
            if not photo.is_file():
                photo.parent.mkdir(parents=True, exist_ok=True)
                write(photo, file)
            if count % 500 == 0:
                print(f"val: {count} photos", end="\r", flush=True)
    if count != len(wnids):
        raise DataError(f"{tar}: holds {count} photos, and the devkit has labels for {len(wnids)}; it may be cut off")
    part.rename(folder)
    print()


def write(path: Path, content: IO[bytes]) -> None:
    """Write a file that appears as a whole or not at all. Raises OSError, TarError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    part.replace(path)


def _verified(tars: Sequence[Path], name: str, md5: Mapping[str, str]) -> Path:
    """Find one of the official files and check its digest. Raises DataError, OSError."""
    candidates = [path / name if path.is_dir() else path for path in tars]
    path = next((path for path in candidates if path.name == name and path.is_file()), None)
    if path is None:
        raise DataError(f"{name}: there is no such file in {', '.join(map(str, tars))} (image-net.org has it)")
    print(f"{name}: checking its md5", flush=True)
    if (actual := md5_of(path)) != md5[name]:
        raise DataError(f"{path}: its md5 is {actual} and should be {md5[name]}; it is damaged or another file")
    return path


def _files_of(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of each file of a tar. Raises DataError for anything but plain files with plain names."""
    for member in tar:
        content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if content is None or member.name != PurePosixPath(member.name).name or member.name.startswith("."):
            raise DataError(f"{path}: holds {member.name!r}, which is not the plain name of a file")
        yield member.name, content


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    """Read a file of the devkit. Raises KeyError, ValueError."""
    member = tar.getmember(name)
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None or member.size > _DEVKIT_LIMIT:
        raise ValueError(f"{name} is not a file of at most {_DEVKIT_LIMIT >> 20} MB")
    return content.read()


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Name the archive in the errors of reading it. Raises DataError."""
    try:
        yield
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # The readers of tar and mat files may raise anything when they are given garbage.
        reason = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
        raise DataError(f"{archive}: cannot be unpacked ({reason or type(error).__name__})") from error
