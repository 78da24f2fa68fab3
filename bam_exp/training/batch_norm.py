"""Batch normalisation over the batch of all ranks, on a CPU too, where PyTorch has none."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bam_exp.attention.insert import run_again


def synchronise(network: nn.Module, *, gpu: bool) -> None:
    """Replace the batch norms inside a network by ones whose mean and variance are of all ranks; its weights keep their names."""
    if gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        for module in list(network.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, _BatchNorm):
                    setattr(module, name, SyncBatchNormCPU(layer))
    run_again(network)


class SyncBatchNormCPU(nn.Module):
    """nn.SyncBatchNorm on a CPU, for N x C or N x C x H x W.

    With it a run on several CPU processes is the run of one process, which is how the data order, the weighting of the loss
    and the checkpoints of a run on several devices are tested where there is no GPU.
    """

    weight: Tensor | None
    bias: Tensor | None
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        assert layer.momentum is not None
        self.eps, self.momentum = layer.eps, layer.momentum
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in layer.named_children():  # an attention behind the layer
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch of all ranks in training, and by the running statistics in evaluation."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums: Tensor = _Sum.apply(torch.cat([wide.sum(dims), wide.new_tensor([x.numel() // x.shape[1]])]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = wide - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(x.dtype)


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
