"""BAM is the paper's: its parameters are the closed forms and the printed overheads, its outputs and gradients those of
the equations written out here, of BatchNorm2d(C) on the expanded map, and of the authors' released module; it keeps
little memory and the memory format, and works on any H x W, under autocast, on the meta device, copied, pickled and
compiled.
"""

import copy
import pickle
from collections import OrderedDict
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_exp.attention import BAM, AttentionMaps
from bam_exp.attention.bam import ExpandedBatchNorm
from bam_exp.weights import from_released

NORMS, COMBINES, BRANCHES = (
    ("paper", "equations", "released"),
    ("sum", "product", "max"),
    ("both", "channel", "spatial"),
)
FORMS = [
    (norm, combine, branches)
    for norm, combine, branches in product(NORMS, COMBINES, BRANCHES)
    if branches == "both" or combine == "sum"
]
RESNET50 = 23_705_252  # CIFAR ResNet-50, paper.md


def shaken(module: nn.Module) -> nn.Module:
    """The module with every parameter and running statistic moved off its initial value."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=random, dtype=tensor.dtype)
            tensor.add_(noise * 0.5 if "running_var" in name else noise - 0.5)
    return module


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(("channels", "reduction"), [(16, 4), (256, 16), (1024, 32)])
def test_parameters_are_the_closed_forms(channels: int, reduction: int) -> None:
    c, k = channels, channels // reduction
    counts = {norm: parameters(BAM(c, reduction=reduction, norm=norm)) for norm in NORMS}
    assert counts == {
        "paper": 3 * c * k + 18 * k**2 + 5 * c + 13 * k + 1,
        "equations": 3 * c * k + 18 * k**2 + 3 * c + 5 * k + 3,
        "released": 3 * c * k + 18 * k**2 + c + 13 * k + 1,
    }
    assert counts["released"] == parameters(
        BAM(c, reduction=reduction, norm="released", branches="channel")
    ) + parameters(BAM(c, reduction=reduction, norm="released", branches="spatial"))


@pytest.mark.parametrize(
    ("reduction", "printed", "paper", "released"),
    [
        (4, "26.30", "26.3005", "26.2934"),
        (8, "24.62", "24.6203", "24.6131"),
        (16, "24.07", "24.0705", "24.0633"),
        (32, "23.87", "23.8682", "23.8610"),
    ],
)
def test_resnet50_totals_are_those_printed(reduction: int, printed: str, paper: str, released: str) -> None:
    """Table 1(a), and paper.md's own count of two forms."""
    with torch.device("meta"):
        totals = [
            (RESNET50 + parameters(*(BAM(c, reduction=reduction, norm=norm) for c in (256, 512, 1024)))) / 1e6
            for norm in ("paper", "released")
        ]
    assert f"{totals[0]:.2f}" == printed
    assert [f"{total:.4f}" for total in totals] == [paper, released]


@pytest.mark.parametrize(
    ("widths", "overhead"),
    [
        ((256, 512, 1024), 358_067),  # ResNet-50
        ((64, 128, 256), 22_991),  # ResNet-18
        ((64, 128), 5_630),  # PreResNet-110
        ((160, 320), 33_872),  # WRN-28-10
        ((256, 512), 85_874),  # ResNeXt-29
        ((216, 108, 300, 150), 42_974),  # DenseNet-BC 100: no width that 16 divides
        ((89, 179, 358), 43_333),  # MobileNet 0.7
    ],
)
def test_released_overheads(widths: tuple[int, ...], overhead: int) -> None:
    """paper.md, "Where BAM goes", which were counted with the released code: it rounds C / 16 down."""
    with torch.device("meta"):
        assert parameters(*(BAM(c, norm="released", rounding="floor") for c in widths)) == overhead


def batch_norm(x: Tensor, weights: dict[str, Tensor], name: str, training: bool) -> Tensor:
    """Written out: batch norm over all dimensions but the second."""
    over = [dim for dim in range(x.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    if training:
        mean, var = x.mean(over), x.var(over, correction=0)
    else:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    normalised = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return normalised * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)


def equations(  # noqa: PLR0917
    x: Tensor, weights: dict[str, Tensor], norm: str, combine: str, branches: str, training: bool
) -> Tensor:
    """F + F * sigmoid(M), expanded and left to autograd."""

    def hidden(value: Tensor, name: str) -> Tensor:
        return value if norm == "equations" else batch_norm(value, weights, name, training).clamp_min(0)

    logits = []
    if branches != "spatial":
        channel = x.mean((2, 3)) @ weights["channel.fc0.weight"].T + weights["channel.fc0.bias"]
        channel = hidden(channel, "channel.bn0") @ weights["channel.fc1.weight"].T + weights["channel.fc1.bias"]
        if norm != "released":
            channel = batch_norm(channel, weights, "channel_norm", training)
        logits.append(channel[:, :, None, None].expand_as(x))
    if branches != "channel":
        spatial = F.conv2d(x, weights["spatial.conv0.weight"], weights["spatial.conv0.bias"])
        spatial = hidden(spatial, "spatial.bn0")
        for i in (1, 2):
            kernel, bias = weights[f"spatial.conv{i}.weight"], weights[f"spatial.conv{i}.bias"]
            spatial = hidden(F.conv2d(spatial, kernel, bias, padding=2, dilation=2), f"spatial.bn{i}")
        spatial = F.conv2d(spatial, weights["spatial.conv3.weight"], weights["spatial.conv3.bias"])
        if norm == "equations":
            spatial = batch_norm(spatial, weights, "spatial_norm", training)
        spatial = spatial.expand_as(x)
        if norm == "paper":
            spatial = batch_norm(spatial, weights, "spatial_norm", training)
        logits.append(spatial)
    if branches == "both":
        a, b = logits
        logits = [{"sum": a + b, "product": a * b, "max": torch.maximum(a, b)}[combine]]
    return x + x * torch.sigmoid(logits[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm", "combine", "branches"), FORMS)
def test_outputs_and_gradients_are_those_of_the_equations(
    norm: Any, combine: Any, branches: Any, training: bool
) -> None:
    torch.manual_seed(0)
    bam = shaken(BAM(8, reduction=2, dilation=2, norm=norm, combine=combine, branches=branches).double()).train(
        training
    )
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = {name: tensor.detach().clone() for name, tensor in bam.state_dict().items()}
    for statistic in ("running_mean", "running_var"):  # one number here, one per channel for BatchNorm2d(C)
        if f"spatial_norm.norm.{statistic}" in weights:
            weights[f"spatial_norm.{statistic}"] = weights[f"spatial_norm.norm.{statistic}"].expand(8)
    leaves = {name: weights[name].requires_grad_() for name, _ in bam.named_parameters()}

    y, expected = bam(x), equations(x, weights, norm, combine, branches, training)
    torch.testing.assert_close(y, expected)
    incoming = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *bam.parameters()], incoming)
    theirs = torch.autograd.grad(expected, [x, *leaves.values()], incoming)
    for name, grad, other in zip(["x", *leaves], ours, theirs, strict=True):
        torch.testing.assert_close(grad, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm", "combine", "branches"), FORMS)
def test_attention_maps_are_what_forward_applies(norm: Any, combine: Any, branches: Any, training: bool) -> None:
    torch.manual_seed(0)
    bam = shaken(BAM(8, reduction=2, norm=norm, combine=combine, branches=branches).double()).train(training)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    maps = copy.deepcopy(bam).attention_maps(x)
    assert isinstance(maps, AttentionMaps)
    channel, spatial, attention = maps
    torch.testing.assert_close(x + x * attention, bam(x))
    assert attention.shape == x.shape
    assert 0 <= attention.min() < attention.max() <= 1
    assert (channel is None) == (branches == "spatial")
    assert (spatial is None) == (branches == "channel")
    logits = attention.logit()
    if channel is not None:
        assert channel.shape == (3, 8)
    if spatial is not None:
        assert spatial.shape == (3, 1, 6, 5)
        expanded = spatial.expand_as(x)
        if norm == "paper":
            weight, bias = bam.spatial_norm.weight, bam.spatial_norm.bias
            expanded = spatial * weight[:, None, None] + bias[:, None, None]
        if branches == "spatial":
            torch.testing.assert_close(logits, expanded)
        else:
            assert channel is not None
            a = channel[:, :, None, None].expand_as(x)
            combined = {"sum": a + expanded, "product": a * expanded, "max": torch.maximum(a, expanded)}[combine]
            torch.testing.assert_close(logits, combined)


def test_expanded_batch_norm_is_batch_norm_of_the_expanded_map() -> None:
    torch.manual_seed(0)
    ours, literal = ExpandedBatchNorm(6).double(), nn.BatchNorm2d(6).double()
    with torch.no_grad():
        literal.weight.copy_(ours.weight.normal_())
        literal.bias.copy_(ours.bias.normal_())

    def check(s: Tensor, t: Tensor) -> None:
        y = ours(s) * ours.weight[:, None, None] + ours.bias[:, None, None]
        expected = literal(t.expand(-1, 6, -1, -1))
        torch.testing.assert_close(y, expected)
        incoming = torch.randn_like(y)
        torch.testing.assert_close(
            torch.autograd.grad(y, [s, ours.weight, ours.bias], incoming),
            torch.autograd.grad(expected, [t, literal.weight, literal.bias], incoming),
        )
        for statistic in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(ours.norm, statistic).expand(6), getattr(literal, statistic))

    for _ in range(3):
        s = torch.randn(4, 1, 5, 7, dtype=torch.float64) * 3 + 1
        check(s.requires_grad_(), s.detach().clone().requires_grad_())
    ours.eval(), literal.eval()
    s = torch.randn(1, 1, 5, 7, dtype=torch.float64)
    check(s.requires_grad_(), s.detach().clone().requires_grad_())


class Released(nn.Module):
    """The authors' module in its own names and literal form: expanded maps, a product, hidden norms only."""

    def __init__(self, channels: int, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        self.channel_att.gate_c = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                gate_c_fc_0=nn.Linear(channels, hidden),
                gate_c_bn_1=nn.BatchNorm1d(hidden),
                gate_c_relu_1=nn.ReLU(),
                gate_c_fc_final=nn.Linear(hidden, channels),
            )
        )
        layers = {
            "gate_s_conv_reduce0": nn.Conv2d(channels, hidden, 1),
            "gate_s_bn_reduce0": nn.BatchNorm2d(hidden),
            "gate_s_relu_reduce0": nn.ReLU(),
        }
        for i in range(2):
            layers[f"gate_s_conv_di_{i}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            layers[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(hidden)
            layers[f"gate_s_relu_di_{i}"] = nn.ReLU()
        layers["gate_s_conv_final"] = nn.Conv2d(hidden, 1, 1)
        self.spatial_att.gate_s = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, x.shape[2:])
        channel = self.channel_att.gate_c(pooled)[:, :, None, None].expand_as(x)
        return (1 + torch.sigmoid(channel * self.spatial_att.gate_s(x).expand_as(x))) * x


def test_released_weights_give_the_released_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    released = shaken(Released(32).double())
    bam = BAM(32, norm="released", combine="product").double()
    bam.load_state_dict(from_released(released.state_dict()))
    x = torch.randn(3, 32, 9, 9, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        y, expected = bam.train(training)(x), released.train(training)(x)
        torch.testing.assert_close(y, expected)
        incoming = torch.randn_like(y)
        ours = torch.autograd.grad(y, [x, *bam.parameters()], incoming)
        torch.testing.assert_close(ours, torch.autograd.grad(expected, [x, *released.parameters()], incoming))
    torch.testing.assert_close(from_released(released.state_dict()), dict(bam.state_dict()))


def test_released_names_inside_a_network() -> None:
    """A published checkpoint: what stands before a name, and every other key, is left alone."""
    value = torch.zeros(1)
    renamed = from_released(
        {"module.bam2.spatial_att.gate_s.gate_s_bn_di_1.weight": value, "module.conv1.weight": value}
    )
    assert list(renamed) == ["module.bam2.spatial.bn2.weight", "module.conv1.weight"]


def test_initial_weights_are_those_of_the_released_code() -> None:
    torch.manual_seed(0)
    bam = BAM(512, reduction=4)
    for name, parameter in bam.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
    for i in range(3):  # kaiming_normal, fan_out
        kernel = bam.spatial[3 * i].weight
        assert kernel.std().item() == pytest.approx((2 / (kernel.shape[0] * kernel.shape[2] ** 2)) ** 0.5, rel=0.02)
    assert bam.channel.fc0.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)  # nn.Linear's own, uniform


def kept(module: nn.Module, x: Tensor) -> int:
    """Bytes kept for the backward pass beside the module's input and parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters(), *module.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in found.items() if pointer not in own)


def test_memory_kept_is_a_fifth_of_the_released_form() -> None:
    """256 x 32 x 32, ResNet-50's first bottleneck on CIFAR. What is kept are six hidden maps, not the attention."""
    x = torch.randn(2, 256, 32, 32, requires_grad=True)
    literal = kept(Released(256), x)
    for norm, combine in product(NORMS, COMBINES):
        assert kept(BAM(256, norm=norm, combine=combine), x) / literal < 0.2, (norm, combine)
    assert kept(BAM(256), x) / literal == pytest.approx(0.162, abs=0.002)


@pytest.mark.parametrize(("norm", "combine", "branches"), FORMS)
def test_memory_format_is_kept(norm: Any, combine: Any, branches: Any) -> None:
    bam = BAM(16, reduction=4, norm=norm, combine=combine, branches=branches)
    plain = torch.randn(2, 16, 6, 5)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = plain.to(memory_format=memory_format).requires_grad_()
        y = bam(x)
        assert y.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("norm", "combine", "branches"), FORMS)
def test_autocast(norm: Any, combine: Any, branches: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bam = BAM(16, reduction=4, norm=norm, combine=combine, branches=branches).eval()
    x = torch.randn(4, 16, 6, 5).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = bam(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), bam(x.float()), rtol=0.05, atol=0.05)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    for name, parameter in bam.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_a_network_of_half_precision() -> None:
    bam, x = BAM(16).bfloat16(), torch.randn(4, 16, 6, 5, dtype=torch.bfloat16)
    assert bam(x).dtype == torch.bfloat16


def test_any_height_and_width() -> None:
    """Where the released code crashes (H > W) or drops columns (H < W)."""
    bam = BAM(16).eval()
    for size in ((7, 3), (3, 7), (1, 1), (1, 9)):
        assert bam(torch.randn(2, 16, *size)).shape == (2, 16, *size)
    pooled, wide = BAM(16, branches="channel").eval(), torch.randn(1, 16, 2, 7)
    torch.testing.assert_close(pooled(wide.flip(3)), pooled(wide).flip(3))  # every column counts alike


def test_a_batch_of_one() -> None:
    bam, x = BAM(16), torch.randn(1, 16, 4, 4)
    assert bam.eval()(x).shape == x.shape
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bam.train()(x)


def test_meta_device() -> None:
    with torch.device("meta"):
        bam, x = BAM(64), torch.empty(2, 64, 8, 8, requires_grad=True)
        y = bam(x)
        y.sum().backward()
    assert y.is_meta
    assert y.shape == x.shape
    assert all(parameter.grad is not None for parameter in bam.parameters())


def test_copies_pickles_and_state_dicts_compute_the_same() -> None:
    bam, x = shaken(BAM(16)).eval(), torch.randn(2, 16, 4, 4)
    loaded = BAM(16).eval()
    loaded.load_state_dict(bam.state_dict())
    for other in (copy.deepcopy(bam), pickle.loads(pickle.dumps(bam)), loaded):
        assert torch.equal(other(x), bam(x))


@pytest.mark.parametrize("norm", NORMS)
def test_synchronised_batch_norm(norm: Any) -> None:
    """Over several GPUs; PyTorch's conversion must find every norm and lose no weight."""
    bam = shaken(BAM(16, norm=norm)).eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(bam))
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in converted.modules())
    assert set(converted.state_dict()) == set(bam.state_dict())
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(converted(x), bam(x))


@pytest.mark.parametrize(("norm", "combine", "branches"), [("paper", "sum", "both"), ("released", "max", "both")])
def test_compiles_into_one_graph(norm: Any, combine: Any, branches: Any) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    # In double precision: a bias before a batch norm has a gradient of zero but for rounding.
    bam = BAM(16, reduction=4, norm=norm, combine=combine, branches=branches).double()
    compiled = copy.deepcopy(bam)
    compiled.compile(fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    y, expected = compiled(x), bam(x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), other in zip(compiled.named_parameters(), bam.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, other.grad, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(bam.named_buffers()))


@pytest.mark.parametrize(("channels", "hidden"), [(216, 13), (89, 5), (8, 1)])
def test_a_width_that_the_reduction_does_not_divide(channels: int, hidden: int) -> None:
    with pytest.raises(
        ValueError, match=rf"reduction=16 does not divide the width {channels}: .*rounding=floor"
    ) as refused:
        BAM(channels)
    assert "\n" not in str(refused.value)
    assert BAM(channels, rounding="floor").channel.fc0.out_features == hidden


def test_the_alternatives_named_are_accepted() -> None:
    with pytest.raises(ValueError, match="take reduction=12 or reduction=18"):
        BAM(216)
    BAM(216, reduction=12)
    BAM(216, reduction=18)


@pytest.mark.parametrize(
    "knobs",
    [
        {"reduction": 0},
        {"reduction": 8.0},
        {"combine": "mean"},
        {"norm": "batch"},
        {"branch": "both"},
        {"dilation": "4"},
    ],
)
def test_wrong_knobs_are_refused_by_name(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        BAM(64, **knobs)


def test_exports() -> None:
    bam, x = BAM(16).eval(), torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(torch.export.export(bam, (x,)).module()(x), bam(x))
