"""The files of a run's folder: what each is called, and reading and writing them.

`run.json` claims the folder for a fingerprint, `owner.json` names the process that trains, `progress.json` says how far it
is, `error.json` why it failed, and `result.json`, written last, makes the run done. `contents` checks whatever is read.
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bam_exp.errors import ConfigError
from bam_exp.files import read_json, reason_of, write_atomically
from bam_exp.machine.precision import Precision
from bam_exp.runs.contents import Begun, Failure, Progress, Result, read_file
from bam_exp.runs.run import SCHEMA, Run, superseded

BEGUN = "run.json"
RESULT = "result.json"
OWNER = "owner.json"
PROGRESS = "progress.json"
ERROR = "error.json"
CHECKPOINTS = "checkpoint-*.pt"
PICTURE = "detections.png"
EVENTS = "events.out.tfevents.*"


def result_of(run: Run) -> dict[str, Any] | None:
    """The result of a finished run, or None if it is not finished.

    Raises:
        ConfigError: if the folder holds a run of another fingerprint, or a file that is not ours.
    """
    models: tuple[tuple[str, type[Result] | type[Begun]], ...] = ((RESULT, Result), (BEGUN, Begun))
    for name, model in models:
        path = run.folder / name
        if not path.is_file():
            continue
        file, content = read_file(path, model)
        schema = run.schema_of(file.fingerprint)
        if schema is None:
            raise ConfigError(
                f"{run.folder}: holds a run with another fingerprint ({file.fingerprint}, this one is {run.fingerprint}): the "
                f"same name, but {_difference(file.figures_from, run.figures_from)}; move the folder away to run it again"
            )
        if schema < SCHEMA and (reason := _outdated(run, content, schema)):
            raise ConfigError(
                f"{run.folder}: holds a run of an earlier version (schema {schema}, now {SCHEMA}): {reason}; move the folder "
                "away to run it again"
            )
        if name == RESULT:
            return content
    return None


def is_done(run: Run) -> bool:
    """Return whether the run has a valid result."""
    try:
        return result_of(run) is not None
    except ConfigError:
        return False


def precision_begun(run: Run, unless_said: Precision) -> Precision | None:
    """The precision in which a run began, `unless_said` if its file does not say; None if it has not begun."""
    path = run.folder / BEGUN
    return (read_file(path, Begun)[0].precision or unless_said) if path.is_file() else None


def begin(run: Run, precision: str) -> str:
    """Write `run.json` unless it is there; returns the time of the run's first start.

    Raises:
        WriteError: if it cannot be written.
    """
    path = run.folder / BEGUN
    if path.is_file():
        return read_file(path, Begun)[0].start
    start = now()
    content = {
        "fingerprint": run.fingerprint,
        "command": run.command,
        "start": start,
        "precision": precision,
        "figures_from": run.figures_from,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return start


def write_picture(run: Run, picture: bytes) -> None:
    """Write the picture of the last evaluation."""
    write_atomically(run.folder / PICTURE, picture)


def write_result(run: Run, result: Mapping[str, Any]) -> None:
    """Delete the files that only an unfinished run has, then write `result.json`."""
    for name in (ERROR, PROGRESS, OWNER):
        (run.folder / name).unlink(missing_ok=True)
    write_atomically(run.folder / RESULT, json.dumps(result, indent=1) + "\n")


def record_failure(run: Run, reason: str, trace: str = "") -> str:
    """Write `error.json`, which `status` and the sweep's summary read, and return the reason."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / ERROR, json.dumps({"reason": reason, "traceback": trace}, indent=1) + "\n")
    except OSError as error:
        return f"{reason} (and its folder cannot be written: {reason_of(error)})"
    return reason


def failure_of(folder: Path) -> str | None:
    """The reason why the run of a folder failed, or None."""
    path = folder / ERROR
    if not path.is_file():
        return None
    try:
        return read_file(path, Failure)[0].reason
    except ConfigError:
        return f"no reason can be read from {path}"


def clear_failure(run: Run) -> None:
    """Forget an earlier failure, before a new attempt."""
    (run.folder / ERROR).unlink(missing_ok=True)


def write_progress(folder: Path, epoch: int, epochs: int, seconds_to_go: float) -> None:
    """Write `progress.json`."""
    state = Progress(epoch=epoch, epochs=epochs, seconds_to_go=round(seconds_to_go, 1), time=time.time())
    write_atomically(folder / PROGRESS, json.dumps(state.model_dump()) + "\n")


def read_progress(folder: Path) -> Progress | None:
    """The content of `progress.json`, or None if there is none or it cannot be used."""
    try:
        return Progress.model_validate(read_json(folder / PROGRESS))
    except ValidationError:
        return None


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint from which the run continues."""
    return any(folder.glob(CHECKPOINTS))


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _outdated(run: Run, content: Mapping[str, Any], schema: int) -> str | None:
    """The reason why a run of an older schema neither counts as done nor continues, or None if it counts as done."""
    hardware = content.get("hardware")
    if not isinstance(hardware, dict):
        return "it is unfinished, and the rest would be trained and tested in another way"
    return superseded(run, schema, str(hardware.get("precision")))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting in which two runs differ."""
    for key, value in now.items():
        old = before.get(key)
        if old != value:
            if isinstance(value, dict) and isinstance(old, dict):
                for inner in {**old, **value}:
                    if old.get(inner) != value.get(inner):
                        return f"{key}.{inner} was {old.get(inner)}, now {value.get(inner)}"
            return f"{key} was {old}, now {value}"
    return "another content"
