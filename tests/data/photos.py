"""What several tests of photos use: loaders with small settings, and ways to damage a file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bam_exp.data import ImageNet, PhotoLoader


def data(root: Path, **knobs: Any) -> ImageNet:
    return ImageNet(root, **{"size": 32, "classes": 4, **knobs})


def train(root: Path, knobs: dict[str, Any] | None = None, **changes: Any) -> PhotoLoader:
    return data(root, **(knobs or {})).loader(
        "train", **{"batch_size": 8, "seed": 5, "device": "cpu", "workers": 0, **changes}
    )


def first_photo(root: Path, split: str = "train") -> Path:
    return min(file for file in (root / split).rglob("*.JPEG"))


def equal(a: Iterable[tuple[Tensor, Tensor]], b: Iterable[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def disguised(root: Path) -> list[Path]:
    """The first five photos of the first class become a greyscale and a CMYK JPEG and three PNGs, all named JPEG."""
    files = sorted(first_photo(root).parent.iterdir())[:5]
    for file, mode in zip(files, ("L", "CMYK", "RGB", "P", "LA"), strict=True):
        photo = Image.open(file).convert("RGB").convert(mode)
        photo.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    return files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def headless(path: Path) -> None:
    """Damage that the ends of the file do not show."""
    content = bytearray(path.read_bytes())
    content[3:600] = bytes(597)
    path.write_bytes(content)
