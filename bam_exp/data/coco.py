"""MS COCO (Lin et al., ECCV 2014), the splits of 2017, and any data in the form of its `instances` files."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from bam_exp.data.annotations import Annotations, Row
from bam_exp.data.boxed_set import Augment, BoxedSet, Fit
from bam_exp.data.dataset import Split
from bam_exp.errors import DataError
from bam_exp.schema import checked

COUNTS = {"train": 118_287, "test": 5_000}
OBJECTS = {"train": 859_999, "test": 36_781}
"""Annotations of each split, without the two of `FLAT`."""
FLAT = (200365, 550395)
"""The images of train2017 that have an annotation whose box is 0 pixels high; it is left out."""
YEARS: dict[Split, str] = {"train": "train2017", "test": "val2017"}
IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""The official ids of the 80 categories."""


class COCO(BoxedSet):
    """`annotations/instances_train2017.json`, `instances_val2017.json`, `train2017/` and `val2017/`.

    The paper's trainval35k and minival of 2014 are these splits: train2017 is train2014 with the 35,504 images of val2014
    that are not in minival, and val2017 is minival. Crowds are not trained on; images without objects are.

    Args:
        root: the folder that holds `coco/` with these, or themselves.
        official: the files of COCO 2017, told by their numbers of images and objects and by their categories; false for
            other data in their form, whose runs then have another name.
        classes: categories that the files list.
        size, fit, long_side, augment: see `View`.
    """

    protocol = "coco"
    reads = ("coco", "annotations")

    @checked
    def __init__(
        self,
        root: Path,
        *,
        official: bool = True,
        classes: PositiveInt = 80,
        size: Annotated[int, Field(ge=32)] = 600,
        fit: Fit = "short_side",
        long_side: PositiveInt = 1000,
        augment: Augment = "flip",
    ) -> None:
        super().__init__(size=size, fit=fit, long_side=long_side, augment=augment)
        self.root, self.official, self.num_classes = root, official, classes

    @property
    def base(self) -> Path:
        """The folder that holds annotations/."""
        inside = self.root / "coco"
        return self.root if not inside.is_dir() and (self.root / "annotations").is_dir() else inside

    def folder(self, split: Split) -> Path:
        """train2017/ or val2017/."""
        return self.base / YEARS[split]

    def file(self, split: Split) -> Path:
        """The annotations of a split."""
        return self.base / "annotations" / f"instances_{YEARS[split]}.json"

    @property
    def train_size(self) -> int:
        """Images of train2017 as its annotations list them; the official number where there are none."""
        return len(self.annotations("train")) if self.file("train").is_file() else COUNTS["train"]

    @property
    def test_size(self) -> int:
        """Images of val2017."""
        return len(self.annotations("test")) if self.file("test").is_file() else COUNTS["test"]

    @property
    def digest(self) -> str:
        """One and the same for the official data, so that tables of finished runs can be made without them."""
        if self.official:
            return f"COCO 2017, {COUNTS['train']} + {COUNTS['test']} images"
        files = [self.file(split) for split in YEARS]
        parts = [f"{len(read(path)[0])} {digest_of(path)}" if path.is_file() else "absent" for path in files]
        return "in the form of COCO, " + " + ".join(parts)

    def annotations(self, split: Split) -> Annotations:
        """The objects of a split, in the order of the image ids.

        Raises:
            DataError: if the file is missing or is not such a file.
        """
        path = self.file(split)
        annotations, names = read(path)
        if len(names) != self.num_classes:
            raise DataError(
                f"{path}: lists {len(names)} categories and data.classes={self.num_classes}; "
                f"data.classes={len(names)} would fit"
            )
        return annotations

    def class_names(self) -> list[str]:
        """Names of the categories by their ids, from the training annotations.

        Raises:
            DataError: if the file is missing or is not such a file.
        """
        return list(read(self.file("train"))[1].values())

    def prepare(self) -> None:
        """Look for every image and at every box.

        Raises:
            DataError: naming what is missing or wrong.
        """
        both = []
        for split, year in YEARS.items():
            path, annotations = self.file(split), self.annotations(split)
            both.append(read(path)[1])

            def source(i: int, path: Path = path, annotations: Annotations = annotations) -> str:
                return f"{path}: image {annotations.ids[i]}"

            annotations.check(source)
            annotations.check_files(self.folder(split), source)
            images, objects = len(annotations), len(annotations.boxes)
            if self.official and (images, objects) != (COUNTS[split], OBJECTS[split]):
                raise DataError(
                    f"{path}: has {images:,} images with {objects:,} objects and {year} has {COUNTS[split]:,} with "
                    f"{OBJECTS[split]:,}; data.official=false takes other data in the form of COCO, and says so in the "
                    "run's name"
                )
        if both[0] != both[1]:
            raise DataError(f"{self.base / 'annotations'}: the two files list different categories")
        if self.official and list(both[0]) != IDS:
            raise DataError(
                f"{self.file('train')}: the categories are not those of COCO; data.official=false takes them"
            )


def digest_of(path: Path) -> str:
    """The first half of a file's md5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()[:16]


def read(path: Path) -> tuple[Annotations, dict[int, str]]:
    """The objects in an `instances` file, and its categories, {id: name}; kept until the file changes.

    Raises:
        DataError: naming the file and what is wrong in it.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; data_root must be the folder that holds coco/ with annotations/, train2017/ and "
            "val2017/ (docs/detection.md)"
        ) from error
    return _read(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _size: int, _changed: int) -> tuple[Annotations, dict[int, str]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:  # also bytes that are not UTF-8
        raise DataError(f"{path}: not a whole JSON file ({error})") from error
    try:
        return _parsed(content, path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not annotations in the form of COCO's instances ({reason})") from error


def _parsed(content: dict[str, Any], path: Path) -> tuple[Annotations, dict[int, str]]:
    names = {int(one["id"]): str(one["name"]) for one in sorted(content["categories"], key=lambda one: one["id"])}
    label = {category: i for i, category in enumerate(names, start=1)}
    images = sorted(content["images"], key=lambda one: one["id"])
    place = {image["id"]: i for i, image in enumerate(images)}
    if len(place) != len(images):
        raise DataError(f"{path}: two images have one id")
    objects: list[list[Row]] = [[] for _ in images]
    for one in content["annotations"]:
        where = f"{path}: annotation {one['id']}"
        if one["image_id"] not in place:
            raise DataError(f"{where}: is of image {one['image_id']}, which the file does not list")
        if one["category_id"] not in label:
            raise DataError(f"{where}: is of category {one['category_id']}, which the file does not list")
        x, y, width, height = (float(value) for value in one["bbox"])
        crowd = bool(one.get("iscrowd", 0))
        if one["image_id"] in FLAT and width > 0 and height == 0:
            continue
        if not (width > 0 and height > 0) and not crowd:
            raise DataError(f"{where}: its box is {width:g} wide and {height:g} high; both should be above 0")
        box = (x, y, x + width, y + height)
        area = float(one.get("area", width * height))
        objects[place[one["image_id"]]].append((box, label[one["category_id"]], area, crowd, False))
    rows = [(str(one["file_name"]), int(one["id"]), int(one["height"]), int(one["width"])) for one in images]
    if outside := [name for name, *_ in rows if Path(name).name != name]:
        raise DataError(f"{path}: file_name {outside[0]}: should be the name of a file, without a folder")
    return Annotations.of(rows, objects), names
