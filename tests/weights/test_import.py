"""Weights of torchvision and of the authors compute here what they compute there; what does not fit is refused by name."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from bam_exp.attention import BAM, attach
from bam_exp.backbones import ResNet
from bam_exp.build import build
from bam_exp.commands.weights import convert, main
from bam_exp.config import Chosen, compose
from bam_exp.errors import DataError
from bam_exp.weights import load_weights, read_checkpoint, save_weights

RELEASED = ["backbone=resnet50_imagenet", "backbone.stride_in=3x3", "attention=bam_released"]
RESNET18 = ["backbone=resnet18_imagenet", "attention=none"]


def network(words: list[str]) -> nn.Module:
    return build(Chosen.of(compose(["data=imagenet", "recipe=imagenet", *words]))).network.eval()


# --- the authors' ResNet-50 + BAM, from its printed names and formulas (paper notes; none of our modules) ------------

BLOCKS = (3, 4, 6, 3)


def released_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the authors' state dict; `module.` is of nn.DataParallel."""

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.{leaf}", (width,)) for leaf in ("weight", "bias", "running_mean", "running_var"))
        yield f"{name}.num_batches_tracked", ()

    def biased(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    for number, width in enumerate((256, 512, 1024), start=1):
        k, channel, spatial = width // 16, f"bam{number}.channel_att.gate_c", f"bam{number}.spatial_att.gate_s"
        yield from biased(f"{channel}.gate_c_fc_0", k, width)
        yield from norm(f"{channel}.gate_c_bn_1", k)
        yield from biased(f"{channel}.gate_c_fc_final", width, k)
        yield from biased(f"{spatial}.gate_s_conv_reduce0", k, width, 1, 1)
        yield from norm(f"{spatial}.gate_s_bn_reduce0", k)
        for i in (0, 1):
            yield from biased(f"{spatial}.gate_s_conv_di_{i}", k, k, 3, 3)
            yield from norm(f"{spatial}.gate_s_bn_di_{i}", k)
        yield from biased(f"{spatial}.gate_s_conv_final", 1, k, 1, 1)
    inputs = 64
    for stage, count in enumerate(BLOCKS, start=1):
        inner = 32 << stage
        for block in range(count):
            name = f"layer{stage}.{block}"
            for i, shape in enumerate(((inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)), start=1):
                yield f"{name}.conv{i}.weight", shape
                yield from norm(f"{name}.bn{i}", shape[0])
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * inner, inputs, 1, 1)
                yield from norm(f"{name}.downsample.1", 4 * inner)
            inputs = 4 * inner
    yield from biased("fc", 1000, 2048)


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """Random values of a size that keeps the activations in range."""
    random = torch.Generator().manual_seed(7)
    weights = {}
    for name, shape in released_shapes():
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(450_000)
        elif len(shape) > 1:
            value = torch.randn(shape, generator=random) / torch.Size(shape[1:]).numel() ** 0.5
        elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            value = 0.5 + torch.rand(shape, generator=random)
        else:
            value = 0.2 * torch.randn(shape, generator=random)
        weights[f"module.{name}"] = value
    return weights


def released_logits(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The released network in evaluation: MODELS/model_resnet.py and bam.py as the paper notes describe them."""
    w = {name.removeprefix("module."): weight.double() for name, weight in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"]
        )

    def conv(x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **how)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def bam(x: Tensor, name: str) -> Tensor:
        c, s = f"{name}.channel_att.gate_c.gate_c", f"{name}.spatial_att.gate_s.gate_s"
        channel = linear(F.avg_pool2d(x, x.shape[2], x.shape[2]).flatten(1), f"{c}_fc_0")
        channel = linear(F.relu(norm(channel, f"{c}_bn_1")), f"{c}_fc_final")
        spatial = F.relu(norm(conv(x, f"{s}_conv_reduce0"), f"{s}_bn_reduce0"))
        for i in (0, 1):
            spatial = F.relu(norm(conv(spatial, f"{s}_conv_di_{i}", padding=4, dilation=4), f"{s}_bn_di_{i}"))
        spatial = conv(spatial, f"{s}_conv_final")
        attention = channel[:, :, None, None].expand_as(x) * spatial.expand_as(x)
        return (1 + torch.sigmoid(attention)) * x

    x = F.relu(norm(conv(x.double(), "conv1", stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(BLOCKS, start=1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            out = F.relu(norm(conv(out, f"{name}.conv2", stride=stride, padding=1), f"{name}.bn2"))
            out = norm(conv(out, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
            x = F.relu(out + x)
        if stage < 4:
            x = bam(x, f"bam{stage}")
    return linear(x.mean((2, 3)), "fc")


@pytest.mark.parametrize("legacy", [False, True])
def test_the_authors_checkpoint_computes_here_what_its_formulas_say(
    released: dict[str, Tensor], tmp_path: Path, legacy: bool
) -> None:
    """A file as train_imagenet.py saved it, with PyTorch 0.4.1's format or today's."""
    checkpoint = {
        "epoch": 90, "arch": "resnet", "state_dict": released, "best_prec1": torch.tensor(76.86),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "params": [1, 2]}]},
    }  # fmt: skip
    source, made = tmp_path / "RESNET50_IMAGENET_BAM_best.pth.tar", tmp_path / "bam.safetensors"
    torch.save(checkpoint, source, _use_new_zipfile_serialization=not legacy)
    convert(source, made, RELEASED)
    ours = network(RELEASED)
    assert load_weights(ours, made) == []
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = released_logits(released, images)
        torch.testing.assert_close(ours.double()(images.double()), expected, rtol=1e-9, atol=1e-9)
        without = {name: one if ".gate_s_conv_final." not in name else one + 1 for name, one in released.items()}
        assert (released_logits(without, images) - expected).abs().max() > 1e-2  # the attention matters to them
    with safe_open(made, "pt") as file:
        assert hashlib.sha256(source.read_bytes()).hexdigest() in json.loads(file.metadata()["bam_exp"])["source"]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (torchvision.models.resnet18, RESNET18),
        (torchvision.models.squeezenet1_1, ["backbone=squeezenet_imagenet", "attention=none"]),
    ],
)
def test_torchvisions_weights_give_its_logits(tmp_path: Path, theirs: Any, words: list[str]) -> None:
    torch.manual_seed(2)
    original = theirs(weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", words)
    ours = network(words)
    load_weights(ours, tmp_path / "ours.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), original(images), rtol=1e-5, atol=1e-5)


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's ResNet-18, random, as a file of ours; its checkpoint stands beside it as theirs.pth."""
    folder = tmp_path_factory.mktemp("plain")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), folder / "theirs.pth")
    convert(folder / "theirs.pth", folder / "plain.safetensors", RESNET18)
    return folder / "plain.safetensors"


def resnet18(classes: int = 1000, *, bam: bool = False, depth: int = 18) -> nn.Module:
    made = ResNet(classes, depth=depth, stem="imagenet")
    return attach(made, BAM) if bam else made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet18(bam=True), r"lacks stages.0.attention\S+ \(\d+ missing, 0 too many\); the file has no such attention"),
        (lambda: resnet18(10), r"head.fc.weight is 1000 x 512 and should be 10 x 512"),
        (lambda: resnet18(depth=34), r"lacks stages.0.2.branch.conv1.weight"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(plain: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_weights(make(), plain)
    assert "\n" not in str(refused.value)


def test_an_attention_that_the_network_lacks_is_named(tmp_path: Path) -> None:
    save_weights(resnet18(bam=True).state_dict(), tmp_path / "bam.safetensors")
    with pytest.raises(ValueError, match=r"has a stages.0.attention\S+ .*; the network has no such attention"):
        load_weights(resnet18(), tmp_path / "bam.safetensors")


def test_training_goes_on_from_plain_weights_with_an_attention_and_other_classes(plain: Path) -> None:
    made = resnet18(10, bam=True)
    before = {name: one.clone() for name, one in made.state_dict().items()}
    kept = load_weights(made, plain, onto=True)
    source = torch.load(plain.with_name("theirs.pth"))
    assert torch.equal(made.state_dict()["stem.conv1.weight"], source["conv1.weight"])
    assert torch.equal(made.state_dict()["stages.3.1.branch.conv2.weight"], source["layer4.1.conv2.weight"])
    assert {"head.fc.weight", "head.fc.bias"} < set(kept)
    assert all(".attention." in name for name in set(kept) - {"head.fc.weight", "head.fc.bias"})
    assert all(torch.equal(made.state_dict()[name], before[name]) for name in kept)
    with pytest.raises(ValueError, match=r"lacks stages.0.2.branch.conv1.weight"):
        load_weights(resnet18(depth=34, bam=True), plain, onto=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the environment says so, which PyTorch would obey."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match=r"evil.pth: not a checkpoint of plain weights"):
        read_checkpoint(Path("evil.pth"))
    assert not Path("executed").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize(
    "case",
    [
        (b"", "not a checkpoint of plain weights"),
        (b"<html>", "not a checkpoint of plain weights"),
        (None, "No such file"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"conv9.weight": torch.ones(2)}, "weight 'conv9.weight' has no place"),
        ({"conv1.weight": torch.ones(64, 3, 7, 7)}, "lacks stem.bn1.weight"),
    ],
)
def test_other_files_end_in_one_line(tmp_path: Path, capsys: Any, case: tuple[Any, str]) -> None:
    content, message = case
    source, made = tmp_path / "some.pth", tmp_path / "some.safetensors"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(made), *RESNET18])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_file_that_is_no_safetensors_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(plain.read_bytes()[:-100])
    for name, reason in {"cut": "not a file of weights", "absent": "there is no such file"}.items():
        with pytest.raises(ValueError, match=f"{name}.safetensors: {reason}"):
            load_weights(resnet18(), tmp_path / f"{name}.safetensors")


def spoilt(content: bytes) -> Iterator[bytes]:
    """Cut off and with wrong bytes, in many places."""
    random = np.random.default_rng(0)
    yield b""
    for _ in range(150):
        yield content[: random.integers(len(content))]
        damaged = bytearray(content)
        for place in random.integers(len(content), size=3):
            damaged[place] = random.integers(256)
        yield bytes(damaged)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(
    tmp_path: Path, legacy: bool, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "some.pth"
    torch.save({"state_dict": {"a": torch.ones(3)}}, path, _use_new_zipfile_serialization=not legacy)
    refused: list[str] = []
    for content in spoilt(path.read_bytes()):
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 150
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)
    assert not [warning for warning in recwarn if "pickle protocol" in str(warning.message)]


def test_a_damaged_weights_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path, layer = tmp_path / "some.safetensors", nn.Linear(3, 2)
    save_weights(layer.state_dict(), path)
    refused: list[str] = []
    for content in spoilt(path.read_bytes()):
        path.write_bytes(content)
        try:
            load_weights(layer, path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 150
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weight: weight.fill_(torch.nan), "weight holds a NaN or an infinity"),
        (lambda weight: weight.index_fill_(0, torch.tensor([1]), -torch.inf), "weight holds a NaN or an infinity"),
        (lambda weight: weight.to(torch.int64), "weight is int64 and should be float32"),
        (lambda weight: weight.to(torch.complex64), "weight is complex64 and should be float32"),
        (lambda weight: weight[0], "weight is 3 and should be 2 x 3"),
    ],
)
def test_weights_that_cannot_be_right_are_refused_and_change_nothing(tmp_path: Path, spoil: Any, message: str) -> None:
    layer = nn.Linear(3, 2)
    before = {name: weight.clone() for name, weight in layer.state_dict().items()}
    path = tmp_path / "some.safetensors"
    save_weights({"weight": spoil(torch.zeros(2, 3)), "bias": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=f"some.safetensors: .*{message}"):
        load_weights(layer, path)
    assert all(torch.equal(weight, before[name]) for name, weight in layer.state_dict().items())


def test_half_precision_weights_are_converted(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    save_weights({"weight": torch.full((2, 3), 0.5).half(), "bias": torch.zeros(2)}, tmp_path / "h.safetensors")
    load_weights(layer, tmp_path / "h.safetensors")
    assert (layer.weight == 0.5).all()
    assert layer.weight.dtype == torch.float32


def test_a_checkpoint_given_as_a_weights_file_gets_the_command(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "some.pth")
    with pytest.raises(DataError, match=r"some.pth: not a file of weights .*`bam-weights import` makes one"):
        load_weights(nn.Linear(3, 2), tmp_path / "some.pth")


def test_tied_weights_are_saved_one_by_one(tmp_path: Path) -> None:
    weight = torch.ones(4, 3)
    save_weights({"a": weight, "b": weight, "c": weight.T}, tmp_path / "tied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), expected) for name, expected in (("a", weight), ("c", weight.T)))


def test_weights_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "w.safetensors", tmp_path):
        with pytest.raises(DataError, match=rf"^{path}: cannot be written [^\n]*$"):
            save_weights({"a": torch.ones(3)}, path)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_diverged_weights_are_not_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "nan.pth"), str(tmp_path / "nan.safetensors"), *RESNET18])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bam-weights: {tmp_path}/nan.pth: stages.0.0.branch.conv1.weight holds a NaN")
    assert not (tmp_path / "nan.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=resnet81_imagenet"], "there is no such backbone"),
        (["backbone=resnet18_imagenet", "attention.colour=red"], "colour"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_network_that_does_not_exist_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors"), *overrides])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
