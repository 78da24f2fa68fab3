"""The two passes of BAM over a whole map: the mean at its start, and F * (1 + sigmoid(M)) at its end.

Both go through the map in the order in which it lies in memory, forward and backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pool(x: Tensor) -> Tensor:
    """Mean of N x C x H x W over H x W: N x C.

    The gradient of x.mean((2, 3)) lies as N x C x H x W even where x is channels_last; adding it to the others' there took
    a fifth of all of BAM's time.
    """
    features, space = _in_memory_order(x)
    return features.mean(space)


def gate(x: Tensor, scale: Tensor | None, spatial: Tensor, shift: Tensor | None, floor: Tensor | None = None) -> Tensor:
    """x * (1 + sigmoid(max(floor, scale * spatial + shift))), in the dtype and memory format of x.

    Only the arguments are kept for the backward pass, which computes the attention again. It cannot itself be
    differentiated: PyTorch says so where one tries.

    Args:
        x: N x C x H x W.
        scale: N x C or 1 x C; None is 1.
        spatial: N x 1 x H x W.
        shift: like scale; None is 0.
        floor: N x C; None is no maximum.
    """
    # In memory order plain broadcasting yields maps that lie as x does. This has to be done out here: torch.compile hands
    # a Function's backward a gradient made contiguous.
    features, space = _in_memory_order(x)
    channel = 3 - space
    vectors = (None if vector is None else vector.unsqueeze(space) for vector in (scale, shift, floor))
    y: Tensor = _Gate.apply(features, spatial.flatten(1).unsqueeze(channel), *vectors, space)
    return (y.mT if space == 1 else y).view(x.shape)


def _in_memory_order(x: Tensor) -> tuple[Tensor, int]:
    """x as N x HW x C if it is channels_last, else as N x C x HW; and which dimension H x W has become."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (x.flatten(2).mT, 1) if last else (x.flatten(2), 2)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  a Function takes positional arguments only
        ctx: Any,
        x: Tensor,
        spatial: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        floor: Tensor | None,
        space: int,
    ) -> Tensor:
        ctx.save_for_backward(x, spatial, scale, shift, floor)
        ctx.space = space
        logits = _affine(x, spatial, scale, shift)
        if floor is not None:
            logits = torch.maximum(logits, floor.to(x.dtype))
        attention = logits.sigmoid_()
        # torch.export traces this as part of the network, and refuses out= there.
        return torch.addcmul(x, x, attention, out=None if torch.compiler.is_exporting() else attention)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, spatial, scale, shift, floor = ctx.saved_tensors
        _, needs_spatial, needs_scale, needs_shift, needs_floor, _ = ctx.needs_input_grad
        space, channel = ctx.space, 3 - ctx.space
        logits = _affine(x, spatial, scale, shift)
        if floor is not None:
            # The floor's part of the gradient: all where it is higher, half where equal, as torch.maximum has it.
            part = torch.heaviside(floor.to(x.dtype) - logits, x.new_full((), 0.5))
            torch.maximum(logits, floor.to(x.dtype), out=logits)
        attention = logits.sigmoid_()

        grad_logits = x * grad
        torch.ops.aten.sigmoid_backward.grad_input(grad_logits, attention, grad_input=grad_logits)
        grad_x = torch.addcmul(grad, grad, attention, out=attention)

        grad_spatial = grad_scale = grad_shift = grad_floor = None
        if floor is not None:
            part.mul_(grad_logits)
            grad_logits.sub_(part)
            if needs_floor:
                grad_floor = part.sum(space, keepdim=True)
        if needs_spatial:
            grad_spatial = _weighted_sum(grad_logits, scale, channel)
        if needs_scale:
            grad_scale = _weighted_sum(grad_logits, spatial, space).to(scale.dtype).sum_to_size(scale.shape)
        if needs_shift:
            grad_shift = grad_logits.sum(space, keepdim=True).to(shift.dtype).sum_to_size(shift.shape)
        return grad_x, grad_spatial, grad_scale, grad_shift, grad_floor, None


def _affine(x: Tensor, spatial: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale * spatial + shift as a new map of the shape and dtype of x, in one pass."""
    spatial = spatial.to(x.dtype)
    if scale is not None and shift is not None:
        return torch.addcmul(shift.to(x.dtype), spatial, scale.to(x.dtype))
    if scale is not None:
        return spatial * scale.to(x.dtype)
    if shift is not None:
        return spatial + shift.to(x.dtype)
    return spatial.expand_as(x).clone(memory_format=torch.contiguous_format)


def _weighted_sum(grad: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    """(grad * weight) summed over dim, for a weight that does not vary along the other one.

    Eager mode does it by a matrix product, which reads grad once and writes no product. Compiled, the plain form is
    better: Inductor fuses it into the kernel that makes grad.
    """
    if weight is None:
        return grad.sum(dim, keepdim=True)
    weight = weight.to(grad.dtype)
    if torch.compiler.is_compiling():
        return (grad * weight).sum(dim, keepdim=True)
    weight = weight.expand(len(grad), -1, -1).mT
    return torch.bmm(grad, weight) if dim == 2 else torch.bmm(weight, grad)
