"""The cost of a network: parameters and multiply-accumulates, counted on the meta device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-accumulates of the convolutions and linear layers for one image (the paper's "GFLOPs")."""

    params: int
    macs: int
    activations: int = 0
    """Numbers that the convolutions and linear layers put out for one image."""


def complexity(network: "nn.Module", size: int, *, count_bias: bool = False) -> Complexity:
    """Count a network that stands on the meta device, for one image of 3 x `size` x `size`.

    1 multiply-accumulate = 1, as in the paper (docs/faithfulness.md). With `count_bias` the additions of the
    convolutions' biases count too, as the paper's figures for SqueezeNet demand.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    biases = activations = 0

    def count(module: "nn.Module", _inputs: object, output: "torch.Tensor") -> None:
        nonlocal biases, activations
        activations += output.numel()
        if count_bias and getattr(module, "bias", None) is not None:
            biases += output.numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, size, size, device="meta"))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return Complexity(
        sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2 + biases, activations
    )
