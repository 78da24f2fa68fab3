"""Checks of the data sets that are in a folder: their digests, or every file, as a run checks them before it starts."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bam_exp.doctor.finding import Check, Finding


def checks(root: Path) -> list[Check]:
    """The checks of the data sets below `data_root`."""
    if find_spec("torchvision") is None:
        return [Check("data", lambda: Finding("not run", "needs the extra `train`", "pip install 'bam_exp[train]'"))]
    from bam_exp.data import CIFAR100, COCO, VOC, ImageNet

    photos = ImageNet(root)
    classes = sum(path.is_dir() for path in (photos.folder / "train").glob("*"))
    found: dict[str, tuple[bool, Callable[[], Any]]] = {
        "cifar100": ((root / "cifar-100-python").is_dir(), lambda: CIFAR100(root)),
        "imagenet": (photos.folder.is_dir(), lambda: ImageNet(root, classes=max(1, classes))),
        "coco": (COCO(root).base.is_dir(), lambda: COCO(root)),
        "voc": (VOC(root).base.is_dir(), lambda: VOC(root)),
    }
    return [Check(f"data {name}", _check(name, root, *entry)) for name, entry in found.items()]


def _check(name: str, root: Path, there: bool, make: Callable[[], Any]) -> Callable[[], Finding]:
    def look() -> Finding:
        from bam_exp.data import DataError

        if not there:
            words = "TARS DIR" if name == "imagenet" else "DIR"
            absent = "" if root.is_dir() else ", a folder that does not exist"
            return Finding("ok", f"not in {root}{absent} (`bam-data {name} {words}` puts it into DIR)")
        try:
            data = make()
            data.prepare()
            digest = data.digest
        except DataError as error:
            return Finding("wrong", str(error))
        return Finding("ok", f"{digest} in {root}")

    return look
