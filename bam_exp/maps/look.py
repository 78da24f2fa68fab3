"""The picture of a finished run, and figures of how its maps relate to the position of the object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bam_exp.errors import ConfigError
from bam_exp.maps.capture import Maps, attentions, capture, grad_cam
from bam_exp.maps.localisation import Estimate, Localisation, auc, localise
from bam_exp.maps.picture import Cam, Picture
from bam_exp.maps.trained import Trained, class_names, read_images, to_pixels

IMAGES = 500
"""From so many of the first test images those of a picture are chosen, and over so many the figures are means."""


def picture_of(run: Trained, baseline: Trained | None, files: Sequence[str], count: int) -> Picture:
    """The picture of a run.

    Args:
        baseline: the same run without an attention, whose Grad-CAM stands beside that of the run.
        files: image files to show; if there are none, `count` test images of different classes are shown.

    Raises:
        ConfigError: if the run has no attention with maps, or if there are fewer classes than `count`.
        DataError: if an image or the data cannot be read.
    """
    attentions(run.network)  # refuses a run without them before any image is read
    names, masks = class_names(run.data), None
    if files:
        images = read_images(files, run.data)
        labels = run.network(images).argmax(1)
        titles = [
            f"{_short(Path(file).name)}\n{_short(names[label])}?" for file, label in zip(files, labels, strict=True)
        ]
    else:
        tests, classes = run.tests(IMAGES)
        chosen = _of_different_classes(classes.tolist(), count)
        images, labels = tests[chosen], classes[chosen]
        titles = [_short(names[label]) for label in labels]
        if (all_masks := run.masks(IMAGES)) is not None:
            masks = all_masks[chosen]
    maps, _ = capture(run.network, images)
    kept = last_at_each_size(maps)
    title = f"{run.name}   (top-1 error {run.top1_error:.2f} %)"
    cams = [_cam("Grad-CAM\nof the run", run, images, labels)]
    if baseline is not None:
        cams.append(_cam(f"of the baseline\n({baseline.top1_error:.2f} %)", baseline, images, labels))
    return Picture(title, to_pixels(images, run.data), titles, masks, kept, cams, len(maps) - len(kept))


def _short(text: str) -> str:
    """A name that fits below a small image."""
    return text if len(text) <= 20 else f"{text[:19]}…"


def last_at_each_size(maps: dict[str, Maps]) -> dict[str, Maps]:
    """Select the last attention at each size of the map, because a picture has no room for those of every block."""
    last = {one.before.shape[1:]: name for name, one in maps.items()}
    return {name: one for name, one in maps.items() if name in last.values()}


def _of_different_classes(labels: Sequence[int], count: int) -> list[int]:
    """Indices of the first images of `count` classes, which are spread evenly over those that occur."""
    classes = sorted(set(labels))
    if count > len(classes):
        raise ConfigError(f"--count {count}: the first {len(labels)} test images are of {len(classes)} classes only")
    return [labels.index(classes[number * len(classes) // count]) for number in range(count)]


def _cam(title: str, run: Trained, images: Tensor, labels: Tensor) -> Cam:
    with torch.no_grad():
        probabilities = run.network(images).softmax(1)
    captions = [f"p = {p[label]:.2f}" for p, label in zip(probabilities, labels, strict=True)]
    return Cam(title, grad_cam(run.network, images, labels), captions)


@dataclass(frozen=True)
class Figures:
    """Measure how the maps of a run relate to the position of the object in test images."""

    images: int
    attentions: list[Localisation]
    cam: Estimate
    """The area under the ROC curve of Grad-CAM at the last stage, for the true class."""
    baseline_cam: Estimate | None
    """The same of the baseline."""


def figures_of(run: Trained, baseline: Trained | None) -> Figures | None:
    """The figures of a run over test images; None where the data has no masks of its objects.

    Raises:
        DataError: if the data is missing or damaged.
    """
    masks = run.masks(IMAGES)
    if masks is None:
        return None
    images, labels = run.tests(IMAGES)
    # Without training there are no running statistics: batch normalisation takes those of the images.
    untrained: nn.Module = run.untrained().train()
    rows = localise(capture(run.network, images)[0], capture(untrained, images)[0], masks)
    cams = [Estimate.of(auc(grad_cam(other.network, images, labels), masks)) for other in (run, baseline) if other]
    return Figures(len(images), rows, cams[0], cams[1] if baseline else None)


def as_text(figures: Figures) -> str:
    """The figures as a table, with what they mean."""
    head = ("", "inside", "outside", "difference", "AUC", "start", "F", "F′")
    rows = [
        (
            row.name,
            f"{row.inside.mean:.3f}",
            f"{row.outside.mean:.3f}",
            f"{row.difference.mean:+.3f} ± {row.difference.half_width:.3f}",
            f"{row.auc.mean:.2f}",
            f"{row.untrained_auc.mean:.2f}",
            f"{row.auc_before.mean:.2f}",
            f"{row.auc_after.mean:.2f}",
        )
        for row in figures.attentions
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    baseline = f"; of the baseline: {figures.baseline_cam.mean:.2f}" if figures.baseline_cam else ""
    return "\n".join(
        [
            "M(F), averaged over the channels, inside and outside the object,",
            f"in {figures.images} test images:",
            *lines,
            f"AUC of Grad-CAM at the last stage: {figures.cam.mean:.2f}{baseline}",
            "± is the half-width of the 95 % interval over the images. AUC: the probability",
            "that a pixel of the object has a higher value than one outside it; 0.5 is",
            "chance. start: AUC of M(F) in the same network before its first step. F and F′:",
            "AUC of the norm of the map before the attention and after it.",
        ]
    )
