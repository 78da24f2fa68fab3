"""Examinations of a GPU's arithmetic: precisions, memory layout and determinism. Each takes a device, so that tests use a CPU."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bam_exp.attention import BAM, attach
from bam_exp.bench.forms import network_of
from bam_exp.config import choice_file, choice_names
from bam_exp.doctor.finding import Finding
from bam_exp.machine import Machine


def bfloat16(_folder: Path) -> Finding:
    """`auto` is bfloat16 on cards that compute in it (Ampere, 8.0, and newer), and float32 on older ones."""
    capability, used = torch.cuda.get_device_capability(), Machine().precision_used
    expected = "bfloat16" if capability >= (8, 0) else "float32"
    text = f"trainer.precision=auto is {used} at compute capability {capability[0]}.{capability[1]}"
    return Finding("ok" if used == expected else "wrong", text)


def float32(_folder: Path, device: Any = "cuda") -> Finding:
    """trainer.precision=float32 is IEEE float32, in matrix products and in convolutions, and tf32 is not."""
    errors = {}
    for precision in ("float32", "tf32") if device == "cuda" else ("float32",):
        Machine(device=device, precision=precision).prepare()
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
        x, w = (
            torch.randn(8, 64, 16, 16, generator=generator).to(device),
            torch.randn(64, 64, 3, 3, generator=generator).to(device),
        )
        product = _relative(a @ b, a.double() @ b.double())
        convolution = _relative(F.conv2d(x, w), F.conv2d(x.double(), w.double()))
        errors[precision] = max(product, convolution)
    text = ", ".join(f"{precision}: error {error:.1e}" for precision, error in errors.items())
    return Finding("ok" if errors["float32"] < 5e-6 else "wrong", text)


def amp(_folder: Path, device: Any = "cuda") -> Finding:
    """A step under bfloat16 autocast agrees with float32 to rounding, and its gradients are finite."""
    found = {}
    for precision in (torch.float32, torch.bfloat16):
        network, images, labels = _network("resnet20", device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        found[precision] = loss.detach(), _gradients(network)
    loss_error = _relative(found[torch.bfloat16][0], found[torch.float32][0])
    error = _relative(found[torch.bfloat16][1], found[torch.float32][1])
    good = bool(found[torch.bfloat16][1].isfinite().all()) and loss_error < 0.02 and error < 0.6
    return Finding(
        "ok" if good else "wrong", f"ResNet-20 + BAM: loss off by {loss_error:.1e}, gradients by {error:.1e}"
    )


def channels_last(_folder: Path, device: Any = "cuda", batch: int = 128, steps: int = 20) -> Finding:
    """The memory layout that runs use, channels last, is not slower than the other one; both give the same logits."""
    seconds, logits = {}, []
    for layout in (torch.contiguous_format, torch.channels_last):
        network, images, labels = _network("resnet50" if device == "cuda" else "resnet20", device, batch)
        network, images = network.to(memory_format=layout), images.contiguous(memory_format=layout)
        logits.append(network(images).detach())
        for measured in (False, True):
            started = time.perf_counter()
            for _ in range(steps if measured else 3):
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[layout] = (time.perf_counter() - started) / steps
    ratio = seconds[torch.contiguous_format] / seconds[torch.channels_last]
    text = (
        f"{1000 * seconds[torch.channels_last]:.1f} ms a step, {ratio:.2f} times as fast as N x C x H x W; "
        f"logits differ by {_relative(*logits):.1e}"
    )
    if ratio < 0.95:
        return Finding("note", text, "the layout costs time on this card; please report it with the report above")
    return Finding("ok", text)


def deterministic(_folder: Path, device: Any = "cuda", backbones: tuple[str, ...] = ()) -> Finding:
    """trainer.deterministic=true: which networks take the same steps twice, to the bit, and which have an operation without it."""
    Machine(device=device, precision="float32", deterministic=True).prepare()
    held: list[str] = []
    failed: list[str] = []
    for name in backbones or _for_cifar():
        try:
            first, second = (_two_steps(name, device) for _ in range(2))
            (held if torch.equal(first, second) else failed).append(name)
        except (RuntimeError, ValueError) as error:
            failed.append(f"{name} ({' '.join(str(error).split())[:100]})")
    text = f"{len(held)} networks equal to the bit: {', '.join(held)}"
    if failed:
        return Finding(
            "wrong", f"{text}; NOT: {', '.join(failed)}", "trainer.deterministic=true does not hold for these"
        )
    return Finding("ok", text)


def _for_cifar() -> list[str]:
    """The backbones for images of 32 x 32."""
    return [
        name
        for name in choice_names("backbone")
        if "imagenet" not in name
        and not str(choice_file("backbone", name).get("_target_")).startswith("bam_exp.detectors.")
    ]


def _two_steps(backbone: str, device: Any) -> Tensor:
    """The weights after two steps of SGD."""
    network, images, labels = _network(backbone, device, batch=8)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=True)
    for _ in range(2):
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def _network(backbone: str, device: Any, batch: int = 32) -> tuple[nn.Module, Tensor, Tensor]:
    """A backbone of conf/ with BAM at its bottlenecks, a batch and its labels."""
    network = network_of(backbone, "none")
    attach(network, BAM, rounding="floor")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randint(100, (batch,), generator=generator)
    return network.to(device), images.to(device), labels.to(device)


def _gradients(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
