"""The backbones are the literature's: parameters and multiply-accumulates (MACs) of every choice in `conf/backbone`
equal the published figures; their configs are their signatures; seams stand where the paper puts BAM and are as wide as
they say; the networks run at any size from `min_size` on, keep channels_last, and work under autocast and torch.compile.
"""

import copy
import inspect
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bam_exp.backbones import VGG, WRN, Backbone, DenseNet, MobileNet, PreResNet, ResNet, ResNeXt, SqueezeNet

CONF = REPOSITORY / "conf" / "backbone"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml") if "bam_exp.backbones." in path.read_text())


def on_meta(choice: str, num_classes: int = 100, **knobs: Any) -> Backbone:
    config = OmegaConf.load(CONF / f"{choice}.yaml")
    config.update(knobs)
    with torch.device("meta"):
        backbone: Backbone = instantiate(config, num_classes).eval()
    return backbone


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def macs(module: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


# (choice, knobs, classes, side of the image, parameters, MACs in 1e9 as printed by the source)
PUBLISHED = [
    # paper.md, "Consistency checks", confirmed there by what the paper itself prints
    ("resnet50", {}, 100, 32, 23_705_252, "1.2225"),
    ("resnet50", {"stride_in": "3x3"}, 100, 32, 23_705_252, "1.2980"),
    ("resnet101", {}, 100, 32, 42_697_380, "2.4347"),
    ("resnet101", {"stride_in": "3x3"}, 100, 32, 42_697_380, "2.5102"),
    ("preresnet110", {}, 100, 32, 1_726_388, "0.2445"),
    ("preresnet110", {"stride_in": "3x3"}, 100, 32, 1_726_388, "0.2477"),
    ("preresnet110", {"blocks": 12}, 100, 32, 1_169_972, None),
    ("preresnet110_basic", {}, 100, 32, 1_736_372, "0.2532"),
    ("wrn28_8", {}, 100, 32, 23_401_012, "3.3601"),
    ("wrn28_10", {}, 100, 32, 36_536_884, "5.2434"),
    ("resnext29_8x64d", {}, 100, 32, 34_518_948, None),
    ("resnext29_16x64d", {}, 100, 32, 68_247_460, None),
    # its MACs of ResNeXt-29 are those with 10 classes (with 100 the classifier adds 0.0001)
    ("resnext29_8x64d", {}, 10, 32, 34_518_948 - 90 * 1025, "4.9846"),
    ("resnext29_8x64d", {"stride_in": "3x3"}, 10, 32, 34_518_948 - 90 * 1025, "5.3873"),
    ("resnext29_16x64d", {}, 10, 32, 68_247_460 - 90 * 1025, "9.8836"),
    ("resnext29_16x64d", {"stride_in": "3x3"}, 10, 32, 68_247_460 - 90 * 1025, "10.6889"),
    ("densenet100", {}, 100, 32, 800_032, "0.2880"),
    ("resnet18_imagenet", {}, 1000, 224, 11_689_512, "1.8141"),
    ("resnet50_imagenet", {}, 1000, 224, 25_557_032, "3.8580"),
    ("resnet50_imagenet", {"stride_in": "3x3"}, 1000, 224, 25_557_032, "4.0892"),
    ("resnet101_imagenet", {}, 1000, 224, 44_549_160, "7.5702"),
    ("resnet101_imagenet", {"stride_in": "3x3"}, 1000, 224, 44_549_160, "7.8014"),
    ("wrn18_imagenet", {}, 1000, 224, 25_875_816, "3.8663"),
    ("wrn18_imagenet", {"widen": 2.0}, 1000, 224, 45_618_216, "6.6957"),
    ("resnext50_imagenet", {}, 1000, 224, 25_028_904, "3.768"),
    ("mobilenet_imagenet", {}, 1000, 224, 4_231_976, "0.5687"),
    ("mobilenet_imagenet", {}, 1000, 192, 4_231_976, "0.4181"),
    ("mobilenet_imagenet", {"alpha": 0.7}, 1000, 224, 2_298_747, "0.2830"),
    ("squeezenet_imagenet", {}, 1000, 224, 1_235_496, "0.3492"),
    # elsewhere: osmr/imgclsmob and chenyaofo/pytorch-cifar-models; weiaicunzai/pytorch-cifar100; torchvision
    ("resnet20", {}, 10, 32, 272_474, "0.0408"),
    ("resnet18", {}, 100, 32, 11_220_132, "0.56"),
    ("resnet34", {}, 100, 32, 21_328_292, "1.16"),
    ("vgg16_imagenet", {}, 1000, 224, 138_357_544, "15.47"),
]


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(published: tuple[Any, ...]) -> None:
    choice, knobs, num_classes, size, params, gmacs = published
    backbone = on_meta(choice, num_classes, **knobs)
    assert parameters(backbone) == params
    if gmacs is not None:
        decimals = len(gmacs.partition(".")[2])
        assert f"{macs(backbone, size) / 1e9:.{decimals}f}" == gmacs


def test_every_choice_has_a_published_figure() -> None:
    assert {choice for choice, *_ in PUBLISHED} == set(CHOICES)


def test_the_papers_squeezenet_is_the_padded_one_with_bias_additions_counted() -> None:
    backbone = on_meta("squeezenet_imagenet", 1000, stem_padding=1, pool="before")
    additions = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            module.register_forward_hook(lambda module, args, out: additions.append(out.numel()))
    assert f"{(macs(backbone, 224) + sum(additions)) / 1e9:.4f}" == "0.2901"


@pytest.mark.parametrize(("name", "alpha"), [("mobilenetv1_100", 1.0), ("mobilenetv1_125", 1.25)])
def test_mobilenet_computes_what_timms_does(name: str, alpha: float) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = MobileNet(10, alpha=alpha).eval()
    theirs = timm.create_model(name, num_classes=10, act_layer="relu").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.001, 0.1)
    # both list their layers in the order of the forward pass
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 64)
    logits = ours(images)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, theirs(images))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_config_holds_every_keyword_of_its_callable_and_nothing_else(choice: str) -> None:
    config = OmegaConf.load(CONF / f"{choice}.yaml")
    keys = list(config)
    signature = inspect.signature(get_class(config["_target_"]))
    first, *knobs = signature.parameters.values()
    assert first.name == "num_classes"
    assert keys == ["_target_", *(knob.name for knob in knobs)]
    assert all(knob.kind is inspect.Parameter.KEYWORD_ONLY for knob in knobs)


@pytest.mark.parametrize(
    ("target", "knobs", "named"),
    [
        (MobileNet, {"alpha": 0.01}, "alpha=0.01"),
        (ResNet, {"depth": 18, "stem": "cifar", "widen": 0.01}, "widen=0.01"),
        (ResNet, {"depth": 19, "stem": "cifar"}, "depth"),
        (ResNet, {"depth": 18, "stem": "cifar", "stride_in": "2x2"}, "stride_in"),
        (ResNet, {"depth": 18, "stem": "cifar", "dropout": 0.1}, "dropout"),
        (WRN, {"depth": 29}, "depth=29"),
        (WRN, {"dropout": 1.0}, "dropout"),
        (DenseNet, {"depth": 99}, "depth=99"),
        (DenseNet, {"compression": 0.001}, "compression=0.001"),
        (SqueezeNet, {"stem_padding": 2}, "stem_padding"),
        (VGG, {"depth": 15}, "depth"),
        (PreResNet, {"blocks": 0}, "blocks"),
        (ResNeXt, {"depth": 29, "groups": "8", "width_per_group": 64, "stem": "cifar"}, "groups"),
    ],
)
def test_a_wrong_knob_is_refused_by_name(target: type[Backbone], knobs: dict[str, Any], named: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=named):
        target(10, **knobs)


# paper.md, "Where BAM goes": (channels, side of the map)
BOTTLENECKS = [
    ("resnet50", {}, 32, [(256, 32), (512, 16), (1024, 8)]),
    ("resnet50_imagenet", {}, 224, [(256, 56), (512, 28), (1024, 14)]),
    ("resnet50_imagenet", {"stride_in": "3x3"}, 224, [(256, 56), (512, 28), (1024, 14)]),
    ("resnet18_imagenet", {}, 224, [(64, 56), (128, 28), (256, 14)]),
    ("preresnet110", {}, 32, [(64, 32), (128, 16)]),
    ("wrn28_8", {}, 32, [(128, 32), (256, 16)]),
    ("wrn28_10", {}, 32, [(160, 32), (320, 16)]),
    ("resnext29_8x64d", {}, 32, [(256, 32), (512, 16)]),
    ("densenet100", {}, 32, [(216, 32), (108, 16), (300, 16), (150, 8)]),
    ("wrn18_imagenet", {}, 224, [(96, 56), (192, 28), (384, 14)]),
    ("wrn18_imagenet", {"widen": 2.0}, 224, [(128, 56), (256, 28), (512, 14)]),
    ("mobilenet_imagenet", {}, 224, [(128, 56), (256, 28), (512, 14)]),
    ("squeezenet_imagenet", {"stem_padding": 1}, 224, [(128, 56), (256, 28)]),
    ("vgg16_imagenet", {}, 224, [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]),
]


def maps(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """What each seam puts out for `images`, in the order of the forward pass."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        backbone.get_submodule(seam.name).register_forward_hook(
            lambda module, args, out, name=seam.name: outputs.update({name: out})
        )
        for seams in backbone.seams.values()
        for seam in seams
    ]
    backbone(images)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize(("choice", "knobs", "size", "places"), BOTTLENECKS)
def test_bottleneck_seams_stand_where_the_paper_puts_bam_and_the_map_is_about_to_shrink(
    choice: str, knobs: dict[str, Any], size: int, places: list[tuple[int, int]]
) -> None:
    backbone = on_meta(choice, **knobs)
    outputs = maps(backbone, torch.empty(1, 3, size, size, device="meta"))
    seams = backbone.seams["bottleneck"]
    assert [(seam.channels, outputs[seam.name].shape[-1]) for seam in seams] == places
    blocks = [seam.name for seam in backbone.seams["block"]]
    order = list(outputs)
    for seam in seams:
        if not seam.name.endswith("transition"):  # DenseNet's second seam stands where the map has just shrunk
            later = [outputs[name] for name in order[order.index(seam.name) :] if name in blocks]
            assert all(later_map.shape[-1] < outputs[seam.name].shape[-1] for later_map in later)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_seam_is_a_sequential_of_the_width_it_says(choice: str) -> None:
    backbone = on_meta(choice)
    outputs = maps(backbone, torch.empty(1, 3, 64, 64, device="meta"))
    assert {"bottleneck", "block"} <= set(backbone.seams) <= {"bottleneck", "block", "block_output"}
    for seams in backbone.seams.values():
        names = [seam.name for seam in seams]
        assert names
        assert names == [name for name in outputs if name in names]  # each once, in the order of the forward pass
        for seam in seams:
            assert type(backbone.get_submodule(seam.name)) is nn.Sequential
            assert outputs[seam.name].shape[1] == seam.channels


@pytest.mark.parametrize("choice", CHOICES)
def test_one_more_block_keeps_width_and_size(choice: str) -> None:
    backbone = on_meta(choice)
    images = torch.empty(1, 3, 64, 64, device="meta")
    outputs = maps(backbone, images)
    seams = [seam for seam in backbone.seams["bottleneck"] if seam.block]
    assert bool(seams) == (choice != "densenet100")
    for seam in seams:
        assert seam.block is not None
        with torch.device("meta"):
            block = seam.block()
        assert block(outputs[seam.name]).shape == outputs[seam.name].shape
        backbone.get_submodule(seam.name).add_module("block", block)
    assert backbone(images).shape == (1, 100)


@pytest.mark.parametrize(
    ("choice", "blocks", "total"),  # paper.md: the extra conv block of table 1(c)
    [
        ("resnet50", [70_400, 280_064, 1_117_184], 25.17),
        ("wrn28_8", None, 24.877),
        ("resnext29_8x64d", None, 37.312),
    ],
)
def test_one_more_block_has_the_parameters_of_table_1c(choice: str, blocks: list[int] | None, total: float) -> None:
    backbone = on_meta(choice)
    with torch.device("meta"):
        more = [parameters(seam.block()) for seam in backbone.seams["bottleneck"] if seam.block]
    if blocks is not None:
        assert more == blocks
    assert (parameters(backbone) + sum(more)) / 1e6 == pytest.approx(total, abs=0.005)


# One of each family, small enough to compute with.
SMALL: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    "ResNet-20": (ResNet, {"depth": 20, "stem": "cifar"}),
    "ResNet-50": (ResNet, {"depth": 50, "stem": "imagenet", "widen": 0.125}),
    "PreResNet": (PreResNet, {"blocks": 1}),
    "WRN": (WRN, {"depth": 10, "widen": 1, "dropout": 0.1}),
    "ResNeXt": (ResNeXt, {"depth": 29, "groups": 2, "width_per_group": 4, "stem": "cifar"}),
    "DenseNet": (DenseNet, {"depth": 10, "growth_rate": 4}),
    "MobileNet": (MobileNet, {"alpha": 0.25}),
    "SqueezeNet": (SqueezeNet, {}),
    "VGG": (VGG, {"depth": 11, "batch_norm": True}),
}


@pytest.fixture(scope="module")
def built() -> dict[str, Backbone]:
    torch.manual_seed(0)
    backbones = {name: target(10, **knobs) for name, (target, knobs) in SMALL.items()}
    backbones["VGG"].head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))  # 120 M otherwise
    return backbones


@pytest.fixture(params=SMALL)
def backbone(request: pytest.FixtureRequest, built: dict[str, Backbone]) -> Backbone:
    return built[request.param]


def test_channels_last_is_kept_and_every_parameter_learns(backbone: Backbone) -> None:
    backbone = backbone.train().to(memory_format=torch.channels_last)
    side = 2 * backbone.min_size  # two pixels at least in the last map: the layout of one is ambiguous
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    outputs = maps(backbone, images)
    outputs |= {"stem": backbone.stem(images), "stages": backbone.stages(backbone.stem(images))}
    for name, out in outputs.items():
        assert out.shape[-1] > 1
        assert out.is_contiguous(memory_format=torch.channels_last), name
    backbone.zero_grad()
    nn.functional.cross_entropy(backbone(images), torch.tensor([0, 1])).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    backbone.zero_grad(set_to_none=True)


def test_any_shape_from_min_size_on_in_bfloat16(backbone: Backbone) -> None:
    size = backbone.eval().min_size
    for height, width in [(size, size), (size, size + 5), (size + 5, size)]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = backbone(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 10)
        assert logits.dtype == torch.float32  # the head computes in float32: logits in bfloat16 tie
        assert logits.isfinite().all()


@pytest.mark.parametrize("choice", CHOICES)
def test_min_size_is_the_total_stride_or_the_smallest_that_runs(choice: str) -> None:
    backbone = on_meta(choice)

    def last_map(size: int) -> Tensor:
        out: Tensor = backbone.stages(backbone.stem(torch.empty(1, 3, size, size, device="meta")))
        return out

    size = backbone.min_size
    assert backbone(torch.empty(1, 3, size, size, device="meta")).shape == (1, 100)
    if isinstance(backbone, VGG | SqueezeNet | DenseNet):
        with pytest.raises(RuntimeError):
            backbone(torch.empty(1, 3, size - 1, size - 1, device="meta"))
    else:
        assert [last_map(n * size).shape[-1] for n in (1, 2, 3)] == [1, 2, 3]


def test_the_padded_squeezenet_runs_at_a_smaller_size() -> None:
    backbone = on_meta("squeezenet_imagenet", stem_padding=1)
    assert backbone.min_size < on_meta("squeezenet_imagenet").min_size
    assert backbone(torch.empty(1, 3, backbone.min_size, backbone.min_size, device="meta")).shape == (1, 100)
    with pytest.raises(RuntimeError):
        backbone(torch.empty(1, 3, backbone.min_size - 1, backbone.min_size - 1, device="meta"))


def test_compiles_into_one_graph(backbone: Backbone) -> None:
    images = torch.randn(1, 3, backbone.min_size, backbone.min_size)
    torch._dynamo.reset()  # all backbones share one forward, which is compiled for at most eight of them
    with torch.no_grad():
        compiled = torch.compile(backbone.eval(), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), backbone(images))


def test_a_deep_copy_is_independent_and_keeps_its_seams(backbone: Backbone) -> None:
    twin = copy.deepcopy(backbone)
    seam = twin.seams["bottleneck"][0]
    twin.get_submodule(seam.name).add_module("attention", nn.Identity())
    assert "attention" not in dict(backbone.get_submodule(seam.name).named_children())


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


@pytest.mark.parametrize(
    "backbone", [ResNet(10, depth=18, stem="cifar", widen=0.1), PreResNet(10, blocks=2), WRN(10, depth=16, widen=1)]
)
@torch.no_grad()
def test_block_seams_act_before_the_addition_and_block_output_seams_after_it(backbone: Backbone) -> None:
    backbone.eval()
    block = backbone.stages[0][1]
    x = torch.randn(2, backbone.seams["bottleneck"][0].channels, 8, 8)
    branch, out = block.branch(x), block(x)
    before, after = copy.deepcopy(block), copy.deepcopy(block)
    assert backbone.seams["block"][1].name == "stages.0.1.branch"
    before.branch.add_module("attention", Triple())
    assert backbone.seams["block_output"][1].name == "stages.0.1.out"
    after.out.add_module("attention", Triple())
    total = x + 3 * branch
    torch.testing.assert_close(before(x), total.relu() if isinstance(backbone, ResNet) else total)
    torch.testing.assert_close(after(x), 3 * out)


@torch.no_grad()
def test_dense_block_seams_act_before_the_concatenation() -> None:
    layer = DenseNet(10, depth=10, growth_rate=4).eval().stages[0].get_submodule("0")
    x = torch.randn(2, 8, 8, 8)
    new = layer(x)[:, 8:]
    layer.get_submodule("branch").add_module("attention", Triple())
    torch.testing.assert_close(layer(x), torch.cat([x, 3 * new], dim=1))


@pytest.mark.parametrize(("target", "knobs"), [(WRN, {"depth": 10, "widen": 2}), (PreResNet, {"blocks": 1})])
@torch.no_grad()
def test_a_projection_sees_the_activated_map_in_a_wrn_and_the_raw_map_in_a_preresnet(
    target: type[Backbone], knobs: dict[str, Any]
) -> None:
    block = target(10, **knobs).eval().stages[1].get_submodule("0")
    channels = block.shortcut.in_channels
    x = torch.randn(2, channels, 8, 8)
    layers = dict(block.named_modules())
    nn.init.zeros_(list(layers["branch"].children())[-1].weight)
    seen = x.div((1 + 1e-5) ** 0.5).relu() if target is WRN else x
    torch.testing.assert_close(block(x), nn.functional.conv2d(seen, block.shortcut.weight, stride=2))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@torch.no_grad()
def test_wrns_dropout_acts_in_training_only(dropout: float) -> None:
    backbone = WRN(10, depth=10, widen=2, dropout=dropout)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(backbone.train()(images), backbone(images)) == (dropout == 0)
    assert torch.equal(backbone.eval()(images), backbone(images))


def test_initial_weights_are_kaiming_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    backbone = ResNet(100, depth=18, stem="cifar")
    extra = backbone.seams["bottleneck"][0].block
    assert extra is not None
    for layer in [*backbone.modules(), *extra().modules()]:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.05)
            assert not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
