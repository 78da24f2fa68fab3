"""Compiling a network by torch.compile."""

import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mode = Literal["on", "reduce-overhead", "off"]


def compile_network(network: nn.Module, mode: Mode) -> None:
    """Compile `network` in place; where that fails, say why and go on in eager mode."""
    if mode == "off":
        return
    from torch._dynamo.exc import TorchDynamoException  # takes two seconds

    # A batch and an epoch's last, smaller one, in training and in evaluation: four static shapes.
    compiled = torch.compile(network.forward, dynamic=False, mode=None if mode == "on" else mode)

    def forward(*inputs: Tensor) -> Any:
        try:
            return compiled(*inputs)
        except TorchDynamoException as error:
            del network.forward
            inner = getattr(error, "inner_exception", error)
            reason = f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"
            print(f"not compiled, going on in eager mode: {reason}", file=sys.stderr)
            return network.forward(*inputs)

    network.forward = forward


def graphs_skipped(mode: Mode) -> int:
    """Return how often the mode `reduce-overhead` ran without a CUDA graph in this process."""
    if mode != "reduce-overhead":
        return 0
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]
