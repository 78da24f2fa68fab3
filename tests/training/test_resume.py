"""A run stopped anywhere and started again ends bitwise where the undisturbed one ends: weights, curves, step count."""

import json
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import chosen_of, ready
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bam_exp.build import build_on_meta, make_machine
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.runs import Run
from bam_exp.runs.lock import run_lock
from bam_exp.training.checkpoints import Checkpoints
from bam_exp.training.fit import fit
from bam_exp.training.saving import CheckpointSaver
from bam_exp.training.train import train

STEPS_PER_EPOCH, EPOCHS = 4, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
WORDS = (
    "data.train_size=100", "data.test_size=20", "recipe.batch_size=32", f"recipe.epochs={EPOCHS}",
    "recipe.schedule=steps", "recipe.milestones=[0.34]",
    "trainer.threads=1", "trainer.device=cpu", "backbone=wrn28_8", "backbone.depth=10", "backbone.widen=1",
    "attention.reduction=8",
    "trainer.checkpoint_minutes=1.0e-6",  # at every step, unless the thread is still writing
)  # fmt: skip

At = Callable[[int | None, str], None]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[At]:
    """Arrange for the next start of a run to be stopped after so many steps: by a signal, or by a crash that saves nothing."""
    plan: dict[str, Any] = {}
    original = CheckpointSaver.on_train_batch_end

    def on_train_batch_end(self: CheckpointSaver, trainer: Any, module: Any, *rest: Any) -> None:
        if trainer.global_step == plan.get("step"):
            if plan["how"] == "crash":
                raise KeyError("crash")
            self.interruption.number = signal.SIGTERM
        original(self, trainer, module, *rest)

    monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", on_train_batch_end)
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield lambda step, how: plan.update(step=step, how=how)
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


chosen = cache(chosen_of)  # a third of a start


def start(folder: Path, *words: str) -> dict[str, Any]:
    choices = replace(chosen(*WORDS, *words), output_dir=folder)
    parts = build_on_meta(choices)
    run = Run.of(choices, parts.data.digest)
    with run_lock(run):
        return fit(run, parts, make_machine(choices), Interruption())


def final_state(folder: Path) -> dict[str, Any]:
    """Weights and buffers, optimizer, schedule, counts and random state of the finished run."""
    [run] = [path.parent for path in folder.glob("runs/**/result.json")]
    checkpoints = Checkpoints(run)
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    content = checkpoints.load_checkpoint(newest)
    return {
        key: content[key]
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "rng", "history")
    }


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    [run] = [path.parent for path in folder.glob("runs/**/result.json")]
    assert len(list(run.glob("events*"))) == 1
    events = EventAccumulator(str(run))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    start(folder)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_stopped_at_any_step_ends_bitwise_the_same(
    stop_at: At, undisturbed: Path, tmp_path: Path, step: int, how: str
) -> None:
    stop_at(step, how)
    with pytest.raises((Interrupted, KeyError)):
        start(tmp_path)
    stop_at(None, how)
    result = start(tmp_path)
    assert len(result["epochs"]) == EPOCHS
    assert_same(final_state(undisturbed), final_state(tmp_path))
    assert curves(undisturbed) == curves(tmp_path)


@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1])
def test_a_run_that_max_steps_ends_goes_on_after_an_epoch(stop_at: At, tmp_path: Path, step: int, how: str) -> None:
    """Lightning's own max_steps would end such a run without training on."""
    limit = f"recipe.max_steps={STEPS_PER_EPOCH + 2}"
    start(tmp_path / "undisturbed", limit)
    stop_at(step, how)
    with pytest.raises((Interrupted, KeyError)):
        start(tmp_path / "stopped", limit)
    stop_at(None, how)
    start(tmp_path / "stopped", limit)
    state = final_state(tmp_path / "stopped")
    assert state["global_step"] == STEPS_PER_EPOCH + 2
    assert_same(final_state(tmp_path / "undisturbed"), state)


@pytest.mark.parametrize("steps", [(1, 2), (2, 4), (3, 4, 5), (4, 8, 12), (5, 6, 7), (7, 11), (8, 9), (4, 5, 12)])
def test_a_run_stopped_several_times_counts_its_steps_right(
    stop_at: At, undisturbed: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    for step in steps:
        stop_at(step, "signal")
        with pytest.raises(Interrupted):
            start(tmp_path)
    stop_at(None, "signal")
    start(tmp_path)
    assert final_state(tmp_path)["global_step"] == STEPS
    assert_same(final_state(undisturbed), final_state(tmp_path))


@pytest.mark.faults
@pytest.mark.parametrize("chain", range(240))
def test_chains_of_two_resumes_count_their_steps_right(
    stop_at: At, undisturbed: Path, tmp_path: Path, chain: int
) -> None:
    chance = random.Random(chain)
    for step in sorted(chance.sample(range(1, STEPS + 1), 2)):
        stop_at(step, chance.choice(["signal", "crash"]))
        with pytest.raises((Interrupted, KeyError)):
            start(tmp_path)
    stop_at(None, "signal")
    start(tmp_path)
    assert final_state(tmp_path)["global_step"] == STEPS
    assert_same(final_state(undisturbed), final_state(tmp_path))


def test_random_layers_go_on_where_they_were(stop_at: At, tmp_path: Path) -> None:
    words = ("backbone.dropout=0.3",)
    stop_at(None, "signal")
    start(tmp_path / "a", *words)
    stop_at(6, "signal")
    with pytest.raises(Interrupted):
        start(tmp_path / "b", *words)
    stop_at(None, "signal")
    start(tmp_path / "b", *words)
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_a_damaged_checkpoint_falls_back_and_ends_the_same(
    stop_at: At, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(9, "signal")
    with pytest.raises(Interrupted):
        start(tmp_path)
    newest = max(tmp_path.glob("runs/**/checkpoint-*.pt"), key=lambda path: path.name)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    stop_at(None, "signal")
    start(tmp_path)
    assert "damaged" in capsys.readouterr().err
    assert_same(final_state(undisturbed), final_state(tmp_path))


@pytest.mark.parametrize("name", [".progress.json.14848.part", ".result.json.1.part", ".checkpoint.part"])
def test_what_a_killed_writer_left_is_cleared_away(stop_at: At, tmp_path: Path, name: str) -> None:
    stop_at(9, "crash")
    with pytest.raises(KeyError):
        start(tmp_path)
    [run] = [path.parent for path in tmp_path.glob("runs/**/run.json")]
    (run / name).write_text("half of i")
    stop_at(None, "signal")
    start(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_diverged_run_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, parts, machine = ready(*WORDS, f"output_dir={tmp_path}", "recipe.lr=1.0e+30")
    with pytest.raises(SystemExit) as ended:
        train(run, parts, machine)
    assert ended.value.code == 1
    assert "training loss is" in json.loads((run.folder / "error.json").read_text())["reason"]
    assert not (run.folder / "result.json").exists()
