"""From the official tars of ImageNet-1K to the folders that `data=imagenet` reads: DIR/imagenet/{train,val}/<wnid>/.

    python scripts/imagenet_folders.py TARS DIR        then: bam-train data=imagenet data_root=DIR ...

TARS holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org (an
account there is needed). Each is compared with its md5 first (10 minutes from a fast disk). DIR needs 155 GB. Stopped
and started again, it continues: what is not complete is called .part.
"""

import argparse
import io
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from scipy.io import loadmat

from bam_exp.data.download import DataError, md5_of

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
META = "ILSVRC2012_devkit_t12/data/meta.mat"
LABELS = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def main() -> None:
    """Unpack both splits; what is wrong ends in one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path, metavar="TARS", help="folder of the three official files")
    parser.add_argument("root", type=Path, metavar="DIR", help="the run's data_root")
    for name, md5 in MD5.items():
        kind = {TRAIN: "train", VAL: "val", DEVKIT: "devkit"}[name]
        parser.add_argument(f"--{kind}-md5", dest=name, default=md5, help=f"of {name} ({md5})")
    chosen = parser.parse_args()
    folder: Path = chosen.root / "imagenet"
    try:
        if not (folder / "train").is_dir():
            unpack_train(whole(chosen.tars / TRAIN, getattr(chosen, TRAIN)), folder / "train")
        if not (folder / "val").is_dir():
            labels = wnids_of_val(whole(chosen.tars / DEVKIT, getattr(chosen, DEVKIT)))
            unpack_val(whole(chosen.tars / VAL, getattr(chosen, VAL)), labels, folder / "val")
    except (DataError, OSError, tarfile.TarError) as error:
        sys.exit(f"imagenet_folders: {error}")
    print(f"ImageNet is in {folder}")


def whole(path: Path, md5: str) -> Path:
    """A file whose digest is right. Raises DataError, OSError."""
    print(f"{path.name}: comparing its md5", flush=True)
    found = md5_of(path)
    if found != md5:
        raise DataError(f"{path}: its md5 is {found} and should be {md5}; it is damaged or another file")
    return path


def unpack_train(tar: Path, folder: Path) -> None:
    """The tar of train holds a tar for each class, which becomes a folder. Raises DataError, OSError, TarError."""
    part = folder.with_name("train.part")
    with tarfile.open(tar) as outer:
        for number, (name, file) in enumerate(files_of(outer, tar), start=1):
            wnid = name.removesuffix(".tar")
            if (part / wnid).is_dir():
                continue
            unfinished = part / f"{wnid}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            with tarfile.open(fileobj=file) as inner:
                for photo, content in files_of(inner, tar):
                    write(unfinished / photo, content)
            unfinished.rename(part / wnid)
            print(f"train: {number} classes", end="\r", flush=True)
    part.rename(folder)
    print()


def wnids_of_val(devkit: Path) -> list[str]:
    """The class of each photo of val, in the order of their names. Raises DataError, OSError, TarError."""
    with tarfile.open(devkit) as tar:
        try:
            meta, labels = (tar.extractfile(name) for name in (META, LABELS))
        except KeyError as error:
            raise DataError(f"{devkit}: {error.args[0]}") from error
        assert meta is not None
        assert labels is not None
        # Of each synset, also of those that are not classes: number, wnid, words, gloss, number of children, ...
        synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0}
        return [wnids[int(line)] for line in labels.read().split()]


def unpack_val(tar: Path, wnids: list[str], folder: Path) -> None:
    """The tar of val holds the photos, numbered from 1 in their names. Raises DataError, OSError, TarError."""
    part = folder.with_name("val.part")
    with tarfile.open(tar) as outer:
        for count, (name, file) in enumerate(files_of(outer, tar), start=1):
            number = name.removesuffix(".JPEG").rpartition("_")[2]  # ILSVRC2012_val_00000001.JPEG
            if not number.isdecimal() or not 1 <= int(number) <= len(wnids):
                raise DataError(f"{tar}: {name} is not one of the {len(wnids)} photos that the devkit has labels for")
            photo = part / wnids[int(number) - 1] / name
            if not photo.is_file():
                photo.parent.mkdir(parents=True, exist_ok=True)
                write(photo, file)
            if count % 500 == 0:
                print(f"val: {count} photos", end="\r", flush=True)
    part.rename(folder)
    print()


def files_of(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file; DataError for anything but plain files with plain names."""
    for member in tar:
        content = tar.extractfile(member) if member.isreg() else None
        if content is None or member.name != PurePosixPath(member.name).name or member.name.startswith("."):
            raise DataError(f"{path}: holds {member.name!r}, which is not the plain name of a file")
        yield member.name, content


def write(path: Path, content: IO[bytes]) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    part.replace(path)


if __name__ == "__main__":
    main()
