"""How commands end: exit codes, lines that cannot be printed, signals, a terminal that is given back as it was."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, Command, chosen_of

from bam_exp.build import build
from bam_exp.console import say
from bam_exp.weights import save_weights

SMALL = (*TINY, "backbone.widen=0.5", "attention.reduction=8")
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "bam_exp", *words]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_the_log_does_not_end_a_run(tmp_path: Path, stream: str) -> None:
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        ended = subprocess.run(command(*SMALL), cwd=tmp_path, check=False, timeout=240, **streams)  # type: ignore[call-overload]
    assert ended.returncode == 0
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_needs_no_standard_stream(tmp_path: Path, closed: str) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command(*SMALL)], cwd=tmp_path, check=False, capture_output=True
    )
    assert ended.returncode == 0
    assert b"Traceback" not in ended.stderr
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1


def test_a_reader_that_has_gone_does_not_end_a_sweep(tmp_path: Path) -> None:
    read, write = os.pipe()
    sweep = subprocess.Popen(command("-m", "seed=0,1", *SMALL), cwd=tmp_path, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    assert sweep.wait(timeout=240) == 0
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 2


def test_a_failed_sweep_fails_even_if_its_table_cannot_be_made(bam_train: Command, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.csv").write_text("spoilt\n")
    ended = bam_train("+experiment=demo", "seed=0", *TINY, "trainer.time_limit_minutes=0.0005")
    assert ended.code != 0
    assert ended.err.count("FAILED") == 3
    assert "runs.csv" in ended.err


def in_terminal(folder: Path, *words: str, stop: bytes | None, signal_number: int = signal.SIGINT) -> tuple[int, bytes]:
    """Exit code and output of a command in a terminal, which is sent a signal once `stop` has been printed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(*words), cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ
    )
    os.close(slave)
    output, sent, end = b"", False, time.monotonic() + 240
    while time.monotonic() < end:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the terminal has been closed
            break
        if not chunk:
            break
        output += chunk
        if stop is not None and not sent and stop in output:
            os.killpg(process.pid, signal_number)
            sent = True
    try:
        return process.wait(timeout=60), output
    finally:
        process.kill()


def gives_the_cursor_back(output: bytes) -> bool:
    return output.rfind(SHOW_CURSOR) >= output.rfind(HIDE_CURSOR)


def test_ctrl_c_in_training_gives_the_terminal_back_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [*SMALL, "recipe.epochs=400"]
    code, output = in_terminal(tmp_path, *words, stop=b"epoch   1/400")
    assert code == 130
    assert b"Traceback" not in output
    assert gives_the_cursor_back(output)
    assert ("continue with: bam-train " + " ".join(words)).encode() in output.replace(b"\r\n", b"")


CTRL_C_AT_AN_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in ("bam_exp", "bam_exp.entry"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
for name in ("typing", "contextlib", "re", "shlex"):
    sys.modules.pop(name, None)
import bam_exp.entry
"""


def test_ctrl_c_at_the_first_import_of_a_command_shows_no_traceback(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", CTRL_C_AT_AN_IMPORT], cwd=tmp_path, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")  # which a shell shows as ^C and exit code 130


def test_ctrl_c_while_it_starts_is_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(command(*SMALL), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    [line] = err.decode().strip().splitlines()
    assert line == f"bam-train: interrupted; continue with: bam-train {' '.join(SMALL)}"


class Pieces(io.StringIO):
    """A stream that remembers each piece that is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)


def test_a_line_is_written_in_one_piece() -> None:
    stream = Pieces()
    say("epoch 1/2", stream)
    assert stream.written == ["epoch 1/2\n"]


def test_ctrl_c_in_an_evaluation_is_one_line(tmp_path: Path) -> None:
    network = build(chosen_of(*SMALL))[1]
    save_weights(network.state_dict(), tmp_path / "own.safetensors")
    words = [*SMALL, "data.test_size=2000", "evaluate=own.safetensors"]
    code, output = in_terminal(tmp_path, *words, stop=b"own.safetensors: testing on shapes")
    assert code == 130
    assert b"Traceback" not in output
    _, line = output.decode().strip().splitlines()
    assert line == f"bam-train: interrupted; continue with: bam-train {' '.join(words)}"


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_ctrl_c_while_ranks_import_is_one_line(tmp_path: Path, seconds: float) -> None:
    words = [*SMALL, "recipe.epochs=400", "trainer.devices=2"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (ranks := children(process.pid)) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.15 + seconds)  # Python itself starts first, which ends in its own traceback
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
    said = [line for line in err.decode().splitlines() if "continue with: bam-train " + " ".join(words) in line]
    assert len(said) == 1
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(number) for file in Path(f"/proc/{process}/task").glob("*/children") for number in file.read_text().split()
    ]


@pytest.mark.faults
def test_ctrl_c_in_a_parallel_sweep_saves_every_run_and_says_it_once(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1,2", *SMALL, "recipe.epochs=400", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, output = in_terminal(tmp_path, *words, stop=b"epoch   2/400")
    assert code == 130
    assert b"Traceback" not in output
    assert HIDE_CURSOR not in output  # the bars of several runs would overwrite one another
    assert b"0 of 3 runs done, 2 stopped with a checkpoint, 1 not begun" in output.replace(b"\r\n", b"")
    assert output.count(b"interrupted") == 1
    assert len(list(tmp_path.glob("runs/**/checkpoint-*.pt"))) == 2
    assert list(tmp_path.glob("runs/**/owner.json")) == []


def test_ctrl_c_in_a_sweep_says_what_is_done_stopped_and_not_begun(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1,2", *SMALL, "recipe.epochs=400"]
    code, output = in_terminal(tmp_path, *words, stop=b"epoch   1/400")
    assert code == 130
    assert b"Traceback" not in output
    assert gives_the_cursor_back(output)
    flat = output.replace(b"\r\n", b"")
    assert b"0 of 3 runs done, 1 stopped with a checkpoint, 2 not begun" in flat
    assert b"continue with: bam-train -m seed=0,1,2" in flat


def test_a_diverged_run_gives_the_terminal_back(tmp_path: Path) -> None:
    code, output = in_terminal(tmp_path, *SMALL, "recipe.lr=1.0e+30", stop=None)
    assert code == 1
    assert b"Traceback" not in output
    assert gives_the_cursor_back(output)
    assert output.count(b"the training loss is") == 1


def test_a_lost_connection_saves_a_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*SMALL, "recipe.epochs=400"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # The tests may themselves run under nohup, and a run that is told to ignore a lost connection ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509  the test has one thread
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"epoch   1/400" in line:
            process.send_signal(signal.SIGHUP)
            break
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))
