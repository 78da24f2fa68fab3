"""What TensorBoard's own reader finds of a run: curves, settings as numbers, the config, images; and after a kill the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

WORDS = (
    *TINY,
    "data.train_size=800",
    "recipe.batch_size=16",
    "recipe.epochs=3",
    "recipe.schedule=steps",
    "recipe.milestones=[0.67]",
    "recipe.lr=0.05",
    "backbone.widen=0.5",
    "attention.reduction=8",
)


def read(folder: Path) -> EventAccumulator:
    assert len(list(folder.glob("events*"))) == 1
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of three epochs of 50 steps."""
    output = tmp_path_factory.mktemp("run")
    words = [*WORDS, f"output_dir={output}"]
    subprocess.run([sys.executable, "-m", "bam_exp", *words], check=True, capture_output=True)
    [result] = output.glob("runs/**/result.json")
    return result.parent


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def test_there_is_a_curve_for_everything_that_is_measured_in_each_epoch(folder: Path, result: dict[str, Any]) -> None:
    events = read(folder)
    names = {
        "train/loss", "train/top1_error", "train/learning_rate", "test/loss", "test/top1_error", "test/top5_error",
        "best/top1_error", "time/step_ms", "time/images_per_second", "time/data_wait_percent",
    }  # fmt: skip
    assert set(events.Tags()["scalars"]) == {*names, "train/step_loss"}  # and none of a single point
    for name in names:
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3], name
    errors = [event.value for event in events.Scalars("test/top1_error")]
    assert errors == pytest.approx([epoch["test/top1_error"] for epoch in result["epochs"]])
    assert events.Scalars("best/top1_error")[-1].value == pytest.approx(min(errors))
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([0.05, 0.05, 0.005])


def test_losses_of_single_steps(folder: Path) -> None:
    losses = read(folder).Scalars("train/step_loss")
    assert [event.step for event in losses] == [25, 50, 75, 100, 125, 150]
    assert all(0 < event.value < 10 for event in losses)


def test_hparams_have_numbers_as_numbers_and_no_columns_of_their_own(folder: Path, result: dict[str, Any]) -> None:
    events = read(folder)
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(start).hparams
    for name, value in {"attention.reduction": 8, "attention.dilation": 4, "recipe.lr": 0.05, "backbone.widen": 0.5,
                        "params": result["params"], "seed": 0}.items():  # fmt: skip
        assert settings[name].number_value == value
    assert settings["attention"].string_value == "bam"
    with pytest.raises(KeyError):  # with it, the columns of all runs would be those of the first
        events.SummaryMetadata("_hparams_/experiment")


def test_the_config_and_sample_images_are_there_once(folder: Path) -> None:
    events = read(folder)
    [config] = events.Tensors("config/text_summary")
    assert '"reduction": 8' in config.tensor_proto.string_val[0].decode()
    [command] = events.Tensors("command/text_summary")
    assert "bam-train data=shapes" in command.tensor_proto.string_val[0].decode()
    images = events.Images("train/images")
    assert len({image.step for image in images}) == 1
    assert (images[0].width, images[0].height) == (8 * 32, 2 * 32)  # 16 images


def test_a_run_that_continues_has_the_curves_of_one_that_was_not_interrupted(
    folder: Path, bam_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bam_exp.machine.interruption import Interruption

    calls = []

    def requested(self: Interruption) -> bool:
        calls.append(1)
        if len(calls) < 60:
            return False
        self.number = 15  # inside the second epoch
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "requested", property(requested))
        assert bam_train(*WORDS).code == 128 + 15
    assert bam_train(*WORDS).code == 0
    [again] = [path.parent for path in tmp_path.glob("runs/**/result.json")]
    before, after = read(folder), read(again)
    for name in ("train/loss", "test/top1_error", "train/step_loss", "best/top1_error", "train/learning_rate"):
        points = [
            [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)] for events in (before, after)
        ]
        assert points[0] == points[1], name
    assert [event.step for event in after.Scalars("time/step_ms")] == [1, 2, 3]


def test_a_run_that_diverges_ends_in_one_line_within_a_hundred_steps(bam_train: Command, tmp_path: Path) -> None:
    words = ("data.train_size=8000", "data.test_size=20", "recipe.batch_size=16", "recipe.epochs=1")
    ended = bam_train(*words, "recipe.lr=1e6", "backbone.widen=0.25", "attention=none", "trainer.device=cpu")
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if ": training on " not in line and ": computing in " not in line]
    assert len(lines) == 1, ended.err
    assert "the training loss is nan in step " in lines[0] or "the training loss is inf in step " in lines[0]
    assert int(lines[0].partition(" in step ")[2].split(";")[0]) <= 75
    [error] = tmp_path.glob("runs/**/error.json")
    assert "the training loss is" in json.loads(error.read_text())["reason"]
    assert not list(error.parent.glob("checkpoint*"))
