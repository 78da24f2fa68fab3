"""GPUs by reading, with the driver mocked: who may use which, what is leased, and what becomes of a GPU that cannot compute."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import chosen_of
from filelock import FileLock
from torch import nn

from bam_exp import config
from bam_exp.build import make_machine
from bam_exp.config.targets import find_target
from bam_exp.errors import ConfigError
from bam_exp.machine import Machine, gpus
from bam_exp.machine.gpus import gpu_lease, show_gpu_of_rank, visible_gpus
from bam_exp.machine.interruption import Interruption, stop_signals
from bam_exp.machine.world import World
from bam_exp.training import evaluate as evaluating

UUIDS = ("GPU-aaaa1111", "GPU-bbbb2222", "GPU-cccc3333", "GPU-dddd4444")


@pytest.fixture(autouse=True)
def _asks_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A PyTorch with CUDA on a machine whose driver may not be asked, since it would then ignore a lease."""

    def asked(*_: object) -> None:
        raise AssertionError("the driver was asked")

    for name in ("is_available", "device_count", "get_device_capability", "get_device_name", "init"):
        monkeypatch.setattr(torch.cuda, name, asked)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cached in (gpus._uuids, gpus._count):
        cached.cache_clear()
    yield
    for cached in (gpus._uuids, gpus._count):
        cached.cache_clear()


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_uuids", _cached(UUIDS))


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")


def _cached(value: Any) -> Any:
    answer = lambda: value  # noqa: E731
    answer.cache_clear = lambda: None  # type: ignore[attr-defined]
    return answer


@pytest.mark.usefixtures("three_gpus")
def test_a_run_leases_as_many_gpus_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_lease(Machine(devices=2)) as two:
        assert two == ["4", "5"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
        with gpu_lease(Machine()) as one:
            assert one == ["7"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
        with gpu_lease(Machine(devices="auto", runs_per_gpu=2)) as three:
            assert sorted(three) == ["4", "5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    # One that cannot have all of its GPUs keeps none of them from others.
    taken = FileLock(tmp_path / f"bam_exp-gpus-{os.getuid()}" / "gpu5-0.lock")
    taken.acquire()
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        with FileLock(tmp_path / f"bam_exp-gpus-{os.getuid()}" / "gpu4-0.lock", timeout=0):
            taken.release()

    monkeypatch.setattr(time, "sleep", nap)
    with gpu_lease(Machine(devices=3)) as three:
        assert three == ["4", "5", "7"]
    assert len(naps) == 1


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=4"], "there are only 3 GPUs"),
        (["trainer.devices=2", "trainer.gpus=[1]"], "only 1 GPUs in trainer.gpus"),
    ],
)
def test_more_devices_than_gpus_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_machine(chosen_of(*words)).check_device()


@pytest.mark.usefixtures("four_cards")
@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("2, 0", ["2", "0"]),
        ("1,7,2", ["1"]),
        ("NoDevFiles", []),
        ("GPU-cccc3333,0", ["GPU-cccc3333", "0"]),
        ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(
    variable: str | None, visible: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == visible
    assert Machine().uses_gpu == bool(visible)


def test_nvidia_smi_names_the_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-aaaa1111\necho GPU-bbbb2222\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus() == ["0", "1"]


def test_without_nvidia_smi_another_process_asks_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    asked: list[list[str]] = []

    def run(command: list[str], **keywords: object) -> SimpleNamespace:
        asked.append(command)
        if command[0] == "nvidia-smi":
            raise FileNotFoundError
        return SimpleNamespace(stdout="2\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert visible_gpus() == ["0", "1"]
    assert [command[0] for command in asked] == ["nvidia-smi", sys.executable]


@pytest.mark.usefixtures("four_cards")
@pytest.mark.parametrize("other", ["GPU-bbbb2222", "GPU-bbbb", "1"])
def test_index_and_uuid_of_a_card_are_one_lease(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Waited(Exception):
        pass

    def wait(_seconds: float) -> None:
        raise Waited

    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpu_lease(Machine()):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", other)
        with pytest.raises(Waited), gpu_lease(Machine()):
            pass
    assert "waiting for a free GPU" in capsys.readouterr().err


def test_the_lease_names_mig_instances_before_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    machine = Machine()
    machine.check_device()
    with gpu_lease(machine) as first:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-a"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
        with gpu_lease(machine) as second:
            assert (first, second) == (["MIG-a"], ["MIG-b"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-a,MIG-b"


@pytest.mark.usefixtures("three_gpus")
def test_an_evaluation_leases_one_gpu_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "opened", lambda machine: machine)
    monkeypatch.setattr(
        evaluating, "_evaluate", lambda _, machine: {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "n": machine.devices}
    )
    with gpu_lease(Machine()):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
        assert evaluating.evaluate(chosen_of(), Machine(devices=2)) == {"gpu": "5", "n": 1}


def test_a_rank_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun shows every rank all GPUs, `srun --gpus-per-task=1` shows each its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    show_gpu_of_rank(World(rank=6, size=8, local_rank=2, local_size=4))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    show_gpu_of_rank(World(rank=6, size=8, local_rank=2, local_size=4))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ConfigError, match=r"trainer\.device=cuda: this machine has no GPU"):
        Machine(device="cuda").check_device()
    with pytest.raises(ConfigError, match=r"trainer\.precision=tf32: only GPUs"):
        Machine(precision="tf32").check_device()
    Machine().check_device()
    assert not Machine().uses_gpu


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card whose properties a test may change."""
    card = SimpleNamespace(problem=None, capability=(9, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ones = torch.ones

    def on_card(*shape: Any, device: str = "cpu") -> torch.Tensor:
        if device == "cuda" and card.problem:
            raise RuntimeError(card.problem)
        return ones(*shape)

    monkeypatch.setattr(torch, "ones", on_card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or card.capability >= (8, 0),
    )
    return card


@pytest.fixture
def kernels() -> Iterator[None]:
    """Puts back what `Machine.prepare` sets."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    torch.set_num_threads(before[0])
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[1:]


@pytest.mark.parametrize(
    "problem",
    [
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.",
        "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ...",
    ],
)
def test_a_gpu_that_cannot_compute(card: SimpleNamespace, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    card.problem = problem
    first = problem.partition("\n")[0]
    opened = Machine().opened()
    assert (opened.uses_gpu, opened.precision_used, opened.compile_used) == (False, "float32", "off")
    assert capsys.readouterr().err == f"no GPU that PyTorch can use ({first}): computing on the CPU\n"
    with pytest.raises(ConfigError) as refused:
        Machine(device="cuda").opened()
    assert str(refused.value) == f"trainer.device=cuda: no GPU that PyTorch can use ({first}); trainer.device=cpu"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("capability", "precision", "used"),
    [
        ((9, 0), "auto", "bfloat16"),
        ((8, 0), "auto", "bfloat16"),
        ((7, 5), "auto", "float32"),  # Turing emulates it
        ((9, 0), "tf32", "tf32"),
        ((9, 0), "float32", "float32"),
        ((7, 5), "bfloat16", "bfloat16"),
    ],
)
def test_precision_on_a_gpu(card: SimpleNamespace, capability: tuple[int, int], precision: Any, used: str) -> None:
    """float32 is float32: PyTorch by itself computes convolutions in TF32."""
    card.capability = capability
    machine = Machine(precision=precision, threads=1).opened()
    assert machine.description()["precision"] == used
    machine.prepare()
    forms = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    assert [form == "tf32" for form in forms] == [used == "tf32"] * 2


def test_deterministic_holds_for_the_networks_that_the_documentation_names() -> None:
    """Max-pooling and adaptive pooling to more than one value have no deterministic gradient on a GPU."""
    without = []
    for name in config.choice_names("backbone"):
        keys = dict(config.choice_file("backbone", name))
        make = find_target("backbone", keys.pop("_target_"))
        assert make is not None
        with torch.device("meta"):
            network = make(100, **keys)
        pools = (module for module in network.modules() if isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d))
        if any(isinstance(pool, nn.MaxPool2d) or pool.output_size != 1 for pool in pools):
            without.append(name)
    assert [name for name in without if "imagenet" not in name] == [
        "faster_rcnn_resnet101",
        "ssd_vgg16",
        "stairnet_vgg16",
    ]
    imagenet = {name for name in config.choice_names("backbone") if name.endswith("_imagenet")}
    assert imagenet - set(without) == {"mobilenet_imagenet"}


def test_tf32_is_refused_where_the_card_lacks_it(card: SimpleNamespace) -> None:
    card.capability = (7, 5)
    with pytest.raises(ConfigError, match=r"trainer\.precision=tf32: a card does not have it"):
        Machine(precision="tf32").opened()


def test_without_what_only_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(signal, "SIGUSR2")
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith("/proc"))
    monkeypatch.setitem(sys.modules, "resource", None)
    timing = importlib.import_module("bam_exp.training.timing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        importlib.reload(timing)
        assert timing.peak_memory_mib() is None
        Interruption().listen()
        assert {number.name for number in stop_signals()} == {"SIGTERM", "SIGINT"}
        machine, threads = Machine(device="cpu"), torch.get_num_threads()
        machine.prepare()
        assert machine.description()["threads"] >= 1
        torch.set_num_threads(threads)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        monkeypatch.undo()
        importlib.reload(timing)
