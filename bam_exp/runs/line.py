"""The line of a run in results/runs.csv, from the files of its folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bam_exp.config import NAMED
from bam_exp.figures import METRICS
from bam_exp.runs.contents import Begun, Failure, Result, read_file
from bam_exp.runs.folder import BEGUN, ERROR, RESULT

MEASURED = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
_HARDWARE = ("device", "cpu", "threads", "precision")
COLUMNS = (
    *NAMED, "seed", *MEASURED, "params", "macs", *_HARDWARE, "seconds_per_epoch", "step_ms", "peak_memory_mib",
    "torch", "commit", "dirty", "fingerprint", "start", "end", "command", "error",
)  # fmt: skip
"""The columns of results/runs.csv; the line of a failed run has its reason in `error` and no figures."""

Line = dict[str, str]
"""A line of the store: column to text."""


def name_of(line: Mapping[str, str]) -> str:
    """The name of a line's run."""
    return "/".join([*(line[group] for group in NAMED), f"seed{line['seed']}"])


def line_of(folder: Path) -> Line | None:
    """The line of a run's folder; None if the run is neither finished nor failed.

    Raises:
        ConfigError: if a file of the folder is damaged.
    """
    if (folder / RESULT).is_file():
        content = read_file(folder / RESULT, Result)[1]
    elif (folder / BEGUN).is_file() and (folder / ERROR).is_file():
        content = {**read_file(folder / BEGUN, Begun)[1], "error": read_file(folder / ERROR, Failure)[0].reason}
    else:
        return None
    names = dict(zip((*NAMED, "seed"), folder.parts[-5:], strict=True))
    flat: dict[str, Any] = {
        **content,
        **content.get("metrics", {}),
        **content.get("hardware", {}),
        "torch": content.get("versions", {}).get("torch"),
        "step_ms": _step_ms(content.get("times")),
        **names,
        "seed": names["seed"].removeprefix("seed"),
    }
    return {column: _text(flat.get(column)) for column in COLUMNS}


def _step_ms(times: object) -> float | None:
    """Median milliseconds of a training step over the epochs of a run, without the first step of each process."""
    warm = []
    for epoch in times if isinstance(times, list) else []:
        mean = _positive(epoch, "step_ms")
        seconds, first = _positive(epoch, "train_seconds"), _positive(epoch, "first_step_ms")
        if mean and first and seconds:
            steps = round(1000 * seconds / mean)
            warm += [(1000 * seconds - first) / (steps - 1)] if steps > 1 else []
        elif mean:
            warm.append(mean)
    return round(median(warm), 3) if warm else None


def _positive(epoch: object, key: str) -> float | None:
    value = epoch.get(key) if isinstance(epoch, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
