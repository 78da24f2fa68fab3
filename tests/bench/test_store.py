"""The made-up store by which `bam-bench store` measures is a store of runs of this version."""

from pathlib import Path

from bam_exp.bench.store import make_store
from bam_exp.runs import run_of
from bam_exp.runs.store import collect, lines_of
from bam_exp.tables import load_table


def test_its_runs_stand_in_tables(tmp_path: Path) -> None:
    make_store(tmp_path, 250, 4)
    store = collect(tmp_path)
    assert not store.unusable
    assert len(store) == 254
    standing, remarks = lines_of(run_of(load_table("table1a").rows[0], 0), store)
    assert len(standing) >= 2
    assert remarks == []
