"""SSD equals torchvision's where torchvision has one, and StairNet's levels have the sizes of SSD's."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssd300_vgg16

from bam_exp.attention import BAM, attach
from bam_exp.backbones import VGG, MobileNet
from bam_exp.data.target import Target
from bam_exp.detectors import Detector, ssd_mobilenet, ssd_resnet20, ssd_vgg16, stairnet_mobilenet, stairnet_vgg16
from bam_exp.weights import put_weights

COCO_SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
NONE = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def target(number: int, size: int, boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(number, (size, size), torch.tensor(boxes), torch.tensor(labels))


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Detector]:
    """torchvision's SSD300 with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21)
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    ours = ssd_vgg16(20, boxes=[4, 6, 6, 6, 4, 4], scales=COCO_SCALES)
    ours.load_state_dict(ours.from_torchvision(theirs.state_dict()))
    return theirs, ours


def test_the_losses_are_torchvisions(pair: tuple[nn.Module, Detector]) -> None:
    theirs, ours = pair
    images = torch.rand(2, 3, 300, 300)
    targets = [
        target(0, 300, [[10, 10, 150, 160], [100, 120, 130, 180]], [3, 5]),
        target(1, 300, [[20, 30, 250, 220]], [15]),
    ]
    expected = theirs.train()(list(images), [{"boxes": one.boxes, "labels": one.labels} for one in targets])
    terms, weight = ours.train().losses(ours(images), images, targets)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-5
    )
    assert weight >= 3  # every object has one default box at least


def test_the_detections_are_torchvisions(pair: tuple[nn.Module, Detector]) -> None:
    theirs, ours = pair
    images = torch.rand(2, 3, 300, 300)
    with torch.no_grad():
        expected = theirs.eval()(list(images))
        found = ours.eval().detections(ours(images), images, [target(i, 300, [[0, 0, 9, 9]], [1]) for i in range(2)])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-5, atol=1e-6)


def test_an_image_without_objects_adds_nothing() -> None:
    torch.manual_seed(0)
    network = ssd_resnet20(5)
    images, objects = torch.randn(2, 3, 64, 64), target(0, 64, [[8, 8, 40, 40]], [2])
    outputs = network(images)
    empty = Target(1, (64, 64), *NONE)
    both, weight = network.losses(outputs, images, [objects, empty])
    first = [(logits[:1], offsets[:1]) for logits, offsets in outputs]
    alone, weight_alone = network.losses(first, images[:1], [objects])
    assert both == alone
    assert weight == weight_alone
    terms, weight = network.losses(outputs, images, [empty, empty])
    assert sum(terms.values()) == 0
    assert weight == 0


@pytest.mark.parametrize(
    ("make", "size", "sides", "boxes"),
    [
        (ssd_vgg16, 300, [38, 19, 10, 5, 3, 1], 11_620),
        (stairnet_vgg16, 300, [38, 19, 10, 5, 3, 1], 11_620),
        (ssd_mobilenet, 300, [19, 10, 5, 3, 2, 1], 2_990),
        (stairnet_mobilenet, 300, [19, 10, 5, 3, 2, 1], 2_990),
        (ssd_resnet20, 64, [16, 8, 4], 672),
    ],
)
def test_levels(make: type[Detector], size: int, sides: list[int], boxes: int) -> None:
    with torch.device("meta"):
        network = make(20).eval()
        outputs = network(torch.empty(1, 3, size, size))
    assert [logits.shape[-1] for logits, _ in outputs] == sides
    assert sum(offsets[0].numel() // 4 for _, offsets in outputs) == boxes
    assert all(logits.shape[1] * 4 == offsets.shape[1] * 21 for logits, offsets in outputs)


@pytest.mark.parametrize("make", [ssd_vgg16, stairnet_vgg16, ssd_mobilenet, stairnet_mobilenet, ssd_resnet20])
def test_an_image_of_the_smallest_size_is_taken(make: type[Detector]) -> None:
    with torch.device("meta"):
        network = make(5).eval()
        for size in [network.min_size, network.max_size or network.min_size]:
            network(torch.empty(1, 3, size, size))


@pytest.mark.parametrize(("make", "count"), [(stairnet_vgg16, 6), (ssd_vgg16, 6), (ssd_resnet20, 3)])
def test_attention_stands_before_every_classifier(make: type[Detector], count: int) -> None:
    with torch.device("meta"):
        network = make(20)
        before = network(torch.empty(2, 3, 300, 300))
        attach(network, BAM, at="classifier", reduction=16)
        after = network(torch.empty(2, 3, 300, 300))
    assert sum(isinstance(module, BAM) for module in network.modules()) == count
    assert [logits.shape for logits, _ in before] == [logits.shape for logits, _ in after]


def test_weights_of_imagenets_vgg_fill_conv6_and_conv7_by_subsampling() -> None:
    torch.manual_seed(0)
    source = VGG(10, depth=16)
    network = ssd_vgg16(20)
    kept = put_weights(network, source.state_dict(), source="vgg", onto=True)
    assert {name.split(".")[0] for name in kept} == {"extras", "neck", "heads"}
    assert not any(name.startswith("extras.0.") for name in kept)
    assert torch.equal(
        network.get_parameter("backbone.stages.4.2.conv.weight"), source.get_parameter("stages.4.2.conv.weight")
    )
    # Row 3 and column 6 of the map that fc6 sees are row 1 and column 2 of conv6; every fourth output remains.
    fc6 = source.head.fc1.weight.view(4096, 512, 7, 7)
    conv6 = network.get_parameter("extras.0.conv6.weight")
    assert torch.equal(conv6[5, :, 1, 2], fc6[20, :, 3, 6])
    assert torch.equal(network.get_parameter("extras.0.conv7.weight")[2, 3, 0, 0], source.head.fc2.weight[8, 12])


def test_weights_of_another_backbone_are_refused() -> None:
    with torch.device("meta"):
        network = ssd_vgg16(20)
    with pytest.raises(ValueError, match=r"weights\.file: not of this network: it lacks backbone\.stages"):
        put_weights(network, MobileNet(5).state_dict(), source="weights.file", onto=True)


@pytest.mark.parametrize(
    ("knobs", "said"), [({"boxes": [4, 6]}, "6 numbers, one for each level"), ({"scales": [0.1]}, "7 numbers")]
)
def test_boxes_and_scales_fit_the_levels(knobs: dict[str, object], said: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        ssd_mobilenet(20, **knobs)


def test_a_default_box_of_each_level_covers_the_scale_it_is_given() -> None:
    network = ssd_mobilenet(20)
    images = torch.zeros(1, 3, 300, 300)
    with torch.no_grad():
        anchors = network._anchors(network.eval()(images), images)
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
    assert sides.min() == pytest.approx(0.15 * 300, rel=1e-4)
    assert sides.max() == pytest.approx(math.sqrt(0.9 * 1.05) * 300, rel=0.05)
