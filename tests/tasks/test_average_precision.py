"""COCO's figures equal pycocotools', VOC's the definition of its development kit, written out here once more."""

import contextlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import coco as pycocotools
from pycocotools.cocoeval import COCOeval

from bam_exp.data import COCO, VOC
from bam_exp.data.annotations import Annotations, Row
from bam_exp.data.coco import IDS
from bam_exp.data.dataset import Split
from bam_exp.tasks.average_precision import Found, average_precision, voc

Floats = npt.NDArray[np.float64]


def perturbed(truth: Annotations, classes: int, seed: int) -> Floats:
    """Two detections near each object, a fifth of them of another class, some with equal scores."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(len(truth)):
        own = truth.objects(i)
        for box, label in zip(truth.boxes[own], truth.labels[own], strict=True):
            for _ in range(2):
                moved = box + random.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
                seen = label if random.random() < 0.8 else random.integers(1, classes + 1)
                if (moved[2:] > moved[:2]).all():
                    rows.append([i, *moved, round(random.random(), 2), seen])
    return np.array(rows)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cocos_figures_are_pycocotools(tiny_coco: Path, split: Split) -> None:
    data = COCO(tiny_coco, official=False)
    truth = data.annotations(split)
    rows = perturbed(truth, 80, seed=0)
    ours = average_precision(truth, Found.of(rows), range(len(truth)), protocol="coco", num_classes=80)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pycocotools.COCO(str(data.file(split)))
        results = [
            {
                "image_id": int(truth.ids[int(i)]),
                "category_id": IDS[int(label) - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for i, x1, y1, x2, y2, score, label in rows.tolist()
        ]
        judge = COCOeval(theirs, theirs.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert ours == pytest.approx(dict(zip(("map", "map50", "map75"), 100 * judge.stats[:3], strict=True)), abs=1e-6)
    assert ours["map"] > 30


def test_without_a_detection_or_an_object_nothing_is_found(tiny_coco: Path) -> None:
    truth = COCO(tiny_coco, official=False).annotations("test")
    none = Found.of(np.zeros((0, 7)))
    assert average_precision(truth, none, [0, 1], protocol="coco", num_classes=80)["map"] == 0
    assert average_precision(truth, none, [0, 1], protocol="voc07", num_classes=80)["map50"] == 0
    empty = [int(i) for i in np.flatnonzero(np.diff(truth.first) == 0)]
    some = Found.of(np.array([[empty[0], 0, 0, 9, 9, 0.9, 1]]))
    assert average_precision(truth, some, empty, protocol="coco", num_classes=80)["map"] == 0
    assert average_precision(truth, some, empty, protocol="voc", num_classes=80)["map50"] == 0


def devkit(truth: Annotations, rows: Floats, label: int, *, eleven: bool) -> float | None:
    """VOCdevkit's evaluation as its documentation defines it, in one-based inclusive boxes."""
    detections = sorted((row for row in rows.tolist() if row[6] == label), key=lambda row: -row[5])
    total = sum(1 for i in range(len(truth)) for k in rows_of(truth, i, label) if not truth.difficult[k])
    if not total:
        return None
    used: set[int] = set()
    true = false = 0
    curve: list[tuple[float, float]] = []
    for i, x1, y1, x2, y2, _, _ in detections:
        best, overlap = -1, -1.0
        for k in rows_of(truth, int(i), label):
            a1, b1, a2, b2 = truth.boxes[k].tolist()
            a1, b1, u1, v1 = a1 + 1, b1 + 1, x1 + 1, y1 + 1
            w, h = min(a2, x2) - max(a1, u1) + 1, min(b2, y2) - max(b1, v1) + 1
            if w <= 0 or h <= 0:
                continue
            union = (a2 - a1 + 1) * (b2 - b1 + 1) + (x2 - u1 + 1) * (y2 - v1 + 1) - w * h
            if w * h / union > overlap:
                best, overlap = k, w * h / union
        if overlap > 0.5:
            if truth.difficult[best]:
                continue
            if best in used:
                false += 1
            else:
                true += 1
                used.add(best)
        else:
            false += 1
        curve.append((true / total, true / (true + false)))
    if eleven:
        levels = [0.1 * t for t in range(11)]  # as its ports round them: a recall of 3/10 does not reach the fourth
        return sum(max((p for r, p in curve if r >= level), default=0.0) for level in levels) / 11
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - before) * max(p for r, p in curve if r >= recall)
        before = recall
    return area


def rows_of(truth: Annotations, image: int, label: int) -> list[int]:
    own = truth.objects(image)
    return [k for k in range(own.start, own.stop) if truth.labels[k] == label]


@pytest.mark.parametrize("protocol", ["voc07", "voc"])
def test_vocs_figures_are_the_devkits(voc_mini: Path, protocol: str) -> None:
    truth = VOC(voc_mini, official=False, train=["VOC2007/trainval"]).annotations("test")
    assert truth.difficult.any()
    rows = perturbed(truth, 20, seed=1)
    rows[:, 5] += np.linspace(0, 1e-3, len(rows))  # the kit leaves the order of equal scores open
    for label in range(1, 21):
        ours = voc(truth, Found.of(rows), range(len(truth)), label, protocol=protocol)  # type: ignore[arg-type]
        assert ours == pytest.approx(devkit(truth, rows, label, eleven=protocol == "voc07"), abs=1e-12)


def objects(*rows: Row) -> Annotations:
    """One image of 100 x 100 with these objects."""
    return Annotations.of([("a.jpg", 1, 100, 100)], [list(rows)])


A: Row = ((10, 10, 30, 30), 1, 400, False, False)
B: Row = ((50, 50, 90, 90), 1, 1600, False, False)
HARD: Row = ((50, 50, 90, 90), 1, 1600, False, True)
ON_A, NEAR_A, ON_B, AWAY = (10, 10, 30, 30), (11, 10, 30, 30), (50, 50, 90, 90), (0, 60, 20, 80)


@pytest.mark.parametrize(
    ("truth", "detections", "eleven", "area"),
    [
        ([A], [(ON_A, 0.9)], 1.0, 1.0),
        ([A], [], 0.0, 0.0),
        ([A], [(AWAY, 0.9)], 0.0, 0.0),
        ([A], [(AWAY, 0.9), (ON_A, 0.8)], 0.5, 0.5),
        ([A], [(ON_A, 0.9), (NEAR_A, 0.8)], 1.0, 1.0),  # the second hit is false, but comes after the recall of 1
        ([A, B], [(ON_A, 0.9), (NEAR_A, 0.8), (ON_B, 0.7)], (6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
        ([A, B], [(ON_A, 0.9)], 6 / 11, 0.5),
        ([A, HARD], [(ON_B, 0.9), (ON_A, 0.8)], 1.0, 1.0),  # the difficult object counts neither way
        ([A, HARD], [(ON_A, 0.9)], 1.0, 1.0),
        ([HARD], [(ON_B, 0.9)], None, None),
        ([], [(ON_B, 0.9)], None, None),
        ([A], [((10, 10, 30, 20), 0.9)], 0.0, 0.0),  # an overlap of exactly one half is not enough
    ],
)
def test_vocs_rules_on_cases_by_hand(
    truth: list[Row], detections: list[tuple[tuple[int, ...], float]], eleven: float | None, area: float | None
) -> None:
    rows = np.array([[0, *box, score, 1] for box, score in detections], dtype=float).reshape(-1, 7)
    found, annotations = Found.of(rows), objects(*truth)
    assert voc(annotations, found, [0], 1, protocol="voc07") == (eleven if eleven is None else pytest.approx(eleven))
    assert voc(annotations, found, [0], 1, protocol="voc") == (area if area is None else pytest.approx(area))
    assert voc(annotations, found, [0], 2, protocol="voc") is None
