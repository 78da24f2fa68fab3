"""PASCAL VOC (Everingham et al., IJCV 2010): trainval of 2007 and 2012, test of 2007, and any data in its form."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree
from xml.parsers import expat

from pydantic import Field

from bam_exp.data.annotations import Annotations, Row
from bam_exp.data.boxed_set import Augment, BoxedSet, Fit
from bam_exp.data.dataset import Split
from bam_exp.errors import DataError
from bam_exp.schema import checked

CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
COUNTS = {"VOC2007/trainval": 5_011, "VOC2012/trainval": 11_540, "VOC2007/test": 4_952}
DIGESTS = {
    "VOC2007/trainval": "010edfa22115c8ca972c09aa4902fd39",
    "VOC2007/test": "5b3551c4bf413aefbefcbae42db0275b",
}
"""md5 of the official lists of 2007."""
TRAIN = ["VOC2007/trainval", "VOC2012/trainval"]
TEST = ["VOC2007/test"]

Lists = Annotated[list[Annotated[str, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]], Field(min_length=1)]


class VOC(BoxedSet):
    """`VOCdevkit/<year>/` with `ImageSets/Main/<list>.txt`, `Annotations/<id>.xml` and `JPEGImages/<id>.jpg`.

    Boxes are one-based and include their last pixel; here they become half-open. Difficult objects count neither way when
    detections are judged, and are trained on only if `difficult`.

    Args:
        root: the folder that holds `VOCdevkit/` (or `voc/VOCdevkit/`).
        official: the images of VOC, told by their lists; false for other data in its form, whose runs then have another name.
        train, test: lists of images, each "<year>/<list>".
        classes: the names of the classes in the order of their labels; null for VOC's twenty.
        protocol: "voc07" averages the precision at eleven recalls, as VOC did until 2009; "voc" takes the area under the
            curve, as it did from 2010 on.
        difficult: whether difficult objects are trained on.
        size, fit, long_side, augment: see `View`.
    """

    @checked
    def __init__(
        self,
        root: Path,
        *,
        official: bool = True,
        train: Lists = TRAIN,
        test: Lists = TEST,
        classes: Annotated[list[str], Field(min_length=1)] | None = None,
        protocol: Literal["voc07", "voc"] = "voc07",
        difficult: bool = False,
        size: Annotated[int, Field(ge=32)] = 300,
        fit: Fit = "square",
        long_side: Annotated[int, Field(ge=32)] = 1000,
        augment: Augment = "ssd",
    ) -> None:
        super().__init__(size=size, fit=fit, long_side=long_side, augment=augment)
        if official and (classes or any(one not in COUNTS for one in (*train, *test))):
            raise ValueError(
                f"official=true: VOC has {', '.join(COUNTS)}, and its own classes; official=false takes others"
            )
        self.root, self.official, self.protocol, self.difficult = root, official, protocol, difficult
        self.reads = ("voc", "VOCdevkit")
        self._lists: dict[str, list[str]] = {"train": train, "test": test}
        self._classes = list(classes or CLASSES)
        self.num_classes = len(self._classes)

    @property
    def base(self) -> Path:
        """VOCdevkit/."""
        inside = self.root / "voc" / "VOCdevkit"
        return inside if inside.is_dir() else self.root / "VOCdevkit"

    def folder(self, split: Split) -> Path:
        """VOCdevkit/: the images of a split stand in a folder for each year."""
        return self.base

    @property
    def train_size(self) -> int:
        """Images to train on; the official number where there are no lists, and that of VOC 2007 for other lists."""
        return self._count("train")

    @property
    def test_size(self) -> int:
        """Images to test on."""
        return self._count("test")

    @property
    def digest(self) -> str:
        """One and the same for the official data, so that tables of finished runs can be made without them."""
        lists = " + ".join(self._lists["train"]) + ", " + " + ".join(self._lists["test"])
        if self.official:
            return f"PASCAL {lists}"
        digest = hashlib.md5()
        for one in (*self._lists["train"], *self._lists["test"]):
            path = self._list(one)
            digest.update(path.read_bytes() if path.is_file() else b"absent")
            for file in _files(path, self.base) if path.is_file() else []:
                digest.update(file.read_bytes() if file.is_file() else b"absent")
        return f"in the form of VOC, {lists}, {digest.hexdigest()[:16]}"

    def annotations(self, split: Split) -> Annotations:
        """The objects of a split, in the order of its lists.

        Raises:
            DataError: if a file is missing or is not such a file.
        """
        lists = tuple(self._list(one) for one in self._lists[split])
        return Annotations.joined([_read(path, self.base, tuple(self._classes)) for path in lists])

    def class_names(self) -> list[str]:
        """Names of the classes."""
        return list(self._classes)

    def prepare(self) -> None:
        """Look for every image and at every box.

        Raises:
            DataError: naming what is missing or wrong.
        """
        for split in ("train", "test"):
            for one in self._lists[split]:
                path = self._list(one)
                annotations = _read(path, self.base, tuple(self._classes))
                files = _files(path, self.base)
                if self.official:
                    _check_official(path, one, [file.stem for file in files])
                annotations.check(lambda i, files=files: str(files[i]))  # type: ignore[misc]
                annotations.check_files(self.base, lambda i, files=files: str(files[i]))  # type: ignore[misc]

    def _list(self, one: str) -> Path:
        year, _, name = one.partition("/")
        return self.base / year / "ImageSets" / "Main" / f"{name}.txt"

    def _count(self, split: Split) -> int:
        lists = [self._list(one) for one in self._lists[split]]
        if not all(path.is_file() for path in lists):
            return sum(COUNTS.get(one, COUNTS["VOC2007/trainval"]) for one in self._lists[split])
        return sum(len(_files(path, self.base)) for path in lists)


def _check_official(path: Path, one: str, names: Sequence[str]) -> None:
    """Refuse a list that is not the official one. Raises DataError."""
    other = "data.official=false takes other data in the form of VOC, and says so in the run's name"
    if len(names) != COUNTS[one]:
        raise DataError(f"{path}: lists {len(names):,} images and {one} has {COUNTS[one]:,}; {other}")
    digest = hashlib.md5("".join(f"{name}\n" for name in names).encode()).hexdigest()
    if digest != DIGESTS.get(one, digest):
        raise DataError(f"{path}: lists other images than {one}, whose md5 is {DIGESTS[one]}; {other}")


def _files(path: Path, base: Path) -> list[Path]:
    """The annotations of the images in a list.

    Raises:
        DataError: if there is no such list, or it is empty.
    """
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: {reason}; data_root must be the folder that holds VOCdevkit/ (docs/detection.md)"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no images")
    if wrong := [name for name in names if len(name.split()) != 1 or Path(name).name != name]:
        hint = "; the lists of a single class have a second column" if len(wrong[0].split()) == 2 else ""
        raise DataError(f"{path}: {wrong[0]}: should be the id of an image{hint}")
    folder = base / path.parts[-4] / "Annotations"
    return [folder / f"{name}.xml" for name in names]


@lru_cache(maxsize=8)
def _read(path: Path, base: Path, classes: tuple[str, ...]) -> Annotations:
    year = path.parts[-4]
    images, objects = [], []
    for i, file in enumerate(_files(path, base)):
        (height, width), found = _parsed(file, classes)
        images.append((f"{year}/JPEGImages/{file.stem}.jpg", i, height, width))
        objects.append(found)
    return Annotations.of(images, objects)


def _parsed(file: Path, classes: Sequence[str]) -> tuple[tuple[int, int], list[Row]]:
    """Height and width of an image and its objects.

    Raises:
        DataError: naming the file and what is wrong in it.
    """
    try:
        root = _tree(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except (ElementTree.ParseError, expat.ExpatError, ValueError) as error:
        raise DataError(f"{file}: not a whole XML file ({error})") from error
    try:
        size = (int(_text(root, "size/height")), int(_text(root, "size/width")))
        objects = []
        for one in root.iterfind("object"):
            name = _text(one, "name")
            if name not in classes:
                raise DataError(f"{file}: object {name}: is none of the {len(classes)} classes {', '.join(classes)}")
            x1, y1, x2, y2 = (float(_text(one, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            if not (x2 >= x1 and y2 >= y1):
                raise DataError(f"{file}: object {name}: its box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) has no area")
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            box = (x1 - 1, y1 - 1, x2, y2)
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            objects.append((box, classes.index(name) + 1, area, False, difficult))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not an annotation in the form of VOC ({error})") from error
    return size, objects


def _tree(content: bytes) -> ElementTree.Element:
    """The elements of an XML file; declarations of entities, which can grow without bound, are refused."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"it declares the entity {name}, which no annotation needs")

    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"{element.tag} has no {path}")
    return text.strip()
