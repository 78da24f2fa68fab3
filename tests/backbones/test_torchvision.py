"""Every backbone that torchvision also has computes the same logits with the same weights, which travel by name in both
directions, and has the parameters and multiply-accumulates that torchvision states for its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bam_exp.backbones import VGG, Backbone, MobileNet, ResNet, ResNeXt, SqueezeNet

IMAGENET = {"stem": "imagenet", "stride_in": "3x3"}
TWINS: list[tuple[Callable[..., nn.Module], type[Backbone], dict[str, Any]]] = [
    (tv.resnet18, ResNet, {"depth": 18, **IMAGENET}),
    (tv.resnet34, ResNet, {"depth": 34, **IMAGENET}),
    (tv.resnet50, ResNet, {"depth": 50, **IMAGENET}),
    (tv.resnet101, ResNet, {"depth": 101, **IMAGENET}),
    (tv.resnext50_32x4d, ResNeXt, {"depth": 50, "groups": 32, "width_per_group": 4, **IMAGENET}),
    (tv.resnext101_64x4d, ResNeXt, {"depth": 101, "groups": 64, "width_per_group": 4, **IMAGENET}),
    (tv.squeezenet1_1, SqueezeNet, {}),
    (tv.vgg11, VGG, {"depth": 11}),
    (tv.vgg13, VGG, {"depth": 13}),
    (tv.vgg16, VGG, {"depth": 16}),
    (tv.vgg16_bn, VGG, {"depth": 16, "batch_norm": True}),
    (tv.vgg19, VGG, {"depth": 19}),
]


def dropouts(module: nn.Module) -> list[float]:
    return [layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize(("make", "target", "knobs"), TWINS)
def test_names_map_one_to_one_and_the_size_is_what_torchvision_states(
    make: Callable[..., nn.Module], target: type[Backbone], knobs: dict[str, Any]
) -> None:
    with torch.device("meta"):
        theirs, ours = make(weights=None), target(1000, **knobs).eval()
    renamed = ours.from_torchvision(theirs.state_dict())
    assert {name: weight.shape for name, weight in renamed.items()} == {
        name: weight.shape for name, weight in ours.state_dict().items()
    }
    assert dropouts(ours) == dropouts(theirs)
    stated = tv.get_model_weights(make).DEFAULT.meta
    assert sum(parameter.numel() for parameter in ours.parameters()) == stated["num_params"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(stated["_ops"], abs=0.0006)  # stated to three decimals


def randomise(module: nn.Module) -> None:
    """Statistics of a trained network: none of the 0 and 1 that would hide a swapped BatchNorm or a lost bias."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
        elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.uniform_(layer.bias, -0.5, 0.5)


@pytest.mark.parametrize(
    ("make", "target", "knobs"),
    [twin for twin in TWINS if twin[0] not in (tv.resnext101_64x4d, tv.vgg11, tv.vgg13, tv.vgg19)],  # large, and alike
)
@torch.no_grad()
def test_the_same_weights_give_the_same_logits_in_both_directions(
    make: Callable[..., nn.Module], target: type[Backbone], knobs: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    theirs, ours = make(weights=None, num_classes=10).eval(), target(10, **knobs).eval()
    images = torch.randn(2, 3, 64, 80)

    def same() -> Tensor:
        logits: Tensor = ours(images)
        assert logits.isfinite().all()
        assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the image matters
        torch.testing.assert_close(logits, theirs(images), rtol=1e-5, atol=1e-5 * logits.abs().max().item())
        return logits

    randomise(theirs)
    ours.load_state_dict(ours.from_torchvision(theirs.state_dict()))
    first = same()
    randomise(ours)
    names = {ours_name: theirs_name for theirs_name, ours_name in ours.torchvision_names().items()}
    back = {}
    for name, weight in ours.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        back[f"{names[layer]}.{leaf}"] = weight
    theirs.load_state_dict(back)
    assert not torch.allclose(same(), first)


@pytest.mark.parametrize(
    ("target", "knobs", "reason"),
    [
        (ResNet, {"depth": 50, "stem": "imagenet", "stride_in": "1x1"}, "stride_in=1x1"),
        (ResNeXt, {"depth": 29, "groups": 8, "width_per_group": 64, "stem": "cifar"}, "stride_in=1x1"),
        (SqueezeNet, {"stem_padding": 1}, "stem_padding=1"),
        (SqueezeNet, {"pool": "before"}, "pool=before"),
        (MobileNet, {}, "MobileNet"),
    ],
)
def test_a_network_that_torchvision_does_not_have_is_refused(
    target: type[Backbone], knobs: dict[str, Any], reason: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        target(10, **knobs).from_torchvision({})


def test_a_weight_without_a_place_is_refused_by_name() -> None:
    with torch.device("meta"):
        ours, theirs = ResNet(10, depth=18, **IMAGENET), tv.resnet34(weights=None)
    with pytest.raises(ValueError, match=r"layer1\.2\.conv1\.weight"):
        ours.from_torchvision(theirs.state_dict())


@torch.no_grad()
def test_torchvisions_weights_load_with_an_attention_attached() -> None:
    theirs, ours = tv.resnet18(weights=None), ResNet(1000, depth=18, **IMAGENET)
    ours.get_submodule(ours.seams["bottleneck"][0].name).add_module("attention", nn.Conv2d(64, 64, 1))
    missing, unexpected = ours.load_state_dict(ours.from_torchvision(theirs.state_dict()), strict=False)
    assert missing == ["stages.0.attention.weight", "stages.0.attention.bias"]
    assert not unexpected
