"""`bam-bench step`: training steps of one network, changed one lever at a time."""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bam_exp.bench.forms import MEAN, STD, Attention, network_of
from bam_exp.bench.measure import Bench, Counter, Row, Saved, gradients, overhead, relative, say


@dataclass(frozen=True)
class Variant:
    """One way of computing the same training step."""

    name: str
    attention: Attention = "bam"
    channels_last: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "on", "reduce-overhead"] = "off"
    sgd: Literal["default", "foreach", "fused"] = "fused"
    syncs: bool = False
    """Reads loss and hits back to the host in every step."""
    baseline: str = ""
    """The variant without attention that it is compared with."""

    @property
    def counted_as(self) -> tuple[object, ...]:
        """Equal for variants with the same operations in eager mode."""
        return self.attention, self.channels_last, self.precision, self.sgd


def ladder(cuda: bool, *, compiled: bool) -> list[Variant]:
    """The variants from the typical peer's step to ours, one lever at a time, with baselines and the released BAM."""
    peer = partial(Variant, attention="released", channels_last=False)
    fast = partial(Variant, precision="bfloat16" if cuda else "float32")
    eager = "no attention"
    variants = [
        peer("typical peer step", sgd="default", syncs=True),
        peer("+ no host sync", sgd="default"),
        peer("+ fused SGD"),
        Variant("+ channels_last", "released", baseline="" if cuda else eager),
        *([fast("+ bfloat16", attention="released", baseline=eager)] if cuda else []),
        fast("+ our BAM", baseline=eager),
        fast(eager, attention="none"),
    ]
    modes: list[tuple[Any, str, str]] = [
        ("on", "+ torch.compile", "compiled"),
        ("reduce-overhead", "+ CUDA graphs", "graphs"),
    ]
    for mode, lever, word in modes[: (1 + cuda) * compiled]:
        made, baseline = partial(fast, compile=mode), f"{word}, no attention"
        variants += [
            made(lever, baseline=baseline),
            made(f"{word}, released BAM", attention="released", baseline=baseline),
            made(baseline, attention="none"),
        ]
    return variants


class Step:
    """A training step of a variant: forward, cross-entropy, backward, SGD, on the same batch each time."""

    def __init__(self, variant: Variant, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.variant, self.labels = variant, labels
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.images, self.network = images.contiguous(memory_format=layout), network.to(memory_format=layout)
        if variant.compile != "off":
            self.network.compile(dynamic=False, mode=None if variant.compile == "on" else variant.compile)
        form: dict[str, Any] = {} if variant.sgd == "default" else {variant.sgd: True}
        self.optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, **form)
        self.sums = torch.zeros(2, device=images.device)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Run forward and backward; returns logits and loss."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.variant.precision == "bfloat16"):
            logits = self.network(self.images)
            loss = F.cross_entropy(logits, self.labels)
        torch.autograd.backward(loss)
        return logits.detach(), loss.detach()

    def __call__(self) -> Tensor:
        logits, loss = self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        hits = (logits.argmax(1) == self.labels).sum()
        if self.variant.syncs:
            loss.item(), hits.item()
        else:
            self.sums[0].add_(loss)
            self.sums[1].add_(hits)
        return loss


LIMITS = {
    ("cpu", "float32"): (1e-4, 0.02),
    ("cuda", "float32"): (0.02, 0.4),  # TF32 in the convolutions
    ("cuda", "bfloat16"): (0.1, 0.6),
}
"""The largest errors of logits and gradients against float64, relative to their norm, that pass the check."""


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Training steps of one network, from the typical peer's to ours."""
    batch = options.batch or (128 if bench.cuda else 16)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, 32, 32), generator=generator, dtype=torch.uint8).to(bench.device)
    labels = torch.randint(100, (batch,), generator=generator).to(bench.device)
    mean, std = (torch.tensor(of, device=bench.device).view(3, 1, 1) for of in (MEAN, STD))
    images = (pixels / 255 - mean) / std

    exact: dict[Attention, tuple[Tensor, Tensor, int]] = {}
    for attention in ("none", "bam", "released"):
        say(f"{options.backbone}, attention {attention}: float64")
        network = network_of(options.backbone, attention, literal=True).to(bench.device).double()
        with FlopCounterMode(display=False) as flops:
            logits, _ = Step(Variant("", attention), network, images.double(), labels).gradients()
        exact[attention] = logits, gradients(network), flops.get_total_flops()

    variants = ladder(bench.cuda, compiled=not options.no_compile)
    steps: dict[str, Step] = {}
    found: dict[str, Row] = {}
    counts: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for variant in variants:
        say(f"{variant.name}: checking" if variant.compile == "off" else f"{variant.name}: compiling, checking")
        network = network_of(options.backbone, variant.attention).to(bench.device)
        one = steps[variant.name] = Step(variant, network, images, labels)
        row = found[variant.name] = {"of": f"{options.backbone}, batch {batch}", "variant": variant.name}
        row["attention"] = variant.attention
        started = time.perf_counter()
        logits, _ = one.gradients()
        if variant.compile != "off":
            row["compile s"] = time.perf_counter() - started
        row["logits error"] = relative(logits, exact[variant.attention][0])
        row["gradient error"] = relative(gradients(network), exact[variant.attention][1])
        logits_limit, limit = LIMITS[bench.device.type, variant.precision]
        row["check"] = "ok" if row["logits error"] < logits_limit and row["gradient error"] < limit else "FAILED"
        one.optimizer.zero_grad()
        if variant.compile == "off" and variant.counted_as not in counts:
            saved = Saved(network.parameters())
            with Counter() as counter, saved:
                one()
            counts[variant.counted_as] = counter.kernels, counter.bytes, saved.bytes

    say("timing")
    bench.measure_ceilings()
    warm_up, count = (20, 10) if bench.cuda else (1, 1)
    times = bench.interleave(steps, count=count, warm_up=warm_up)
    bench.measure_ceilings()
    for variant in variants:
        kernels, moved, saved_bytes = counts[variant.counted_as]
        row = found[variant.name]
        row |= bench.figures(times[variant.name], batch, moved=moved, flops=exact[variant.attention][2])
        if variant.baseline:
            row |= overhead(times[variant.name], times[variant.baseline])
            row["FLOPs overhead %"] = 100 * (exact[variant.attention][2] / exact["none"][2] - 1)
        if variant.compile == "off":
            row |= {"kernels": kernels, "MB an image": moved / batch / 1e6, "saved MB": saved_bytes / 1e6}
        if bench.cuda:
            row |= _on_cuda(steps[variant.name])
    return [*found.values(), *(_agreement(bench, options, images, labels) if options.agree else [])]


def _on_cuda(one: Step) -> Row:
    """The profiler's number of kernels, and the peak memory of a step, including what the variant keeps between steps."""
    from torch._dynamo.utils import counters

    own = [*one.network.parameters(), *one.network.buffers()]
    own += [state["momentum_buffer"] for state in one.optimizer.state.values()]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in own)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one()
        torch.cuda.synchronize()
    kernels = sum(event.device_type.name == "CUDA" for event in profile.events() or [])
    row: Row = {"kernels": kernels, "peak MB": peak / 1e6}
    if one.variant.compile == "reduce-overhead":
        row["graphs skipped"] = counters["inductor"]["cudagraph_skips"]
    return row


def _agreement(bench: Bench, options: argparse.Namespace, images: Tensor, labels: Tensor) -> list[Row]:
    """The drift of losses from those of eager mode over `--agree` steps: compiled, and by rounding alone."""
    fast: dict[str, Any] = {"precision": "bfloat16" if bench.cuda else "float32"}
    ways = {
        "eager": Variant("", **fast),
        **({} if options.no_compile else {"compiled": Variant("", compile="on", **fast)}),
        "eager, rounded otherwise (float32; on a CPU another layout)": Variant("", channels_last=bench.cuda),
    }
    losses: dict[str, Tensor] = {}
    for name, variant in ways.items():
        say(f"losses over {options.agree} steps: {name}")
        one = Step(variant, network_of(options.backbone, "bam").to(bench.device), images, labels)
        order = torch.Generator().manual_seed(1)
        found = []
        for _ in range(options.agree):  # another image gets another label in each step
            one.labels = labels[torch.randperm(len(labels), generator=order).to(bench.device)]
            found.append(one())
        losses[name] = torch.stack(found).double().cpu()
    return [
        {
            "of": f"losses over {options.agree} steps",
            "variant": name,
            "mean loss": float(loss.mean()),
            "mean difference": float((loss - losses["eager"]).abs().mean()),
            "largest difference": float((loss - losses["eager"]).abs().max()),
        }
        for name, loss in losses.items()
    ]
