"""What makes training fast stays so: operations and bytes of a step are those recorded, every attention in every backbone
keeps the memory format forward and backward, BAM keeps little for the backward pass, compiled is eager to rounding and
falls back to it with a reason, and a step of real training does not wait for the device.

Nothing here is timed; `bam-bench` does that.
"""

import contextlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from bam_exp import config
from bam_exp.attention import BAM, CBAM, ECA, SE, attach
from bam_exp.attention.gate import pool
from bam_exp.backbones import ResNet
from bam_exp.bench.forms import RELEASED, LiteralBAM, network_of
from bam_exp.bench.measure import Counter, Saved
from bam_exp.bench.step import Step, Variant
from bam_exp.config.targets import find_target
from bam_exp.data import Shapes
from bam_exp.machine import Machine
from bam_exp.machine.compiling import compile_network
from bam_exp.tasks import Classification
from bam_exp.tasks.classifier import Classifier
from bam_exp.training.lightning import make_trainer

CHANNELS_LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Operations and bytes


@pytest.mark.parametrize(
    ("attention", "kernels", "megabytes"),  # of a step at batch 4 with fused SGD, PyTorch 2.15, November 2026
    [("none", 181, 66.7), ("bam", 301, 80.7)],
)
def test_a_step_of_resnet20_does_what_was_recorded(attention: Any, kernels: int, megabytes: float) -> None:
    images = torch.randn(4, 3, 32, 32)
    step = Step(Variant("", attention), network_of("resnet20", attention), images, torch.arange(4))
    step()  # the first makes the momentum
    with Counter() as counter:
        step()
    assert counter.kernels == pytest.approx(kernels, rel=0.02)
    assert counter.bytes / 1e6 == pytest.approx(megabytes, rel=0.02)


def test_a_stage_of_resnet50_with_bam_does_what_was_recorded() -> None:
    stage = attach(ResNet(100, depth=50, stem="cifar"), BAM).stages[0].to(memory_format=CHANNELS_LAST)
    x = torch.randn(2, 64, 16, 16).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    with Counter() as counter:
        stage(x).sum().backward()
    assert counter.kernels == pytest.approx(136, rel=0.02)
    assert counter.bytes / 1e6 == pytest.approx(67.2, rel=0.02)


def test_a_bam_keeps_a_fifth_of_the_released_forms_memory_beside_its_input() -> None:
    x = torch.randn(2, 256, 32, 32).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    kept = []
    for module in (BAM(256), LiteralBAM(256, **RELEASED)):
        module.to(memory_format=CHANNELS_LAST)
        saved = Saved([x, *module.parameters()])
        with saved:
            module(x)
        kept.append(saved.bytes)
    assert 0 < kept[0] <= kept[1] / 5


# Layout


def broken_layouts(backbone: str, kind: Any, knobs: dict[str, Any]) -> list[str]:
    """Modules whose map, 2 x 2 pixels or more, is not channels_last, in a run with the layout rules of a GPU but no data."""
    keys = dict(config.choice_file("backbone", backbone))
    make = find_target("backbone", keys.pop("_target_"))
    assert make is not None
    with torch.device("meta"):
        network = attach(make(100, **keys), kind, **knobs).to(memory_format=CHANNELS_LAST)
    state = {name: (one.shape, one.stride(), one.dtype) for name, one in network.state_dict().items()}
    broken = []

    def look(name: str, out: Tensor) -> None:
        if out.ndim == 4 and min(out.shape[1:]) > 1 and not out.is_contiguous(memory_format=CHANNELS_LAST):
            broken.append(name)

    for name, module in network.named_modules():
        module.register_forward_hook(lambda _module, _given, out, name=name: look(name, out))
    with FakeTensorMode(), torch.no_grad():
        weights = {
            name: torch.empty_strided(shape, stride, dtype=dtype, device="cuda")
            for name, (shape, stride, dtype) in state.items()
        }
        side = 2 * network.min_size
        images = torch.empty(2, 3, side, side, device="cuda").contiguous(memory_format=CHANNELS_LAST)
        functional_call(network, weights, images)
    return broken


CLASSIFIERS = [
    name
    for name in config.choice_names("backbone")
    if config.choice_file("backbone", name)["_target_"].startswith("bam_exp.backbones.")
]


@pytest.mark.parametrize("backbone", CLASSIFIERS)
def test_every_attention_in_every_backbone_keeps_the_layout(backbone: str) -> None:
    for attention in config.choice_names("attention"):
        if (backbone, attention) == ("densenet100", "conv_block"):  # has no block that keeps the width
            continue
        knobs = dict(config.choice_file("attention", attention))
        kind = find_target("attention", knobs.pop("_target_"))
        if "rounding" in knobs:
            knobs["rounding"] = "floor"
        assert broken_layouts(backbone, kind, knobs) == [], attention


def test_the_released_form_breaks_the_layout() -> None:
    assert "stages.0.attention" in broken_layouts("resnet20", LiteralBAM, RELEASED)


@pytest.mark.parametrize("kind", [BAM, SE, ECA, CBAM])
def test_output_and_gradient_lie_as_the_map_does(kind: type[nn.Module]) -> None:
    module = kind(32).to(memory_format=CHANNELS_LAST)
    for layout in (CHANNELS_LAST, torch.contiguous_format):
        x = torch.randn(2, 32, 6, 5).contiguous(memory_format=layout).requires_grad_()
        y = module(x)
        assert y.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [CHANNELS_LAST, torch.contiguous_format])
def test_the_mean_has_a_gradient_that_lies_as_the_map_does(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    torch.testing.assert_close(pool(x), x.mean((2, 3)))
    (grad,) = torch.autograd.grad(pool(x).sum(), x)
    assert grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(grad, torch.full_like(x, 1 / 20))


# torch.compile


def bottleneck_and_bam() -> nn.Module:
    torch.manual_seed(0)
    block = ResNet(10, depth=50, stem="cifar", widen=0.25).stages[0][1]
    return nn.Sequential(block, BAM(64)).to(memory_format=CHANNELS_LAST)


def test_compiled_is_eager_to_rounding() -> None:
    backend = "inductor" if shutil.which("g++") else "aot_eager"
    torch._dynamo.reset()
    x, grad = (torch.randn(4, 64, 8, 8).double().contiguous(memory_format=CHANNELS_LAST) for _ in range(2))
    found = []
    for compiled in (False, True):
        module, leaf = bottleneck_and_bam().double(), x.clone().requires_grad_()
        y = (torch.compile(module, backend=backend, dynamic=False, fullgraph=True) if compiled else module)(leaf)
        assert y.is_contiguous(memory_format=CHANNELS_LAST)
        y.backward(grad)
        found.append([y, leaf.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for eager, compiled_ in zip(*found, strict=True):
        torch.testing.assert_close(compiled_, eager, rtol=1e-9, atol=1e-9)


def test_where_compiling_fails_training_goes_on_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = 0

    def backend(graph: object, inputs: object) -> Any:
        nonlocal tried
        tried += 1
        raise RuntimeError("no compiler for this GPU\nand more")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compile_(forward, backend=backend))
    network = bottleneck_and_bam()
    x = torch.randn(2, 64, 4, 4)
    expected = bottleneck_and_bam()(x)
    names = list(network.state_dict())
    compile_network(network, "on", train_sizes={2}, test_sizes={2})
    assert torch.equal(network(x), expected)
    network(x)
    assert tried == 1
    assert list(network.state_dict()) == names
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "eager mode" in said[0]
    assert "no compiler for this GPU" in said[0]


def test_not_compiled_unless_told_so_on_a_cpu() -> None:
    assert Machine(device="cpu").compile_used == "off"
    assert Machine(device="cpu", compile="reduce-overhead").compile_used == "reduce-overhead"


# Memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what this is about")
def test_on_a_cpu_a_step_reuses_the_memory_of_the_last() -> None:
    """In a process of its own: glibc gives a thread another heap, which works differently, once an allocation has failed."""
    words = [sys.executable, "-c", ALLOCATES]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    faults = [int(count) for count in run.stdout.split()]
    assert faults[-1] - faults[-11] < 16_384  # the first few find their places in the heap


ALLOCATES = """
import resource
import torch
from bam_exp.machine import Machine
Machine(device="cpu", threads=1).prepare()
for _ in range(30):
    torch.ones(2**24)  # 64 MiB, 16,384 pages
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


# SGD and the sums of a step


def test_every_form_of_sgd_takes_the_same_steps() -> None:
    ends = []
    for form in ("fused", "foreach", "loop"):
        torch.manual_seed(0)
        layer = nn.Linear(5, 4)
        keywords = Machine(device="cpu", sgd=form).sgd_form  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, **keywords)
        for number in range(3):
            optimizer.zero_grad()
            layer(torch.full((2, 5), 0.3 + number)).square().sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


# No waiting for the device


class _Syncs(TorchDispatchMode):
    """Operations that a GPU's queue would have to be waited for."""

    names = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.names:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What waits for the device inside: operations, and methods that read memory without one."""
    with monkeypatch.context() as patch, _Syncs() as mode:
        for name, method in [(name, getattr(Tensor, name)) for name in ("tolist", "numpy", "cpu")]:

            def seen(tensor: Tensor, *args: Any, name: str = name, method: Any = method) -> Any:
                mode.found.append(name)
                return method(tensor, *args)

            patch.setattr(Tensor, name, seen)
        yield mode.found


class Watch(pl.Callback):
    """Watches every step of a training, from its batch on the device to the end of its SGD."""

    def __init__(self, watching: Any) -> None:
        self.watching, self.found, self.steps = watching, [], 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.open = self.watching()
        self.found.append(self.open.__enter__())

    def on_train_batch_end(self, *_: Any) -> None:
        self.open.__exit__(None, None, None)
        self.steps += 1


def train_watched(folder: Path, device: Any, watching: Any, kind: type[Classifier] = Classifier) -> Watch:
    """Three steps of ResNet-20 with BAM, in the trainer that a run has."""
    data = Shapes(folder, train_size=120, test_size=20)
    network = attach(ResNet(20, depth=20, stem="cifar"), BAM)
    task = Classification(network.to(memory_format=CHANNELS_LAST), data, 0, epochs=1, batch_size=40)
    here = Machine(device=device)
    task.sgd |= here.sgd_form
    watch = Watch(watching)
    make_trainer(here, folder, logger=None, callbacks=[watch], **task.limits).fit(kind(task))  # type: ignore[arg-type]
    assert watch.steps == 3
    return watch


def test_a_step_of_training_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watch = train_watched(tmp_path, "cpu", lambda: syncs(monkeypatch))
    assert watch.found == [[], [], []]


def test_waiting_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Waits(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            loss = super().training_step(batch, _index)
            _ = loss.item(), loss.detach().tolist()
            return loss

    watch = train_watched(tmp_path, "cpu", lambda: syncs(monkeypatch), Waits)
    assert {"_local_scalar_dense", "tolist"} <= set(watch.found[0])


def test_no_gradient_of_the_last_step_is_left_when_a_backward_pass_writes_its_own(tmp_path: Path) -> None:
    """CUDA graphs write gradients where those of the last step were, which Lightning drops between forward and backward."""
    left: list[int] = []

    class Left(Classifier):
        def on_before_zero_grad(self, _optimizer: Any) -> None:
            self.zeroed = True

        def backward(self, loss: Tensor, *rest: Any, **more: Any) -> None:
            assert self.zeroed
            left.append(sum(parameter.grad is not None for parameter in self.parameters()))
            super().backward(loss, *rest, **more)
            self.zeroed = False

    train_watched(tmp_path, "cpu", lambda: contextlib.nullcontext([]), Left)
    assert left == [0, 0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_of_training_does_not_wait_for_the_gpu(tmp_path: Path) -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    train_watched(tmp_path, "cuda", refused)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_take_the_steps_of_eager_mode() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    images, labels = torch.randn(32, 3, 32, 32, device="cuda"), torch.arange(32, device="cuda")
    losses = []
    for mode in ("off", "reduce-overhead"):
        step = Step(Variant("", compile=mode), network_of("resnet20", "bam").cuda(), images, labels)  # type: ignore[arg-type]
        losses.append(torch.stack([step().clone() for _ in range(6)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0.02)
    assert counters["inductor"]["cudagraph_skips"] == 0
