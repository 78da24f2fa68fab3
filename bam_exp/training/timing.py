"""Measuring the time of epochs, the time they wait for data, and the memory of a run."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

from bam_exp.data.batches import Batches


@dataclass
class Spent:
    """The time that an epoch has taken so far; an interrupted epoch continues from it."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0
    tested: float = 0.0


class Timing:
    """The times of a run's epochs. Those of training are kept in checkpoints, wall times are of this process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        """Wall time of the epochs of this process, including evaluation, curves and what a checkpoint adds to it."""
        self.times: list[dict[str, float]] = []
        """For each epoch: the seconds of its training, those of them spent waiting for data, those of its evaluation, and the
        milliseconds of a step.

        The first epoch of a process also has its `first_step_ms`, in which kernels are chosen, compiled or loaded.
        """
        self._first_step_ms: float | None = None
        self._cold = True
        self._ended = False
        self.spent = Spent()

    def start(self, loader: Batches) -> None:
        """Start the clocks at the beginning of training."""
        self.loader = loader
        self._opened = self._counted = time.monotonic()
        self._waited = loader.waited

    def start_epoch(self) -> None:
        """Start the clocks of an epoch."""
        self.close_epoch()
        self._opened = self._counted = time.monotonic()
        self.spent = Spent()

    def end_step(self) -> None:
        """Count the time since the last step."""
        now, waited = time.monotonic(), self.loader.waited
        self.spent.seconds += now - self._counted
        if self._cold:
            self._cold, self._first_step_ms = False, round(1000 * (now - self._counted), 3)
        self.spent.waited += waited - self._waited
        self.spent.steps += 1
        self._counted, self._waited = now, waited

    def start_test(self) -> None:
        """Start the clock of an evaluation."""
        self._test_opened = time.monotonic()

    def end_test(self) -> None:
        """Count the time of the evaluation."""
        self.spent.tested += time.monotonic() - self._test_opened

    def end_epoch(self) -> None:
        """Record the times of the epoch."""
        self.seconds.append(time.monotonic() - self._opened)
        self.times.append(
            {
                "train_seconds": round(self.spent.seconds, 3),
                "data_wait_seconds": round(self.spent.waited, 3),
                "test_seconds": round(self.spent.tested, 3),
                "step_ms": round(1000 * self.spent.seconds / max(1, self.spent.steps), 3),
            }
        )
        if self._first_step_ms is not None:
            self.times[-1]["first_step_ms"], self._first_step_ms = self._first_step_ms, None
        self._ended = True

    def close_epoch(self) -> None:
        """Count what came after the figures of the epoch that has ended, such as its checkpoint; before the next one starts."""
        if self._ended:
            self.seconds[-1], self._ended = time.monotonic() - self._opened, False

    def state_dict(self) -> dict[str, Any]:
        """The times so far, for a checkpoint."""
        return {"times": self.times, "trained": asdict(self.spent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the times of a checkpoint."""
        self.times, self.spent = list(state["times"]), Spent(**state["trained"])

    def summary(self) -> dict[str, Any]:
        """Times, median wall time of an epoch, share of training spent waiting for data, and peak memory."""
        return {
            "times": self.times,
            "seconds_per_epoch": round(median(self.seconds), 3) if self.seconds else None,
            "data_wait_percent": self._data_wait_percent(),
            "peak_memory_mib": peak_memory_mib(),
        }

    def _data_wait_percent(self) -> float:
        trained = sum(epoch["train_seconds"] for epoch in self.times)
        return round(100 * sum(epoch["data_wait_seconds"] for epoch in self.times) / trained, 2) if trained else 0.0


def peak_memory_mib() -> float | None:
    """The largest memory of this process so far: of the device on a GPU, else resident; None where the system does not say."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
