"""The two passes of BAM over a whole map: the mean at its start, and F * (1 + sigmoid(M)) at its end.

Both go through the map in the order in which it lies in memory. Eager PyTorch gets an autograd.Function that keeps only
its arguments for the backward pass; torch.compile, whose partitioner does the same by itself, gets the formula. Whatever
else traces or transforms the operations (torch.export, torch.jit, torch.fx, ONNX, torch.func, forward-mode
differentiation) gets the formula on N x C x H x W.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.fx import Proxy


def pool(x: Tensor) -> Tensor:
    """Mean of N x C x H x W over H x W: N x C.

    The gradient of x.mean((2, 3)) is contiguous even where x is channels_last. Adding it to the other gradients there
    took a fifth of all of BAM's time.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return x.mean((2, 3))
    else:  # noqa: RET505  TorchScript compiles what follows an `if` without an `else`
        return _pool(x)


def gate(x: Tensor, scale: Tensor | None, spatial: Tensor, shift: Tensor | None, floor: Tensor | None = None) -> Tensor:
    """x * (1 + sigmoid(max(floor, scale * spatial + shift))), in the dtype and memory format of x.

    In eager mode only the arguments are kept for the backward pass, which computes the attention again. Derivatives of
    any order are right, in reverse and in forward mode.

    Args:
        x: N x C x H x W.
        scale: N x C or 1 x C; None is 1.
        spatial: N x 1 x H x W.
        shift: N x C or 1 x C; None is 0.
        floor: N x C; None is no maximum.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _refined(x, spatial, _expanded(scale), _expanded(shift), _expanded(floor))
    else:  # noqa: RET505
        return _gate(x, scale, spatial, shift, floor)


def attention(
    x: Tensor, scale: Tensor | None, spatial: Tensor, shift: Tensor | None, floor: Tensor | None = None
) -> Tensor:
    """sigmoid(max(floor, scale * spatial + shift)) as N x C x H x W: what `gate` multiplies x by and adds to x."""
    return _logits(x, spatial, _expanded(scale), _expanded(shift), _expanded(floor)).sigmoid().expand_as(x)


@torch.jit.unused
def _pool(x: Tensor) -> Tensor:
    if _is_observed(x):
        return x.mean((2, 3))
    features, space = _in_memory_order(x)
    return features.mean(space)


@torch.jit.unused
def _gate(x: Tensor, scale: Tensor | None, spatial: Tensor, shift: Tensor | None, floor: Tensor | None) -> Tensor:
    if _is_observed(x, spatial, scale, shift, floor):
        return _refined(x, spatial, _expanded(scale), _expanded(shift), _expanded(floor))
    features, space = _in_memory_order(x)
    compiled = torch.compiler.is_compiling()
    vectors: list[Tensor | None] = [
        None if vector is None else vector.unsqueeze(space) for vector in (scale, shift, floor)
    ]
    if compiled:  # With vectors of one shape, Inductor sums the gradients of all of them over H x W in one loop.
        vectors = [None if vector is None else vector.expand(len(x), -1, -1) for vector in vectors]
    spatial = spatial.flatten(1).unsqueeze(3 - space)
    y: Tensor = _refined(features, spatial, *vectors) if compiled else _Gate.apply(features, spatial, *vectors, space)
    return (y.mT if space == 1 else y).view(x.shape)


def _is_observed(*tensors: Tensor | None) -> bool:
    """Whether something other than reverse-mode differentiation and torch.compile follows the operations on them."""
    return (
        torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or any(isinstance(tensor, Proxy) for tensor in tensors)
        or torch._C._are_functorch_transforms_active()
        or any(tensor is not None and _is_dual(tensor) for tensor in tensors)
        or (not torch.compiler.is_compiling() and _is_proxied())
    )


def _is_proxied() -> bool:
    """Whether make_fx records the operations."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _is_dual(tensor: Tensor) -> bool:
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _in_memory_order(x: Tensor) -> tuple[Tensor, int]:
    """x as N x HW x C if it is channels_last, else as N x C x HW; and which dimension H x W has become."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return (x.flatten(2).mT, 1) if last else (x.flatten(2), 2)


def _expanded(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector[:, :, None, None]


def _logits(x: Tensor, spatial: Tensor, scale: Tensor | None, shift: Tensor | None, floor: Tensor | None) -> Tensor:
    """max(floor, scale * spatial + shift) of tensors that broadcast, in the dtype of x."""
    logits = spatial.to(x.dtype)
    if scale is not None:
        logits = logits * scale.to(x.dtype)
    if shift is not None:
        logits = logits + shift.to(x.dtype)
    if floor is not None:
        logits = torch.maximum(logits, floor.to(x.dtype))
    return logits


def _refined(x: Tensor, spatial: Tensor, scale: Tensor | None, shift: Tensor | None, floor: Tensor | None) -> Tensor:
    return x + x * _logits(x, spatial, scale, shift, floor).sigmoid()


class _Gate(torch.autograd.Function):
    """`_refined` on maps that are N x C x HW or N x HW x C, with one new map in each direction where that suffices."""

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
        return torch.addcmul(x, x, attention, out=attention)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, spatial, scale, shift, floor = ctx.saved_tensors
        if torch.is_grad_enabled() or _is_observed(grad) or torch._C._functorch.is_legacy_batchedtensor(grad):
            # create_graph=True and is_grads_batched=True do not go with operations that write into a given tensor.
            return (*_plain_gradients(grad, ctx.saved_tensors), None)
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


def _plain_gradients(grad: Tensor, saved: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The gradients of `_refined` with respect to its arguments, by differentiable operations; None for a None."""

    def refined(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        return _refined(*(None if tensor is None else next(given) for tensor in saved))  # type: ignore[arg-type]

    pull_back = torch.func.vjp(refined, *(tensor for tensor in saved if tensor is not None))[1]
    gradients = iter(pull_back(grad))
    return [None if tensor is None else next(gradients) for tensor in saved]


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
    """(grad * weight) summed over dim, for a weight that does not vary along the other dimension.

    A matrix product reads grad once and writes no product.
    """
    if weight is None:
        return grad.sum(dim, keepdim=True)
    weight = weight.to(grad.dtype).expand(len(grad), -1, -1).mT
    return torch.bmm(grad, weight) if dim == 2 else torch.bmm(weight, grad)
