"""An attention and a table outside the package: examples/my_attention, by its folder and as an installed package."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended

EXAMPLE = REPOSITORY / "examples" / "my_attention"
CONF = EXAMPLE / "my_attention" / "conf"
FAST = (
    "recipe.epochs=1", "recipe.max_steps=2", "recipe.batch_size=32", "data.train_size=160", "data.test_size=40",
    "trainer.threads=1", "trainer.device=cpu",
)  # fmt: skip
TABLE = "simam--shapes-train_size160-test_size40--demo-epochs1-max_steps2-batch_size32"


def command(folder: Path, name: str, *words: str, path: Path = EXAMPLE, **environment: str) -> Ended:
    """A console command in a process of its own, in an empty folder, with another folder on Python's path."""
    script = f"from bam_exp.entry import {name}; {name}()"
    paths = os.pathsep.join(str(part) for part in (path, *filter(None, sys.path)))
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_an_attention_and_a_table_from_outside_train_and_are_reported(tmp_path: Path) -> None:
    config_dir = ("--config-dir", str(CONF))
    ended = command(
        tmp_path, "train", *config_dir, "+experiment=simam", *FAST, "seed=0", BAM_EXP_PACKAGES="my_attention"
    )
    assert ended.code == 0, ended.err
    names = {
        str(file.parent.relative_to(tmp_path / "runs")).split("/")[2] for file in tmp_path.glob("runs/**/result.json")
    }
    assert names == {"none", "bam-reduction8", "simam", "simam-at_block"}
    for report in tmp_path.glob("results/simam*"):
        report.unlink()
    ended = command(tmp_path, "tables", *config_dir, "report", "simam", BAM_EXP_PACKAGES="my_attention")
    assert ended.code == 0, ended.err
    [file] = tmp_path.glob("results/simam--*.csv")
    with file.open() as lines:
        rows = {row["row"]: row for row in csv.DictReader(lines)}
    assert {name: row["n"] for name, row in rows.items()} == dict.fromkeys(
        ("baseline", "bam", "simam", "simam_block"), "1"
    )
    assert rows["simam"]["params"] == rows["baseline"]["params"]  # SimAM has no parameters


def test_what_a_package_registers_for_the_exit_is_called_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(
        "import atexit, os\nfrom bam_exp.attention import SE as Mine\n"
        f"atexit.register(lambda: open({str(tmp_path / 'left')!r}, 'a').write(f'{{os.getpid()}}\\n'))\n"
    )
    choice = tmp_path / "conf" / "attention" / "mine.yaml"
    choice.parent.mkdir(parents=True)
    choice.write_text("_target_: mine.Mine\nreduction: 8\n")
    words = ("-m", "--config-dir", str(tmp_path / "conf"), "attention=mine", "backbone=resnet20", "seed=0,1", *FAST)
    ended = command(tmp_path, "train", *words, path=tmp_path, BAM_EXP_PACKAGES="mine")
    assert ended.code == 0, ended.err
    assert len(set((tmp_path / "left").read_text().split())) == 3  # two runs and the process that launches them


def test_the_package_must_be_named(tmp_path: Path) -> None:
    """Refused in one line, and the package, which would leave a file behind, is not imported."""
    package = tmp_path / "my_attention"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    ended = command(tmp_path, "train", "--config-dir", str(CONF), "attention=simam", path=tmp_path)
    assert ended.code == 2
    assert "attention._target_=my_attention.SimAM" in ended.err
    assert "BAM_EXP_PACKAGES" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "imported").exists()


def test_an_installed_package_offers_its_folder(tmp_path: Path) -> None:
    """As pip installs it: the package beside its metadata, and no variable is set."""
    site = tmp_path / "site"
    metadata = site / "my_attention-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "my_attention").symlink_to(EXAMPLE / "my_attention")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_attention\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[bam_exp.conf]\nmy_attention = my_attention.conf\n")
    ended = command(tmp_path, "train", "attention=simam", "attention.coefficient=0.5", "--cfg", "job", path=site)
    assert ended.code == 0, ended.err
    assert "coefficient: 0.5" in ended.out
    ended = command(tmp_path, "train", "attention=simam", "attention.coefficient=-1", path=site)
    assert ended.code == 2
    assert "attention.coefficient=-1" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize("value", ["nowhere.conf", "my_attention.nowhere"])
def test_an_entry_point_that_names_nothing_is_named(tmp_path: Path, value: str) -> None:
    metadata = tmp_path / "my_attention-0.1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "my_attention").mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_attention\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[bam_exp.conf]\nbroken = {value}\n")
    ended = command(tmp_path, "tables", "params", "demo", path=tmp_path)
    assert ended.code == 2
    assert f"broken: the entry point bam_exp.conf names {value}" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_a_task_from_outside_trains_and_stands_in_its_table(tmp_path: Path) -> None:
    """A recipe whose task is a class of the user's; its figures are among the package's."""
    (tmp_path / "mytask.py").write_text(
        "from bam_exp.tasks import Classification\n"
        "class Patient(Classification):\n"
        '    """Classification with its own name in results."""\n'
    )
    for group in ("recipe", "table"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf/recipe/patient.yaml").write_text(
        "_target_: mytask.Patient\nepochs: 1\nmax_steps: 2\nbatch_size: 32\n"
    )
    (tmp_path / "conf/table/patient.yaml").write_text(
        "title: A task of one's own\nmetric: top1_error\ncolumns: [top1_error]\nseeds: [0]\n"
        "base: {data: shapes, backbone: resnet20, backbone.widen: 0.5, recipe: patient, attention: none}\n"
        "rows: {plain: {label: plain}}\n"
    )
    words = ("--config-dir", str(tmp_path / "conf"), "+experiment=patient", *FAST[3:])
    ended = command(tmp_path, "train", *words, path=tmp_path, BAM_EXP_PACKAGES="mytask")
    assert ended.code == 0, ended.err
    [result] = tmp_path.glob("runs/*/*/none/patient/seed0/result.json")
    assert '"mytask.Patient"' in result.read_text()
    [report] = tmp_path.glob("results/patient--*.md")
    assert "| plain" in report.read_text()
    ended = command(tmp_path, "train", *words, path=tmp_path)
    assert ended.code == 2
    assert "recipe._target_=mytask.Patient" in ended.err
