"""A step of a run on several ranks exchanges nothing but gradients, and they still stop and save at the same step."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from bam_exp.data import Shapes
from bam_exp.machine import Machine, ranks
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.tasks.classification import Classification
from bam_exp.training.saving import CheckpointSaver


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 2)


class Trainer:
    """As much of Lightning's trainer as `CheckpointSaver` uses."""

    def __init__(self) -> None:
        self.global_step, self.default_root_dir = 0, ""
        self.saved: list[int] = []
        progress = SimpleNamespace(is_last_batch=False)
        writer = SimpleNamespace(check=lambda: None, finish=lambda: None, is_writing=False)
        self.strategy = SimpleNamespace(checkpoint_io=writer)
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))

    def save_checkpoint(self, _path: str) -> None:
        self.saved.append(self.global_step)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(("step_seconds", "most"), [(0.01, 25), (0.5, 560), (3.0, 1001)])
def test_ranks_agree_about_once_a_second(step_seconds: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose clock runs otherwise, and which alone is told to stop at step 900, stops where the other one does."""
    now, sent = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    savers = [CheckpointSaver(Machine(), Interruption()) for _ in range(2)]
    trainers: Any = [Trainer(), Trainer()]
    for saver, trainer in zip(savers, trainers, strict=True):
        monkeypatch.setattr(saver.interruption, "listen", lambda: None)
        saver.on_train_start(trainer, nn.Module())  # type: ignore[arg-type]
    for step in range(1, 1001):
        if step == 900:
            savers[1].interruption.number = signal.SIGTERM
        for trainer in trainers:
            trainer.global_step = step
        due = [saver.agreement.is_due(step) for saver in savers]
        assert due[0] == due[1]
        if due[0]:
            given: list[list[int]] = []
            for rank, saver in enumerate(savers):  # what each would send
                now[0] = step * step_seconds * (1 + 0.3 * rank)
                monkeypatch.setattr(
                    ranks, "all_reduce_max", lambda *values, given=given: given.append(list(values)) or list(values)
                )
                state = dict(vars(saver.agreement))
                saver.agreement.reach(step, saver.interruption.number or 0, 0)
                vars(saver.agreement).update(state)
            largest = [max(pair) for pair in zip(*given, strict=True)]
            sent.append(step)
            monkeypatch.setattr(ranks, "all_reduce_max", lambda *_, largest=largest: list(largest))
            stops = []
            for rank, (saver, trainer) in enumerate(zip(savers, trainers, strict=True)):
                now[0] = step * step_seconds * (1 + 0.3 * rank)
                try:
                    saver.on_train_batch_end(trainer, nn.Module())  # type: ignore[arg-type]
                except Interrupted as stop:
                    stops.append(stop.number)
            if stops:
                assert stops == [signal.SIGTERM, signal.SIGTERM]
                assert step >= 900
                assert (step - 900) * step_seconds <= 2
                assert trainers[0].saved == trainers[1].saved == [step]
                break
    else:
        raise AssertionError("nobody stopped")
    assert len(sent) <= most


@pytest.mark.usefixtures("two_ranks")
def test_the_share_of_a_batch_needs_no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a share is weighted by the size of the whole batch, which follows from its number."""
    data = Shapes(Path(), train_size=100, test_size=20)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, data.num_classes))
    learner: Any = Classification(network, data, 0, epochs=1, batch_size=32).learner()
    loaders = [
        data.loader("train", batch_size=32, seed=0, device="cpu", rank=rank, world_size=size)
        for rank, size in ((0, 2), (1, 2), (0, 1))
    ]
    monkeypatch.setattr(ranks, "all_reduce_sum", lambda *_: pytest.fail("an exchange in a step"))
    monkeypatch.setattr(learner, "seed_step", lambda: None)
    for index, (first, second, whole) in enumerate(zip(*loaders, strict=True)):
        learner._trainer = SimpleNamespace(train_dataloader=loaders[0])
        mean = (learner.training_step(first, index) + learner.training_step(second, index)) / 2
        expected = nn.functional.cross_entropy(network(whole[0]), whole[1])
        assert mean.item() == pytest.approx(expected.item(), rel=1e-5)
