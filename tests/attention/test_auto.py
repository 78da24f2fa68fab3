"""`at="auto"` finds the bottlenecks of networks that know nothing of it: every name and shape of the old weights stays, and
each attention runs exactly once. The long tests go through the libraries' own lists, with every refusal and its reason.
"""

import copy
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from bam_exp.attention import BAM, ECA, SE, attach, attached, detach
from bam_exp.backbones import VGG, WRN, Backbone, DenseNet, MobileNet, PreResNet, ResNet, ResNeXt, SqueezeNet

pytestmark = pytest.mark.filterwarnings("ignore:attach")

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
TIMM = [sorted(timm.list_models(module=module))[0] for module in timm.list_modules()]

NEVER_SHRINK = "never shrink"
TOKENS = "tokens"
NO_TRUNK = "no map that everything goes through"
NO_STAGES = "has no bottleneck"
REFUSED_BY_TORCHVISION = dict.fromkeys(["vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"], NEVER_SHRINK)
REFUSED_BY_TIMM = {
    "aimv2_1b_patch14_224": NEVER_SHRINK,
    "beit_base_patch16_224": NEVER_SHRINK,
    "cait_m36_384": NEVER_SHRINK,
    "coat_lite_medium": TOKENS,
    "convit_base": NEVER_SHRINK,
    "convmixer_1024_20_ks9_p14": NEVER_SHRINK,
    "crossvit_15_240": NO_TRUNK,
    "deepseek_vit_412m": NEVER_SHRINK,
    "deit3_base_patch16_224": NEVER_SHRINK,
    "efficientvim_m1": NO_STAGES,
    "eva02_base_patch14_224": NEVER_SHRINK,
    "gemma4_vit_167m": NO_TRUNK,
    "gmixer_12_224": NEVER_SHRINK,
    "hiera_base_224": NEVER_SHRINK,
    "levit_128": NO_STAGES,
    "mvitv2_base": NEVER_SHRINK,
    "naflexvit_base_patch16_gap": NO_TRUNK,
    "nasnetalarge": NO_STAGES,
    "pit_b_224": NEVER_SHRINK,
    "pnasnet5large": NO_STAGES,
    "qwen3_vit_306m": NEVER_SHRINK,
    "samvit_base_patch16": NEVER_SHRINK,
    "test_vit_relpos": NEVER_SHRINK,
    "tnt_b_patch16_224": NO_TRUNK,
    "twins_pcpvt_base": TOKENS,
    "vit_base_mci_224": NO_STAGES,
    "xcit_large_24_p16_224": NO_STAGES,
}
"""Of each network, a part of the reason. NASNet and PNASNet are a pity: each cell takes the two before it."""


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):  # its constructor reads numbers out of tensors
        return make().to("meta")


def of_torchvision(name: str) -> nn.Module:
    knobs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return on_meta(lambda: torchvision.models.get_model(name, **knobs))


def of_timm(name: str) -> nn.Module:
    return on_meta(lambda: timm.create_model(name))


def shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in network.state_dict().items()]


def attached_to(network: nn.Module) -> list[tuple[str, int]]:
    """Attach, check what has to hold for every network, and return the places with their widths."""
    plain = shapes(network)
    attach(network, BAM, at="auto")
    report = attached(network)
    assert report is not None
    bams = [name for name, module in network.named_modules() if isinstance(module, BAM)]
    assert len(bams) == len(report.places) > 0
    kept = [entry for entry in shapes(network) if not entry[0].startswith(tuple(bams))]
    assert kept == plain
    calls = count_calls(network)
    assert calls == dict.fromkeys(bams, 1)
    assert shapes(detach(network)) == plain
    return [(place.name, place.channels) for place in report.places]


def count_calls(network: nn.Module) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name, module in network.named_modules():
        if isinstance(module, BAM):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    parameter = next(network.parameters())
    config = getattr(network, "pretrained_cfg", {}) or {}
    size = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else (3, 224, 224)
    network.eval()(torch.empty(2, *size, device="meta", dtype=parameter.dtype))
    return calls


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet18", [("layer1", 64), ("layer2", 128), ("layer3", 256)]),
        ("alexnet", [("features.11", 256)]),
        ("vgg16_bn", [("features.22", 256), ("features.32", 512), ("features.42", 512)]),
        ("squeezenet1_1", [("features.4", 128), ("features.7", 256)]),
        ("mobilenet_v2", [("features.3", 24), ("features.6", 32), ("features.13", 96)]),
        ("mobilenet_v3_small", [("features.1", 16), ("features.3", 24), ("features.8", 48)]),
        ("shufflenet_v2_x1_0", [("stage2", 116), ("stage3", 232)]),
        ("efficientnet_b0", [("features.2", 24), ("features.3", 40), ("features.5", 112)]),
        ("densenet121", [("features.denseblock1", 256), ("features.denseblock2", 512), ("features.denseblock3", 1024)]),
        ("googlenet", [("conv3", 192), ("inception3b", 480), ("inception4e", 832)]),
        ("regnet_y_400mf", [("trunk_output.block1", 48), ("trunk_output.block2", 104), ("trunk_output.block3", 208)]),
        ("convnext_tiny", [("features.1", 96), ("features.3", 192), ("features.5", 384)]),
        ("swin_t", [("features.1", 96), ("features.3", 192), ("features.5", 384)]),
        ("maxvit_t", [("blocks.0", 64), ("blocks.1", 128), ("blocks.2", 256)]),
    ],
)
def test_families_of_torchvision(name: str, places: list[tuple[str, int]]) -> None:
    assert attached_to(of_torchvision(name)) == places


@pytest.mark.parametrize(
    "name",
    ["resnet18", "regnetv_040", "densenet121", "swin_tiny_patch4_window7_224", "efficientnet_b0", "botnet26t_256"],
)
def test_families_of_timm_are_where_timm_has_its_features(name: str) -> None:
    """timm states width and stride of the end of each stage; a BAM stands at the last three but one."""
    stated = timm.create_model(name, features_only=True).feature_info.channels()
    assert [channels for _, channels in attached_to(of_timm(name))] == stated[-4:-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_classification_network_of_torchvision(name: str) -> None:
    check(of_torchvision(name), REFUSED_BY_TORCHVISION.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_every_module_of_timm(name: str) -> None:
    check(of_timm(name), REFUSED_BY_TIMM.get(name))


def check(network: nn.Module, refused: str | None) -> None:
    if refused is None:
        attached_to(network)
        return
    plain = shapes(network)
    with pytest.raises(ValueError, match=refused) as error:
        attach(network, BAM, at="auto")
    assert "\n" not in str(error.value)
    assert shapes(network) == plain


def test_the_lists_of_refusals_are_short() -> None:
    assert len(TORCHVISION) - len(REFUSED_BY_TORCHVISION) >= 75
    assert len(set(TIMM) - set(REFUSED_BY_TIMM)) >= 71


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "ResNet-50": lambda: ResNet(100, depth=50, stem="cifar"),
    "ResNet-20": lambda: ResNet(10, depth=20, stem="cifar"),
    "ResNet-18, ImageNet": lambda: ResNet(1000, depth=18, stem="imagenet"),
    "PreResNet-110": lambda: PreResNet(100),
    "WRN-28-8": lambda: WRN(100, widen=8),
    "ResNeXt-29": lambda: ResNeXt(100, depth=29, groups=8, width_per_group=64, stem="cifar"),
    "MobileNet": lambda: MobileNet(1000),
    "SqueezeNet": lambda: SqueezeNet(1000),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_our_own_bottlenecks_are_found(name: str) -> None:
    """The seams that the paper's parameters demand are what `auto` finds without being told."""
    network = on_meta(BACKBONES[name])
    assert attached_to(network) == [(seam.name, seam.channels) for seam in network.seams["bottleneck"]]


def test_where_it_differs_from_the_papers_places() -> None:
    """The paper's DenseNet has BAM on both sides of a transition, and our VGG states five seams; `auto` finds fewer."""
    dense, vgg = on_meta(lambda: DenseNet(100)), on_meta(lambda: VGG(1000))
    assert attached_to(dense) == [("stages.0", 216), ("stages.1", 300)]
    assert attached_to(vgg) == [("stages.2", 256), ("stages.3", 512), ("stages.4", 512)]


PLAIN: dict[str, Any] = {"weights": None, "weights_backbone": None}
PARTS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "Faster R-CNN, body": (
        lambda: detection.fasterrcnn_resnet50_fpn(**PLAIN).backbone.body,
        ["layer1", "layer2", "layer3"],
    ),
    "Faster R-CNN, FPN": (
        lambda: detection.fasterrcnn_resnet50_fpn(**PLAIN).backbone,
        ["body.layer1", "body.layer2", "body.layer3"],
    ),
    "RetinaNet, body": (
        lambda: detection.retinanet_resnet50_fpn(**PLAIN).backbone.body,
        ["layer1", "layer2", "layer3"],
    ),
    "SSD300": (lambda: detection.ssd300_vgg16(**PLAIN).backbone, ["features.15", "features.22", "extra.0"]),
    "DeepLabV3, MobileNetV3": (
        lambda: segmentation.deeplabv3_mobilenet_v3_large(**PLAIN),
        ["backbone.1", "backbone.3", "backbone.6"],
    ),
    "LR-ASPP": (lambda: segmentation.lraspp_mobilenet_v3_large(**PLAIN).backbone, ["1", "3", "6"]),
    "DeepLabV3, dilated": (lambda: segmentation.deeplabv3_resnet50(**PLAIN), ["backbone.layer1"]),
    "timm, features only": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", features_only=True),
        ["layers_0", "layers_1", "layers_2"],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_backbones_of_detectors_and_segmentation(name: str) -> None:
    """A dilated network shrinks once only; name its stages."""
    make, places = PARTS[name]
    network = on_meta(make)
    plain = shapes(network)
    attach(network, BAM, at="auto")
    report = attached(network)
    assert report is not None
    assert [place.name for place in report.places] == places
    assert [entry for entry in shapes(network) if "attention." not in entry[0]] == [
        entry for entry in plain if "attention." not in entry[0]
    ]


@pytest.mark.parametrize("square", [False, True])
def test_maps_that_are_channels_last(square: bool) -> None:
    """torchvision's Swin has N x H x W x C: the width is C, and the attention acts on channels."""
    torch.manual_seed(0)
    network = torchvision.models.swin_t().eval()
    sizes = (64, 64) if square else (96, 64)
    x = torch.randn(1, 3, *sizes)
    inside = network.features[:2](x)
    attach(network, SE, at=["features.1"], example=x)
    se = next(module for module in network.modules() if isinstance(module, SE))
    assert se.mlp[0].in_features == 96
    expected = se(inside.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(network.features[:2](x), expected)
    assert network(torch.randn(2, 3, 128, 96)).shape == (2, 1000)


def test_several_attentions_in_one_network() -> None:
    network = some("resnet18")
    plain = list(network.state_dict())
    attach(network, BAM, at=["layer1", "layer2.0"])
    attach(network, SE, at=["layer2.1", "layer2"])
    kinds = {name: type(module) for name, module in network.named_modules() if isinstance(module, (BAM, SE))}
    assert kinds == {
        "layer1.attention": BAM,
        "layer2.0.attention": BAM,
        "layer2.1.attention": SE,
        "layer2.attention": SE,
    }
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"ResNet has attentions already \(layer1.attention, .*\); detach them first$"):
        attach(network, BAM, at="auto")
    assert list(detach(network).state_dict()) == plain


class Recurrent(nn.Module):
    """Calls one block twice in a pass, and iterates over the children of another."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.loop = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)])
        self.body = Iterating()
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.loop:
            x = layer(x)
        y: Tensor = self.down(self.body(self.twice(self.twice(x))))
        return y


class Iterating(nn.Module):
    """As the stages of timm's RegNet: forward runs whatever children there are."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def test_an_attention_that_would_run_twice_goes_elsewhere_or_is_refused() -> None:
    network = attach(Recurrent(), ECA, at="auto")
    assert [place.name for place in attached(network).places] == ["body.b2"]
    with pytest.raises(ValueError, match=r"at=body: .* Iterating does not run exactly once$"):
        attach(Recurrent(), ECA, at="body")
    with pytest.raises(ValueError, match=r"at=twice: .*does not run exactly once; it is called 2 times$"):
        attach(Recurrent(), ECA, at="twice")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)), "never shrink"),
        (lambda: detection.fasterrcnn_resnet50_fpn(**PLAIN), "FasterRCNN does not run on .*example=.*channels="),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), "no map that everything goes through"),
        (lambda: nn.Embedding(10, 10), "does not run on|no image|no output|no map"),
    ],
)
def test_refusals_are_one_line(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        attach(make(), BAM, at="auto")
    assert "\n" not in str(refused.value)


def test_widths_that_do_not_divide_are_rounded_down_and_said_once() -> None:
    network = of_torchvision("mobilenet_v2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(network, BAM, at="auto")
    (warning,) = [str(one.message) for one in caught if "attach" in str(one.message)]
    assert 'does not divide 24: hidden widths are rounded down (rounding="floor")' in warning
    assert warning.removeprefix("attach: ") in str(attached(network))
    with pytest.raises(ValueError, match="reduction=16 does not divide the width 24"):
        attach(of_torchvision("mobilenet_v2"), BAM, at="auto", rounding="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(of_torchvision("mobilenet_v2"), BAM, at="auto", rounding="floor")
        attach(of_torchvision("resnet18"), BAM, at="auto")


def test_what_was_chosen_and_left_out_is_printed() -> None:
    assert str(attached(attach(of_torchvision("squeezenet1_1"), BAM, at="auto"))).splitlines() == [
        "BAM behind features.4: 128 channels, 55 x 71, N x C x H x W",
        "BAM behind features.7: 256 channels, 27 x 35, N x C x H x W",
        "left out: features.1 (111 x 143): made by fewer than two layers with weights of this size",
        "left out: 13 x 17: nothing shrinks after it",
    ]


def some(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval()


WAYS = {"append": "resnet18", "hook": "mobilenet_v2", "after": "densenet121", "channels last": "swin_t"}


@pytest.mark.parametrize("way", WAYS)
def test_copies_files_and_detaching(way: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    network = some(WAYS[way])
    before, plain = network(x), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attach(network, BAM, at="auto")
    expected = network(x)
    assert not torch.equal(expected, before)

    copied = copy.deepcopy(network)
    pickled = pickle.loads(pickle.dumps(network))
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    fresh = attach(some(WAYS[way]), BAM, at="auto")
    fresh.load_state_dict(network.state_dict())
    for other in (copied, pickled, saved, fresh):
        assert torch.equal(other(x), expected)
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, BAM):
                module.spatial_norm.bias.fill_(3)
    assert not torch.equal(copied(x), expected)
    assert torch.equal(network(x), expected)

    missing, unexpected = network.load_state_dict(plain, strict=False)
    assert not unexpected
    assert all("attention." in name for name in missing)
    for other in (network, copied, pickled):
        assert detach(other) is other
        assert attached(other) is None
        assert list(other.state_dict()) == list(plain)
        assert torch.equal(other(x), before)
    with pytest.raises(ValueError, match="has no attention"):
        detach(network)


@pytest.mark.parametrize("way", WAYS)
def test_it_trains(way: str) -> None:
    network = attach(some(WAYS[way]).train(), BAM, at="auto")
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    bams = [module for module in network.modules() if isinstance(module, BAM)]
    assert bams
    assert all(parameter.grad is not None for bam in bams for parameter in bam.parameters())
