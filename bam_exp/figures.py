"""The figures that runs and tables have: how each is headed, written and compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """A figure of a table or a run."""

    name: str
    """The key in tables, `result.json` and `runs.csv`."""
    heading: str
    """The head of a table's column, with the unit."""
    better: Literal["lower", "higher"]
    phrase: str = ""
    """The name within a sentence."""
    unit: str = ""

    def text(self, value: float) -> str:
        """The name and the value for a sentence, as `top-1 error 22.40 %`."""
        return f"{self.phrase} {value:.2f}{self.unit and ' '}{self.unit}"


FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("params", "Params", "lower", "parameters"),
        Figure("gflops", "GFLOPs", "lower", "multiply-accumulates", "x 10^9"),
        Figure("top1_error", "Top-1 error %", "lower", "top-1 error", "%"),
        Figure("top5_error", "Top-5 error %", "lower", "top-5 error", "%"),
        Figure("map", "mAP@[.5,.95]", "higher", "mAP@[.5,.95]", "%"),
        Figure("map50", "mAP@.5", "higher", "mAP@.5", "%"),
        Figure("map75", "mAP@.75", "higher", "mAP@.75", "%"),
    )
}
"""The columns that a table can have."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": (
        "top1_error", "top5_error", "test_loss", "train_loss", "best_top1_error", "best_epoch", "test_images",
    ),
    "detection": (
        "map", "map50", "map75", "train_loss", "best_map", "best_map50", "best_epoch", "test_images",
    ),
}  # fmt: skip
"""The figures that a task measures, in the order of the columns of `runs.csv`; the first is its headline."""
