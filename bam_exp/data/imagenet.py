"""ImageNet-1K (Russakovsky et al. 2015, ILSVRC 2012), and any folder of photos with the same layout."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt

from bam_exp.data.dataset import Split
from bam_exp.data.photos.folder import Photos, photos_in
from bam_exp.data.photos.loader import PhotoLoader
from bam_exp.errors import DataError
from bam_exp.schema import checked

FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
"""Folder of the photos of each split."""

CLASSES = 1000
COUNTS = {"train": 1_281_167, "test": 50_000}
TARS = {"train": 147_897_477_120, "test": 6_744_924_160}
"""ImageNet-1K: number of classes, number of photos of each split, and bytes of the official tars."""


@cache
def official_classes() -> dict[str, str]:
    """The classes of ImageNet-1K in the order of the labels: each WordNet id with the words of its synset."""
    lines = resources.files("bam_exp.data").joinpath("imagenet_classes.txt").read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


class ImageNet:
    """ImageNet-1K, or any photos in `train/<class>/` and `val/<class>/`.

    The labels follow the sorted names of the class folders, which are WordNet ids in ImageNet. Training images are random
    crops of 8 to 100 % of the area, resized to `size`, and mirrored with probability 0.5. For a test image, the short side
    is resized to 256 / 224 of `size` and the central crop is taken. `mean` and `std` are those of ImageNet's pixels, scaled
    to 0 ... 1.

    `train_size` and `test_size` count the photos that are there, or are those of ImageNet-1K where there are none. `digest`
    is constant for the official photos, which are recognised by their classes, number and total size, and for `classes` =
    1000 without any photos, so that finished runs can be reported on any machine. Other photos have a digest of their names
    and sizes.

    Args:
        root: the folder that holds `imagenet/train` and `imagenet/val`, or these two.
        size: height and width of the images that the network receives.
        classes: number of class folders.
        broken: what happens to photos that cannot be decoded. "refuse" is an error: before training if the first or last
            bytes of the file show it, otherwise when the photo is decoded. "skip" leaves them out and counts them.
    """

    reads = ("imagenet", *FOLDERS.values())
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    @checked
    def __init__(
        self,
        root: Path,
        *,
        size: PositiveInt = 224,
        classes: PositiveInt = 1000,
        broken: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        self.root, self.size, self.num_classes, self.broken = root, size, classes, broken

    @property
    def resize(self) -> int:
        """Length to which the short side of a test photo is resized before the central crop."""
        return round(self.size * 256 / 224)

    @property
    def folder(self) -> Path:
        """The folder that holds train/ and val/."""
        inside = self.root / "imagenet"
        itself = not inside.is_dir() and any((self.root / name).is_dir() for name in FOLDERS.values())
        return self.root if itself else inside

    @property
    def train_size(self) -> int:
        """Number of training photos."""
        return self._count("train")

    @property
    def test_size(self) -> int:
        """Number of test photos."""
        return self._count("test")

    @property
    def digest(self) -> str:
        """Identifies the photos in a run's fingerprint. Raises DataError."""
        photos = {split: self._photos(split) for split in FOLDERS}
        official = f"ImageNet-1K (ILSVRC 2012), {COUNTS['train']} + {COUNTS['test']} photos"
        if self.num_classes == CLASSES and not any(photos.values()):
            return official
        if all(found and _is_official(split, found) for split, found in photos.items()):
            return official
        return "photos " + " + ".join(
            f"{len(found)} {found.digest}" if found else "absent" for found in photos.values()
        )

    def prepare(self) -> None:
        """Check the class folders and, with broken="refuse", both ends of each file. Raises DataError."""
        both = []
        for split, name in FOLDERS.items():
            photos = self._photos(split)
            if photos is None:
                raise DataError(
                    f"{self.folder / name}: no such folder; data_root must be the folder that holds imagenet/ with "
                    "train/<class>/ and val/<class>/, or that holds these (`bam-data imagenet` makes them from the tars)"
                )
            if not photos.classes and any(photos.folder.iterdir()):
                raise DataError(
                    f"{photos.folder}: holds files but no class folders (`bam-data imagenet` makes them from the tars)"
                )
            both.append(photos)
        train, val = both
        for photos in both:
            _refuse_empty_classes(photos)
        for photos, other in ((train, val), (val, train)):
            self._check_classes(photos, other)
        if train.classes != val.classes:
            odd = min(set(train.classes) ^ set(val.classes))
            where = "train" if odd in train.classes else "val"
            raise DataError(f"{self.folder}: class {_with_name(odd)} is in {where} only")
        if self.broken == "refuse":
            for photos in both:
                photos.check()

    def loader(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        decoder: Literal["auto", "cpu", "nvjpeg"] = "auto",
    ) -> PhotoLoader:
        """Return the batches of a split, as described in `PhotoLoader`. Raises DataError, or ValueError as `Batches` does."""
        photos = self._photos(split)
        if photos is None:
            raise DataError(f"{self.folder / FOLDERS[split]}: no such folder")
        return PhotoLoader(
            photos,
            size=self.size,
            train=split == "train",
            broken=self.broken,
            mean=self.mean,
            std=self.std,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            workers=workers,
            decoder=decoder,
        )

    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels: the words of the synset, or else the name of the folder."""
        photos = self._photos("train") or self._photos("test")
        folders = photos.classes if photos else tuple(official_classes())
        return [official_classes().get(name, name) for name in folders]

    def _photos(self, split: Split) -> Photos | None:
        return photos_in(self.folder / FOLDERS[split])

    def _count(self, split: Split) -> int:
        photos = self._photos(split)
        return COUNTS[split] if photos is None else len(photos)

    def _check_classes(self, photos: Photos, other: Photos) -> None:
        """Refuse a wrong number of class folders and, for ImageNet-1K, misspelt ones. `other` is the other split."""
        classes, where = photos.classes, photos.folder
        official = official_classes().keys() if self.num_classes == CLASSES else set()
        missing, unknown = sorted(official - set(classes)), sorted(set(classes) - official)
        if len(classes) != self.num_classes:
            advice = "; a class is a folder of photos"
            if 0 < len(missing) < 100:
                advice = f", {_with_name(missing[0])} is missing"
            elif absent := sorted(set(other.classes) - set(classes)):
                advice = f"; class {_with_name(absent[0])} is in {other.folder.name} only"
            elif extra := sorted(set(classes) - set(other.classes)):
                advice = f"; class {_with_name(extra[0])} is in {where.name} only"
            elif classes:
                advice = f"; data.classes={len(classes)} would fit"
            raise DataError(f"{where}: has {len(classes)} class folders for data.classes={self.num_classes}{advice}")
        if official and unknown and len(unknown) < len(classes) / 2:
            raise DataError(
                f"{where}: {unknown[0]} is no class of ImageNet-1K, and {_with_name(missing[0])} is missing"
            )


def _refuse_empty_classes(photos: Photos) -> None:
    """Refuse class folders without photos, naming the first. Raises DataError."""
    full = {photos.classes[label] for label in set(photos.labels.tolist())}
    if not (empty := [name for name in photos.classes if name not in full]):
        return
    folder = photos.folder / empty[0]
    more = f", and neither do {len(empty) - 1} more folders" if len(empty) > 1 else ""
    nested = "; photos in subfolders are not read" if any(entry.is_dir() for entry in folder.iterdir()) else ""
    raise DataError(
        f"{folder}: holds no photos (.JPEG, .png, ...){more}{nested}; every folder in {photos.folder.name}/ is a class, so "
        "add its photos or move it away"
    )


def _is_official(split: Split, photos: Photos) -> bool:
    """Whether these are ImageNet-1K's photos: its classes, as many photos, and as many bytes as its tar has room for.

    A tar adds 512 to 1,023 bytes to each file, which are 0.4 to 0.9 %. Photos that were made smaller are far below.
    """
    share = photos.sizes.sum() / TARS[split]
    return photos.classes == tuple(official_classes()) and len(photos) == COUNTS[split] and bool(0.985 < share < 1)


def _with_name(wnid: str) -> str:
    """Add the first word of the synset to a WordNet id: `n01440764 (tench)`."""
    words = official_classes().get(wnid)
    return f"{wnid} ({words.partition(',')[0]})" if words else wnid
