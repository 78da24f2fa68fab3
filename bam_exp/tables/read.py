"""Reading tables: conf/table/<table>.yaml, of the package or of the user's folders."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from bam_exp.config.choices import NAME, choice_names, choice_path, nearest
from bam_exp.config.strict_yaml import read_yaml
from bam_exp.errors import ConfigError
from bam_exp.figures import FIGURES, METRICS
from bam_exp.tables.table import Row, Table

_STRICT = ConfigDict(extra="forbid", strict=True)


class _Counting(BaseModel):
    model_config = _STRICT
    classes: PositiveInt | None = None
    bias: bool | None = None


class _RowFile(BaseModel):
    model_config = _STRICT
    label: str | None = None
    paper: dict[str, str] = {}
    set: dict[str, Any] = {}
    counting: _Counting = _Counting()


class _TableFile(BaseModel):
    """The content of a table's file."""

    model_config = _STRICT
    title: str
    metric: str
    task: str = "classification"
    columns: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[NonNegativeInt, Field(lt=2**31)]], Field(min_length=1)]
    base: dict[str, Any] = {}
    counting: _Counting = _Counting()
    rows: Annotated[dict[str, _RowFile], Field(min_length=1)]
    notes: dict[str, Any] = {}


def table_names() -> list[str]:
    """The names of the tables."""
    return choice_names("table")


def load_table(name: str) -> Table:
    """The table of this name.

    Raises:
        ConfigError: if there is no such table; else naming the file and the key that is wrong.
    """
    path = choice_path("table", name)
    if path is None:
        raise ConfigError(
            f"{name}: there is no such table{nearest(name, table_names())} (there are {', '.join(table_names())})"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a mapping with title, metric, columns, seeds, base and rows")
    try:
        file = _TableFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error
    if wrong := _inconsistent(file):
        raise ConfigError(f"{path}: {wrong}")
    common = file.counting.model_dump(exclude_none=True)
    rows = [
        Row(
            name,
            row_name,
            row.label or row_name,
            row.paper,
            {**file.base, **row.set},
            {**common, **row.counting.model_dump(exclude_none=True)},
            file.notes.get(row_name) or {},
        )
        for row_name, row in file.rows.items()
    ]
    remarks = list(file.notes.get("table") or [])
    return Table(name, file.title, file.task, file.metric, file.columns, file.seeds, rows, remarks)


def _inconsistent(file: _TableFile) -> str | None:
    """The first inconsistency in a table's file, in one line, or None."""
    for column in [*file.columns, file.metric]:
        if column not in FIGURES:
            return f"columns: {column} is none of {', '.join(FIGURES)}"
    if file.metric not in file.columns:
        return f"metric: {file.metric} is not one of the columns"
    if file.metric in _COUNTED:
        return f"metric: {file.metric} is counted, not measured; rows are compared by a figure such as top1_error"
    if file.task not in METRICS:
        return f"task: {file.task} is none of {', '.join(METRICS)}"
    for row_name, row in file.rows.items():
        if not NAME.fullmatch(row_name) or not row_name.isascii():  # +row/<table>=<row> is what selects it
            return f"rows.{row_name or repr(row_name)}: the name of a row should have letters, digits and . + - _ only"
        if _is_no_text(row_name):
            return f"rows.{row_name}: on a command line this is no name but a value; call it row{row_name}"
        for figure, printed in row.paper.items():
            if figure not in file.columns:
                return (
                    f"rows.{row_name}.paper.{figure}={printed}: should be one of the columns {', '.join(file.columns)}"
                )
            if not re.fullmatch(r"\d+(\.\d+)?M" if figure == "params" else r"\d+(\.\d+)?", printed):
                example = "24.07M" if figure == "params" else "20.00"
                return f'rows.{row_name}.paper.{figure}={printed}: should be the figure as printed, as in "{example}"'
    for key, reasons in file.notes.items():
        if key == "table":
            if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
                return "notes.table: should be a list of sentences"
        elif key not in file.rows:
            return f"notes.{key}: there is no such row{nearest(key, file.rows)}"
        elif not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
            return f"notes.{key}: should map figures to reasons"
        elif wrong := [figure for figure in reasons if figure not in file.rows[key].paper]:
            return f"notes.{key}.{wrong[0]}: the row prints no such figure"
    return None


_COUNTED = ("params", "gflops")


def _is_no_text(name: str) -> bool:
    """Whether Hydra would take a name for a number, a truth value or nothing."""
    try:
        float(name)
    except ValueError:
        return name.lower() in ("true", "false", "null")
    return True


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = _TableFile
        if len(first["loc"]) > 1:
            model = _RowFile if first["loc"][0] == "rows" and len(first["loc"]) == 3 else _Counting
        return f"{key}: no such key{nearest(first['loc'][-1], model.model_fields)}"
    if first["type"] == "missing":
        return f"{key}: is missing"
    if first["type"] == "model_type":
        return f"{key}={first['input']}: should be a mapping, such as {{label: ..., set: ...}}"
    return f"{key}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"
