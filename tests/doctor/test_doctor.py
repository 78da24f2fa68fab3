"""`bam-doctor` names what is wrong and what to do, and examines a GPU; here with a fake nvidia-smi, and on the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bam_exp.doctor import arithmetic, card, datasets, gpu, leases, machine, ranks, training
from bam_exp.doctor.finding import Check, Finding, Report


def doctor(folder: Path, *words: str, **variables: str) -> SimpleNamespace:
    script = "from bam_exp.entry import doctor; doctor()"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables},
    )  # fmt: skip
    found = {line[9:29].strip(): line[:7].strip() for line in ended.stdout.splitlines()[1:-1] if line[:1] != " "}
    return SimpleNamespace(code=ended.returncode, out=ended.stdout, err=ended.stderr, found=found)


def fake(folder: Path, program: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_report_for_a_bug_report(tmp_path: Path) -> None:
    ended = doctor(tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert {"bam_exp", "python", "core packages", "cpu", "output_dir", "driver", "data cifar100"} <= set(ended.found)
    assert f"torch {torch.__version__.partition('+')[0]}" in ended.out
    assert ended.out.splitlines()[-1].startswith("0 wrong, ")


def test_it_ends_like_every_command_where_its_output_cannot_be_written(tmp_path: Path) -> None:
    script = "from bam_exp.entry import doctor; doctor()"
    for stdout, code, said in (("/dev/full", 1, "bam-doctor: No space left on device\n"), ("pipe", 141, "")):
        if stdout == "pipe":
            read, write = os.pipe()
            os.close(read)
        else:
            write = os.open(stdout, os.O_WRONLY)
        ended = subprocess.run(
            [sys.executable, "-P", "-c", script],
            cwd=tmp_path,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(write)
        assert (ended.returncode, ended.stderr) == (code, said)


def test_it_needs_no_package_of_the_extra_before_it_has_looked() -> None:
    script = "import sys; sys.modules['yaml'] = None; import bam_exp.commands.doctor"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_wrong_ends_with_exit_code_1_and_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"damaged")
    ended = doctor(tmp_path, "--output-dir", str(tmp_path / "nowhere"))
    assert ended.code == 1
    assert {name for name, state in ended.found.items() if state == "WRONG"} == {"output_dir", "data cifar100"}
    assert "`bam-data cifar100 data` replaces it" in ended.out
    assert "-> output_dir=DIR must exist" in ended.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_every_examination_is_named_and_none_fails(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "--gpu")
    assert ended.code == 0, ended.out
    examined = {name.removeprefix("gpu: "): state for name, state in ended.found.items() if name.startswith("gpu: ")}
    assert list(examined) == list(gpu.EXAMINATIONS)
    runs = gpu.WITHOUT_GPU if torch.backends.cuda.is_built() else ()
    assert {name for name, state in examined.items() if state == "ok"} == set(runs)
    assert set(examined.values()) <= {"ok", "not run"}


def test_the_report_counts_and_a_check_that_raises_is_wrong() -> None:
    def broken() -> Finding:
        raise KeyError("MemAvailable")

    checks = [Check("one", lambda: Finding("ok", "good")), Check("two", broken)]
    *lines, report = Report.of(checks)
    assert lines[0] == f"{'ok':<7}  {'one':<20}  good"
    assert "KeyError: 'MemAvailable'" in lines[1]
    assert str(report) == "1 wrong, 0 to know, 1 ok"


@pytest.mark.parametrize(
    ("capability", "archs", "there"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),  # the same major version
        ((8, 0), ["sm_86"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_90", "sm_100", "compute_120"], False),
        ((10, 0), ["sm_100a"], True),
    ],
)
def test_which_builds_have_kernels_for_a_card(capability: tuple[int, int], archs: list[str], there: bool) -> None:
    assert card.has_kernels(capability, archs) is there


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", "update the driver"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for this card"),
        ("CUDA out of memory. Tried to allocate 2.00 MiB.", "another process uses the GPU's memory"),
    ],
)
def test_a_card_that_cannot_compute(reason: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"{reason}\nand more")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", refuse)
    found = card.card(tmp_path)
    assert found is not None
    assert (found.state, found.text) == ("wrong", reason)
    assert advice in found.advice


def test_the_card_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ones = torch.ones
    properties: dict[str, Any] = {
        "device_count": lambda: 1, "get_device_capability": lambda _=0: (7, 5), "get_arch_list": lambda: ["sm_75"],
        "mem_get_info": lambda: (15e9, 16e9), "get_device_name": lambda: "Tesla T4",
        "is_bf16_supported": lambda including_emulation=True: including_emulation,
    }  # fmt: skip
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *shape, device="cpu": ones(*shape))  # noqa: PLW0108
    for name, value in properties.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found = card.card(tmp_path)
    assert found is not None
    assert found.state == "note"
    assert "Tesla T4, compute capability 7.5" in found.text
    assert "no native bfloat16" in found.text
    assert "trainer.precision=auto is float32" in found.advice


def test_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    fake(tmp_path / "bin", "nvidia-smi", "echo '0, H100, 580.1, 81559 MiB, 9.0, Disabled, Default'")
    assert gpu._driver() == Finding("ok", "0, H100, 580.1, 81559 MiB, 9.0, Disabled, Default")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu._driver().state == "note"
    fake(tmp_path / "bin", "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert gpu._driver().state == "wrong"
    assert "version mismatch" in gpu._driver().text


def test_an_examination_that_fails_or_hangs_is_a_line() -> None:
    found = gpu.run_alone("card.nowhere", 60)
    assert found is not None
    assert "AttributeError" in found.text
    found = gpu.run_alone("card.card", 0)
    assert found is not None
    assert (found.state, found.text) == ("wrong", "not done after 0 s")


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a PyTorch with CUDA")
def test_names_of_one_card_are_one_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a fake nvidia-smi; the process that waits for the lease asks no driver."""
    listed = "GPU 0: a card (UUID: GPU-aaaa1111)"
    script = f'if [ "$1" = -L ]; then echo "{listed}"; else echo GPU-aaaa1111; fi'
    fake(tmp_path / "bin", "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = gpu.run_alone("leases.one_lock", 120)
    assert found == Finding("ok", "a process with CUDA_VISIBLE_DEVICES=GPU-aaaa1111 waits for one with 0")
    assert leases._names("MIG-") == []


def test_arithmetic_and_steps_are_examined_on_any_device(tmp_path: Path) -> None:
    assert arithmetic.float32(tmp_path, "cpu").state == "ok"
    assert training.no_waiting(tmp_path, "cpu").text.startswith("10 steps")
    try:
        found = arithmetic.deterministic(tmp_path, "cpu", ("resnet20",))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == Finding("ok", "1 networks equal to the bit: resnet20")


def test_a_network_that_is_not_deterministic_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))
    monkeypatch.setattr(arithmetic, "_two_steps", lambda name, device: torch.tensor([next(calls)]))
    try:
        found = arithmetic.deterministic(tmp_path, "cpu", ("resnet20",))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.state == "wrong"
    assert found.text.endswith("NOT: resnet20")


@pytest.mark.slow
def test_ranks_resuming_and_compiling_are_examined_on_any_device(tmp_path: Path) -> None:
    for function in (ranks.two_ranks, training.resume, training.compiled):
        folder = tmp_path / function.__name__
        folder.mkdir()
        assert function(folder, "cpu").state == "ok"


def test_disk_slurm_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._folder(tmp_path).state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert machine._folder(tmp_path).state == "wrong"
    monkeypatch.setattr(machine, "_quota", lambda: 0.4)
    assert "trainer.threads=1" in machine._cpu().advice
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert machine._slurm().state == "ok"
    fake(tmp_path / "bin", "sbatch", "echo slurm 24.05")
    assert machine._slurm().text == "slurm 24.05, without accounting (sacct)"
    fake(tmp_path / "bin", "sacct", "exit 0")
    assert machine._slurm().state == "ok"


def test_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_versions", dict.fromkeys)
    assert machine._core().state == "wrong"
    assert "pip install 'bam_exp[train]'" in machine._train().advice
    monkeypatch.setattr(datasets, "find_spec", lambda _: None)
    [check] = datasets.checks(tmp_path)
    assert check.finding().state == "not run"
