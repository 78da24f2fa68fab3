"""Jobs of a sweep that differ by their seed are one check, and their runs are forked from one process."""

import os
import signal
from pathlib import Path

import pytest
from conftest import Command

from bam_exp.sweeps import sweep
from bam_exp.sweeps.forked import Server
from sweeps.test_sweep import SLOW, begin, owner


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The jobs whose networks have been built to check them."""
    checked: list[object] = []
    original = sweep.build_on_meta
    monkeypatch.setattr(sweep, "build_on_meta", lambda chosen: (checked.append(chosen), original(chosen))[1])
    return checked


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["seed=range(40)"], 1),
        (["seed=range(40)", "attention.reduction=4,8"], 2),
        (["seed=1,2,3", "recipe.max_steps=${seed}"], 3),  # the seed changes more than itself
        (["+experiment=demo", "seed=0,1,2"], 3),  # three rows, three seeds
    ],
    ids=str,
)
def test_seeds_are_one_check(bam_train: Command, checks: list[object], words: list[str], number: int) -> None:
    ended = bam_train("-m", *words, "output_dir=/proc/nope")  # refused after the checks
    assert ended.code == 2
    assert len(checks) == number


@pytest.mark.parametrize("words", [["seed=0,1,-1"], ["seed=0,x"], ["seed=0,2147483648"], ["seed=0,1.5"]], ids=str)
def test_a_wrong_seed_among_good_ones_is_refused(bam_train: Command, tmp_path: Path, words: list[str]) -> None:
    ended = bam_train("-m", *words)
    assert ended.code == 2
    assert "should be a whole number from 0 to 2147483647" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_loss_of_the_server_is_the_loss_of_one_run(tmp_path: Path) -> None:
    """Its run stops with a checkpoint, and the next run has another server."""
    started = begin(tmp_path, "-m", "recipe.epochs=400,1", *SLOW[:-1])
    run = owner(tmp_path)
    server = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
    assert server != started.pid
    os.kill(server, signal.SIGKILL)
    out, err = started.communicate(timeout=200)
    assert started.returncode == 1
    assert "1 of 2 runs done, 1 failed" in out
    [failed] = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert "epochs400" in failed
    assert "stopped by SIGTERM; its checkpoint is saved" in failed
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks /proc for threads")
def test_the_process_that_runs_are_forked_from_has_one_thread() -> None:
    """A fork of a process with several may wait for ever for a lock of another one; Python 3.12 warns of it."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    server = Server(environment)
    assert server.start(["--version"], environment).wait() == 0
    threads = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
    server.stop()
    assert threads == 1
