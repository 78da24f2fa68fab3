"""Short names for the runs of a table in TensorBoard."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from torch.utils.tensorboard import SummaryWriter

from bam_exp.reports.tensorboard import link_runs, link_tables

LABELS = {"a/b/c/d/seed0": "BAM, r=8", "a/b/c/d/seed1": "BAM, r=8", "a/e/c/d/seed0": "+ SE / x"}


def finished(folder: Path) -> None:
    for name in LABELS:
        writer = SummaryWriter(folder / "runs" / name)
        writer.add_scalar("test/top1_error", 20.0, 1)
        writer.close()


def test_tensorboard_names_runs_by_row_and_seed(tmp_path: Path) -> None:
    finished(tmp_path)
    links = link_runs(tmp_path, "demo", LABELS)
    assert links == tmp_path / "tensorboard" / "demo"
    events = EventMultiplexer().AddRunsFromDirectory(str(links)).Reload()
    assert set(events.Runs()) == {"BAM, r=8 seed0", "BAM, r=8 seed1", "+ SE - x seed0"}
    assert events.Scalars("BAM, r=8 seed0", "test/top1_error")[0].value == 20.0


def test_links_are_made_anew_and_other_files_stay(tmp_path: Path) -> None:
    finished(tmp_path)
    links = link_runs(tmp_path, "demo", LABELS)
    (links / "mine.txt").write_text("mine")
    link_runs(tmp_path, "demo", {"a/b/c/d/seed0": "another label"})
    assert sorted(path.name for path in links.iterdir()) == ["another label seed0", "mine.txt"]
    assert (tmp_path / "runs/a/b/c/d/seed1").is_dir()


def test_a_table_has_links_for_its_runs_and_others_for_a_shortened_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shapes_small/resnet20-widen0.5/none/demo/seed0", "shapes_small/resnet20-widen0.5/none/demo-epochs1/seed3",
                 "shapes_small/resnet20-widen0.5/none/demo/seed0.bak", "shapes/resnet50/none/demo/seed0"):  # fmt: skip
        SummaryWriter(tmp_path / "runs" / name).close()
    link_tables(["demo"], str(tmp_path))
    assert [path.name for path in (tmp_path / "tensorboard/demo").iterdir()] == ["ResNet-20 (half width) seed0"]
    assert [path.name for path in (tmp_path / "tensorboard/demo--demo-epochs1").iterdir()] == [
        "ResNet-20 (half width) seed3"
    ]
    assert f"--logdir {tmp_path}/tensorboard/demo\n" in capsys.readouterr().out


def test_without_runs_there_is_no_folder(tmp_path: Path) -> None:
    link_tables(["demo"], str(tmp_path))
    assert not (tmp_path / "tensorboard").exists()
