"""Derivatives of BAM of any order, by every way that PyTorch offers, are those of its formula in plain operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import functional
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from bam_exp.attention import BAM

FORMS: list[dict[str, Any]] = [
    {},
    {"combine": "max"},
    {"combine": "product", "norm": "released"},
    {"norm": "equations", "branches": "spatial"},
    {"branches": "channel"},
]
FORMATS = [torch.contiguous_format, torch.channels_last]

Scalar = Callable[[Tensor], Tensor]


@pytest.fixture(params=FORMS, ids=str)
def bam(request: pytest.FixtureRequest) -> BAM:
    torch.manual_seed(0)
    module = BAM(8, reduction=4, **request.param).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.fixture(params=FORMATS, ids=str)
def x(request: pytest.FixtureRequest) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 8, 2, 2, dtype=torch.float64, generator=generator).contiguous(memory_format=request.param)


def textbook(bam: BAM, x: Tensor) -> Tensor:
    return x + x * bam.attention_maps(x).attention


def ours(bam: BAM) -> Scalar:
    return lambda x: bam(x).square().sum()


def expected(bam: BAM) -> Scalar:
    return lambda x: textbook(bam, x).square().sum()


HESSIANS: dict[str, Callable[[Scalar, Tensor], Tensor]] = {
    "functional.hessian": functional.hessian,
    "functional.hessian, vectorised": lambda f, x: functional.hessian(f, x, vectorize=True),
    "functional.hessian, forward over reverse": lambda f, x: functional.hessian(
        f, x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "func.jacrev of func.jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
    "func.jacfwd of func.jacfwd": lambda f, x: torch.func.jacfwd(torch.func.jacfwd(f))(x),
}


@pytest.mark.parametrize("way", HESSIANS)
def test_hessian(way: str, bam: BAM, x: Tensor) -> None:
    torch.testing.assert_close(HESSIANS[way](ours(bam), x), functional.hessian(expected(bam), x))


def test_third_derivative(bam: BAM, x: Tensor) -> None:
    def third(f: Scalar) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(functional.hessian(f, leaf, create_graph=True).square().sum(), leaf)[0]

    torch.testing.assert_close(third(ours(bam)), third(expected(bam)))


def test_gradient_penalty(bam: BAM, x: Tensor) -> None:
    """As WGAN-GP has it, with respect to the weights; the gradient that comes in is a constant."""

    def penalty(f: Scalar) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
        return torch.autograd.grad(
            (gradient.norm() - 1).square(), list(bam.parameters()), allow_unused=True, materialize_grads=True
        )

    torch.testing.assert_close(penalty(bam), penalty(lambda leaf: textbook(bam, leaf)))


def test_func_transforms(bam: BAM, x: Tensor) -> None:
    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.func.vmap(bam)(batch), torch.stack([bam(x), bam(x + 1)]))
    gradients = torch.stack([torch.func.grad(expected(bam))(one) for one in batch])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(ours(bam)))(batch), gradients)
    weights = {name: weight.detach() for name, weight in bam.named_parameters()}

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(bam, weights, (one,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, batch)
    for name, gradient in torch.func.grad(loss)(weights, x).items():
        torch.testing.assert_close(per_sample[name][0], gradient)


def test_forward_mode(bam: BAM, x: Tensor) -> None:
    tangent = torch.randn_like(x)
    with dual_level():
        result = unpack_dual(bam(make_dual(x, tangent))).tangent
    torch.testing.assert_close(result, functional.jvp(lambda leaf: textbook(bam, leaf), x, tangent)[1])


def test_a_batch_of_gradients(bam: BAM, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    incoming = torch.randn(3, *x.shape, dtype=x.dtype)
    (batched,) = torch.autograd.grad(bam(leaf), leaf, incoming, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(textbook(bam, leaf), leaf, one)[0] for one in incoming]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_a_compiled_network_refuses_the_second_derivative(x: Tensor) -> None:
    torch._dynamo.reset()
    leaf, bam = x.clone().requires_grad_(), BAM(8, reduction=4).double().eval()
    (gradient,) = torch.autograd.grad(torch.compile(bam, backend="aot_eager")(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
