"""The weights that a run leaves: tested again, used in Python, exported, shown; and files that are not weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TINY, Command, chosen_of
from PIL import Image
from safetensors import safe_open

from bam_exp.build import build
from bam_exp.commands.weights import main
from bam_exp.errors import BamError, DataError
from bam_exp.weights import Preprocessing, load_network, read_metadata, read_photos, read_weights, save_weights

NETWORK = ("backbone.widen=0.5", "attention.reduction=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run in bfloat16, with the weights of its best epoch."""
    folder = tmp_path_factory.mktemp("run")
    words = [*NETWORK, *TINY, "trainer.precision=bfloat16", "trainer.best_weights=true", f"output_dir={folder}"]
    subprocess.run([sys.executable, "-m", "bam_exp", *words], check=True, capture_output=True)
    [result] = folder.glob("runs/**/result.json")
    return result.parent


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def weights(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `bam-weights`."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    return (code, *capsys.readouterr())


def test_a_run_is_tested_again_with_its_own_figures(run: Path, result: dict[str, Any], bam_train: Command) -> None:
    figures = result["metrics"]
    said = (
        f"top-1 error {figures['top1_error']:.2f} %, top-5 error {figures['top5_error']:.2f} %  (40 images of shapes)"
    )
    for path in (run, run / "weights.safetensors"):
        ended = bam_train(f"evaluate={path}", "trainer.device=cpu", "trainer.threads=1")
        assert ended.code == 0, ended.err
        assert said in ended.out
    assert not list(Path.cwd().iterdir())


def test_what_is_typed_takes_precedence_over_the_file(run: Path, bam_train: Command) -> None:
    assert "(60 images" in bam_train(f"evaluate={run}", "data.test_size=60", "trainer.device=cpu").out
    ended = bam_train(f"evaluate={run}", "attention=none")
    assert ended.code == 2
    assert "the network has no such attention" in ended.err


def test_the_file_says_what_the_run_was(run: Path, result: dict[str, Any]) -> None:
    metadata = read_metadata(run)
    assert metadata is not None
    assert metadata.fingerprint == result["fingerprint"]
    assert metadata.figures["top1_error"] == result["metrics"]["top1_error"]
    assert metadata.config["attention"]["reduction"] == 8
    assert (metadata.precision, metadata.epoch, metadata.schema_version) == ("bfloat16", 2, 2)
    assert metadata.classes == tuple(build(chosen_of()).data.class_names())
    best = read_metadata(run / "weights-best.safetensors")
    assert best is not None
    assert best.epoch == result["metrics"]["best_epoch"]
    assert best.figures["top1_error"] == result["metrics"]["best_top1_error"]
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert list(file.metadata()) == ["bam_exp"]  # several keys would be written in random order


def test_a_network_comes_back_in_python(run: Path) -> None:
    network = load_network(run)
    assert not network.training
    expected = build(chosen_of(*NETWORK)).network.eval()
    expected.load_state_dict(read_weights(run / "weights.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), expected(images))


def test_a_file_cannot_name_code_of_its_own(run: Path, tmp_path: Path) -> None:
    metadata = read_metadata(run)
    assert metadata is not None
    for target in ("os.system", "bam_exp.attention.attach.attach", "bam_exp.backbones.nope"):
        config = {**metadata.config, "backbone": {"_target_": target}}
        path = tmp_path / "odd.safetensors"
        header = metadata.model_copy(update={"config": config}).to_header()
        save_weights(read_weights(run / "weights.safetensors"), path, header=header)
        with pytest.raises(DataError, match="not of this package"):
            load_network(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".pt2"])
def test_exports_are_whole_and_the_same_to_the_byte(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        assert weights(capsys, "export", run, path)[0] == 0
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
    network = load_network(run)
    for size in (1, 5):
        images = torch.randn(size, 3, 32, 32)
        with torch.no_grad():
            logits = network(images)
            if suffix == ".safetensors":
                outputs = load_network(first)(images)
            elif suffix == ".pt2":
                outputs = torch.export.load(first).module()(images)
            else:
                [array] = onnxruntime.InferenceSession(first).run(["logits"], {"images": images.numpy()})
                outputs = torch.from_numpy(array)
        torch.testing.assert_close(outputs, logits, rtol=1e-5, atol=1e-5)


def test_show_says_what_a_file_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = weights(capsys, "show", run)
    assert code == 0
    for text in (
        "backbone=resnet20 backbone.widen=0.5 attention=bam attention.reduction=8",
        "20: disc-above",
        "epoch 2",
    ):
        assert text in out
    assert json.loads(weights(capsys, "show", run, "--json")[1])["precision"] == "bfloat16"


@pytest.fixture
def spoilt(run: Path, tmp_path: Path) -> list[Path]:
    """Files that are not the weights of a run."""
    content = (run / "weights.safetensors").read_bytes()
    files = {
        "cut.safetensors": content[:-1000],
        "cut_header.safetensors": content[:100],
        "empty.safetensors": b"",
        "text.safetensors": b"not weights at all",
        "odd.safetensors": content.replace(b'\\"classes\\"', b'\\"clusses\\"').replace(
            b'\\"source\\"', b'\\"sourse\\"'
        ),
    }
    for name, each in files.items():
        (tmp_path / name).write_bytes(each)
    return [tmp_path / name for name in files]


def test_a_spoilt_file_is_one_line(
    spoilt: list[Path], tmp_path: Path, bam_train: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in [*spoilt, tmp_path / "nowhere.safetensors"]:
        for words in (("show", path), ("export", path, tmp_path / "out.onnx")):
            code, out, err = weights(capfd, *words)
            assert (code, out, len(err.splitlines())) == (2, "", 1), (words, out, err)
            assert path.name in err
        ended = bam_train(f"evaluate={path}", *TINY)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
        assert path.name in ended.err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("how", [(), ("-m", "seed=1,2")])
def test_spoilt_weights_to_start_from_are_refused_before_training(
    spoilt: list[Path], tmp_path: Path, bam_train: Command, how: tuple[str, ...]
) -> None:
    for path in spoilt[:4]:
        ended = bam_train(*how, f"weights={path}", *TINY)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
        assert path.name in ended.err
    assert not (tmp_path / "runs").exists()


def test_a_run_to_start_from_gives_each_run_a_name_of_its_own(run: Path, bam_train: Command, tmp_path: Path) -> None:
    assert bam_train(f"weights={run}", *NETWORK, *TINY).code == 0
    [folder] = [path.parent for path in tmp_path.glob("runs/**/result.json")]
    assert "resnet20-widen0.5-weights" in str(folder)
    assert read_metadata(folder).fingerprint != read_metadata(run).fingerprint  # type: ignore[union-attr]


def test_photos_get_the_classes_that_the_network_gives_them(run: Path, bam_train: Command, tmp_path: Path) -> None:
    pixels, _ = build(chosen_of("data.test_size=20")).data.load("test")  # type: ignore[attr-defined]
    for index in (0, 7):
        Image.fromarray(pixels[index].permute(1, 2, 0).numpy()).save(tmp_path / f"photo {index}.png")
    ended = bam_train(f"evaluate={run}", f"images=['{tmp_path}/photo 0.png','{tmp_path}/photo 7.png']")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    loader = build(chosen_of("data.test_size=20")).data.loader("test", batch_size=20, seed=0, device="cpu")
    [(images, _)] = list(loader)
    metadata, network = read_metadata(run), load_network(run)
    assert metadata is not None
    with torch.no_grad():
        probabilities = network(images[[0, 7]]).softmax(1)
    for index, line, each in zip((0, 7), lines, probabilities, strict=True):
        best = int(each.argmax())
        assert line.startswith(f"{tmp_path}/photo {index}.png: {metadata.classes[best]} {100 * each[best]:.1f} %")


@pytest.mark.parametrize("content", [None, b"", b"no photo"])
def test_what_is_not_a_photo_is_one_line(run: Path, bam_train: Command, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    ended = bam_train(f"evaluate={run}", f"images={path}")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert "photo.jpg" in ended.err
    assert "needs evaluate=RUN" in bam_train(f"images={path}").err or content is None


def test_photos_are_upright_and_cropped_as_the_test_set(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was turned
    photo.save(tmp_path / "turned.png", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    to = Preprocessing(resize=37, size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    turned, upright = read_photos([tmp_path / "turned.png", tmp_path / "upright.png"], to)
    assert turned.shape == (3, 32, 32)
    assert torch.equal(turned, upright)


def test_errors_of_the_library_are_for_the_caller_too() -> None:
    with pytest.raises(BamError, match="there is no such file"):
        load_network("nowhere")
