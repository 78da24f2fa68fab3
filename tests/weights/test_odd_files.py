"""Files that a user may give by mistake, or that somebody has changed: each is one line, or is read as it should be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command, ready
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bam_exp.attention import BAM, attach
from bam_exp.commands.weights import main
from bam_exp.errors import DataError
from bam_exp.maps.trained import load_run, read_images
from bam_exp.training.train import train
from bam_exp.weights import (
    Preprocessing,
    load_network,
    load_weights,
    put_weights,
    read_metadata,
    read_photos,
    save_weights,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    run, parts, machine = ready(*TINY, f"output_dir={folder}")
    train(run, parts, machine)
    return run.folder


def changed(run: Path, target: Path, **fields: Any) -> Path:
    """The weights of a run with other metadata."""
    metadata = read_metadata(run)
    assert metadata is not None
    content = {**metadata.model_dump(mode="json"), **fields}
    save_file(load_file(run / "weights.safetensors"), target, metadata={"bam_exp": json.dumps(content)})
    return target


@pytest.mark.parametrize(
    "step", [{"size": -3}, {"resize": 0}, {"size": 10**6}, {"std": [0, 1, 1]}, {"mean": ["x", 0, 0]}], ids=str
)
def test_impossible_preprocessing_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: dict[str, Any]
) -> None:
    to = {"resize": 24, "size": 24, "mean": [0, 0, 0], "std": [1, 1, 1], **step}
    file = changed(run, tmp_path / "odd.safetensors", preprocessing=to)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(file), str(tmp_path / "out.pt2")])
    err = capsys.readouterr().err
    assert (ended.value.code, len(err.splitlines())) == (2, 1), err
    assert f"odd.safetensors: its metadata is damaged (preprocessing.{next(iter(step))}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


def test_names_of_too_few_classes_are_one_line(run: Path, tmp_path: Path, bam_train: Command) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    file = changed(run, tmp_path / "few.safetensors", classes=["cat", "dog"])
    ended = bam_train(f"evaluate={file}", f"images={tmp_path / 'photo.png'}")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert "few.safetensors: its metadata is damaged (it names 2 classes" in ended.err


def test_grey_images_of_16_bits_are_those_of_8_bits(run: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    names = [str(tmp_path / name) for name in ("8.png", "16.png")]
    Image.fromarray(grey).save(names[0])
    Image.fromarray(grey.astype(np.uint16) * 257).save(names[1])
    to = Preprocessing(resize=37, size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert torch.equal(*read_photos(names, to))
    assert torch.equal(*read_images(names, load_run(run, Path("data")).data))


@pytest.mark.parametrize(
    ("pixels", "reason"), [(np.full((9, 9), 70_000, np.int32), "16 bits"), (np.ones((9, 9), np.float32), "floating")]
)
def test_images_of_other_numbers_are_refused(
    run: Path, tmp_path: Path, pixels: np.ndarray[Any, Any], reason: str
) -> None:
    file = str(tmp_path / "depth.tif")
    Image.fromarray(pixels).save(file)
    with pytest.raises(DataError, match=rf"depth.tif: .*{reason}"):
        read_photos([file], Preprocessing(resize=9, size=9, mean=(0, 0, 0), std=(1, 1, 1)))
    with pytest.raises(DataError, match=rf"depth.tif: .*{reason}"):
        read_images([file], load_run(run, Path("data")).data)


def test_a_detector_is_no_network_to_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "some.pth")
    words = ["backbone=ssd_vgg16", "data=voc", "recipe=ssd", "attention=none"]
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "some.pth"), str(tmp_path / "out.safetensors"), *words])
    err = capsys.readouterr().err
    assert (ended.value.code, len(err.splitlines())) == (2, 1), err
    assert "backbone=ssd_vgg16: is a detector" in err


def test_a_checkpoint_that_cannot_be_read_gives_no_unsafe_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch would propose weights_only=False, which executes what is in the file."""
    (tmp_path / "some.pth").write_text("x")
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "some.pth"), str(tmp_path / "out.safetensors"), "attention=none"])
    assert "weights_only" not in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(DataError) as error:
        save_weights({"a": torch.ones(3)}, tmp_path / "taken.safetensors")
    assert str(error.value).count("cannot be written") == 1


def test_the_functions_take_paths_as_text(tmp_path: Path) -> None:
    module, file = BAM(16, 4), str(tmp_path / "folder" / "bam.safetensors")
    save_weights(module.state_dict(), file)
    assert load_weights(BAM(16, 4), file) == []
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(file).read_bytes()[:-8])
    with pytest.raises(DataError, match=r"cut\.safetensors: not a file of weights"):
        load_weights(module, str(cut))


@pytest.mark.parametrize(("of", "to"), [(torch.float32, torch.float16), (torch.float64, torch.float32)], ids=str)
def test_numbers_too_large_for_the_network_are_refused(of: torch.dtype, to: torch.dtype) -> None:
    module = BAM(16, 4, dtype=of)
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    weights["channel.fc1.bias"][3] = 1e6 if of == torch.float32 else 1e300
    other = BAM(16, 4, dtype=to)
    with pytest.raises(
        DataError, match=r"channel\.fc1\.bias holds numbers that are too large for this network's " + str(to)
    ):
        put_weights(other, weights, source="file")
    assert put_weights(module, weights, source="file") == []


def test_a_network_of_a_file_without_counters_has_none_at_random(run: Path, tmp_path: Path) -> None:
    weights = {k: v for k, v in load_file(run / "weights.safetensors").items() if "num_batches" not in k}
    old = tmp_path / "old.safetensors"
    with safe_open(run / "weights.safetensors", "pt") as opened:
        save_file(weights, old, metadata=opened.metadata())
    counters = [v for k, v in load_network(old).state_dict().items() if k.endswith("num_batches_tracked")]
    assert len(counters) > 10
    assert not any(counters)


def test_an_attention_that_stands_after_a_module_may_be_missing() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.conv = nn.Identity(), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.attention(self.conv(x))
            return y

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 16, 3), Block(), nn.MaxPool2d(2), nn.Conv2d(16, 4, 3))

    kept = put_weights(attach(network(), BAM, at=["1"]), network().state_dict(), source="file", onto=True)
    assert kept
    assert all(name.startswith("1_attention.") for name in kept)


@pytest.mark.parametrize(
    "part",
    [{"backbone": {"_target_": 5}}, {"attention": {"_target_": "bam_exp.attention.detach", "at": "auto"}}],
    ids=str,
)
def test_a_header_that_names_no_network_is_one_line(run: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    metadata = read_metadata(run)
    assert metadata is not None
    with pytest.raises(DataError, match="its network cannot be built") as error:
        load_network(changed(run, tmp_path / "odd.safetensors", config={**metadata.config, **part}))
    assert "\n" not in str(error.value)
