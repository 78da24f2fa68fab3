"""Faster R-CNN trains with any attention at its seams, and frozen normalisations make a batch of one image possible."""

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from bam_exp.attention import BAM, attach
from bam_exp.backbones import ResNet
from bam_exp.backbones.backbone import Residual
from bam_exp.complexity import complexity
from bam_exp.data.target import Target
from bam_exp.detectors import faster_rcnn_resnet101
from bam_exp.detectors.regions import Sampler
from bam_exp.weights import put_weights

SIZE = (96, 128)
TARGETS = [
    Target(0, SIZE, torch.tensor([[10.0, 10, 50, 60], [60, 20, 100, 90]]), torch.tensor([3, 7])),
    Target(1, (80, 120), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


@pytest.mark.parametrize(
    ("neck", "params", "with_bam"), [("c4", 52_829_713, 53_194_948), ("fpn", 60_749_284, 61_114_519)]
)
def test_parameters(neck: str, params: int, with_bam: int) -> None:
    with torch.device("meta"):
        network = faster_rcnn_resnet101(80, neck=neck)
        assert complexity(network, 96).params == params
        attach(network, BAM)
    assert complexity(network, 96).params == with_bam


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_a_step_reaches_every_layer_and_detections_lie_in_their_images(neck: str) -> None:
    torch.manual_seed(0)
    network = attach(faster_rcnn_resnet101(80, neck=neck), BAM)
    images = torch.randn(2, 3, *SIZE)
    terms, weight = network.losses(network(images), images, TARGETS)
    assert weight == 2
    torch.stack(list(terms.values())).sum().backward()
    missing = [name for name, value in network.named_parameters() if value.grad is None]
    assert not missing
    network.eval()
    with torch.no_grad():
        found = network.detections(network(images), images, TARGETS)
    assert [set(one) for one in found] == [{"boxes", "scores", "labels"}] * 2
    for one, target in zip(found, TARGETS, strict=True):
        height, width = target.size
        assert len(one["boxes"]) <= 100
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert set(one["labels"].tolist()) <= set(range(1, 81))


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_the_loss_of_a_batch_is_the_mean_over_its_images(neck: str) -> None:
    """What is drawn for an image depends on its seed only: neither on the global generator nor on the batch around it."""
    torch.manual_seed(0)
    network = faster_rcnn_resnet101(5, neck=neck)
    for block in network.modules():
        if isinstance(block, Residual):
            nn.init.zeros_(block.branch.bn3.weight)  # or the maps of random weights grow without bound in evaluation
        if isinstance(block, nn.BatchNorm2d):
            block.eval()  # statistics of a batch are of all its images
    network.roi_heads.fg_bg_sampler.per_image = 24
    images, targets = torch.randn(2, 3, *SIZE), [one._replace(seed=7 + one.number) for one in TARGETS]
    targets = [one._replace(labels=one.labels.clamp(max=5)) for one in targets]
    with torch.no_grad():
        both, _ = network.losses(network(images), images, targets)
        torch.manual_seed(1)
        again, _ = network.losses(network(images), images, targets)
        alone = [network.losses(network(images[i : i + 1]), images[i : i + 1], targets[i : i + 1])[0] for i in range(2)]
        other, _ = network.losses(network(images), images, [one._replace(seed=9) for one in targets])
    assert again == both
    assert other != both
    for name, term in both.items():
        torch.testing.assert_close((alone[0][name] + alone[1][name]) / 2, term, rtol=1e-4, atol=1e-6)


def test_samples_are_as_many_as_torchvisions() -> None:
    labels = [torch.tensor([1, 0, -1, 2, 0, 0, 3, 0]), torch.tensor([0, 0, -1]), torch.tensor([-1, 4])]
    ours = Sampler(4, 0.5)
    ours.generators = [torch.Generator().manual_seed(i) for i in range(3)]
    theirs = BalancedPositiveNegativeSampler(4, 0.5)
    for mine, yours in zip(ours(labels), theirs(labels), strict=True):
        assert [int(mask.sum()) for mask in mine] == [int(mask.sum()) for mask in yours]
    positives, negatives = ours(labels)
    for values, positive, negative in zip(labels, positives, negatives, strict=True):
        assert (values[positive.bool()] >= 1).all()
        assert (values[negative.bool()] == 0).all()
    assert ours.share == (4 + 2 + 1) / 12


def test_the_last_stage_keeps_the_size_of_the_region() -> None:
    with torch.device("meta"):
        network = faster_rcnn_resnet101(80)
        regions = torch.empty(2, 1024, 7, 7)
        assert network.roi_heads.box_head.stage(regions).shape == (2, 2048, 7, 7)


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_weights_of_a_resnet_fill_all_its_stages(neck: str) -> None:
    source = ResNet(10, depth=101, stem="imagenet")
    network = faster_rcnn_resnet101(80, neck=neck)
    kept = put_weights(network, source.state_dict(), source="resnet", onto=True)
    assert not any("stage" in name for name in kept)
    last = "roi_heads.box_head.stage" if neck == "c4" else "backbone.stages.3"
    assert torch.equal(network.get_parameter(f"{last}.2.branch.conv3.weight"), source.stages[3][2].branch.conv3.weight)
