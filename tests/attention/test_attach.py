"""Attention is appended where a backbone says it can be and nowhere else: modules are counted, weights keep their names
and still load, torchvision's and timm's networks work by name, totals are the paper's, and mistakes are refused in one
line before anything is changed.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from bam_exp.attention import BAM, CBAM, ECA, SE, ConvBlock, attach, attached
from bam_exp.backbones import WRN, Backbone, DenseNet, MobileNet, PreResNet, ResNet, ResNeXt, SqueezeNet


@dataclass(frozen=True)
class Seam:
    name: str
    channels: int
    block: Callable[[], nn.Module] | None = None


class Small(nn.Module):
    """Two stages that state their seams, as a Backbone does."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width, 10)
        self.seams = {
            "bottleneck": [Seam("stages.0", width, partial(nn.Conv2d, width, width, 1))],
            "block": [Seam("stages.0", width), Seam("stages.1", 2 * width)],
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def attentions(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules() if name.rpartition(".")[2] == "attention"]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_appended_at_every_seam_of_the_kind_asked_for() -> None:
    assert attentions(attach(Small(), BAM)) == ["stages.0.attention"]
    network = attach(Small(), BAM, at="block", reduction=8, combine="max")
    assert attentions(network) == ["stages.0.attention", "stages.1.attention"]
    assert [type(module) for module in network.stages[1]] == [nn.Conv2d, nn.ReLU, BAM]
    assert network.stages[1].attention.channel.fc0.weight.shape == (8, 64)
    assert network.stages[1].attention.combine == "max"


def test_what_is_appended_takes_part() -> None:
    network, x = Small().eval(), torch.randn(2, 3, 9, 9)
    inside = network.stages[0](network.stem(x))
    attach(network, BAM)
    bam = network.stages[0].attention
    torch.testing.assert_close(network(x), network.head(network.stages[1](bam(inside)).mean((2, 3))))


def test_the_backbone_itself_is_returned_and_none_attaches_nothing() -> None:
    network = Small()
    assert attach(network, None) is network
    assert attach(network, None, at="nowhere") is network
    assert attentions(network) == []
    assert attach(network, SE, at="block") is network


def test_weights_of_the_plain_backbone_still_load() -> None:
    plain, network = Small(), attach(Small(), BAM, at="block")
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".attention." in name for name in missing)
    assert torch.equal(network.stages[1][0].weight, plain.stages[1][0].weight)


def test_device_dtype_and_mode_are_the_backbones() -> None:
    network = attach(Small().double().eval(), BAM)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert not network.stages[0].attention.training
    with torch.device("meta"):
        small = Small()
    network = attach(small, BAM, at="block")
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert network(torch.empty(2, 3, 9, 9, device="meta")).shape == (2, 10)


def test_the_same_seed_gives_the_same_attention() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(attach(Small(), BAM))
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "kind", "options", "said"),
    [
        (Small, BAM, {"at": "stage"}, r"at=stage: Small offers bottleneck, block$"),
        (Small, BAM, {"at": ["stages.0", "stage"]}, r"at=stage: Small has no module of that name$"),
        (Small, BAM, {"at": ["head"]}, r"at=head: yields \(1, 10\) in a run on 1 x 3 x 224 x 288, not a map of"),
        (Small, BAM, {"at": []}, r"at=\[\]: should name one or more"),
        (Small, BAM, {"at": ["stages.0", "stages.0"]}, r"at=\[stages.0,stages.0\]: .*different"),
        (lambda: Small(24), BAM, {}, r"seam stages.0: reduction=16 does not divide the width 24: take"),
        (
            lambda: Small(24),
            BAM,
            {"at": ["stages.0"]},
            r"seam stages.0: reduction=16 does not divide the width 24: take",
        ),
        (Small, ConvBlock, {"at": "block"}, r"seam stages.0: one more block makes no sense there, because"),
        (Small, ConvBlock, {"at": ["stages.0"]}, r"seam stages.0: one more block makes no sense there, because"),
        (Small, None, {"reduction": 8}, r"reduction=8: no attention, so it has no knobs"),
        (
            torchvision.models.resnet18,
            BAM,
            {},
            r"at=bottleneck: ResNet states no seams; .*at=\[layer1, layer2, layer3, layer4\]",
        ),
        (torchvision.models.resnet18, BAM, {"at": "layer5"}, r"at=layer5: ResNet states no seams"),
        (torchvision.models.resnet18, BAM, {"at": ["layer5"]}, r"at=layer5: ResNet has no module of that name"),
        (
            torchvision.models.resnet18,
            BAM,
            {"at": ["layer1.0.relu"]},
            r"at=layer1.0.relu: .*ReLU does not run exactly once; it is called 2 times",
        ),
        (torchvision.models.vgg11, BAM, {"at": ["classifier"]}, r"at=classifier: yields \(1, 1000\)"),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Bilinear(1, 1, 16))),
            BAM,
            {"at": ["0"]},
            r"at=\[0\]: widths are not known: Sequential does not run on 1 x 3 x .*example=.*channels=",
        ),
        (Small, BAM, {"at": 3}, r"at=3: should be .auto., a kind of seam, or one or several names of modules$"),
        (Small, BAM, {"at": [3]}, r"at=3: Small has no module of that name$"),
        (Small, BAM, {"at": "stages.0", "channels": 0}, r"channels=0: should be the width at each of at=\[stages.0\]$"),
        (Small, BAM, {"at": ["stages.0"], "channels": [32, 64]}, r"channels=\[32, 64\]: should be the width at each"),
    ],
)
def test_mistakes_are_refused_in_one_line_and_change_nothing(
    network: Callable[[], nn.Module], kind: Any, options: dict[str, Any], said: str
) -> None:
    with torch.device("meta"):
        backbone = network()
    with pytest.raises(ValueError, match=said) as refused:
        attach(backbone, kind, **options)
    assert "\n" not in str(refused.value)
    assert attentions(backbone) == []


def test_a_refusal_at_a_later_seam_changes_nothing_at_the_earlier() -> None:
    network = Small()
    network.seams["block"][1] = Seam("stages.1", 65)
    with pytest.raises(ValueError, match=r"seam stages.1: reduction=16 does not divide the width 65"):
        attach(network, BAM, at="block")
    assert attentions(network) == []


def test_a_second_attention_at_a_seam_is_refused() -> None:
    network = attach(Small(), BAM)
    with pytest.raises(ValueError, match=r"at=stages.0: has an attention already \(BAM\)"):
        attach(network, SE, at="block")
    assert attentions(network) == ["stages.0.attention"]


def test_a_sequential_that_would_not_run_what_is_appended_gets_a_hook() -> None:
    class Skipping(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](x)

    network = nn.Sequential(nn.Conv2d(3, 16, 1))
    network.add_module("stage", Skipping(nn.Conv2d(16, 16, 1)))
    network.eval()
    x = torch.randn(2, 3, 8, 8)
    inside = network(x)
    attach(network, BAM, at=["stage"])
    torch.testing.assert_close(network(x), network.stage.attention(inside))


@pytest.mark.parametrize("at", ["layer1", ("layer1", "layer2.0", "relu"), ["layer2.1.bn2"]], ids=str)
def test_a_name_a_tuple_blocks_and_single_layers_are_places(at: Any) -> None:
    network = attach(torchvision.models.resnet18(), BAM, at=at)
    names = [at] if isinstance(at, str) else list(at)
    assert attentions(network) == sorted((f"{name}.attention" for name in names), key=attentions(network).index)
    assert sorted(place.name for place in attached(network).places) == sorted(names)
    assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), nn.Linear(4, 16)

    def forward(self, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        return self.image(image) + self.facts(facts)[:, :, None, None]


def grey() -> nn.Module:
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


def bands() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Conv2d(5, 16, 3, padding=1)), nn.Conv2d(16, 2, 1))


def fixed_size() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)), nn.Flatten(), nn.Linear(16 * 48 * 40, 10))


def detector() -> nn.Module:
    return torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)


@pytest.mark.parametrize(
    ("make", "at", "options", "width"),
    [
        (grey, "layer1", {}, 64),
        (bands, "0", {}, 16),
        (fixed_size, "0", {}, 16),
        (fixed_size, "0", {"example": torch.empty(1, 3, 48, 40)}, 16),
        (TwoInputs, "image", {}, 16),
        (TwoInputs, "image.1", {"example": (torch.empty(1, 3, 48, 40), torch.empty(1, 4))}, 16),
        (detector, "backbone.body.layer1", {}, 256),
        (detector, "backbone.body.layer1", {"channels": 256}, 256),
    ],
)
def test_inputs_other_than_one_image_of_three_channels(
    make: Callable[[], nn.Module], at: str, options: dict[str, Any], width: int
) -> None:
    network = attach(make(), BAM, at=at, **options)
    assert [place.channels for place in attached(network).places] == [width]
    (bam,) = [module for module in network.modules() if isinstance(module, BAM)]
    assert bam.channel.fc0.in_features == width


def test_an_example_says_what_auto_cannot_guess() -> None:
    def make() -> nn.Module:
        stages = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)]
        return nn.Sequential(*stages, nn.Flatten(), nn.Linear(32 * 24 * 20, 10))

    with pytest.raises(ValueError, match="example="):
        attach(make(), BAM, at="auto")
    network = attach(make(), BAM, at="auto", example=torch.empty(1, 3, 48, 40))
    assert [place.name for place in attached(network).places] == ["1"]


def test_a_wrong_knob_is_named_as_such() -> None:
    with pytest.raises(TypeError, match=r"^BAM: reductions=8: unexpected keyword argument; did you mean reduction\?$"):
        attach(Small(), BAM, reductions=8)


def test_torchvision() -> None:
    """Its names and plain weights stay; the total is ResNet-18's 11,689,512 and the paper's BAM at 64, 128 and 256."""
    network = torchvision.models.resnet18().eval()
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attach(network, BAM, at=["layer1", "layer2", "layer3"])
    assert attentions(network) == ["layer1.attention", "layer2.attention", "layer3.attention"]
    assert parameters(network) == 11_689_512 + 22_991 + 4 * (64 + 128 + 256)
    missing, unexpected = network.load_state_dict(plain, strict=False)
    assert not unexpected
    assert all(".attention." in name for name in missing)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_other_networks_of_torchvision(name: str) -> None:
    """Widths are found for any architecture whose nn.Sequential modules yield maps."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    attach(network, ECA, at=["features"])
    assert network.eval()(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_widths_are_found_in_training_mode_too() -> None:
    """By a batch of one, which a batch norm after a global pooling refuses in training."""
    layers = OrderedDict(stage=nn.Sequential(nn.Conv2d(3, 16, 1)), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    network = nn.Sequential(layers).append(nn.BatchNorm1d(16))
    assert attentions(attach(network, BAM, at=["stage"])) == ["stage.attention"]
    assert network.training
    assert network.stage.attention.training


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    network = attach(timm.create_model("resnet18").eval(), BAM, at=["layer1", "layer2", "layer3"], reduction=8)
    assert attentions(network) == ["layer1.attention", "layer2.attention", "layer3.attention"]
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "ResNet-50": lambda: ResNet(100, depth=50, stem="cifar"),
    "PreResNet-110": lambda: PreResNet(100),
    "WRN-28-8": lambda: WRN(100, widen=8),
    "ResNeXt-29": lambda: ResNeXt(100, depth=29, groups=8, width_per_group=64, stem="cifar"),
    "DenseNet-BC": lambda: DenseNet(100),
    "ResNet-18": lambda: ResNet(1000, depth=18, stem="imagenet"),
    "MobileNet": lambda: MobileNet(1000),
    "SqueezeNet": lambda: SqueezeNet(1000),
}


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("ResNet-50", [256, 512, 1024]),
        ("PreResNet-110", [64, 128]),
        ("WRN-28-8", [128, 256]),
        ("ResNeXt-29", [256, 512]),
        ("DenseNet-BC", [216, 108, 300, 150]),
        ("ResNet-18", [64, 128, 256]),
        ("MobileNet", [128, 256, 512]),
        ("SqueezeNet", [128, 256]),
    ],
)
def test_bam_stands_at_the_bottlenecks_of_the_paper(name: str, widths: list[int]) -> None:
    """paper.md, "Where BAM goes"; the plain weights keep their names and order."""
    with torch.device("meta"):
        network = BACKBONES[name]()
    plain = list(network.state_dict())
    attach(network, BAM, rounding="floor")
    modules = [module for module in network.modules() if isinstance(module, BAM)]
    assert [module.channel.fc0.in_features for module in modules] == widths
    assert [key for key in network.state_dict() if ".attention." not in key] == plain
    assert network.eval()(torch.empty(1, 3, 224, 224, device="meta")).shape[0] == 1


@pytest.mark.parametrize(
    ("name", "kind", "at", "printed"),
    [
        ("ResNet-50", SE, "block", "26.236"),  # Table 5, as paper.md counts it with biases
        ("PreResNet-110", SE, "block", "1.928"),
        ("WRN-28-8", SE, "block", "23.577"),
        ("ResNet-50", ConvBlock, "bottleneck", "25.173"),  # Table 1(c), likewise
        ("WRN-28-8", ConvBlock, "bottleneck", "24.877"),
        ("ResNeXt-29", ConvBlock, "bottleneck", "37.312"),
    ],
)
def test_totals_of_the_papers_controls(name: str, kind: type[nn.Module], at: str, printed: str) -> None:
    with torch.device("meta"):
        network = attach(BACKBONES[name](), kind, at=at)
    assert f"{parameters(network) / 1e6:.3f}" == printed


@pytest.mark.parametrize("at", ["block", "block_output"])
def test_both_readings_of_bam_c(at: str) -> None:
    """Table 2: "inserted to each convolution block", 28.98M for ResNet-50's 16 blocks."""
    with torch.device("meta"):
        network = attach(BACKBONES["ResNet-50"](), BAM, at=at)
    assert len(attentions(network)) == 16
    assert f"{parameters(network) / 1e6:.2f}" == "28.98"


@pytest.mark.parametrize("kind", [BAM, SE, CBAM, ECA, ConvBlock])
def test_trains_in_a_backbone(kind: Any) -> None:
    """Every weight of the attention gets a gradient, in channels_last."""
    network = attach(ResNet(10, depth=20, stem="cifar"), kind, at="block_output")
    network.to(memory_format=torch.channels_last)
    network(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
