"""BAM's last step computes its formula and has the first and second derivatives of finite differences in every form.
It keeps nothing but its arguments for the backward pass, keeps dtype and memory format, and compiles into one graph.
"""

import shutil

import pytest
import torch
from torch import Tensor

from bam_exp.attention.gate import gate

FORMS = ["affine", "affine of a batch", "scale", "shift", "plain", "maximum", "maximum of plain"]


def arguments(form: str, shape: tuple[int, int, int, int], **options: torch.dtype) -> list[Tensor | None]:
    """x, scale, spatial, shift, floor, all requiring a gradient."""
    n, c, h, w = shape
    random = torch.Generator().manual_seed(0)

    def make(*size: int) -> Tensor:
        return torch.randn(size, generator=random, **options).requires_grad_()

    one = 1 if form == "affine" else n
    return [
        make(n, c, h, w),
        make(one, c) if form in ("affine", "affine of a batch", "scale", "maximum") else None,
        make(n, 1, h, w),
        make(n, c) if form in ("affine", "affine of a batch", "shift", "maximum") else None,
        make(n, c) if form.startswith("maximum") else None,
    ]


def literally(x: Tensor, scale: Tensor | None, spatial: Tensor, shift: Tensor | None, floor: Tensor | None) -> Tensor:
    """The formula of the docstring, expanded and left to autograd."""
    logits = spatial.expand_as(x)
    if scale is not None:
        logits = logits * scale[:, :, None, None]
    if shift is not None:
        logits = logits + shift[:, :, None, None]
    if floor is not None:
        logits = torch.maximum(logits, floor[:, :, None, None].expand_as(x))
    return x * (1 + torch.sigmoid(logits))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_finite_differences_and_formula(form: str, channels_last: bool) -> None:
    x, *rest = arguments(form, (2, 3, 4, 5), dtype=torch.float64)
    assert x is not None
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(gate(x, *rest), literally(x, *rest))
    assert torch.autograd.gradcheck(gate, (x, *rest))


def test_ties_of_the_maximum_are_shared_as_torch_shares_them() -> None:
    given = arguments("maximum of plain", (2, 3, 4, 5))
    with torch.no_grad():
        given[4].fill_(0.25)
        given[2].fill_(0.25)
    tensors = [tensor for tensor in given if tensor is not None]
    ours = torch.autograd.grad(gate(*given).square().sum(), tensors)
    torch.testing.assert_close(ours, torch.autograd.grad(literally(*given).square().sum(), tensors))


def test_one_channel_leaves_the_map_untouched() -> None:
    x, spatial = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    before = spatial.clone()
    torch.testing.assert_close(gate(x, None, spatial, None), x * (1 + before.sigmoid()))
    assert torch.equal(spatial, before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_those_of_finite_differences(form: str, channels_last: bool) -> None:
    x, *rest = arguments(form, (2, 2, 2, 3), dtype=torch.float64)
    assert x is not None
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(gate, (x, *rest))
    assert torch.autograd.gradcheck(gate, (x, *rest), check_forward_ad=True, check_batched_grad=True)


def test_the_result_may_be_changed_in_place() -> None:
    given = arguments("affine", (2, 3, 4, 5))
    changed = gate(*given)
    changed.add_(1).relu_()
    ours = torch.autograd.grad(changed.sum(), given[0])
    torch.testing.assert_close(ours, torch.autograd.grad((literally(*given) + 1).relu().sum(), given[0]))


@pytest.mark.parametrize("form", ["affine", "scale", "maximum"])
def test_only_the_arguments_are_kept(form: str) -> None:
    given = arguments(form, (2, 3, 4, 5))
    storages = {tensor.untyped_storage().data_ptr() for tensor in given if tensor is not None}
    kept: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.add(tensor.untyped_storage().data_ptr()) or tensor, lambda tensor: tensor
    ):
        gate(*given)
    assert kept == storages


@pytest.mark.parametrize("gradient_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_that_of_x(memory_format: torch.memory_format, gradient_format: torch.memory_format) -> None:
    given = arguments("affine", (2, 3, 4, 5))
    expected = literally(*given)
    x = given[0].detach().to(memory_format=memory_format).requires_grad_()
    y = gate(x, *given[1:])
    assert y.is_contiguous(memory_format=memory_format)
    incoming = torch.randn(y.shape).to(memory_format=gradient_format)
    (grad,) = torch.autograd.grad(y, x, incoming)
    assert grad.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, given[0], incoming)[0])


def test_a_map_that_is_not_dense() -> None:
    rest = arguments("affine", (2, 3, 4, 5))[1:]
    strided = torch.randn(2, 6, 4, 10)[:, ::2, :, ::2].requires_grad_()
    ours = torch.autograd.grad(gate(strided, *rest).square().sum(), strided)
    torch.testing.assert_close(ours, torch.autograd.grad(literally(strided, *rest).square().sum(), strided))


def test_mixed_dtypes_follow_x() -> None:
    """Under autocast a bfloat16 map meets float32 affine weights: the map's dtype wins, each gradient has its own."""
    given = arguments("affine", (2, 3, 4, 5))
    x = given[0].detach().bfloat16().requires_grad_()
    y = gate(x, *given[1:])
    assert y.dtype == torch.bfloat16
    tensors = [x, *(tensor for tensor in given[1:] if tensor is not None)]
    grads = torch.autograd.grad(y.float().square().sum(), tensors)
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in tensors]
    exact = torch.autograd.grad(literally(*given).square().sum(), [tensor for tensor in given if tensor is not None])
    for grad, expected in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", ["affine", "scale", "maximum"])
def test_compiles_into_one_graph_that_keeps_channels_last(form: str) -> None:
    backend = "inductor" if form == "affine" and shutil.which("g++") else "aot_eager"
    x, *rest = arguments(form, (2, 16, 4, 5))
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch._dynamo.reset()
    y = torch.compile(gate, fullgraph=True, backend=backend)(x, *rest)
    expected = gate(x, *rest)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    tensors = [x, *(tensor for tensor in rest if tensor is not None)]
    incoming = torch.randn_like(y)
    grads = torch.autograd.grad(y, tensors, incoming)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, tensors, incoming))
    assert grads[0].is_contiguous(memory_format=torch.channels_last)


def test_compiled_it_keeps_no_map_but_x() -> None:
    given = arguments("affine", (2, 64, 16, 16))
    torch._dynamo.reset()
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager_decomp_partition")
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()) and tensor
        ),
        lambda tensor: tensor,
    ):
        compiled(*given)
    assert sum(kept.values()) < 1.1 * given[0].nbytes
