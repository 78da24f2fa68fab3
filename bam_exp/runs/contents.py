"""What the JSON files of a run's folder hold, checked like anything that a user types.

Another process may have been killed while it wrote one, and people edit files.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError, model_validator

from bam_exp.errors import ConfigError
from bam_exp.figures import FIGURES, METRICS
from bam_exp.files import reason_of
from bam_exp.machine.precision import Precision

_JUDGED = tuple(name for name in FIGURES if any(f"best_{name}" in names for names in METRICS.values()))
"""The figures by which runs are judged, one of which every result has."""

_OPEN = ConfigDict(extra="allow", allow_inf_nan=True)


class Begun(BaseModel):
    """The part of `run.json` that every reader needs."""

    model_config = _OPEN
    fingerprint: str
    start: str
    figures_from: dict[str, Any] = {}
    command: str = ""
    precision: Precision | None = None
    """What the run began to compute in; absent from files of version 0.1.0."""


class Result(BaseModel):
    """The part of `result.json` that every reader needs."""

    model_config = _OPEN
    fingerprint: str
    metrics: dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e100, le=1e100)]]
    params: Annotated[NonNegativeInt, Field(strict=True)] | None = None
    macs: Annotated[NonNegativeInt, Field(strict=True)] | None = None
    hardware: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    figures_from: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_a_figure(self) -> Self:
        if not self.metrics.keys() & set(_JUDGED):
            raise ValueError(f"metrics has none of {', '.join(_JUDGED)}")
        return self


class Failure(BaseModel):
    """The content of `error.json`."""

    model_config = _OPEN
    reason: str


class Progress(BaseModel):
    """The progress of a run."""

    epoch: int
    epochs: int
    seconds_to_go: FiniteFloat
    time: FiniteFloat
    """The time of writing, in seconds since 1970."""


Content = TypeVar("Content", bound=BaseModel)


def read_file(path: Path, model: type[Content]) -> tuple[Content, dict[str, Any]]:
    """A JSON file of a run's folder, checked, and all of its content.

    Raises:
        ConfigError: naming the file, the key that is wrong and what to do.
    """
    advice = "move its folder away to run it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return model.model_validate(content), content
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        wrong = "it is no mapping"
        if first["type"] == "value_error":
            wrong = str(first["ctx"]["error"])
        elif key:
            wrong = f"{key} {'is missing' if first['type'] == 'missing' else 'is wrong'}"
        raise ConfigError(f"{path}: not a file of bam_exp ({wrong}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a file of bam_exp ({' '.join(str(error).split())}); {advice}") from error
