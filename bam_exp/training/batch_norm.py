"""Batch normalisation over the batch of all ranks, on a CPU too, where PyTorch has none."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(network: nn.Module, *, gpu: bool) -> None:
    """Let the batch norms inside a network take mean and variance over all ranks; the names of its weights stay."""
    if gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]


class _Sum(torch.autograd.Function):
    """The sum over the ranks, whose gradient is the sum over the ranks of the gradients."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What `layer` makes of N x C or N x C x H x W."""
    if not layer.training:
        return type(layer).forward(layer, x)
    dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sums: Tensor = _Sum.apply(torch.cat([wide.sum(dims), wide.new_tensor([x.numel() // x.shape[1]])]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = wide - mean.view(shape)
    variance: Tensor = _Sum.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        assert layer.momentum is not None
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (count / (count - 1)), layer.momentum)
        layer.num_batches_tracked += 1
    normalised = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
    return normalised.to(x.dtype)
