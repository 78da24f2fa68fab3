"""BAM as a library: what is imported, how it is called, and what PyTorch, timm and torch.hub do with a network that has it."""

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import bam_exp
from bam_exp.attention import BAM, CBAM, ECA, SE, attach

REPOSITORY = Path(bam_exp.__file__).resolve().parents[1]


def in_a_new_process(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_nothing_more_than_torch_and_pydantic_is_imported() -> None:
    heavy = (
        "hydra",
        "omegaconf",
        "lightning",
        "pytorch_lightning",
        "torchvision",
        "pandas",
        "matplotlib",
        "scipy",
        "timm",
    )
    code = "import sys; from bam_exp import BAM, attach, detach; BAM(64); print(*{name.partition('.')[0] for name in sys.modules})"
    assert not set(heavy) & set(in_a_new_process(code).split())
    assert "torch" not in in_a_new_process("import sys, bam_exp; bam_exp.__version__; print(*sys.modules)").split()


def test_the_package_offers_what_it_lists() -> None:
    assert bam_exp.BAM is BAM
    assert bam_exp.attach is attach
    assert set(bam_exp.__all__) <= set(dir(bam_exp))
    assert all(hasattr(bam_exp, name) for name in bam_exp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'BAN'"):
        bam_exp.BAN  # noqa: B018


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def test_positional_and_numpy_arguments() -> None:
    for module, other in (
        (BAM(64, 16), BAM(64)),
        (BAM(64, 8, 2), BAM(64, reduction=8, dilation=2)),
        (BAM(np.int64(64), np.int32(8)), BAM(64, reduction=8)),
        (BAM(64, reduction=np.uint8(8)), BAM(64, reduction=8)),
        (SE(64, 8), SE(64, reduction=8)),
        (CBAM(64, 8, 3), CBAM(64, reduction=8, kernel_size=3)),
        (ECA(64, 5), ECA(64, kernel_size=5)),
    ):
        assert shapes(module) == shapes(other)
    assert BAM(64, 8, 2).spatial.conv1.dilation == (2, 2)


def test_device_and_dtype_are_those_of_pytorchs_own_layers() -> None:
    for kind in (BAM, SE, CBAM, ECA):
        module = kind(64, device="meta", dtype=torch.float64)
        assert all(weight.is_meta and weight.dtype == torch.float64 for weight in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "knobs", "error", "message"),
    [
        (
            (64,),
            {"reductoin": 8},
            TypeError,
            r"BAM: reductoin=8: unexpected keyword argument; did you mean reduction\?",
        ),
        (
            (64,),
            {"xyz": 8},
            TypeError,
            r"BAM: xyz=8: unexpected keyword argument \(there are channels, reduction, .*\)",
        ),
        ((), {}, TypeError, "BAM: channels is missing"),
        ((64, 16, 4, "both"), {}, TypeError, "BAM: .*unexpected positional argument.*"),
        ((64,), {"reduction": 0}, ValueError, "BAM: reduction=0: input should be greater than 0"),
        ((64, 0), {}, ValueError, "BAM: reduction=0: input should be greater than 0"),
        (("64",), {}, ValueError, "BAM: channels='64': input should be a valid integer"),
        ((64,), {"dilation": 2.0}, ValueError, "BAM: dilation=2.0: input should be a valid integer"),
        ((64,), {"reduction": True}, ValueError, "BAM: reduction=True: input should be a valid integer"),
        ((64,), {"combine": "mean"}, ValueError, "BAM: combine='mean': input should be 'sum', 'product' or 'max'"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[Any, ...], knobs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$") as raised:
        BAM(*arguments, **knobs)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_wrong_kernel_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^ECA: kernel_size=4: should be odd, so that the map keeps its size$"):
        ECA(64, 4)


@pytest.mark.parametrize(
    ("name", "knobs", "count"),
    [
        ("resnet18", {"block_args": {"attn_layer": BAM}}, 8),
        ("resnet50", {"block_args": {"attn_layer": partial(BAM, reduction=8)}}, 16),
        ("skresnet18", {"block_args": {"attn_layer": BAM}}, 8),
        ("eca_vovnet39b", {"attn": BAM}, 4),
        ("resnext26ts", {"attn_layer": BAM}, 8),
    ],
)
def test_timm_takes_it_as_an_attention_layer(name: str, knobs: dict[str, Any], count: int) -> None:
    network = timm.create_model(name, **knobs).eval()
    assert sum(isinstance(module, BAM) for module in network.modules()) == count
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_a_network_may_initialise_all_of_its_batch_norms() -> None:
    """As torchvision's constructors do, in a network that was written with a BAM in it."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.bam = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), BAM(16, 4)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm)):
                    nn.init.constant_(module.weight, 1)
                    nn.init.constant_(module.bias, 0)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bam(self.bn(self.conv(x)))
            return y

    assert Small()(torch.randn(2, 3, 8, 8)).shape == (2, 16, 6, 6)


def test_torch_hub() -> None:
    torch.manual_seed(0)
    bam = torch.hub.load(str(REPOSITORY), "bam", 64, reduction=8, source="local")
    assert type(bam).__name__ == "BAM"
    assert bam.channel.fc0.out_features == 8
    network = torch.hub.load(str(REPOSITORY), "attach", torchvision.models.resnet18(), source="local")
    assert hasattr(network.layer3, "attention")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return attach(torchvision.models.resnet18(num_classes=10), BAM, at="auto")


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel(network: nn.Module) -> None:
    """The gradients are those without it, and no weight goes unused."""
    x, plain = torch.randn(2, 3, 32, 32), copy.deepcopy(network)
    plain(x).square().sum().backward()
    parallel = nn.parallel.DistributedDataParallel(network)
    parallel(x).square().sum().backward()
    for (name, ours), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_moving_average_of_weights(network: nn.Module) -> None:
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(network)
    weight = network.layer1.attention.spatial_norm.weight
    with torch.no_grad():
        weight.fill_(3)
    average.update_parameters(network)
    torch.testing.assert_close(average.module.layer1.attention.spatial_norm.weight, torch.full_like(weight, 2))
    assert average.module.layer1.attention is not network.layer1.attention


def test_checkpointing_of_activations(network: nn.Module) -> None:
    network.eval()
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    y = torch.utils.checkpoint.checkpoint_sequential(
        nn.Sequential(*list(network.children())[:-1]), 2, x, use_reentrant=False
    )
    (found,) = torch.autograd.grad(network.fc(y.flatten(1)).sum(), x)
    torch.testing.assert_close(found, expected)


def error_of(network: nn.Module, x: Tensor, expected: Tensor) -> float:
    return ((network(x) - expected).norm() / expected.norm()).item()


def test_quantisation(network: nn.Module) -> None:
    """Of linear layers when they run, and of the whole network by torch.fx; both keep BAM's norms and its last step."""
    x = torch.randn(4, 3, 64, 64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(3):
            network(torch.randn(8, 3, 64, 64))
        expected = network.eval()(x)
        dynamic = quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
        assert not isinstance(dynamic.layer1.attention.channel.fc0, nn.Linear)
        assert error_of(dynamic, x, expected) < 0.05
        mapping = quantization.get_default_qconfig_mapping(torch.backends.quantized.engine)
        prepared = quantize_fx.prepare_fx(network, mapping, (x,))
        prepared(x)
        assert error_of(quantize_fx.convert_fx(prepared), x, expected) < 0.3
