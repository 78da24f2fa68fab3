"""A compiled run: four shapes and no more, photos left out or not, and what has been compiled is kept for the next run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from bam_exp.data.batches import sizes_of_shares
from bam_exp.data.on_device import DeviceLoader
from bam_exp.machine import Machine, compiling
from bam_exp.machine.compiling import compile_network
from bam_exp.sweeps import child

WORDS = (*TINY, "trainer.compile=on", "data.train_size=140", "recipe.epochs=3")


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile as it is, but for code generation, which takes minutes."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, *, dynamic, mode: compile_(call, dynamic=dynamic, backend="eager")
    )
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.usefixtures("dynamo")
def test_four_shapes_are_compiled_once(bam_train: Command) -> None:
    """32 and 12 images in training, 32 and 8 in evaluation."""
    assert bam_train(*WORDS).code == 0
    assert counters["stats"]["unique_graphs"] == 4
    assert counters["frames"]["total"] == 4


@pytest.mark.usefixtures("dynamo")
def test_batches_with_photos_left_out_compile_nothing(bam_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sizes = DeviceLoader.__iter__, set[int]()

    def left_out(self: DeviceLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (images, labels) in enumerate(whole(self)):
            size = len(images) - (number + self.epoch) % 4
            sizes.add(size)
            yield images[:size], labels[:size]

    monkeypatch.setattr(DeviceLoader, "__iter__", left_out)
    ended = bam_train(*WORDS)
    assert ended.code == 0
    assert len(sizes) > 8
    assert counters["stats"]["unique_graphs"] <= 4
    assert ended.err.count("not compiled") == 1


def test_the_sizes_of_a_rank() -> None:
    assert sizes_of_shares(150, 32) == {32, 22}
    assert sizes_of_shares(20, 32) == {20}
    assert sizes_of_shares(64, 32) == {32}
    assert [sizes_of_shares(150, 32, rank=rank, world_size=3) for rank in range(3)] == [{10, 7}, {11, 7}, {11, 8}]


def test_what_is_compiled_is_kept_in_a_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)  # which sets the variable to its default

    def chosen(**variables: str) -> str | None:
        with monkeypatch.context() as patch:
            patch.delenv("TORCHINDUCTOR_CACHE_DIR")
            for name, value in variables.items():
                patch.setenv(name, value)
            compile_network(nn.Linear(2, 2), "on", test_sizes={1})
            return compiling.os.environ.get("TORCHINDUCTOR_CACHE_DIR")

    mine = str(tmp_path / "bam_exp" / "compiled")
    assert chosen(XDG_CACHE_HOME=str(tmp_path)) == mine
    assert (
        chosen(XDG_CACHE_HOME=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=default_cache_dir()) == mine
    )  # PyTorch has set it
    assert chosen(TORCHINDUCTOR_CACHE_DIR="/mine") == "/mine"
    (tmp_path / "file").write_text("")
    assert chosen(XDG_CACHE_HOME=str(tmp_path / "file")) is None  # PyTorch's default


@pytest.mark.parametrize(
    ("launcher", "gpus", "workers"),
    [({}, 0, 16), ({"n_jobs": 4}, 0, 4), ({"n_jobs": -1}, 0, 1), ({"n_jobs": -1}, 2, 4), ({"n_jobs": 1}, 2, 16)],
)
def test_the_cores_are_shared_by_the_runs_that_compile(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], gpus: int, workers: int
) -> None:
    """Each of the two GPUs has two runs at a time."""
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"launcher": launcher}))
    monkeypatch.setattr(child, "cores_per_process", lambda: 16)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{number}" for number in range(gpus)))
    assert child._workers(Machine(runs_per_gpu=2)) == workers
