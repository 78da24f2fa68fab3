"""Commands that people type fifty times a day answer without importing what they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from bam_exp.commands import {module}
try:
    {module}.main()
except SystemExit as ended:
    code = ended.code
else:
    code = 0
print(code, sorted({{"torch", "hydra", "omegaconf", "scipy", "matplotlib"}} & {{*sys.modules}}), file=sys.stderr)
"""


def imported(folder: Path, module: str, *words: str) -> str:
    """The last line of a command in a process of its own: its exit code, and which heavy libraries it has imported."""
    command = [sys.executable, "-P", "-c", SCRIPT.format(module=module), *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["status", "plan", "report", "params"])
def test_a_table_that_was_asked_for_before_needs_neither_torch_nor_hydra(tmp_path: Path, command: str) -> None:
    imported(tmp_path, "tables", command, "demo")
    assert imported(tmp_path, "tables", command, "demo") == "0 []"


@pytest.mark.parametrize(
    "word", ["atention=bam", "+row/tabel1a=d4", "data=cifar10", "recipe.epoch=3", "recipe.lr", "+experiment=tabel1a"]
)
def test_a_typo_is_refused_without_torch(tmp_path: Path, word: str) -> None:
    ended = imported(tmp_path, "train", word)
    assert ended.startswith("2 ")
    assert "torch" not in ended


def test_the_help_of_bam_train_composes_nothing(tmp_path: Path) -> None:
    assert imported(tmp_path, "train", "--help") == "0 ['omegaconf']"
    assert imported(tmp_path, "train", "--version") == "0 []"


def test_the_quick_help_is_hydras(tmp_path: Path) -> None:
    """With an override it takes the long way, through Hydra."""
    command = [sys.executable, "-P", "-m", "bam_exp", "--help"]
    quick, composed = (
        subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for more in ([], ["seed=1"])
    )
    assert quick == composed
