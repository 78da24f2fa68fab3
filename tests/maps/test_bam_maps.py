"""`bam-maps` on runs that were trained here: what it draws and prints, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest
import torch
from conftest import TINY, Command, _command, ready
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bam_exp.maps.capture import capture
from bam_exp.maps.look import figures_of
from bam_exp.maps.trained import Trained, find_run, load_baseline, load_run, read_images
from bam_exp.reports.statistics import mean_interval

DATA = Path("data")
NETWORK = ("backbone.widen=0.5", "attention.reduction=8")
NAME = "shapes-train_size160-test_size40/resnet20-widen0.5/bam-reduction8/demo-epochs2/seed0"
BASELINE = NAME.replace("bam-reduction8", "none")


def train(output_dir: Path, *words: str) -> None:
    """Train a run."""
    from bam_exp.training.train import train

    threads = torch.get_num_threads()
    train(*ready(f"output_dir={output_dir}", *words))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with BAM and of its baseline."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, *TINY, *NETWORK)
    train(folder, *TINY, "attention=none", "backbone.widen=0.5")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, the current folder of `bam_maps`."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def bam_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    from bam_exp.commands.maps import main

    monkeypatch.chdir(tmp_path)
    return _command(main, "bam-maps", monkeypatch, capfd)


def test_a_run_becomes_a_picture_and_a_table(runs: Path, bam_maps: Command) -> None:
    ended = bam_maps(NAME)
    assert ended.code == 0, ended.err
    with Image.open("maps.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 12 * 90  # image, two attentions of five columns, two of Grad-CAM
    assert "in 40 test images" in ended.out
    assert len([line for line in ended.out.splitlines() if line.startswith("stages.")]) == 2
    assert "of the baseline" in ended.out

    shutil.rmtree(runs / BASELINE)
    alone = bam_maps(str(runs / NAME), "--output", "alone.png", "--count", "2")
    assert alone.code == 0, alone.err
    assert "no baseline" in alone.out
    assert Image.open("alone.png").width < Image.open("maps.png").width


def test_images_of_a_user_are_shown(runs: Path, bam_maps: Command) -> None:
    Image.new("L", (300, 200), 90).save("grey.png")
    Image.new("RGBA", (20, 80), (200, 10, 10, 128)).save("small.png")
    Image.new("CMYK", (64, 64)).save("print.jpg")
    ended = bam_maps(NAME, "grey.png", "small.png", "print.jpg", "--output", "mine.png")
    assert ended.code == 0, ended.err
    assert Image.open("mine.png").height > 3 * 100


def test_a_test_image_in_a_file_is_what_the_network_was_tested_on(runs: Path, tmp_path: Path) -> None:
    run = load_run(runs / NAME, DATA)
    pixels = run.data.load("test")[0][7]  # type: ignore[attr-defined]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "seven.png")
    torch.testing.assert_close(read_images([str(tmp_path / "seven.png")], run.data), run.tests(8)[0][7:])


def test_tensorboard_shows_the_last_picture_once(runs: Path, bam_maps: Command) -> None:
    for _ in range(2):
        assert bam_maps(NAME, "--tensorboard").code == 0
    events = EventAccumulator(str(runs / NAME))
    events.Reload()
    assert "attention/maps" in events.Tags()["images"]
    assert len(events.Images("attention/maps")) == 1
    assert "test/top1_error" in events.Tags()["scalars"]  # the run's own curves stay


def test_the_network_is_the_one_that_was_tested(runs: Path) -> None:
    run = load_run(runs / NAME, DATA)
    images, labels = run.tests(40)
    _, logits = capture(run.network, images)
    assert 100 * (logits.argmax(1) != labels).double().mean().item() == pytest.approx(run.top1_error)


def test_weights_in_safetensors_come_before_the_checkpoint(runs: Path) -> None:
    other = {
        name: torch.zeros_like(weight) for name, weight in load_run(runs / NAME, DATA).network.state_dict().items()
    }
    save_file(other, runs / NAME / "weights.safetensors")
    assert not any(weight.any() for weight in load_run(runs / NAME, DATA).network.parameters())


def test_the_untrained_network_is_the_one_that_training_started_from(tmp_path: Path) -> None:
    """With a learning rate of nearly zero, a run ends where it started."""
    train(tmp_path, *TINY, *NETWORK, "recipe.epochs=1", "recipe.lr=1e-30", "seed=3")
    run = load_run(next((tmp_path / "runs").rglob("seed3")), DATA)
    untrained = dict(run.untrained().named_parameters())
    for name, weight in run.network.named_parameters():
        torch.testing.assert_close(weight, untrained[name], rtol=0, atol=1e-20)


def test_data_without_masks_has_a_picture_and_no_table(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(runs / NAME, DATA)
    assert load_baseline(run) is not None
    monkeypatch.setattr(Trained, "masks", lambda self, count: None)
    assert figures_of(run, None) is None


def without(*names: str) -> Callable[[Path], None]:
    """Deletes these files of the run."""

    def change(runs: Path) -> None:
        for name in names:
            for file in (runs / NAME).glob(name):
                file.unlink()

    return change


def cut(runs: Path) -> None:
    (runs / NAME / "result.json").write_text("{")


def lost(runs: Path) -> None:
    for pattern in ("checkpoint-*.pt", "weights.safetensors"):
        without(pattern)(runs)


def taken(_runs: Path) -> None:
    Path("taken.png").mkdir()


def keep(_runs: Path) -> None:
    Path("text.png").write_text("not an image")
    Path("cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (keep, ["nothing/of/the/kind"], "nothing/of/the/kind: there is no such run"),
        (keep, [NAME.replace("seed0", "seed1")], "did you mean"),
        (keep, [BASELINE], "the network of this run has no attention"),
        (keep, [NAME, "text.png"], "text.png: not an image"),
        (keep, [NAME, "cut.png"], "cut.png: "),
        (keep, [NAME, "nowhere.jpg"], "nowhere.jpg: cannot be read as an image (No such file or directory)"),
        (keep, [NAME, "runs"], "runs: cannot be read as an image (Is a directory)"),
        (keep, [NAME, "--count", "0"], "argument --count: 0: should be a whole number from 1 to 100"),
        (keep, [NAME, "--count", "21"], "--count 21: the first 40 test images are of 20 classes only"),
        (keep, ["x" * 5000], "should be the folder of a run (File name too long)"),
        (
            keep,
            [NAME, "--output", "maps.pdf"],
            "--output maps.pdf: should be the name of a .png file in a folder that exists",
        ),
        (
            keep,
            [NAME, "--output", "nowhere/maps.png"],
            "--output nowhere/maps.png: should be the name of a .png file in a folder that exists",
        ),
        (taken, [NAME, "--output", "taken.png"], "taken.png: cannot be written (Is a directory)"),
        (without("result.json"), [NAME], "this run is not finished"),
        (lost, [NAME], "its network is lost"),
        (cut, [NAME], "result.json: not a file of bam_exp"),
    ],
    ids=lambda value: str(value[-1])[-20:] if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    runs: Path, bam_maps: Command, change: Callable[[Path], None], words: list[str], message: str
) -> None:
    change(runs)
    ended = bam_maps(*words)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.startswith("bam-maps: ")
    assert len(ended.err.splitlines()) == 1
    assert not Path("maps.png").exists()


@pytest.mark.slow
def test_on_the_demo_the_second_attention_finds_the_object(tmp_path: Path) -> None:
    """Three minutes of one core. One seed does not decide it: docs/maps.md says what the six that are trained here mean."""
    differences, gains, apart = [], [], []
    for seed in range(6):
        words = (f"seed={seed}", "trainer.device=cpu", "trainer.threads=1", "trainer.precision=float32")
        train(tmp_path / str(seed), "+row/demo=bam", *words)
        folder = next((tmp_path / str(seed) / "runs").rglob("result.json")).parent
        figures = figures_of(load_run(find_run(str(folder), tmp_path), DATA), None)
        assert figures is not None
        first, second = figures.attentions
        differences.append(second.difference.mean)
        gains.append(second.auc.mean - second.untrained_auc.mean)
        apart.append(second.auc.mean - first.auc.mean)
    of_runs = mean_interval(differences)
    assert of_runs is not None
    assert of_runs.low > 0
    assert mean(gains) > 0.08
    assert mean(apart) > 0.15
