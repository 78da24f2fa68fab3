"""The runs of tables' rows, and the facts of their data: worked out once, then read back (see `config.remembered`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_exp.config import Chosen, remembered
from bam_exp.runs.run import Run
from bam_exp.tables import Row, register_row

if TYPE_CHECKING:
    from bam_exp.data.dataset import DataSet


def run_of(row: Row, seed: int, extra: Sequence[str] = (), *, output_dir: Path | None = None) -> Run:
    """The run of a table's row with one seed; `extra` overrides take precedence over the row, and `output_dir` over both.

    Raises:
        ConfigError: if it cannot be run.
    """
    composed: list[Chosen] = []

    def compose() -> dict[str, Any] | None:
        from bam_exp.build import build_on_meta

        register_row(row)
        chosen = row.chosen([*extra, "seed=0"])
        build_on_meta(chosen)  # which checks that everything fits
        composed.append(chosen)
        return chosen.to_json()

    if any("$" in word for word in extra):  # an interpolation may read the environment
        compose()
    else:
        kept = remembered("row", [row.override, dict(row.set), *extra], compose)
        if not composed:
            composed.append(Chosen.from_json(kept))
    chosen = composed[0]
    run = Run.of(chosen, data_digest(chosen))
    return replace(run, chosen=replace(chosen, seed=seed, output_dir=output_dir or chosen.output_dir))


def data_digest(chosen: Chosen) -> str:
    """The digest of the data."""
    digest: str = _data_fact(chosen, "digest", lambda data: data.digest)
    return digest


def data_sizes(chosen: Chosen) -> tuple[int, int]:
    """The number of images in an epoch and in a test."""
    train_size, test_size = _data_fact(chosen, "sizes", lambda data: [data.train_size, data.test_size])
    return train_size, test_size


def _data_fact(chosen: Chosen, name: str, read: "Callable[[DataSet], Any]") -> Any:
    """A fact of a data set, which is kept unless it follows from files that are there."""
    fresh: list[Any] = []

    def build() -> "DataSet":
        from bam_exp.build import build_data

        return build_data(chosen)

    def make() -> list[Any] | None:
        data = build()
        fresh.append(read(data))
        reads: Sequence[str] | None = getattr(data, "reads", None)
        return None if reads is None or _any_there(chosen.data_root, reads) else [list(reads), fresh[0]]

    kept = remembered(f"data-{name}", chosen.data.settings, make)
    if fresh:
        return fresh[0]
    reads, value = kept
    return read(build()) if _any_there(chosen.data_root, reads) else value


def _any_there(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).exists() for name in names)
