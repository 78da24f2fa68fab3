"""The metadata of a weights file: the network, the data, and the figures that it reached."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import safe_open

from bam_exp.errors import DataError
from bam_exp.files import WEIGHTS
from bam_exp.weights.file import not_weights

KEY = "bam_exp"
"""The key of the metadata in the header of a safetensors file. It is the only one, because safetensors writes several keys in
random order, so that the bytes of a file would differ from one export to the next."""


_Pixels = Annotated[int, Field(gt=0, le=10_000)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocessing(BaseModel):
    """The steps by which a photo becomes an input of the network, as for the test set."""

    model_config = ConfigDict(frozen=True)

    resize: _Pixels
    """Length in pixels to which the short side is resized."""
    size: _Pixels
    """Height and width of the central crop."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]
    """Mean and standard deviation of red, green and blue, for pixels scaled to 0 ... 1."""


class Metadata(BaseModel):
    """The metadata of a weights file."""

    model_config = ConfigDict(frozen=True)

    source: str
    """The name of the run, or the file from which the weights were imported and its digest."""
    overrides: tuple[str, ...]
    """The overrides of bam-train that choose the network, its data and its recipe."""
    config: Mapping[str, Mapping[str, Any]]
    """For each group, the callable (`_target_`) and its arguments."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the logits."""
    preprocessing: Preprocessing | None = None
    fingerprint: str | None = None
    schema_version: int | None = None
    """Fingerprint and schema of the run; None for imported weights."""
    precision: str | None = None
    """In which the run was trained and tested."""
    epoch: int | None = None
    """The epoch after which the weights were taken, counted from 1."""
    figures: Mapping[str, float] = {}
    """The figures on the test set after that epoch."""
    versions: Mapping[str, str] = {}

    def to_header(self) -> dict[str, str]:
        """The metadata as safetensors keeps it: one text."""
        return {KEY: json.dumps(self.model_dump(mode="json"), sort_keys=True)}


def weights_file(path: str | Path) -> Path:
    """The weights file that a path means: the file itself, or the last weights in the folder of a run."""
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path


def read_metadata(path: str | Path) -> Metadata | None:
    """Read the metadata of a weights file, or of the weights in a run's folder; None if the file has none.

    Raises DataError if it is not a safetensors file, or its metadata is damaged.
    """
    path = weights_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # SafetensorError and OSError, among others
        raise not_weights(path, error) from error
    if KEY not in header:
        return None
    try:
        return Metadata.model_validate_json(header[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DataError(f"{path}: its metadata is damaged ({where}: {first['msg']})") from error
