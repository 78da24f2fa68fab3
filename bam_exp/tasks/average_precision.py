"""Average precision of detections: COCO's, and VOC's in both of its protocols."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bam_exp.data.annotations import Annotations

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Found(NamedTuple):
    """The detections in the images of a split, in any order."""

    images: Integers
    """Place of the image in its split, n."""
    boxes: Floats
    """n x 4: x1, y1, x2, y2 in pixels of the photo, half open."""
    scores: Floats
    """n."""
    labels: Integers
    """n: 1 ... classes."""

    @classmethod
    def of(cls, rows: Floats) -> "Found":
        """Detections from an array n x 7 of index, box, score and label."""
        return cls(rows[:, 0].astype(np.int64), rows[:, 1:5], rows[:, 5], rows[:, 6].astype(np.int64))


def average_precision(
    truth: Annotations,
    found: Found,
    images: Sequence[int],
    *,
    protocol: Literal["coco", "voc07", "voc"],
    num_classes: int,
) -> dict[str, float]:
    """Mean average precision in per cent over the classes that have an object.

    Args:
        truth: the objects of the split.
        found: what was detected in `images`.
        images: places of the images that were tested; objects in others do not count.
        protocol: "coco" gives `map` (the mean over overlaps of 0.5, 0.55 ... 0.95), `map50` and `map75`; "voc07" and "voc"
            give `map50` alone, over eleven recalls or as the area under the curve.
        num_classes: classes without the background.
    """
    if protocol == "coco":
        return coco(truth, found, images, num_classes)
    precisions = [voc(truth, found, images, label, protocol=protocol) for label in range(1, num_classes + 1)]
    known = [precision for precision in precisions if precision is not None]
    return {"map50": 100 * float(np.mean(known)) if known else 0.0}


def coco(truth: Annotations, found: Found, images: Sequence[int], num_classes: int) -> dict[str, float]:
    """COCO's figures by faster-coco-eval: 100 detections of an image at most, crowds counted neither way."""
    from faster_coco_eval import COCO, COCOeval_faster

    rows = [(i, row) for i in images for row in range(truth.first[i], truth.first[i + 1])]
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    ground = COCO(
        {
            "images": [{"id": int(i)} for i in images],
            "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
            "annotations": [
                {
                    "id": number,
                    "image_id": int(i),
                    "category_id": int(truth.labels[row]),
                    "bbox": [*truth.boxes[row, :2].tolist(), *sides[row].tolist()],
                    "area": float(truth.areas[row]),
                    "iscrowd": int(truth.crowd[row]),
                }
                for number, (i, row) in enumerate(rows, start=1)
            ],
        }
    )
    if not rows or not len(found.images):
        return {"map": 0.0, "map50": 0.0, "map75": 0.0}
    detections = np.column_stack(
        [found.images, found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2], found.scores, found.labels]
    )
    judge = COCOeval_faster(ground, ground.loadRes(detections), "bbox", print_function=lambda *_: None)
    judge.params.imgIds = [int(i) for i in images]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return {name: max(0.0, 100 * float(judge.stats[i])) for i, name in enumerate(("map", "map50", "map75"))}


def voc(
    truth: Annotations, found: Found, images: Sequence[int], label: int, *, protocol: Literal["voc07", "voc"]
) -> float | None:
    """Average precision of one class at an overlap above 0.5, 0 ... 1; None without an object that counts.

    As in the development kit: by falling score, the object of the image with the largest overlap counts for the first
    detection of it, any other detection is false, and a detection of a difficult object counts neither way. Its boxes are
    inclusive and one pixel is added to every side; half-open boxes have the same overlaps without that.
    """
    taken: dict[int, npt.NDArray[np.bool_]] = {}
    objects, count = {}, 0
    for i in images:
        own = truth.objects(i)
        rows = np.arange(own.start, own.stop)[truth.labels[own] == label]
        objects[i] = rows
        taken[i] = np.zeros(len(rows), dtype=np.bool_)
        count += int((~truth.difficult[rows]).sum())
    if not count:
        return None
    own_class = np.flatnonzero(found.labels == label)
    hits = []
    for detection in own_class[np.argsort(-found.scores[own_class], kind="stable")]:
        image, rows = int(found.images[detection]), objects[int(found.images[detection])]
        overlaps = _overlaps(found.boxes[detection], truth.boxes[rows])
        best = int(overlaps.argmax()) if len(rows) else 0
        if not len(rows) or overlaps[best] <= 0.5:
            hits.append(False)
        elif not truth.difficult[rows[best]]:
            hits.append(not taken[image][best])
            taken[image][best] = True
    true = np.cumsum(hits) if hits else np.zeros(0)
    recall, precision = true / count, true / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if protocol == "voc07":
        at = [envelope[recall >= level] for level in np.linspace(0, 1, 11)]
        return float(np.mean([values[0] if len(values) else 0.0 for values in at]))
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of a box and n others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return np.asarray(shared / (areas - shared))
