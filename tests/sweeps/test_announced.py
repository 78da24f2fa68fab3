"""A sweep trains what it announced, or is refused: configs of the user's, interpolations, Hydra's own flags."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Command, Ended
from safetensors.torch import load_file, save_file

FAST = (
    "recipe.epochs=1", "recipe.max_steps=1", "backbone.widen=0.25", "attention.reduction=4", "data.train_size=160",
    "data.test_size=40", "recipe.batch_size=32", "trainer.threads=1", "trainer.device=cpu",
)  # fmt: skip


def bam_train_process(folder: Path, *words: str) -> Ended:
    """The command in a process of its own, as a user starts it."""
    command = [sys.executable, "-P", "-m", "bam_exp", *words]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ, timeout=240
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def names(folder: Path) -> set[str]:
    """The names of the finished runs."""
    return {str(path.parent.relative_to(folder / "runs")) for path in folder.glob("runs/**/result.json")}


def test_a_config_of_the_users_own_holds_in_every_job(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text(
        "defaults: [config, _self_]\nseed: 5\nrecipe: {epochs: 1, max_steps: 1, batch_size: 32}\n"
        "data: {train_size: 160, test_size: 40}\ntrainer: {threads: 1}\n"
    )
    ended = bam_train_process(tmp_path, "-m", "--config-dir", "own", "--config-name", "mine", "attention.reduction=4,8")
    assert ended.code == 0, ended.err
    recipe = "demo-epochs1-max_steps1"
    assert names(tmp_path) == {
        f"shapes-train_size160-test_size40/resnet20/bam-reduction{reduction}/{recipe}/seed5" for reduction in (4, 8)
    }


def test_an_interpolation_is_resolved_by_each_job(tmp_path: Path) -> None:
    ended = bam_train_process(tmp_path, "-m", *FAST, "recipe.lr=0.2,0.3", "recipe.weight_decay=${recipe.lr}")
    assert ended.code == 0, ended.err
    assert "run 1 of 2\n" in ended.out
    assert re.search(r"^run 2 of 2, about \d+ (s|min) to go$", ended.out, re.MULTILINE)
    epochs = [line for line in ended.err.splitlines() if "epoch" in line and "loss" in line]
    assert [line.split("]")[0] for line in epochs] == ["[1/2", "[2/2"]
    assert all(len(line) <= 80 for line in epochs)
    assert {name.split("/")[3].split("-lr")[1] for name in names(tmp_path)} == {
        "0.2-weight_decay0.2",
        "0.3-weight_decay0.3",
    }


def test_a_folder_called_bam_exp_is_not_the_package(tmp_path: Path) -> None:
    (tmp_path / "bam_exp").mkdir()
    (tmp_path / "bam_exp" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    ended = bam_train_process(tmp_path, "-m", *FAST, "seed=1")
    assert ended.code == 0, ended.err


def test_a_choice_of_the_users_own_is_named_for_what_differs_from_it(tmp_path: Path) -> None:
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "fast.yaml").write_text(
        "_target_: bam_exp.tasks.Classification\nepochs: 1\nmax_steps: 1\nbatch_size: 32\nlr: 0.05\n"
    )
    small = ["data.train_size=160", "data.test_size=40", "trainer.threads=1", "trainer.device=cpu"]
    ended = bam_train_process(tmp_path, "-m", "--config-dir", "own", "recipe=fast", "recipe.lr=0.05,0.1", *small)
    assert ended.code == 0, ended.err
    assert {name.split("/")[3] for name in names(tmp_path)} == {"fast", "fast-lr0.1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "hydra.job.chdir=true", "seed=1,2"], "hydra.job.chdir=true"),
        (["-m", "+experiment=demo,cpu"], "one table at a time"),
        (["-m", "output_dir=/proc/nope", "seed=1,2"], "output_dir: cannot write to /proc/nope"),
        (["+row/tabel1a=d4", "--cfg", "job"], "did you mean table1a?"),
        (["+recipe.lrr=0.1", "--cfg", "job"], "did you mean lr?"),
        (["data_root=my data (v2)"], "'data_root=\"my data (v2)\"'"),
        (["--config-dir", "nowhere"], "nowhere: there is no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_what_it_says_is_refused(
    bam_train: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    ended = bam_train(*words)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(bam_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bam_train(*FAST, "output_dir='~/out'").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert names(tmp_path / "home" / "out")


@pytest.mark.parametrize(
    "words", [["experiment=demo"], ["row/demo=bam", "-m", "seed=1,2"], ["+row/demo=glob(*)", "-m", "seed=1,2"]], ids=str
)
def test_a_plus_is_not_needed_and_flags_may_stand_anywhere(words: list[str]) -> None:
    from bam_exp.commands.environment import flags_and_overrides

    flags, overrides = flags_and_overrides(words)
    assert all(word.startswith("+") for word in overrides if "seed" not in word)
    assert flags == [word for word in words if word == "-m"]


@pytest.mark.parametrize("target", ["os.system", "torch.load", "numpy.load", "other_package.Thing"])
def test_a_yaml_alone_runs_nothing(bam_train: Command, tmp_path: Path, target: str) -> None:
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    (tmp_path / "own" / "recipe" / "evil.yaml").write_text(f"_target_: {target}\n")
    before = set(sys.modules)
    ended = bam_train("--config-dir", str(tmp_path / "own"), "recipe=evil")
    assert ended.code == 2
    assert f"recipe._target_={target}" in ended.err
    assert not {name for name in set(sys.modules) - before if name.startswith(("other_package", "numpy.load"))}


def test_two_folders_are_two_runs(tmp_path: Path) -> None:
    """Where the first has its run already, the second does not."""
    assert bam_train_process(tmp_path, *FAST, "output_dir=a").code == 0
    ended = bam_train_process(tmp_path, "-m", *FAST, "output_dir=a,b")
    assert ended.code == 0, ended.err
    assert "2 runs: 1 done already, 1 to run" in ended.out
    assert names(tmp_path / "a") == names(tmp_path / "b") != set()


def test_jobs_with_one_folder_and_other_weights_are_refused(tmp_path: Path) -> None:
    assert bam_train_process(tmp_path, *FAST, "output_dir=a").code == 0
    (weights,) = (tmp_path / "a").glob("runs/**/weights.safetensors")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.safetensors").write_bytes(weights.read_bytes())
    words = ["-m", *FAST, "weights=one/x.safetensors,two/x.safetensors"]
    same = bam_train_process(tmp_path, *words, "output_dir=b")
    assert "1 runs: 0 done already, 1 to run" in same.out, "equal weights are one run"
    changed = load_file(weights)
    changed["stem.conv1.weight"] *= 2
    save_file(changed, tmp_path / "two" / "x.safetensors")
    ended = bam_train_process(tmp_path, *words, "output_dir=c")
    assert ended.code == 2
    assert "two jobs of this sweep would have this folder" in ended.err
    assert not names(tmp_path / "c")


@pytest.mark.parametrize("word", ["evaluate=RUN", "evaluate=A,B"])
def test_a_sweep_tests_no_weights(tmp_path: Path, word: str) -> None:
    ended = bam_train_process(tmp_path, "-m", *FAST, word)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{word}: a sweep trains; test one network at a time, without -m" in ended.err


def test_a_deleted_key_is_in_the_name_and_in_what_is_recorded(tmp_path: Path) -> None:
    """`shapes_small` has pictures of 24 pixels, `Shapes` by default of 32."""
    words = ["data=shapes_small", *FAST]
    assert bam_train_process(tmp_path, *words, "~data.size").code == 0
    (name,) = names(tmp_path)
    assert name.startswith("shapes_small-")
    assert "-size32/" in name
    result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
    assert "data.size=32" in result["command"].split()
    assert bam_train_process(tmp_path, *words).code == 0, "the run with 24 pixels is another one"
    assert len(names(tmp_path)) == 2


def test_a_job_counts_its_run_once(tmp_path: Path) -> None:
    """d4 and r16 are one run, and so are the same values typed twice."""
    ended = bam_train_process(tmp_path, "-m", *FAST, "seed=3,3,4")
    assert ended.code == 0, ended.err
    assert "2 runs: 0 done already, 2 to run" in ended.out
    assert "run 1 of 2\n" in ended.out
    assert "run 2 of 2" in ended.out
    assert "of 3" not in ended.out


def test_a_run_that_cannot_be_judged_fails_and_the_others_go_on(tmp_path: Path) -> None:
    """At this rate one step leaves weights with which the test loss is not finite."""
    ended = bam_train_process(tmp_path, "-m", *FAST, "recipe.lr=0.1,1e30,0.2")
    assert ended.code == 1
    assert "2 of 3 runs done, 1 failed" in ended.out
    assert re.search(
        r"^FAILED .*lr1e\+30.*: Diverged: test_loss is (nan|inf) after the last step", ended.err, re.MULTILINE
    )
    assert len(names(tmp_path)) == 2
    assert not list(tmp_path.glob("runs/**/*lr1e+30*/**/weights.safetensors"))


def test_nothing_is_forked_for_a_launcher_that_has_gone(tmp_path: Path) -> None:
    """As after Ctrl-C, which kills the workers of joblib while their servers are still importing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-P", "-m", "bam_exp.sweeps.server", str(theirs.fileno()), "1"]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=tmp_path) as server:
            theirs.close()
            request = {"words": list(FAST), "environment": dict(os.environ), "folder": str(tmp_path)}
            ours.sendall(json.dumps(request).encode() + b"\n")
            assert server.wait(120) == 0
        ours.settimeout(10)
        assert ours.recv(8) == b"", "no process was answered"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_ctrl_c_twice_while_a_run_is_started_ends_the_sweep(tmp_path: Path, pause: float) -> None:
    command = [sys.executable, "-P", "-m", "bam_exp", "-m", *FAST, "seed=1,2"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as sweep:
        assert sweep.stdout is not None
        for line in sweep.stdout:
            if line.startswith("run 1 of"):
                break
        time.sleep(0.5)  # the process that forks the run is importing
        for _ in range(2):
            sweep.send_signal(signal.SIGINT)
            time.sleep(pause)
        out, err = sweep.communicate(timeout=90)
    assert sweep.returncode == 130, out + err
    assert "Traceback" not in err
    assert "sweep interrupted: 0 of 2 runs done" in err
