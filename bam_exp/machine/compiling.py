"""Compiling a network by torch.compile."""

import os
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bam_exp.cpu import cores_per_process

Mode = Literal["on", "reduce-overhead", "off"]

WORKERS = "TORCHINDUCTOR_COMPILE_THREADS"
"""The environment variable that holds the number of processes in which TorchInductor compiles."""

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(
    network: nn.Module, mode: Mode, *, train_sizes: Collection[int] = (), test_sizes: Collection[int]
) -> None:
    """Compile `network` in place; where that fails, say why and go on in eager mode.

    What has been compiled is kept in a folder that all runs of a user share, so that the next run finds it there.

    Args:
        train_sizes: the sizes of the batches in training, each of which is compiled: that of an epoch's last batch, too. A
            batch of another size, from which photos were left out, is computed in eager mode.
        test_sizes: the same in evaluation.
    """
    if mode == "off":
        return
    _keep_what_is_compiled()
    import torch._inductor.config as inductor
    from torch._dynamo.exc import TorchDynamoException  # takes two seconds

    # A network in bfloat16 has a last layer in float32, which is not worth a warning.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # PyTorch reads the variable when it is imported, which the process that a run is forked from has done.
    inductor.compile_threads = int(os.environ.get(WORKERS) or min(cores_per_process(), 32))
    eager, sizes, said = network.forward, {True: set(train_sizes), False: set(test_sizes)}, False
    compiled = torch.compile(eager, dynamic=False, mode=None if mode == "on" else mode)

    def forward(images: Tensor) -> Any:
        nonlocal said
        if len(images) not in sizes[network.training]:
            if not said:
                said = True
                print(f"not compiled, as other batches are: one of {len(images)} images", file=sys.stderr, flush=True)
            return eager(images)
        try:
            return compiled(images)
        except TorchDynamoException as error:
            del network.forward
            inner = getattr(error, "inner_exception", error)
            reason = f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"
            print(f"not compiled, going on in eager mode: {reason}", file=sys.stderr)
            return network.forward(images)

    network.forward = forward


def _keep_what_is_compiled() -> None:
    """Choose the folder of compiled code, unless the user has: in ~/.cache, where it outlives /tmp and cluster nodes share it.

    PyTorch's default, a folder in /tmp, stays where there is no home to write to. An import of PyTorch's own may have set the
    variable to it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(_CACHE, default_cache_dir()) != default_cache_dir():
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bam_exp" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        os.environ[_CACHE] = str(folder)


def graphs_skipped(mode: Mode) -> int:
    """Return how often the mode `reduce-overhead` ran without a CUDA graph in this process."""
    if mode != "reduce-overhead":
        return 0
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]
