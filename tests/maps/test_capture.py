"""What is captured of a network while it runs."""

from typing import Any

import pytest
import torch

from bam_exp.attention import BAM, SE, attach
from bam_exp.backbones import ResNet
from bam_exp.errors import ConfigError
from bam_exp.maps.capture import capture, grad_cam

FORMS = [
    *({"combine": combine} for combine in ("sum", "product", "max")),
    *({"branches": branches} for branches in ("channel", "spatial")),
    *({"norm": norm} for norm in ("equations", "released")),
]


def network(**knobs: Any) -> ResNet:
    """A network whose running statistics are those of a few random images."""
    torch.manual_seed(0)
    backbone = ResNet(10, depth=20, stem="cifar", widen=0.5)
    attach(backbone, BAM, reduction=4, **knobs)
    with torch.no_grad():
        for _ in range(30):
            backbone(torch.randn(8, 3, 32, 32))
    return backbone.eval()


@pytest.mark.parametrize("knobs", FORMS, ids=lambda knobs: "-".join(knobs.values()))
def test_the_refined_map_follows_from_the_map_and_the_attention(knobs: dict[str, str]) -> None:
    """|F′| lies between |F| and 2 |F|; where M(F) is the same in all channels, it is |F| (1 + M(F))."""
    backbone = network(**knobs)
    maps, logits = capture(backbone, images := torch.randn(5, 3, 32, 32))
    assert list(maps) == ["stages.0.attention", "stages.1.attention"]
    assert torch.equal(logits, backbone(images))
    for one, channels, size in zip(maps.values(), (8, 16), (32, 16), strict=True):
        assert one.before.shape == one.after.shape == one.attention.shape == (5, size, size)
        assert (one.channel is None) == (knobs.get("branches") == "spatial")
        assert (one.spatial is None) == (knobs.get("branches") == "channel")
        assert one.channel is None or one.channel.shape == (5, channels)
        assert one.spatial is None or one.spatial.shape == (5, size, size)
        assert 0 <= one.attention.min() <= one.attention.max() <= 1
        assert (one.after >= one.before * (1 - 1e-5)).all()
        assert (one.after <= one.before * (2 + 1e-5)).all()
        if (
            knobs.get("branches") == "spatial"
        ):  # the weights and biases of the end norm are still 1 and 0 in all channels
            torch.testing.assert_close(one.after, one.before * (1 + one.attention))
            torch.testing.assert_close(one.attention, one.spatial.sigmoid())


def test_a_second_pass_is_not_recorded() -> None:
    backbone = network()
    maps, _ = capture(backbone, torch.randn(2, 3, 32, 32))
    kept = maps["stages.0.attention"].before.clone()
    backbone(torch.randn(2, 3, 32, 32))
    assert torch.equal(maps["stages.0.attention"].before, kept)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_grad_cam_is_class_activation_mapping_where_the_head_is_a_mean_and_a_linear_layer() -> None:
    """Selvaraju et al. (ICCV 2017, section 3.1): Grad-CAM generalises CAM (Zhou et al. 2016), up to the number of pixels."""
    backbone = network()
    images, classes = torch.randn(3, 3, 32, 32), torch.tensor([1, 7, 7])
    features = backbone.stages(backbone.stem(images))
    weights = backbone.head.fc.weight[classes]
    expected = torch.einsum("nc,nchw->nhw", weights, features).relu() / features[0, 0].numel()
    torch.testing.assert_close(grad_cam(backbone, images, classes), expected.detach())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_networks_without_maps_are_refused() -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ConfigError, match="no attention"):
        capture(ResNet(10, depth=20, stem="cifar"), images)
    with pytest.raises(ConfigError, match=r"attention SE has no maps; these have: bam, bam_equations, bam_released"):
        capture(attach(ResNet(10, depth=20, stem="cifar"), SE, reduction=8), images)
