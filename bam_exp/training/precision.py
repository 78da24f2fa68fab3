"""The precision of a run: the one it began with; on a CPU, `auto` is the faster one for the run's backbone."""

import hashlib
import json
import time
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import replace

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bam_exp.console import say
from bam_exp.cpu import cpu_name
from bam_exp.files import cache_file, read_json, write_cache
from bam_exp.machine import Machine, ranks
from bam_exp.machine.precision import Precision
from bam_exp.runs.folder import precision_begun
from bam_exp.runs.run import Run

SECONDS = 1.0
"""Seconds for which each precision is timed, at least two steps of each."""

GAIN = 1.1
"""How many times as fast as float32 bfloat16 has to be."""

_PIXELS = 16 * 32 * 32


def settled(run: Run, machine: Machine, network: nn.Module, size: int) -> Machine:
    """The machine with `precision=auto` replaced by what this run computes in; rank 0 decides, and says so where it is news.

    Args:
        network: the network in eager mode; it is left as it is.
        size: the height and width of its images.
    """
    precision: Precision = ranks.from_first(lambda: _settle(run, machine, network, size))
    return machine if machine.precision == precision else replace(machine, precision=precision)


def _settle(run: Run, machine: Machine, network: nn.Module, size: int) -> Precision:
    used = machine.precision_used
    begun = precision_begun(run, unless_said=used)
    if begun is not None and begun != used:
        if machine.precision == "auto" and begun != "tf32":
            say(f"{run.name}: continuing in {begun}, as it began")
            return begun
        say(f"{run.name}: computing in {used} from here on; it began in {begun}")
    if begun is None and machine.precision == "auto" and not machine.uses_gpu and bfloat16_instructions():
        used = _faster_for_backbone(run, network, size)
    return used


def _faster_for_backbone(run: Run, network: nn.Module, size: int) -> Precision:
    """The precision that this processor is faster in, which the first run that asks finds out and says.

    It is kept for the backbone, not for the network, and in the user's cache: the rows and the seeds of a table should not differ
    in precision because their attentions do, or because two timings nearly agree. It does not depend on the user's configs or on
    the version of this package, so that a table that is continued after a change of either keeps its precision.
    """
    key = {
        "cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "size": size,
        "backbone": run.chosen.backbone.identity,
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    answer, lock = cache_file(f"precision/{name}.json"), cache_file("precision.lock")
    with ExitStack() as held:
        if answer is None or lock is None:  # Without a cache, each run has its own answer.
            return _timed(run, network, size)
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock))  # Runs that start together wait for the first one's timing.
        known: Precision | None = read_json(answer).get("precision")
        if known in ("float32", "bfloat16"):
            return known
        used = _timed(run, network, size)
        write_cache(answer, lambda part: part.write_text(json.dumps({"precision": used, **key}, default=str)))
    return used


def _timed(run: Run, network: nn.Module, size: int) -> Precision:
    used, reason = faster_on_cpu(network, size)
    say(f"{run.name}: computing in {used}: {reason}")
    return used


def faster_on_cpu(network: nn.Module, size: int) -> tuple[Precision, str]:
    """The precision in which this processor takes the steps of a network faster, and the reason."""
    images = torch.randn(max(2, _PIXELS // size**2), 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        trial = deepcopy(network).train()
        times: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
        for precision in times:  # the first step chooses kernels
            _step(trial, images, precision)
        while min(map(len, times.values())) < 2 or sum(times["float32"]) < SECONDS:
            for precision, taken in times.items():
                taken.append(_step(trial, images, precision))
    float32, bfloat16 = (1000 * min(taken) for taken in times.values())
    faster: Precision = "bfloat16" if float32 > GAIN * bfloat16 else "float32"
    return faster, f"{len(images)} images take {float32:.0f} ms in float32 and {bfloat16:.0f} ms in bfloat16"


def bfloat16_instructions() -> bool:
    """Whether this processor may have instructions for bfloat16; on x86 it is known, elsewhere only timing tells."""
    known = torch.cpu.get_capabilities()
    return known.get("architecture") != "x86_64" or bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _step(network: nn.Module, images: Tensor, precision: Precision) -> float:
    """The seconds of a forward and a backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = [leaf for leaf in tree_leaves(network(images)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.autograd.backward([output.float().sum() for output in outputs])
    network.zero_grad(set_to_none=True)
    return time.perf_counter() - began
