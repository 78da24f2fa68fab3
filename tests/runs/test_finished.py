"""Run folders are read once: again only when their result has changed."""

import json
from pathlib import Path

import pytest

from bam_exp.runs import finished, run_of
from bam_exp.runs.finished import Finished
from bam_exp.runs.store import collect
from bam_exp.tables import load_table


def write(folder: Path, seed: int, error: float) -> Path:
    run = run_of(load_table("demo").rows[0], seed, output_dir=folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    result = {"fingerprint": run.fingerprint, "metrics": {"top1_error": error}, "command": run.command}
    (run.folder / "part").write_text(json.dumps(result))
    return (run.folder / "part").replace(run.folder / "result.json")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are read."""
    read: list[Path] = []
    original = finished.line_of
    monkeypatch.setattr(finished, "line_of", lambda folder: (read.append(folder), original(folder))[1])
    return read


def errors(folder: Path) -> list[str]:
    return [line["top1_error"] for line in collect(folder, write=False)]


def test_a_result_is_read_again_only_when_it_has_changed(tmp_path: Path, reads: list[Path]) -> None:
    for seed in range(3):
        write(tmp_path, seed, 20.5 + seed)
    assert errors(tmp_path) == errors(tmp_path) == ["20.5", "21.5", "22.5"]
    assert len(reads) == 3
    write(tmp_path, 1, 30.25)
    assert errors(tmp_path) == ["20.5", "30.25", "22.5"]
    assert len(reads) == 4


def test_a_folder_that_is_gone_is_gone(tmp_path: Path) -> None:
    paths = [write(tmp_path, seed, 20.0) for seed in range(2)]
    assert len(errors(tmp_path)) == 2
    paths[0].unlink()
    assert len(errors(tmp_path)) == 1


def test_damage_is_named_each_time(tmp_path: Path) -> None:
    write(tmp_path, 0, 20.0).write_text("{")
    for _ in range(2):
        [reason] = collect(tmp_path, write=False).unusable
        assert "result.json: not a file of bam_exp" in reason


def test_what_was_kept_may_be_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, 0, 20.0)
    assert errors(tmp_path) == ["20.0"]
    [kept] = tmp_path.glob("cache/bam_exp/*/folders-*.json")
    for content in ("[]", '{"a": 3}', '{"a": [[1, 2, 3], ["x"]]}', kept.read_text()[:50], "\0"):
        kept.write_text(content)
        assert errors(tmp_path) == ["20.0"]


def test_names_are_those_of_runs(tmp_path: Path) -> None:
    path = write(tmp_path, 0, 20.0)
    copied = path.parent.with_name("seed0.bak")
    copied.mkdir()
    (copied / "result.json").write_text(path.read_text())
    [name] = Finished(tmp_path).names()
    assert name.endswith("/seed0")
