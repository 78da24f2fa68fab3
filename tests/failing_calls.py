"""Trains a run again and again, and makes another of its system calls fail each time; one line of JSON for each run.

It is run as a script with the library made from failing_calls.c in LD_PRELOAD. Each run is a fork of this process, which has
imported everything.
"""

import ctypes
import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import ready

from bam_exp.exits import one_line_errors
from bam_exp.training.train import train

WORDS = (
    "data.train_size=40", "data.test_size=20", "recipe.batch_size=20", "recipe.epochs=1", "trainer.threads=1",
    "trainer.device=cpu", "backbone.widen=0.25", "attention.reduction=4", "output_dir=.",
)  # fmt: skip
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)


class Calls:
    """The library in LD_PRELOAD."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.failed_call.restype = ctypes.c_char_p

    def fail(self, folder: str, number: int, error: int) -> None:
        """Make a call fail: the one with this number, from 1, that changes something in the folder; 0 lists all on stdout."""
        self.library.begin_failing(folder.encode(), ctypes.c_long(number), ctypes.c_long(error))

    def failed(self) -> str:
        """The call that has failed and its file."""
        return str(self.library.failed_call().decode())


def attempt(calls: Calls, folder: Path, number: int, error: int) -> dict[str, Any]:
    """Train in a fork while one call fails; with the error 0, while none does."""
    folder.mkdir(exist_ok=True)
    read, write = os.pipe()
    if (process := os.fork()) == 0:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{folder}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        os.chdir(folder)
        code = 0
        calls.fail(f"{folder}/" if number or error else "", number, error)
        try:
            with one_line_errors("bam-train"):
                train(*RUN)
        except SystemExit as end:
            code = int(end.code or 0)
        failed = calls.failed()
        calls.fail("", 0, 0)
        os.write(write, json.dumps({"code": code, "failed": failed}).encode())
        os._exit(0)  # what the forked process prints has no buffers: every line is flushed
    os.close(write)
    answer = os.read(read, 65536)
    os.close(read)
    os.waitpid(process, 0)
    return {**json.loads(answer or "{}"), "err": Path(f"{folder}.err").read_text()}


def metrics(folder: Path) -> Any:
    [path] = folder.glob("runs/**/result.json")
    return json.loads(path.read_text())["metrics"]


def distinct(lines: Sequence[str], folder: Path) -> list[int]:
    """The numbers of the first and the last call of each kind on each file."""
    numbers: dict[str, list[int]] = {}
    for number, line in enumerate((line for line in lines if line.startswith("CALL ")), start=1):
        kind = re.sub(r"\.\d+\.part|-\d{8}-.*|tfevents.*", "", line.replace(str(folder), ""))
        numbers.setdefault(kind, []).append(number)
    return sorted({number for found in numbers.values() for number in (found[0], found[-1])})


def main(base: Path) -> None:
    calls, undisturbed = Calls(), base / "undisturbed"
    assert attempt(calls, undisturbed, 0, -1)["code"] == 0
    lines = Path(f"{undisturbed}.out").read_text().splitlines()
    numbers = distinct(lines, undisturbed)
    print(json.dumps({"calls": sum(line.startswith("CALL ") for line in lines), "tried": len(numbers)}), flush=True)
    for index, number in enumerate(numbers):
        folder, error = base / str(number), ERRORS[index % len(ERRORS)]
        case = attempt(calls, folder, number, error)
        case["parts"] = [str(path.relative_to(folder)) for path in folder.rglob("*.part*")]
        case["again"] = attempt(calls, folder, 0, 0)["code"] if case["code"] else 0
        case["same"] = metrics(folder) == metrics(undisturbed)
        case["failed"] = case["failed"].replace(str(folder), "")
        print(json.dumps({"number": number, "error": errno.errorcode[error], **case}), flush=True)


if __name__ == "__main__":
    RUN = ready(*WORDS)
    main(Path(sys.argv[1]).resolve())
