"""Every system call of a run that creates, writes, renames or removes a file fails once: one line, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HARMLESS = ("mkdir /runs", "unlink /runs")
"""A folder that is there already and a file that was not: where these fail, the run may go on."""


@pytest.mark.faults
def test_every_failing_call_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    if (compiler := shutil.which("cc")) is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    library = tmp_path / "failing_calls.so"
    source = HERE / "failing_calls.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    folder = tmp_path / "runs of this test"
    folder.mkdir()
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths}
    command = [sys.executable, "-P", HERE / "failing_calls.py", folder]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, *cases = map(json.loads, ended.stdout.splitlines())
    assert len(cases) == first["tried"] >= 39
    for case in cases:
        assert case["failed"], case
        assert "Traceback" not in case["err"], case
        assert not case["parts"], case
        assert case["again"] == 0, case
        assert case["same"], case
        if case["code"] == 0:
            assert case["failed"].startswith(HARMLESS), case
            continue
        assert case["code"] in (1, 2), case
        [line] = [line for line in case["err"].splitlines() if line.startswith("bam-train: ")]
        assert "runs/" in line, case  # it names the file or the folder
        assert any(reason in line.lower() for reason in ("no space", "input/output", "permission", "read-only")), case
    print(f"{len(cases)} of {first['calls']} calls failed, the first and the last of each kind on each file")
