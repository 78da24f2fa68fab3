"""ImageNet-1K (Russakovsky et al. 2015, ILSVRC 2012), and any folder of photos laid out as it is."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt

from bam_exp.data.photos.loader import PhotoLoader
from bam_exp.data.photos.folder import Photos, photos_in
from bam_exp.data.synsets import SYNSETS
from bam_exp.errors import DataError
from bam_exp.schema import checked

FOLDERS: dict[Literal["train", "test"], str] = {"train": "train", "test": "val"}
"""Where the photos of a split are."""

COUNTS = {"train": 1_281_167, "test": 50_000}
TARS = {"train": 147_897_477_120, "test": 6_744_924_160}
"""Photos of ImageNet-1K, and bytes of the official tars."""


class ImageNet:
    """Photos in `train/<class>/` and `val/<class>/`: the official ones, or as many classes of others as `classes` says.

    root: the folder that holds `imagenet/` with these two, or themselves. The labels follow the sorted names of the
    class folders, which are WordNet ids in ImageNet. Train: random crops of 8 to 100 % of the area, resized to `size`,
    and a random flip; test: the short side resized to 256 / 224 of `size`, and one central crop. mean, std: of
    ImageNet's pixels in 0 ... 1.

    broken: a photo that cannot be decoded is refused, before training where its first and last bytes give it away, or
    skipped and counted. `train_size` and `test_size` count what is there, ImageNet's where nothing is. `digest` is one
    and the same for the official photos, told by their classes, number and bytes, and for `classes` = 1000 without any
    data, so that tables of finished runs can be made anywhere; other photos have one of their names and sizes.
    """

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
    def folder(self) -> Path:
        """The one that holds train/ and val/."""
        inside = self.root / "imagenet"
        itself = not inside.is_dir() and any((self.root / name).is_dir() for name in FOLDERS.values())
        return self.root if itself else inside

    @property
    def train_size(self) -> int:
        """Photos to train on."""
        return self._count("train")

    @property
    def test_size(self) -> int:
        """Photos to test on."""
        return self._count("test")

    @property
    def digest(self) -> str:
        """What stands for the photos in a run's fingerprint."""
        found = {split: self._photos(split) for split in FOLDERS}
        official = f"ImageNet-1K (ILSVRC 2012), {COUNTS['train']} + {COUNTS['test']} photos"
        if self.num_classes == len(SYNSETS) and not any(found.values()):
            return official
        if all(photos and _is_official(split, photos) for split, photos in found.items()):
            return official
        return "photos " + " + ".join(f"{len(one)} {one.digest}" if one else "absent" for one in found.values())

    def prepare(self) -> None:
        """Look at the folders, and with broken="refuse" at both ends of each file. Raises DataError."""
        both = []
        for split, name in FOLDERS.items():
            photos = self._photos(split)
            if photos is None:
                raise DataError(
                    f"{self.folder / name}: no such folder; data_root must be the folder that holds imagenet/ with "
                    "train/<class>/ and val/<class>/, or that holds these (docs/imagenet.md makes them from the tars)"
                )
            self._check_classes(photos)
            both.append(photos)
        train, val = (photos.classes for photos in both)
        if train != val:
            odd = min(set(train) ^ set(val))
            raise DataError(f"{self.folder}: class {_called(odd)} is in {'train' if odd in train else 'val'} only")
        if self.broken == "refuse":
            for photos in both:
                photos.check()

    def loader(
        self,
        split: Literal["train", "test"],
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        decoder: Literal["auto", "cpu", "nvjpeg"] = "auto",
    ) -> PhotoLoader:
        """Batches of a split on a device, see `PhotoLoader`. Raises DataError, and ValueError for an unfit batch_size."""
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
        """What the classes are called, in the order of the labels: WordNet's words, else the folder's name."""
        photos = self._photos("train") or self._photos("test")
        folders = photos.classes if photos else tuple(SYNSETS)
        return [SYNSETS.get(name, name) for name in folders]

    def _photos(self, split: Literal["train", "test"]) -> Photos | None:
        return photos_in(self.folder / FOLDERS[split])

    def _count(self, split: Literal["train", "test"]) -> int:
        photos = self._photos(split)
        return COUNTS[split] if photos is None else len(photos)

    def _check_classes(self, photos: Photos) -> None:
        found, where = photos.classes, photos.folder
        if not found and any(where.iterdir()):
            raise DataError(f"{where}: holds files but no class folders; docs/imagenet.md says how to make them")
        if len(found) != self.num_classes:
            missing = sorted(SYNSETS.keys() - set(found)) if self.num_classes == len(SYNSETS) else []
            named = f", {_called(missing[0])} is missing" if 0 < len(missing) < 100 else ""
            fits = f"data.classes={len(found)} would fit" if found else "a class is a folder of photos"
            raise DataError(
                f"{where}: has {len(found)} class folders for data.classes={self.num_classes}{named}; {fits}"
            )
        unknown = sorted(set(found) - SYNSETS.keys())
        if unknown and self.num_classes == len(SYNSETS) and len(unknown) < len(found) / 2:
            missing = sorted(SYNSETS.keys() - set(found))
            raise DataError(f"{where}: {unknown[0]} is no class of ImageNet-1K, and {_called(missing[0])} is missing")
        full = {found[label] for label in set(photos.labels.tolist())}
        if empty := [name for name in found if name not in full]:
            more = f", and {len(empty) - 1} more class folders" if len(empty) > 1 else ""
            raise DataError(f"{where / empty[0]}: holds no photos (.JPEG, .png, ...){more}")


def _is_official(split: str, photos: Photos) -> bool:
    """Whether these are ImageNet-1K's photos: its classes, as many, and as many bytes as its tar has room for.

    A tar adds 512 to 1,023 bytes to each file: 0.4 to 0.9 %. Photos made smaller are far below.
    """
    share = photos.sizes.sum() / TARS[split]
    return photos.classes == tuple(SYNSETS) and len(photos) == COUNTS[split] and bool(0.985 < share < 1)


def _called(name: str) -> str:
    """`n01440764 (tench)`."""
    return f"{name} ({SYNSETS[name].partition(',')[0]})" if name in SYNSETS else name
