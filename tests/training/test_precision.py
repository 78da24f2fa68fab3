"""`precision=auto` on a CPU: the faster one for the network, said on a line, stored with the run and kept by it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, run_of

from bam_exp.attention import BAM, attach
from bam_exp.backbones import ResNet
from bam_exp.machine import Machine
from bam_exp.runs.folder import begin
from bam_exp.training import precision
from bam_exp.training.precision import faster_on_cpu, settled

AUTO = (*(word for word in TINY if "precision" not in word), "recipe.max_steps=2")


def network() -> torch.nn.Module:
    return torch.nn.Sequential(attach(ResNet(10, depth=20, stem="cifar"), BAM), torch.nn.Dropout(0.5))


@pytest.mark.parametrize(("bfloat16", "faster"), [(0.5, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, bfloat16: float, faster: str) -> None:
    seconds = {"float32": 0.5, "bfloat16": bfloat16 * 0.5}
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    monkeypatch.setattr(precision, "_step", lambda _network, _images, name: seconds[name])
    chosen, why = faster_on_cpu(network(), 32)
    assert chosen == faster
    assert why == f"16 images take 500 ms in float32 and {500 * bfloat16:.0f} ms in bfloat16"


def test_timing_leaves_network_and_random_numbers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    monkeypatch.setattr(precision, "SECONDS", 0)
    one = network()
    before, random = {name: value.clone() for name, value in one.state_dict().items()}, torch.get_rng_state()
    _, why = faster_on_cpu(one, 32)
    assert "ms in bfloat16" in why
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("found", "timed"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_only_what_may_be_faster_is_timed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any],
    timed: bool,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(precision, "_step", lambda *_: 1.0)
    run = run_of(*AUTO, f"output_dir={tmp_path}")
    assert settled(run, Machine(device="cpu"), network(), 32).precision_used == "float32"
    assert ("in bfloat16" in capsys.readouterr().err) == timed


def test_rows_of_a_backbone_agree_though_a_second_timing_would_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    found = iter([("bfloat16", "the first timing"), ("float32", "the second timing"), ("float32", "the third timing")])
    monkeypatch.setattr(precision, "faster_on_cpu", lambda *_: next(found))
    for attention in ("attention=none", "attention=se"):
        run = run_of(*AUTO, attention, f"output_dir={tmp_path}")
        assert settled(run, Machine(device="cpu"), network(), 32).precision_used == "bfloat16"
    assert capsys.readouterr().err.count("computing in bfloat16: the first timing") == 1
    other = run_of(*AUTO, "backbone=resnet50", f"output_dir={tmp_path}")
    assert settled(other, Machine(device="cpu"), network(), 32).precision_used == "float32"


def test_the_precision_stays_when_the_users_configs_change(
    bam_train: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A table that is continued with another folder of configs would mix two precisions otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    found = iter([("bfloat16", "the first timing"), ("float32", "the second timing")])
    monkeypatch.setattr(precision, "faster_on_cpu", lambda *_: next(found))
    assert bam_train(*AUTO).code == 0
    (tmp_path / "own" / "attention").mkdir(parents=True)
    (tmp_path / "own" / "attention" / "mine.yaml").write_text("_target_: bam_exp.attention.SE  # not ${this}\n")
    ended = bam_train("--config-dir", str(tmp_path / "own"), *AUTO, "seed=7")
    assert ended.code == 0
    assert "training on cpu, 1 thread, bfloat16" in ended.err


def test_a_run_that_is_done_in_another_precision_says_how_to_have_it_in_this_one(
    bam_train: Command, tmp_path: Path
) -> None:
    words = [word for word in AUTO if "precision" not in word]
    assert bam_train(*words, "trainer.precision=bfloat16").code == 0
    for precision_typed, said in (("float32", True), ("bfloat16", False), ("auto", False)):
        ended = bam_train(*words, f"trainer.precision={precision_typed}")
        assert ended.code == 0
        assert "done already" in ended.out
        assert ("in bfloat16; to have it in float32, move" in ended.out) == said


def test_runs_that_start_together_are_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    found = iter([("bfloat16", "first"), ("float32", "second")])

    def slowly(*_: object) -> Any:
        answer = next(found)
        time.sleep(0.5)
        return answer

    monkeypatch.setattr(precision, "faster_on_cpu", slowly)
    runs = [run_of(*AUTO, f"seed={seed}", f"output_dir={tmp_path}") for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        used = pool.map(lambda run: settled(run, Machine(device="cpu"), network(), 32).precision_used, runs)
    assert list(used) == ["bfloat16", "bfloat16"]


def test_a_cache_that_cannot_be_written_leaves_the_choice_to_each_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    monkeypatch.setattr(precision, "faster_on_cpu", lambda *_: ("bfloat16", "because"))
    run = run_of(*AUTO, f"output_dir={tmp_path}")
    assert settled(run, Machine(device="cpu"), network(), 32).precision_used == "bfloat16"


def test_a_run_says_and_stores_what_it_computes_in(
    bam_train: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    monkeypatch.setattr(precision, "faster_on_cpu", lambda *_: ("bfloat16", "because"))
    ended = bam_train(*AUTO)
    assert ended.code == 0
    assert [line for line in ended.err.splitlines() if line.endswith("computing in bfloat16: because")]
    assert [line for line in ended.err.splitlines() if line.endswith("training on cpu, 1 thread, bfloat16")]
    [result], [begun] = tmp_path.glob("runs/**/result.json"), tmp_path.glob("runs/**/run.json")
    assert json.loads(result.read_text())["hardware"]["precision"] == "bfloat16"
    assert json.loads(begun.read_text())["precision"] == "bfloat16"


def test_a_run_that_continues_keeps_its_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def timed(*_: object) -> Any:
        raise AssertionError("timed again")

    monkeypatch.setattr(precision, "faster_on_cpu", timed)
    run = run_of(*AUTO, f"output_dir={tmp_path}")
    run.folder.mkdir(parents=True)
    begin(run, "bfloat16")
    assert settled(run, Machine(device="cpu"), network(), 32).precision_used == "bfloat16"
    assert "continuing in bfloat16, as it began" in capsys.readouterr().err
    assert settled(run, Machine(device="cpu", precision="float32"), network(), 32).precision_used == "float32"
    assert "computing in float32 from here on; it began in bfloat16" in capsys.readouterr().err
    # Version 0.1.0 did not store it, and `auto` was float32 on a CPU.
    content = json.loads((run.folder / "run.json").read_text())
    del content["precision"]
    (run.folder / "run.json").write_text(json.dumps(content))
    assert settled(run, Machine(device="cpu"), network(), 32).precision_used == "float32"
