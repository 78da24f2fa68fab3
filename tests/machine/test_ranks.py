"""A run on two processes is the run of one: the same weights in double precision, one folder, one result, however it is started,
stopped and continued; and when a process dies or fails, the run fails in a line that names it, and no process is left.

Run as a script, this file is one rank of a run that torchrun could have started, in double precision.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Command, chosen_of, ready
from filelock import FileLock

from bam_exp import tables
from bam_exp.build import build_on_meta
from bam_exp.machine import ranks
from bam_exp.machine.world import World
from bam_exp.training import saving
from bam_exp.training.saving import CheckpointSaver
from bam_exp.training.train import train as train_run

WORDS = (
    "data.train_size=100", "data.test_size=20", "recipe.batch_size=32", "recipe.epochs=2", "trainer.threads=1",
    "trainer.device=cpu", "trainer.precision=float32", "backbone.widen=0.5", "attention.reduction=8",
)  # fmt: skip
"""Four batches an epoch, the last of 4 images."""

PATH = f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
"""Where this file finds `conftest` when it is run as a script."""

PORT = 29000 + os.getpid() % 2000


def script() -> None:
    """Train with Lightning in double precision; with STOP=n rank 1 is told to stop at step n, where all ranks agree."""
    real, original = pl.Trainer, CheckpointSaver.on_train_batch_end
    pl.Trainer = lambda **keywords: real(**{**keywords, "precision": "64-true"})  # type: ignore[assignment,misc]

    def on_train_batch_end(self: CheckpointSaver, trainer: Any, module: Any, *rest: Any) -> None:
        if trainer.global_step == int(os.environ.get("STOP", "0")) and ranks.rank() == 1:
            self.interruption.number = signal.SIGTERM
        original(self, trainer, module, *rest)

    torch.set_default_dtype(torch.float64)  # for the network; Lightning converts the batches
    CheckpointSaver.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    saving.AGREE_S = 0.0
    tables.register()
    run, parts, machine = ready(*sys.argv[1:])
    train_run(run, parts, machine)


def train(folder: Path, *words: str, processes: int = 1, stop: int = 0) -> list[int]:
    """Exit codes of the ranks of a run."""
    global PORT  # noqa: PLW0603
    PORT += 1
    started = []
    for rank in range(processes):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": PORT, "STOP": stop}
        variables |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {
            **os.environ,
            "PYTHONPATH": PATH,
            "MASTER_ADDR": "127.0.0.1",
            **{key: str(one) for key, one in variables.items()},
        }
        command = [
            sys.executable,
            __file__,
            *WORDS,
            f"output_dir={folder}",
            "trainer=ddp",
            "trainer.device=cpu",
            *words,
        ]
        started.append(subprocess.Popen(command, env=environment))
    return [process.wait(timeout=240) for process in started]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("runs/**/checkpoint-*.pt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def result(folder: Path) -> dict[str, Any]:
    [path] = folder.glob("runs/**/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a share of the largest of a tensor or of 0.001."""
    return max(float((a[key] - b[key]).abs().max() / a[key].abs().max().clamp(min=1e-3)) for key in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert train(folder) == [0]
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    assert train(folder, processes=2) == [0, 0]
    return folder


def kinds(folder: Path) -> set[str]:
    [path] = folder.glob("runs/**/result.json")
    return {file.name.partition("-")[0].partition(".out")[0] for file in path.parent.iterdir()}


def test_two_processes_end_where_one_does(alone: Path, together: Path) -> None:
    """The last batch of an epoch is smaller than the others; double precision tells rounding from mistakes."""
    assert far(weights(alone), weights(together)) < 1e-7
    one, two = result(alone), result(together)
    for before, after in zip(one["epochs"], two["epochs"], strict=True):
        assert after == pytest.approx(before, rel=1e-6)
    assert two["metrics"]["test_images"] == 20
    assert one["fingerprint"] == two["fingerprint"]
    assert (one["hardware"]["device"], two["hardware"]["device"]) == ("CPU", "2 x CPU")
    assert kinds(together) == kinds(alone) == {
        "checkpoint", "events", "run.json", "result.json", "weights.safetensors", ".lock",
    }  # fmt: skip


def test_two_processes_are_stopped_at_one_batch_and_go_on(together: Path, tmp_path: Path) -> None:
    assert train(tmp_path, processes=2, stop=2) == [143, 143]
    assert [path.name[:19] for path in tmp_path.glob("runs/**/checkpoint-*.pt")] == ["checkpoint-00000002"]
    assert train(tmp_path, processes=2) == [0, 0]
    assert far(weights(together), weights(tmp_path)) < 1e-12
    for before, after in zip(result(together)["epochs"], result(tmp_path)["epochs"], strict=True):
        assert after == pytest.approx(before, rel=1e-12)


@pytest.mark.faults
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    assert train(tmp_path, processes=2, stop=2) == [143, 143]
    assert train(tmp_path) == [0]
    assert far(weights(alone), weights(tmp_path)) < 1e-7


def test_batch_norm_over_parts_is_a_run_of_its_own(alone: Path, tmp_path: Path) -> None:
    assert train(tmp_path, "recipe.batch_norm_parts=2", processes=2) == [0, 0]
    [path] = tmp_path.glob("runs/**/result.json")
    assert "-batch_norm_parts2" in path.parent.parent.name
    assert far(weights(alone), weights(tmp_path)) > 1e-3
    assert result(tmp_path)["metrics"]["test_images"] == 20


def command(folder: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*words, f"output_dir={folder}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_torchrun(tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run = command(
        tmp_path, *launcher, "-m", "bam_exp", *WORDS, "trainer=ddp", "trainer.device=cpu", "recipe.max_steps=2"
    )
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert out.count("top-1 error") == 1
    assert result(tmp_path)["hardware"]["device"] == "2 x CPU"


def test_in_a_sweep(tmp_path: Path) -> None:
    run = command(tmp_path, sys.executable, "-m", "bam_exp", "-m", *WORDS, "trainer.devices=2", "recipe.max_steps=2")
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "1 of 1 runs done" in out
    assert result(tmp_path)["hardware"]["device"] == "2 x CPU"


def begun(launcher: int, folder: Path) -> list[int]:
    """The process ids of rank 0 and rank 1 of a run that trains."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in folder.glob("runs/**/progress.json"):
            first = int(json.loads((path.parent / "owner.json").read_text())["process"].split()[1])
            started = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            [second] = {int(process) for process in started} - {first}
            return [first, second]
        time.sleep(0.05)
    raise AssertionError("no run began to train")


def gone(process: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not Path(f"/proc/{process}").exists():
            return True
        time.sleep(0.1)
    return False


LONG = (*WORDS, "recipe.epochs=400", "trainer.devices=2")

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.faults), 1])
def test_a_killed_process_fails_the_run_and_leaves_none_behind(tmp_path: Path, killed: int) -> None:
    run = command(tmp_path, sys.executable, "-m", "bam_exp", *LONG)
    processes = begun(run.pid, tmp_path)
    os.kill(processes[killed], signal.SIGKILL)
    _, err = run.communicate(timeout=60)
    assert gone(processes[1 - killed], seconds=1)
    assert run.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("bam-train: ")]
    assert f"rank {killed} of 2 was killed by SIGKILL" in line
    [error] = tmp_path.glob("runs/**/error.json")
    assert f"rank {killed}" in json.loads(error.read_text())["reason"]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/**/result.json"))


@needs_proc
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.faults), signal.SIGTERM])
def test_a_signal_to_the_command_stops_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    run = command(tmp_path, sys.executable, "-m", "bam_exp", *LONG)
    processes = begun(run.pid, tmp_path)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert err.count("stopped, its checkpoint is saved; continue with: bam-train data.train_size=100") == 1
    assert all(gone(process, seconds=1) for process in processes)
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))


@needs_proc
@pytest.mark.faults
def test_ranks_end_when_the_command_is_killed(tmp_path: Path) -> None:
    run = command(tmp_path, sys.executable, "-m", "bam_exp", *LONG)
    processes = begun(run.pid, tmp_path)
    run.kill()
    assert all(gone(process, seconds=30) for process in processes)
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))


@needs_proc
def test_a_run_that_is_taken_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = ready(*LONG, f"output_dir={tmp_path}")[0].folder
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        (folder / "owner.json").write_text(json.dumps({"process": f"process {os.getpid()} on {socket.gethostname()}"}))
        _, err = (run := command(tmp_path, sys.executable, "-m", "bam_exp", *LONG)).communicate(timeout=60)
    assert run.returncode == 1
    [line] = err.strip().splitlines()
    assert f"already running (process {os.getpid()}" in line


RAISES = """
import atexit
import os
from bam_exp.machine import ranks
from bam_exp.training import fit
original = fit.fit
def broken(*given):
    if ranks.rank() == 1:
        if "ABORT" in os.environ:
            atexit.register(os.abort)
        raise KeyError("a mistake of rank 1")
    return original(*given)
fit.fit = broken
"""


@pytest.mark.parametrize("variables", [{}, {"ABORT": "1"}], ids=["and exits", "and is aborted as it exits"])
def test_a_rank_that_raises_is_named_with_its_reason(tmp_path: Path, variables: dict[str, str]) -> None:
    """The other rank's lost connection is not reported: it is only the consequence. A thread of gloo may abort an exit."""
    (tmp_path / "sitecustomize.py").write_text(RAISES)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', Path(__file__).parents[2])}"
    words = [sys.executable, "-m", "bam_exp", *WORDS, "trainer.devices=2", f"output_dir={tmp_path}"]
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 1
    [line] = [line for line in run.stderr.splitlines() if line.startswith("bam-train: ")]
    assert line.endswith("failed: rank 1 of 2: KeyError: 'a mistake of rank 1'")
    assert run.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=17"], "recipe.batch_size=32: 17 processes share it; 34 or more would do"),
        (
            ["trainer.devices=2", "data.test_size=180", "recipe.batch_size=179"],
            "the last batch of 180 test images would have 1",
        ),
        (["recipe.batch_norm_parts=2"], "needs as many processes, and there is 1"),
        (["trainer.devices=0"], "trainer.devices"),
        (["trainer.devices=all"], "trainer.devices"),
        (["recipe.lr_batch_size=128"], "lr_batch_size=128 needs lr_scaling=linear"),
        (["recipe.lr_scaling=sqrt"], "recipe.lr_scaling"),
    ],
)
def test_what_cannot_be_shared_is_refused(bam_train: Command, words: list[str], said: str) -> None:
    ended = bam_train(*TINY, *words)
    assert ended.code == 2
    [line] = ended.err.strip().splitlines()
    assert said in line


def test_what_torchrun_started_must_fit_and_sweeps_nothing(bam_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    ended = bam_train(*TINY)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "trainer.devices=1: torchrun started 2 processes; trainer=ddp takes them" in ended.err
    ended = bam_train("-m", *TINY, "trainer.devices=2")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "without torchrun" in ended.err


def test_srun_is_known_by_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    }
    for key, value in step.items():
        monkeypatch.setenv(key, value)
    assert World.from_environment() == World(5, 8, 1, 4, "srun")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # as in a job of a sweep
    assert World.from_environment().size == 1


def test_linear_scaling_is_of_the_whole_batch() -> None:
    chosen = chosen_of("recipe=imagenet", "recipe.lr_scaling=linear", "recipe.batch_size=1024")
    task = build_on_meta(chosen).task
    assert task.sgd["lr"] == pytest.approx(0.4)


if __name__ == "__main__":
    script()
