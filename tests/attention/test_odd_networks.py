"""Networks that are compiled, shared, converted, split into parts or not yet in memory when an attention comes to them."""

import copy
import warnings
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from bam_exp import BAM, attach, attached, detach
from bam_exp.training.batch_norm import synchronise

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """The convolutional network of many tutorials, whose last module before a pooling is a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        for level, (inner, outer) in enumerate([(3, 16), (16, 32), (32, 64)], start=1):
            self.add_module(f"a{level}", nn.Conv2d(inner, outer, 3, padding=1))
            self.add_module(f"b{level}", nn.Conv2d(outer, outer, 3, padding=1))
            self.add_module(f"bn{level}", nn.BatchNorm2d(outer))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for level in (1, 2, 3):
            x = F.relu(self.get_submodule(f"a{level}")(x))
            x = F.relu(self.get_submodule(f"bn{level}")(self.get_submodule(f"b{level}")(x)))
            x = x if level == 3 else F.max_pool2d(x, 2)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def with_weights(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with weights at which an attention changes the output."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.3).add_(1.0 if name.endswith("norm.weight") else 0.0)
    return network.eval()


def places(network: nn.Module) -> list[str]:
    report = attached(network)
    return [] if report is None else [place.name for place in report.places]


def test_a_network_with_a_compiled_part() -> None:
    network = torchvision.models.resnet18()
    network.layer4 = torch.compile(network.layer4, backend="eager")
    assert places(attach(network, BAM, at="auto")) == ["layer1", "layer2", "layer3"]


def test_a_compiled_network_is_refused_and_one_compiled_afterwards_reports() -> None:
    network = torchvision.models.resnet18()
    for at in ("auto", ["_orig_mod.layer1"]):
        with pytest.raises(ValueError, match=r"at=_orig_mod\.layer1: .* is compiled; attach before torch\.compile"):
            attach(torch.compile(network, backend="eager"), BAM, at=at)
    assert attached(network) is None
    after = torch.compile(attach(network, BAM, at="auto"), backend="eager")
    assert places(cast(nn.Module, after)) == [f"_orig_mod.layer{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("at", ["auto", ["layer1", "layer2", "layer3"]], ids=str)
def test_attached_where_nothing_is_differentiated(mode: Any, at: Any) -> None:
    with mode():
        network = attach(torchvision.models.resnet18(), BAM, at=at)
    assert places(network) == ["layer1", "layer2", "layer3"]


def test_a_network_from_the_meta_device_is_initialised_by_reset_parameters() -> None:
    with torch.device("meta"):
        network = attach(torchvision.models.resnet18(), BAM, at="auto")
    network.to_empty(device="cpu")
    numbers = [x for x in (*network.parameters(), *network.buffers()) if x.is_floating_point()]
    for tensor in numbers:
        tensor.data.fill_(float("nan"))
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in numbers)
    assert torch.equal(network.layer1.attention.spatial_norm.weight, torch.ones(64))


def test_what_drops_a_hook_is_told_and_what_converts_before_it_does_not() -> None:
    network = cast(Plain, with_weights(attach(Plain(), BAM, at="auto", reduction=4)))
    report = attached(network)
    assert places(network) == ["bn1", "bn2"]
    assert "bn1 is a batch norm" in str(report)
    assert "NOT RUN" not in str(report)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    lines = str(attached(converted)).splitlines()
    assert [line.partition(":")[0] for line in lines if "NOT RUN" in line] == ["BAM behind bn1", "BAM behind bn2"]

    # The order that docs/network.md gives.
    before = attach(nn.SyncBatchNorm.convert_sync_batchnorm(Plain()), BAM, at="auto", reduction=4)
    for module in list(before.modules()):
        if isinstance(module, BAM):
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in before.modules())
    before.load_state_dict(network.state_dict())
    assert "NOT RUN" not in str(attached(before))
    assert torch.allclose(before.eval()(IMAGES), network(IMAGES), rtol=1e-5)
    assert not torch.allclose(detach(before)(IMAGES), network(IMAGES), rtol=0.01)


@pytest.mark.parametrize("gpu", [False, True], ids=["CPUs", "GPUs"])
def test_several_processes_run_an_attention_behind_a_batch_norm(gpu: bool) -> None:
    network = with_weights(attach(Plain(), BAM, at="auto", reduction=4))
    expected = network(IMAGES)
    synchronise(network, gpu=gpu)
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    assert torch.allclose(network.eval()(IMAGES), expected, rtol=1e-5)


def test_the_parts_of_a_network_report_together_and_are_detached_together() -> None:
    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    attach(detector.backbone, BAM, at="auto")
    assert places(detector) == [f"backbone.body.layer{number}" for number in (1, 2, 3)]
    assert places(detector.backbone) == [f"body.layer{number}" for number in (1, 2, 3)]
    detach(detector.backbone.body.layer2)
    assert places(detector) == ["backbone.body.layer1", "backbone.body.layer3"]
    detach(detector)
    assert attached(detector) is None
    assert attached(detector.backbone) is None


def test_names_that_look_like_an_attentions() -> None:
    """The report names the place, whatever it is called, and also where the network is that place itself."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attention, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.self_attention(x))
            return y

    network = attach(Network(), BAM, at=["self_attention"])
    assert places(network) == ["self_attention"]
    assert str(attached(network)).startswith("BAM behind self_attention: 16 channels")
    part = attached(network.self_attention)
    assert str(part).startswith("BAM behind the module itself: 16 channels")
    assert "NOT RUN" not in f"{attached(network)} {part}"
    detach(network.self_attention)
    assert attached(network) is None


def test_a_place_that_was_seen_in_a_run_of_a_part_says_so() -> None:
    class Pyramid(nn.Module):
        """Runs its head on maps of two sizes."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())

        def forward(self, images: list[Tensor]) -> list[Tensor]:
            return [self.head(images[0]), self.head(images[0][:, :, ::2, ::2])]

    assert "seen in a run of head alone" in str(attached(attach(Pyramid(), BAM, at=["head"])))


class Shared(nn.Module):
    """A network whose layers have second names, as in a U-Net around a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torchvision.models.resnet18()
        self.first = nn.Sequential(*list(self.base.children())[:5])
        self.second = self.base.layer2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_a_module_with_two_names() -> None:
    assert places(attach(Shared(), BAM, at="second")) == ["base.layer2"]
    for channels in (None, 128):
        with pytest.raises(ValueError, match=r"at=\[base\.layer2\.1,second\.1\]: two of these are names of one module"):
            attach(Shared(), BAM, at=["base.layer2.1", "second.1"], channels=channels)


def test_a_tensor_that_is_no_buffer() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.mean = torchvision.models.resnet18(), torch.zeros(1, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(x - self.mean)
            return y

    network = Normalised()
    assert len(places(attach(network, BAM, at="auto"))) == 3
    assert network.mean.device.type == "cpu"


def test_a_place_without_weights_takes_the_type_of_those_before_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3).double(), nn.ReLU(), nn.Conv2d(16, 4, 3).half())
    attach(network, BAM, at=["2"], channels=16)
    assert {p.dtype for p in network[2].parameters()} == {torch.float64}


def test_torchscript_of_an_attention_behind_a_block() -> None:
    network = attach(torchvision.models.resnet18(), BAM, at=["layer1.1", "layer2.1"]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.script(network)
    assert torch.allclose(scripted(IMAGES), network(IMAGES), atol=1e-5)


def test_what_make_fx_records_can_be_trained() -> None:
    module, x = cast(BAM, with_weights(BAM(16, 4))), torch.randn(2, 16, 8, 8)
    recorded = make_fx(module)(x)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    module(mine).square().sum().backward()
    recorded(other).square().sum().backward()
    assert torch.allclose(cast(Tensor, mine.grad), cast(Tensor, other.grad), rtol=1e-4, atol=1e-5)


def test_every_kind_of_batch_norm_may_be_initialised() -> None:
    network = attach(torchvision.models.resnet18(), BAM, at="auto")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.weight)


@pytest.mark.parametrize(
    ("kind", "keywords", "line"),
    [
        (BAM(64), {"at": "auto"}, r"BAM\(\.\.\.\) is one module; give the class"),
        (lambda _channels: None, {"at": "auto"}, r"<lambda>: should make a torch\.nn\.Module, not a NoneType"),
        (BAM, {"at": "auto", "channels": [5]}, r'channels=\[5\]: with at="auto" the widths are found'),
        (BAM, {"at": "auto", "example": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "in floating-point numbers"),
    ],
    ids=["instance", "none", "channels", "uint8"],
)
def test_a_wrong_argument_is_one_line(kind: Any, keywords: dict[str, Any], line: str) -> None:
    network = torchvision.models.resnet18()
    with pytest.raises((ValueError, TypeError), match=line) as error:
        attach(network, kind, **keywords)
    assert "\n" not in str(error.value)
    assert attached(network) is None
