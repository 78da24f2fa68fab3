"""The made-up store by which `bam-bench store` measures is a store of runs of this version."""

from pathlib import Path

from conftest import REPOSITORY

from bam_exp.bench.store import Case, _cost, make_store
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


def test_the_memory_of_a_command_is_its_own(tmp_path: Path) -> None:
    """And not that of this process, which Linux would count as the command's."""
    here = bytearray(400 * 2**20)
    cost = _cost(REPOSITORY, Case("version", "bam_exp.commands.tables", ("--version",)), tmp_path, tmp_path)
    assert len(here) / 2**20 > 300 > cost.megabytes > 5
    assert 0 < cost.seconds < 60
