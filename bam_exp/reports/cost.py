"""The cost of runs: from measured step times, or as a rough guess from counted work and the peaks of the device."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, Literal

from bam_exp.complexity import Complexity
from bam_exp.config.choices import choice_file
from bam_exp.runs.run import Run

Source = Literal["measured", "scaled", "guess"]
"""The source of an estimate: the step time of the same network, that of others on the same data, or the device's peaks."""

_PASSES = 17
"""How often a training step moves the output of a convolution: counted for ResNets and ResNeXts with fused kernels."""

_PEAKS = (
    ("H200", 790e12, 4.3e12), ("H100", 750e12, 3.0e12), ("A100", 280e12, 1.7e12), ("L40", 170e12, 0.8e12),
    ("4090", 160e12, 0.9e12), ("L4", 60e12, 0.28e12), ("A10", 60e12, 0.55e12), ("V100", 90e12, 0.8e12), ("T4", 40e12, 0.28e12),
)  # fmt: skip
"""Part of a card's name, FLOP/s of dense bfloat16 (float16 before Ampere) and bytes/s that single kernels reach."""

_REACHED = 0.6
"""The share of these peaks that whole training steps reach, as published for ResNets in PyTorch."""

_SIZES = re.compile(r"-(train|test)_size\d+")


@dataclass(frozen=True)
class Estimate:
    """Seconds that a run would take."""

    seconds: float
    source: Source


@dataclass(frozen=True)
class Work:
    """The work of a run."""

    network: tuple[str, str, str]
    """Data without the number of its images, backbone and attention."""
    batch_size: int
    train_steps: int
    """Seconds of the whole run."""
    test_steps: int
    cost: Complexity

    @classmethod
    def of(cls, run: Run, cost: Complexity, train_size: int, test_size: int) -> "Work":
        """The work of a run on so many images."""
        recipe = run.figures_from["recipe"]
        batch, limit = int(recipe["batch_size"]), recipe.get("max_steps")
        epoch, tests = ceil(train_size / batch), ceil(test_size / batch)
        steps = int(recipe.get("steps") or 0) or int(recipe.get("epochs") or 1) * epoch
        if limit:
            steps, tests = min(steps, limit), min(tests, limit)
        network = (_SIZES.sub("", run.names["data"]), run.names["backbone"], run.names["attention"])
        return cls(network, batch, steps, tests * ceil(steps / epoch), cost)

    def seconds(self, step_ms: float) -> float:
        """The seconds of training and tests; a test step takes a third of a training step, the forward pass alone."""
        return (self.train_steps + self.test_steps / 3) * step_ms / 1000


class Costs:
    """Estimates for one device, from the lines of finished runs and of `bam-tables plan --measure`."""

    def __init__(self, lines: Iterable[Mapping[str, str]], device: Mapping[str, Any]) -> None:
        self.device = device
        self.steps: dict[tuple[tuple[str, str, str], int], list[float]] = {}
        """(network, batch size) to milliseconds of a step."""
        self.rates: dict[tuple[str, int], list[float]] = {}
        """(data, batch size) to milliseconds of a step per multiply-accumulate of an image."""
        for line in lines:
            batch = batch_size_of(line)
            if batch and line.get("step_ms") and _same_device(line, device):
                step, data = float(line["step_ms"]), _SIZES.sub("", line["data"])
                self.steps.setdefault(((data, line["backbone"], line["attention"]), batch), []).append(step)
                if line.get("macs"):
                    self.rates.setdefault((data, batch), []).append(step / float(line["macs"]))

    def estimate(self, work: Work) -> Estimate:
        """The seconds of a run, and what they are derived from."""
        if measured := self.steps.get((work.network, work.batch_size)):
            return Estimate(work.seconds(median(measured)), "measured")
        if rates := self.rates.get((work.network[0], work.batch_size)):
            return Estimate(work.seconds(median(rates) * work.cost.macs), "scaled")
        return Estimate(work.seconds(guessed_step_ms(work, self.device)), "guess")


def guessed_step_ms(work: Work, device: Mapping[str, Any]) -> float:
    """Milliseconds of a training step, from FLOPs and bytes and the peaks of the device; off by a factor of two either way."""
    flops = 6 * work.cost.macs * work.batch_size
    width = 2 if device["precision"] == "bfloat16" else 4
    moved = _PASSES * work.cost.activations * width * work.batch_size
    if device["device"] == "CPU":
        threads = int(device["threads"])
        return 1000 * max(flops / (50e9 * threads), moved / (20e9 * min(threads, 8)))
    known = ((peak, bandwidth) for part, peak, bandwidth in _PEAKS if part in str(device["device"]))
    peak, bandwidth = next(known, (100e12, 1e12))
    return 1000 * max(flops / (peak if width == 2 else peak / 8), moved / bandwidth) / _REACHED + 1


def describe(device: Mapping[str, Any]) -> str:
    """A device in words."""
    precision = "its faster precision" if device["precision"] == "auto" else device["precision"]
    if device["device"] != "CPU":
        return f"{device['device']}, {precision}"
    threads = int(device["threads"])
    return f"{device['cpu']}, {threads} thread{'s' * (threads != 1)}, {precision}"


def batch_size_of(line: Mapping[str, str]) -> int | None:
    """The batch size of a run, from its command or the file of its recipe; None if neither says it."""
    if line.get("batch_size"):
        return int(line["batch_size"])
    words = dict(word.partition("=")[::2] for word in shlex.split(line.get("command", "")))
    recipe = choice_file("recipe", words.get("recipe", ""))
    size = words.get("recipe.batch_size", recipe.get("batch_size"))
    return int(size) if size is not None else None


def _same_device(line: Mapping[str, str], device: Mapping[str, Any]) -> bool:
    keys = ["device", *(["cpu", "threads"] if device["device"] == "CPU" else [])]
    if device["precision"] != "auto":
        keys.append("precision")
    return all(str(line[key]) == str(device[key]) for key in keys)


def disk(cost: Complexity, *, best_weights: bool = False) -> int:
    """Bytes of a run's folder at the end of its training, when it is largest; every number is a float32.

    Two generations of a checkpoint, each weights and momentum, and the file of weights; with `best_weights` a second such file.
    """
    return 4 * (2 * 2 + 1 + best_weights) * cost.params
