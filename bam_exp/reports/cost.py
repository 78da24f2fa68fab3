"""What runs that have not been made yet would cost."""

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from bam_exp.complexity import Complexity
from bam_exp.config import NAMED
from bam_exp.machine import Machine
from bam_exp.runs.run import Run


class Costs:
    """Seconds that a run would take on this machine, from runs already measured on its kind of device."""

    def __init__(self, lines: Iterable[Mapping[str, str]], machine: Machine) -> None:
        self.device = _device(machine.description())
        self.epochs: dict[tuple[str, ...], list[float]] = {}
        """(data, backbone, attention) to seconds an epoch."""
        self.per_mac: dict[str, list[float]] = {}
        """Data to seconds an epoch per multiply-accumulate of an image."""
        for line in lines:
            if _device(line) == self.device and line["seconds_per_epoch"]:
                seconds = float(line["seconds_per_epoch"])
                self.epochs.setdefault(tuple(line[group] for group in NAMED[:3]), []).append(seconds)
                self.per_mac.setdefault(line["data"], []).append(seconds / float(line["macs"]))

    def seconds(self, run: Run, cost: Complexity, train_size: int) -> float | None:
        """Of the whole run; None where nothing comparable has been measured."""
        recipe = run.figures_from["recipe"]
        epochs = float(recipe["epochs"])
        if recipe.get("max_steps"):
            epochs = min(epochs, recipe["max_steps"] / math.ceil(train_size / recipe["batch_size"]))
        if measured := self.epochs.get(tuple(run.names[group] for group in NAMED[:3])):
            return median(measured) * epochs
        rates = self.per_mac.get(run.names["data"])
        return median(rates) * cost.macs * epochs if rates else None


def _device(hardware: Mapping[str, Any]) -> str:
    return str(hardware["cpu"] if hardware["device"] == "CPU" else hardware["device"])


def disk(cost: Complexity) -> int:
    """Bytes of a run's folder: two generations of a checkpoint while it trains, each weights and momentum in float32."""
    return 2 * 2 * 4 * cost.params
