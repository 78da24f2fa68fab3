"""What a person types: help, showing a config, and mistakes, each answered in one line with exit code 2 and nothing written."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import TINY, Command


def test_help_is_written_for_a_person(bam_train: Command) -> None:
    ended = bam_train("--help")
    assert ended.code == 0
    assert ended.out.count("bam-train ") >= 5
    for word in ("backbone", "resnet50", "bam_released", "table1a", "runs/<data>", "bam-tables report"):
        assert word in ended.out


def test_tables_help_names_the_tables(bam_tables: Command) -> None:
    ended = bam_tables("--help")
    assert ended.code == 0
    assert "bam-tables params" in ended.out
    assert "runs.csv" in ended.out


def test_the_resolved_config_can_be_shown(bam_train: Command) -> None:
    ended = bam_train("attention.reduction=8", "--cfg", "job", "--resolve")
    assert ended.code == 0
    assert "reduction: 8" in ended.out
    assert "_target_: bam_exp.attention.BAM" in ended.out


def test_python_m_works_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bam_exp", "+row/table1a=r8", "--cfg", "job"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "reduction: 8" in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_completion_offers_choices(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("bam-train")), "-sc", "query=bash"]
    environment = {**os.environ, "COMP_LINE": "bam-train attention=ba", "COMP_POINT": "22"}
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert {"attention=bam", "attention=bam_released"} <= set(shown.stdout.split())


WRONG = {
    "unknown backbone": (["backbone=resnet51"], ["resnet51", "resnet50"]),
    "unknown attention": (["attention=bum"], ["bum", "bam"]),
    "file as a choice": (["backbone=resnet20.yaml"], ["backbone=resnet20.yaml"]),
    "path as a choice": (["backbone=../backbone/resnet20"], ["backbone=../backbone/resnet20"]),
    "unknown row": (["+row/table1a=r7"], ["r7", "r8"]),
    "unknown table": (["+experiment=table1z"], ["table1z", "table1a"]),
    "reduction that does not divide": (["attention.reduction=7"], ["reduction", "7", "16"]),
    "misspelt key": (["attention.reductoin=8"], ["attention.reductoin", "attention.reduction"]),
    "misspelt key with plus": (["+attention.reductoin=8"], ["attention.reductoin=8", "reduction"]),
    "misspelt setting": (["+dta_root=x"], ["dta_root", "data_root"]),
    "misspelt group": (["bakbone=resnet50"], ["bakbone", "backbone"]),
    "key of another attention": (["attention=none", "+attention.dilation=2"], ["attention.dilation=2"]),
    "wrong type": (["attention.reduction=eight"], ["attention.reduction=eight"]),
    "out of range": (["recipe.momentum=1.5"], ["recipe.momentum=1.5"]),
    "foreign target": (["backbone._target_=os.system"], ["os.system"]),
    "foreign target through bam_exp": (
        ["backbone._target_=bam_exp.runs.result.subprocess.run"],
        ["bam_exp.runs.result.subprocess.run"],
    ),
    "target of another group": (["backbone._target_=bam_exp.attention.BAM"], ["bam_exp.attention.BAM"]),
    "deleted group": (["~attention"], ["attention"]),
    "bad seed": (["seed=-1"], ["seed=-1"]),
    "last batch of one": (["data.train_size=160", "recipe.batch_size=53"], ["batch_size=53"]),
    "a secret": (["+wandb_token=abc123"], ["wandb_token", "secret"]),
    "not an override": (["attention"], ["attention"]),
    "no plugin of a sweeper": (["hydra/sweeper=optuna"], ["hydra/sweeper=optuna", "pip install 'bam_exp[optuna]'"]),
    "unknown flag": (["--nosuch"], ["--nosuch"]),
    "flag with a wrong value": (["--cfg", "x"], ["--cfg", "'job'"]),
    "flag without its value": (["--config-dir"], ["--config-dir"]),
    "no data": (["data=cifar100", "data_root=nowhere"], ["nowhere", "cifar-100-python"]),
}


@pytest.mark.parametrize("multirun", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_line(bam_train: Command, tmp_path: Path, case: str, multirun: list[str]) -> None:
    words, expected = WRONG[case]
    if multirun and any(word.startswith("seed=") for word in words):
        multirun = ["-m", "attention=bam,se"]
    ended = bam_train(*multirun, *words)
    assert ended.code == 2
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("bam-train: ")
    for word in expected:
        assert word in lines[0]
    assert "abc123" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_job_stops_the_sweep_before_the_first_starts(bam_train: Command, tmp_path: Path) -> None:
    ended = bam_train("-m", "attention.reduction=8,7", *TINY)
    assert ended.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["hydra.sweeper.max_batch_size=0"],
            "hydra.sweeper.max_batch_size=0: should be a whole number from 1, or null",
        ),
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs=0: should be the number of runs at a time",
        ),
        (["+experiment=demo", "seed="], "seed=: should be a whole number from 0 to 2147483647"),
    ],
)
def test_what_would_end_a_sweep_later_is_refused_before_it_is_announced(
    bam_train: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    ended = bam_train("-m", *words)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE=x: should be a whole number"),
        ("SLURM_STEP_NUM_TASKS", "2", "SLURM_PROCID is not set"),
        ("BAM_EXP_PACKAGES", "no_such_package", "BAM_EXP_PACKAGES=no_such_package: there is no such package"),
    ],
)
def test_a_wrong_environment_is_one_line(
    bam_train: Command, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    ended = bam_train(*TINY)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert said in ended.err


def test_words_behind_options_are_words(bam_tables: Command) -> None:
    first, last = (
        bam_tables("plan", "demo", *words) for words in (["seed=0", "--budget", "1s"], ["--budget", "1s", "seed=0"])
    )
    assert first.code == last.code == 0
    assert first.out == last.out
    wrong = bam_tables("plan", "demo", "--budgt", "1s")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert "--budgt" in wrong.err


def test_an_output_dir_that_would_be_ignored_is_refused(bam_tables: Command) -> None:
    ended = bam_tables("status", "demo", "output_dir=elsewhere")
    assert (ended.code, ended.out) == (2, "")
    assert "output_dir=elsewhere: bam-tables takes --output-dir DIR" in ended.err


@pytest.mark.parametrize("words", [["params", "table9"], ["report", "table1"]])
def test_an_unknown_table_gets_one_line(bam_tables: Command, tmp_path: Path, words: list[str]) -> None:
    ended = bam_tables(*words)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    assert "table1a" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_fingerprint_is_refused(bam_train: Command, tmp_path: Path) -> None:
    assert bam_train(*TINY).code == 0
    [result] = tmp_path.glob("runs/**/result.json")
    content = json.loads(result.read_text())
    content["fingerprint"] = "0" * 16
    content["figures_from"]["recipe"]["lr"] = 0.2
    result.write_text(json.dumps(content))
    ended = bam_train(*TINY)
    assert ended.code == 2
    assert "recipe.lr was 0.2, now 0.1" in ended.err
    assert json.loads(result.read_text()) == content


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_optuna_sweeper") is not None, reason="the plugin is installed")
def test_a_plugin_that_is_missing_names_its_extra(bam_train: Command) -> None:
    ended = bam_train("-m", "hydra/sweeper=optuna", "seed=0,1")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "pip install 'bam_exp[optuna]'" in ended.err


def test_a_sweep_by_slurm_without_slurm_is_refused(
    bam_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = bam_train("-m", "hydra/launcher=submitit_slurm", "seed=0,1")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "has no srun" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "file/below", "", "loop"])
def test_a_path_that_can_be_no_folder_is_refused(bam_tables: Command, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "loop").symlink_to("loop")
    ended = bam_tables("report", "demo", "--output-dir", folder)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "--output-dir" in ended.err
    assert (tmp_path / "file").read_text() == "content"


FILES = {
    "aliases": (b"a: &a [x, x]\nb: *a\n_target_: bam_exp.backbones.ResNet\n", ["own.yaml", "aliases"]),
    "not UTF-8": (b"\xff\xfe_target_: bam_exp.backbones.ResNet\n", ["own.yaml", "not YAML"]),
    "a key twice": (b"depth: 20\ndepth: 34\n_target_: bam_exp.backbones.ResNet\n", ["own.yaml", "depth: occurs twice"]),
    "no mapping": (b"- depth: 20\n", ["own.yaml", "should be a mapping"]),
    "defaults that are not there": (b"defaults: [nothing]\n", ["backbone/own", "backbone=nothing", "resnet20"]),
    "another package's callable": (b"_target_: os.system\n", ["backbone._target_=os.system"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_of_a_choice_gets_one_line(tmp_path: Path, case: str) -> None:
    content, expected = FILES[case]
    (tmp_path / "conf" / "backbone").mkdir(parents=True)
    (tmp_path / "conf" / "backbone" / "own.yaml").write_bytes(content)
    command = [sys.executable, "-m", "bam_exp", "--config-dir", "conf", "backbone=own"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert all(word in ended.stderr for word in expected), ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_folder_that_has_been_deleted_is_named(tmp_path: Path) -> None:
    """The current folder of a shell, which another shell has removed."""
    program = Path(sys.executable).with_name("bam-train")
    command = f"mkdir gone && cd gone && rmdir ../gone && {program} seed=1"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        2,
        "bam-train: the current folder no longer exists; change to another\n",
    )


def test_a_network_that_is_too_large_for_the_memory_is_one_line(bam_train: Command) -> None:
    ended = bam_train(*TINY, "backbone.widen=100000")
    assert ended.code == 1
    assert "failed: the memory does not suffice for an allocation of 92160.00 GB" in ended.err
    assert "Traceback" not in ended.err
