"""What PyTorch traces, scripts, exports or compiles computes what the attention computes, at other sizes too."""

import io
import operator
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor

from bam_exp.attention import BAM, CBAM, ECA, SE, ConvBlock, attach

MODULES: dict[str, Callable[[], nn.Module]] = {
    "BAM": lambda: BAM(16, reduction=4),
    "BAM, product": lambda: BAM(16, reduction=4, combine="product", norm="released"),
    "BAM, maximum": lambda: BAM(16, reduction=4, combine="max", norm="equations"),
    "BAM, channel": lambda: BAM(16, reduction=4, branches="channel"),
    "BAM, spatial": lambda: BAM(16, reduction=4, branches="spatial"),
    "SE": lambda: SE(16, reduction=4),
    "CBAM": lambda: CBAM(16, reduction=4),
    "ECA": lambda: ECA(16),
    "ConvBlock": lambda: ConvBlock(16, block=nn.Conv2d(16, 16, 3, padding=1)),
}
EXAMPLE = (2, 16, 6, 6)
OTHERS = [(1, 16, 6, 6), (3, 16, 5, 9), (5, 16, 8, 2)]


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return shaken(MODULES[request.param]()).eval()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit and the old ONNX exporter announce that they are deprecated
        yield


def shaken(network: nn.Module) -> nn.Module:
    """The network with every weight of its attentions moved off its initial value."""
    with torch.no_grad():
        for parameter in (p for m in network.modules() if isinstance(m, (BAM, SE, CBAM, ECA)) for p in m.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def maps(sizes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator) for size in sizes]


def check(other: Callable[[Tensor], Tensor], module: nn.Module, sizes: list[tuple[int, ...]] = OTHERS) -> None:
    for x in maps([EXAMPLE, *sizes]):
        torch.testing.assert_close(other(x), module(x), rtol=1e-5, atol=1e-5)


def saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def test_jit_trace(module: nn.Module) -> None:
    check(saved_and_loaded(torch.jit.trace(module, torch.randn(EXAMPLE))), module)


def test_jit_script(module: nn.Module) -> None:
    check(saved_and_loaded(torch.jit.script(module)), module)


def test_fx(module: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(module)
    check(traced, module)
    x = maps([EXAMPLE])[0].to(memory_format=torch.channels_last)
    assert traced(x).is_contiguous(memory_format=torch.channels_last)


def test_export(module: nn.Module) -> None:
    exported = torch.export.export(module, (torch.randn(EXAMPLE),))
    check(exported.module(), module, sizes=[])


def test_export_of_any_size(module: nn.Module) -> None:
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    exported = torch.export.export(module, (torch.randn(3, 16, 5, 7),), dynamic_shapes=sizes)
    check(exported.module(), module, sizes=OTHERS[1:])


def test_onnx(module: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    sizes = ({0: "n", 2: "h", 3: "w"},)
    program = (torch.randn(3, 16, 5, 7),)
    torch.onnx.export(
        module, program, tmp_path / "new.onnx", dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False
    )
    check(in_onnxruntime(tmp_path / "new.onnx"), module)


def test_onnx_by_the_old_exporter(module: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
    torch.onnx.export(module, (torch.randn(EXAMPLE),), tmp_path / "old.onnx", dynamo=False, **names)
    check(in_onnxruntime(tmp_path / "old.onnx"), module)


def in_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("kind", [BAM, SE, CBAM, ECA])
def test_feature_extractor_of_torchvision(kind: Any) -> None:
    torch.manual_seed(0)
    network = shaken(attach(torchvision.models.resnet18(), kind, at=["layer1", "layer2"])).eval()
    extractor = create_feature_extractor(network, {"layer1": "first", "layer2": "second", "fc": "logits"})
    x = torch.randn(2, 3, 64, 48)
    found = extractor(x)
    inside = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
    torch.testing.assert_close(found["first"], inside)
    torch.testing.assert_close(found["second"], network.layer2(inside))
    torch.testing.assert_close(found["logits"], network(x))


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("BAM")])
def test_a_compiled_graph_can_be_cached(name: str) -> None:
    """AOTAutograd keeps no graph with an autograd.Function in its cache; Dynamo's graph has none, and one graph it is."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    module = MODULES[name]()
    module.compile(backend=backend, fullgraph=True)
    module(torch.randn(EXAMPLE, requires_grad=True))
    assert len(graphs) == 1
    targets = {node.target for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert operator.mul in targets
    assert not any("autograd" in str(target) for target in targets)


@pytest.mark.slow
def test_resnet50_in_onnxruntime(tmp_path: Path) -> None:
    """torchvision's ResNet-50 with BAM, at three batch sizes and an input that is not square."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network = shaken_statistics(attach(torchvision.models.resnet50(), BAM, at=["layer1", "layer2", "layer3"]))
    path, example = tmp_path / "resnet50.onnx", (torch.randn(2, 3, 64, 96),)
    sizes = ({0: "n", 2: "h", 3: "w"},)
    torch.onnx.export(network, example, path, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False)
    run = in_onnxruntime(path)
    for size in ((1, 3, 64, 96), (2, 3, 96, 96), (5, 3, 128, 64)):
        x = torch.randn(size)
        expected = network(x)
        assert ((run(x) - expected).norm() / expected.norm()).item() < 1e-5


def shaken_statistics(network: nn.Module) -> nn.Module:
    """The network in eval mode after a few batches, without which its logits would be nearly zero."""
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 64, 64))
    return network.eval()
