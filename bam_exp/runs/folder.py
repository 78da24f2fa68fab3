"""The files of a run's folder: what each is called, and reading and writing them.

`run.json` claims the folder for a fingerprint, `owner.json` names the process that trains, `progress.json` says how far it
is, `error.json` why it failed, and `result.json`, written last, makes the run done.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bam_exp.errors import ConfigError
from bam_exp.files import read_json, write_atomically
from bam_exp.runs.run import SCHEMA, Run, superseded

BEGUN = "run.json"
RESULT = "result.json"
OWNER = "owner.json"
PROGRESS = "progress.json"
ERROR = "error.json"
CHECKPOINTS = "checkpoint-*.pt"
EVENTS = "events.out.tfevents.*"


def result_of(run: Run) -> dict[str, Any] | None:
    """The result of a finished run, or None if it is not finished.

    Raises:
        ConfigError: if the folder holds a run of another fingerprint, or a file that is not ours.
    """
    path = run.folder / RESULT
    for file in (path, run.folder / BEGUN):
        if not file.is_file():
            continue
        try:
            content: dict[str, Any] = json.loads(file.read_text())
            fingerprint = content["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: not a file of bam_exp ({error}); move its folder away to run it again"
            ) from error
        schema = run.schema_of(fingerprint)
        if schema is None:
            raise ConfigError(
                f"{run.folder}: holds a run with another fingerprint ({fingerprint}, this one is {run.fingerprint}): the same "
                f"name, but {_difference(content.get('figures_from'), run.figures_from)}; move the folder away to run it again"
            )
        if schema < SCHEMA and (reason := _outdated(content, schema)):
            raise ConfigError(
                f"{run.folder}: holds a run of an earlier version (schema {schema}, now {SCHEMA}): {reason}; move the folder away "
                "to run it again"
            )
        if file == path:
            return content
    return None


def is_done(run: Run) -> bool:
    """Whether the run has a valid result."""
    try:
        return result_of(run) is not None
    except ConfigError:
        return False


def begin(run: Run) -> str:
    """Write `run.json` unless it is there; returns the time of the run's first start."""
    path = run.folder / BEGUN
    if path.is_file():
        return str(json.loads(path.read_text())["start"])
    start = now()
    content = {"fingerprint": run.fingerprint, "command": run.command, "start": start, "figures_from": run.figures_from}
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return start


def write_result(run: Run, result: Mapping[str, Any]) -> None:
    """Write `result.json`, after deleting what only an unfinished run has: once it is done, nobody would come back for that."""
    for name in (ERROR, PROGRESS, OWNER):
        (run.folder / name).unlink(missing_ok=True)
    write_atomically(run.folder / RESULT, json.dumps(result, indent=1) + "\n")


def record_failure(run: Run, reason: str, trace: str = "") -> str:
    """Write `error.json`, which `status` and the sweep's summary read, and return the reason."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / ERROR, json.dumps({"reason": reason, "traceback": trace}, indent=1) + "\n")
    except OSError as error:
        return f"{reason} (and its folder cannot be written: {error.strerror})"
    return reason


def failure_of(folder: Path) -> str | None:
    """The reason why the run of a folder failed, or None."""
    failure = read_json(folder / ERROR)
    return str(failure.get("reason", "no reason was recorded")) if failure else None


def clear_failure(run: Run) -> None:
    """Forget an earlier failure, before a new attempt."""
    (run.folder / ERROR).unlink(missing_ok=True)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    epoch: int
    epochs: int
    seconds_to_go: float
    time: float
    """When this was written, in seconds since 1970."""


def write_progress(folder: Path, epoch: int, epochs: int, seconds_to_go: float) -> None:
    """Write `progress.json`."""
    state = asdict(Progress(epoch, epochs, round(seconds_to_go, 1), time.time()))
    write_atomically(folder / PROGRESS, json.dumps(state) + "\n")


def read_progress(folder: Path) -> Progress | None:
    """The content of `progress.json`, or None."""
    try:
        return Progress(**read_json(folder / PROGRESS))
    except TypeError:
        return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint from which the run continues."""
    return any(folder.glob(CHECKPOINTS))


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _outdated(content: Mapping[str, Any], schema: int) -> str | None:
    """Why a run of an older schema neither counts as done nor continues; None if it counts as done."""
    hardware = content.get("hardware")
    if not isinstance(hardware, dict):
        return "it is unfinished, and the rest would be trained and tested in another way"
    return superseded(schema, str(hardware.get("precision")))


def _difference(before: object, now: Mapping[str, Any]) -> str:
    """The first setting in which two runs differ."""
    if not isinstance(before, dict):
        return "another content"
    for key, value in now.items():
        old = before.get(key)
        if old != value:
            if isinstance(value, dict) and isinstance(old, dict):
                for inner in {**old, **value}:
                    if old.get(inner) != value.get(inner):
                        return f"{key}.{inner} was {old.get(inner)}, now {value.get(inner)}"
            return f"{key} was {old}, now {value}"
    return "another content"
