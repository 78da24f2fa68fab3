"""results/README.md: the state of every table."""

import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY

from bam_exp.reports import write


def test_the_state_of_the_tables_comes_out_of_the_committed_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With three of the tables, which take a few seconds: each of their lines stands in the committed page."""
    (tmp_path / "results").mkdir()
    shutil.copy(REPOSITORY / "results/runs.csv", tmp_path / "results")
    monkeypatch.setattr(write, "table_names", lambda: ["cpu", "demo", "table1b"])
    assert write.main([], str(tmp_path), formats=["md"], every=True) == 0
    page, committed = ((folder / "results/README.md").read_text() for folder in (tmp_path, REPOSITORY))
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert set(page.splitlines()) <= set(committed.splitlines())
    assert "| 2 x 12 | 24 |" in page
    assert "`bam-train +experiment=table1b data_root=DIR`" in page
    assert not (tmp_path / "results/table1b.md").exists()
