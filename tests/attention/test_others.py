"""SE, CBAM, ECA and the extra block are the literature's: parameters, values against the formulas written out, finite
differences; memory format, autocast, one compiled graph; wrong knobs refused.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bam_exp.attention import CBAM, ECA, SE, ConvBlock

KINDS: list[Callable[[int], nn.Module]] = [
    lambda channels: SE(channels, reduction=4),
    lambda channels: CBAM(channels, reduction=4),
    ECA,
    lambda channels: ConvBlock(channels, block=nn.Conv2d(channels, channels, 3, padding=1)),
]


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_se_overhead_of_table_5() -> None:
    """At each of ResNet-50's 3, 4, 6 and 3 blocks: 26.24M - 23.71M, and 26.236M as paper.md counts with biases."""
    widths = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    with torch.device("meta"):
        assert f"{(23_705_252 + parameters(*map(SE, widths))) / 1e6:.3f}" == "26.236"


def test_cbam_overhead_of_its_paper() -> None:
    """Table 4 of the CBAM paper: ResNet-50 on ImageNet 25.56M, + CBAM 28.09M."""
    widths = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    with torch.device("meta"):
        assert f"{(25_557_032 + parameters(*map(CBAM, widths))) / 1e6:.2f}" == "28.09"


def test_eca_sizes_of_its_paper() -> None:
    """k is the odd number nearest to (log2 C + 1) / 2; the paper's code gives these."""
    assert [parameters(ECA(channels)) for channels in (16, 64, 128, 256, 512, 1024, 2048)] == [3, 3, 5, 5, 5, 5, 7]
    assert parameters(ECA(64, kernel_size=9)) == 9


def test_se_formula() -> None:
    se, x = SE(8, reduction=2).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    (w0, b0), (w1, b1) = ((layer.weight, layer.bias) for layer in (se.mlp[0], se.mlp[2]))
    scale = 1 / (1 + torch.exp(-((x.mean((2, 3)) @ w0.T + b0).clamp_min(0) @ w1.T + b1)))
    torch.testing.assert_close(se(x), torch.einsum("nchw,nc->nchw", x, scale))


@pytest.mark.parametrize("training", [True, False])
def test_cbam_formula(training: bool) -> None:
    torch.manual_seed(0)
    cbam, x = CBAM(8, reduction=2).double().train(training), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    nn.init.ones_(cbam.bn.weight)
    (w0, b0), (w1, b1) = ((layer.weight, layer.bias) for layer in (cbam.mlp[0], cbam.mlp[2]))
    pooled = [F.avg_pool2d(x, (3, 5)).flatten(1), F.max_pool2d(x, (3, 5)).flatten(1)]
    inside = x * sum(F.relu(v @ w0.T + b0) @ w1.T + b1 for v in pooled).sigmoid()[:, :, None, None]
    maps = torch.stack([inside.max(1).values, inside.mean(1)], 1)
    logits = F.conv2d(maps, cbam.conv.weight, padding=3)
    mean, var = (logits.mean(), logits.var(correction=0)) if training else (0, 1)
    expected = inside * torch.sigmoid((logits - mean) / (var + 1e-5) ** 0.5)
    torch.testing.assert_close(cbam(x), expected)


def test_initial_weights_of_cbam_are_those_of_its_released_code() -> None:
    """Its spatial norm starts at 0, its convolution at Kaiming's deviation over fan-out (49), biases at 0."""
    torch.manual_seed(0)
    kernels = torch.stack([CBAM(16).conv.weight for _ in range(50)])
    assert kernels.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.05)
    cbam = CBAM(512)
    assert not cbam.bn.weight.any()
    assert not any(layer.bias.any() for layer in (cbam.mlp[0], cbam.mlp[2]))
    assert cbam.mlp[0].weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)  # nn.Linear's own, uniform
    x = torch.randn(2, 512, 4, 4)
    channel = (cbam.mlp(x.mean((2, 3))) + cbam.mlp(x.amax((2, 3)))).sigmoid()
    torch.testing.assert_close(cbam(x), x * channel[:, :, None, None] / 2)


@pytest.mark.parametrize("kind", [SE, ECA])
def test_initial_weights_of_se_and_eca_are_pytorchs_own(kind: Any) -> None:
    torch.manual_seed(0)
    ours = list(kind(64).parameters())
    torch.manual_seed(0)
    layers = [nn.Linear(64, 4), nn.Linear(4, 64)] if kind is SE else [nn.Conv1d(1, 1, 3, padding=1, bias=False)]
    for parameter, other in zip(ours, (p for layer in layers for p in layer.parameters()), strict=True):
        assert torch.equal(parameter, other)


def test_eca_formula() -> None:
    eca, x = ECA(6, kernel_size=3).double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    kernel = eca.conv.weight.flatten()
    averages = F.pad(x.mean((2, 3)), (1, 1))
    scale = torch.stack([averages[:, i : i + 3] @ kernel for i in range(6)], 1).sigmoid()
    torch.testing.assert_close(eca(x), torch.einsum("nchw,nc->nchw", x, scale))


@pytest.mark.parametrize("make", KINDS)
def test_every_kind(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    module, plain = make(8).eval(), torch.randn(2, 8, 6, 5)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        assert module(plain.to(memory_format=memory_format)).is_contiguous(memory_format=memory_format)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(plain.to(dtype))
        assert isinstance(module, ConvBlock) or y.dtype == dtype
        torch.testing.assert_close(y.float(), module(plain), rtol=0.05, atol=0.05)
    assert module(plain[:1]).shape == (1, 8, 6, 5)
    assert make(8).to("meta")(plain.to("meta")).shape == plain.shape
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module.double(), x)


@pytest.mark.parametrize("make", KINDS)
def test_compiles_into_one_graph(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, x = make(8).eval(), torch.randn(2, 8, 6, 5)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


@pytest.mark.parametrize("kind", [SE, CBAM])
def test_a_width_that_the_reduction_does_not_divide(kind: Any) -> None:
    with pytest.raises(
        ValueError, match="reduction=16 does not divide the width 24: take reduction=12 or reduction=24"
    ):
        kind(24)
    assert kind(24, rounding="floor").mlp[0].out_features == 1


@pytest.mark.parametrize(
    ("kind", "knobs"), [(ECA, {"kernel_size": 4}), (CBAM, {"kernel_size": 6}), (SE, {"reduction": -1})]
)
def test_wrong_knobs_are_refused_by_name(kind: Any, knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        kind(64, **knobs)
