"""What is kept between commands: used while it is true, worked out again when anything that it follows from has changed."""

from pathlib import Path

import pytest
from conftest import chosen_of

from bam_exp import build
from bam_exp.config import Chosen, remembered, use_folders
from bam_exp.files import cache_file
from bam_exp.runs import run_of
from bam_exp.runs.rows import data_digest
from bam_exp.tables import load_table

TABLE = """
title: Mine
metric: top1_error
columns: [top1_error]
seeds: [0]
base: {backbone: resnet20}
rows: {a: {set: {attention.reduction: %s}}}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bam_exp"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Chosen]:
    """What has been built on the meta device."""
    built: list[Chosen] = []
    original = build.build_on_meta

    def counted(chosen: Chosen, **more: int) -> build.Parts:
        built.append(chosen)
        return original(chosen, **more)

    monkeypatch.setattr(build, "build_on_meta", counted)
    return built


def own_table(folder: Path, reduction: object) -> None:
    (folder / "table").mkdir(parents=True, exist_ok=True)
    (folder / "table" / "mine.yaml").write_text(TABLE % reduction)
    use_folders([folder])


def test_a_row_is_worked_out_once(builds: list[Chosen]) -> None:
    [first, *_] = load_table("demo").rows
    runs = [run_of(first, seed) for seed in (0, 3)]
    assert len(builds) == 1
    assert runs[1].name == runs[0].name.replace("seed0", "seed3")
    assert runs[0].with_seed(3).fingerprint == runs[1].fingerprint
    assert runs[0].figures_from == {**runs[1].figures_from, "seed": 0}


def test_what_is_read_back_is_the_same_run() -> None:
    for row in load_table("demo_detection").rows:
        fresh, kept = run_of(row, 1), run_of(row, 1)
        assert (kept.name, kept.fingerprint, kept.overrides, kept.figures_from) == (
            fresh.name, fresh.fingerprint, fresh.overrides, fresh.figures_from,
        )  # fmt: skip
        assert kept.chosen == fresh.chosen


def test_another_row_under_the_same_name_is_another_run(tmp_path: Path) -> None:
    own_table(tmp_path / "own", 4)
    assert "reduction4" in run_of(load_table("mine").rows[0], 0).name
    own_table(tmp_path / "own", 8)
    assert "reduction8" in run_of(load_table("mine").rows[0], 0).name


def test_a_config_that_reads_the_environment_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    own_table(tmp_path / "own", "'${oc.decode:${oc.env:REDUCTION}}'")
    for reduction in ("4", "8"):
        monkeypatch.setenv("REDUCTION", reduction)
        assert f"reduction{reduction}" in run_of(load_table("mine").rows[0], 0).name
    assert not own_cache.exists()


def test_damage_is_worked_out_again(builds: list[Chosen], own_cache: Path) -> None:
    row = load_table("demo").rows[0]
    name = run_of(row, 0).name
    for path in own_cache.rglob("*.json"):
        path.write_text(path.read_text()[:-5])
    assert run_of(row, 0).name == name
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remembered("kind", "key", lambda: 5) == 5


def test_the_digest_of_data_that_is_there_is_read_each_time(tmp_path: Path) -> None:
    chosen = chosen_of("data=imagenet", f"data_root={tmp_path}", "recipe=imagenet", "backbone=resnet18_imagenet")
    official = data_digest(chosen)
    assert "ImageNet-1K" in official
    photo = tmp_path / "imagenet" / "train" / "n01440764" / "a.JPEG"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"\xff\xd8\xff photo \xff\xd9")
    assert data_digest(chosen) != official
    photo.unlink()
    for folder in (photo.parent, photo.parent.parent, photo.parent.parent.parent):
        folder.rmdir()
    assert data_digest(chosen) == official


def test_the_cache_is_where_the_user_says(own_cache: Path) -> None:
    assert cache_file("x") == own_cache / "x"
