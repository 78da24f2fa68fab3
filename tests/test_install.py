"""A plain wheel carries the configs: the command works from it, in any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY


def test_a_wheel_carries_the_configs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools in this environment")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"  # a copy: setuptools leaves folders behind where it builds
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(source)], check=True)
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for words in (["--help"], ["+row/table1a=r8", "--cfg", "job"]):
        shown = subprocess.run(
            [sys.executable, "-m", "bam_exp", *words],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(unpacked)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "reduction: 8" in shown.stdout or "bam-train +experiment=demo" in shown.stdout
    where = "import bam_exp.config as c; print(c.config_dir())"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(unpacked / "bam_exp" / "conf")
