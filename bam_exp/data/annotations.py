"""The objects in the images of a split, as arrays."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bam_exp.errors import DataError

Box = tuple[float, float, float, float]
Row = tuple[Box, int, float, bool, bool]
"""One object: box, label, area, crowd, difficult."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of a split in their order, and the objects of each.

    Arrays, not lists: worker processes share them with the process that they were forked from.
    """

    names: npt.NDArray[np.str_]
    """Files of the images, below the folder of the images."""
    ids: npt.NDArray[np.int64]
    """The names of the images in their data set."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image."""
    first: npt.NDArray[np.int64]
    """Place of the first object of each image, and one more number at the end."""
    boxes: npt.NDArray[np.float64]
    """x1, y1, x2, y2 of each object in pixels, half open."""
    labels: npt.NDArray[np.int64]
    """1 ... classes of each object."""
    areas: npt.NDArray[np.float64]
    """Area of each object, by which COCO tells small from large ones."""
    crowd: npt.NDArray[np.bool_]
    """COCO's crowds: not trained on; detections in them count neither way."""
    difficult: npt.NDArray[np.bool_]
    """VOC's difficult objects: a detection of one counts neither way."""

    def __len__(self) -> int:
        return len(self.names)

    def objects(self, index: int) -> slice:
        """The slice of the arrays that holds the objects of an image."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def to_train_on(self, index: int, *, difficult: bool) -> tuple[Tensor, Tensor]:
        """Boxes float32 n x 4 and labels int64 n of an image, without crowds, with difficult objects if wanted."""
        own = self.objects(index)
        kept = ~self.crowd[own]
        if not difficult:
            kept &= ~self.difficult[own]
        boxes = torch.from_numpy(self.boxes[own][kept].astype(np.float32)).view(-1, 4)
        return boxes, torch.from_numpy(self.labels[own][kept])

    def check(self, source: Callable[[int], str]) -> None:
        """Refuse boxes without an area or outside their image.

        Args:
            source: what to call the annotation of an image, for the message.

        Raises:
            DataError: naming the first such box.
        """
        owner = np.repeat(np.arange(len(self)), np.diff(self.first))
        height, width = self.sizes[owner].T
        x1, y1, x2, y2 = self.boxes.T
        # One pixel of tolerance: some official boxes reach that far beyond the border.
        fine = (x2 > x1) & (y2 > y1) & (x1 >= -1) & (y1 >= -1) & (x2 <= width + 1) & (y2 <= height + 1)
        fine |= self.crowd  # not trained on
        wrong = np.flatnonzero(~fine)  # also where a coordinate is not a number
        if len(wrong):
            i = int(wrong[0])
            box = ", ".join(f"{value:g}" for value in self.boxes[i].tolist())
            size = f"{width[i]} x {height[i]}"
            more = f", and {len(wrong) - 1} more such boxes" if len(wrong) > 1 else ""
            raise DataError(
                f"{source(int(owner[i]))}: the box ({box}) should have x1 < x2 and y1 < y2, inside its image of {size}{more}"
            )

    def check_files(self, folder: Path, source: Callable[[int], str]) -> None:
        """Refuse annotations without their image.

        Raises:
            DataError: naming the first missing file.
        """
        folders = {str(PurePath(name).parent) for name in self.names.tolist()}
        there = {
            str(PurePath(inside, name))
            for inside in folders
            if (folder / inside).is_dir()
            for name in os.listdir(folder / inside)  # noqa: PTH208 (of a hundred thousand files, ten times as fast)
        }
        missing = [i for i, name in enumerate(self.names.tolist()) if name not in there]
        if missing:
            more = f", and {len(missing) - 1} more images" if len(missing) > 1 else ""
            raise DataError(
                f"{folder / str(self.names[missing[0]])}: no such file, though {source(missing[0])} describes it{more}"
            )

    @classmethod
    def joined(cls, parts: "Sequence[Annotations]") -> "Annotations":
        """Several splits one after another."""
        starts = np.cumsum([0, *(part.first[-1] for part in parts)])
        first = [part.first[:-1] + start for part, start in zip(parts, starts, strict=False)]
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name != "first"
        }
        return cls(first=np.concatenate([*first, starts[-1:]]), **columns)

    @classmethod
    def of(
        cls,
        images: Sequence[tuple[str, int, int, int]],
        objects: Sequence[Sequence[Row]],
    ) -> "Annotations":
        """Arrays from rows.

        Args:
            images: name, id, height and width of each.
            objects: of each image.
        """
        flat: list[Any] = [row for rows in objects for row in rows]
        boxes, labels, areas, crowd, difficult = zip(*flat, strict=True) if flat else ((), (), (), (), ())
        names, ids, heights, widths = zip(*images, strict=True) if images else ((), (), (), ())
        return cls(
            names=np.array(names, dtype=np.str_),
            ids=np.array(ids, dtype=np.int64),
            sizes=np.array([heights, widths], dtype=np.int64).T.copy(),
            first=np.cumsum([0, *(len(rows) for rows in objects)], dtype=np.int64),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            areas=np.array(areas, dtype=np.float64),
            crowd=np.array(crowd, dtype=np.bool_),
            difficult=np.array(difficult, dtype=np.bool_),
        )
