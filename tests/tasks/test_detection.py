"""Detectors train, are tested, stopped and resumed like classifiers, on real photos in COCO's and VOC's form."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, chosen_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bam_exp import tables
from bam_exp.backbones import ResNet
from bam_exp.build import build, build_on_meta, make_machine
from bam_exp.errors import ConfigError
from bam_exp.machine import ranks
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.runs import Run
from bam_exp.runs.lock import run_lock
from bam_exp.training.batch_norm import SyncBatchNormCPU, synchronise
from bam_exp.training.checkpoints import Checkpoints
from bam_exp.training.fit import fit
from bam_exp.training.saving import CheckpointSaver
from bam_exp.weights import save_weights

ROWS = [row for name in ("table4a", "table4b") for row in tables.load_table(name).rows]
CPU = ("trainer.device=cpu", "trainer.threads=1")
SMALL_SCENES = (
    "data=scenes", "backbone=ssd_resnet20", "backbone.widen=0.5", "recipe=demo_detection", "recipe.epochs=2",
    "data.train_size=48", "data.test_size=16", "attention=bam", "attention.at=classifier", "attention.reduction=8", *CPU,
)  # fmt: skip
"""Three steps of 16 pictures in each of two epochs."""


def of_row(row: tables.Row, tiny_coco: Path, voc_mini: Path) -> tuple[str, ...]:
    """Overrides for a short run of a row on the small data, in a few steps of two photos."""
    small = ["data.official=false", "recipe.max_steps=2", "recipe.batch_size=2", *CPU]
    if row.table == "table4a":
        return (row.override, f"data_root={tiny_coco}", "data.size=96", "data.long_side=128", *small)
    lists = "data.train=[VOC2007/train]", "data.test=[VOC2007/val]"  # 69 and 68 images
    return (row.override, f"data_root={voc_mini}", *lists, *small, "recipe.batch_size=3")


def start(folder: Path, *words: str, interruption: Interruption | None = None) -> dict[str, Any]:
    chosen = replace(chosen_of(*words), output_dir=folder)
    parts = build_on_meta(chosen)
    run = Run.of(chosen, parts.data.digest)
    threads = torch.get_num_threads()
    try:
        with run_lock(run):
            return fit(run, parts, make_machine(chosen), interruption or Interruption())
    finally:
        torch.set_num_threads(threads)


def state(folder: Path) -> dict[str, Any]:
    [run] = [path.parent for path in folder.glob("runs/**/result.json")]
    checkpoints = Checkpoints(run)
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    content = checkpoints.load_checkpoint(newest)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "history")}


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_trains_is_stopped_and_ends_bitwise_the_same(
    row: tables.Row, tiny_coco: Path, voc_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = of_row(row, tiny_coco, voc_mini)
    result = start(tmp_path / "a", *words)
    metrics = result["metrics"]
    assert metrics["test_images"] == (4 if row.table == "table4a" else 6)
    assert set(metrics) >= {"map50", "train_loss", "best_epoch"}
    assert 0 <= metrics["map50"] <= 100
    assert "official_false" in result["run"]["data"]
    original = CheckpointSaver.on_train_batch_end

    def stop_at_first(self: CheckpointSaver, trainer: Any, module: Any, *rest: Any) -> None:
        if trainer.global_step == 1:
            self.interruption.number = 15
        original(self, trainer, module, *rest)

    monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", stop_at_first)
    with pytest.raises(Interrupted):
        start(tmp_path / "b", *words)
    monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", original)
    again = start(tmp_path / "b", *words)
    assert again["metrics"] == metrics
    assert_same(state(tmp_path / "a"), state(tmp_path / "b"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_gradient_is_limited(tmp_path: Path, precision: str) -> None:
    """With a limit near 0 the weights stay where they start, whatever the rate."""
    weights = []
    for rate in ("0.01", "0.02"):
        limited = ("recipe.clip=1e-9", "recipe.weight_decay=0", "recipe.epochs=1", f"trainer.precision={precision}")
        start(tmp_path / rate, *SMALL_SCENES, *limited, f"recipe.lr={rate}")
        weights.append(state(tmp_path / rate)["state_dict"])
    for name, weight in weights[0].items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, start(folder, *SMALL_SCENES)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_run_stopped_at_any_step_ends_bitwise_the_same(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    original = CheckpointSaver.on_train_batch_end

    def crash(self: CheckpointSaver, trainer: Any, module: Any, *rest: Any) -> None:
        original(self, trainer, module, *rest)
        if trainer.global_step == step:
            raise KeyError("crash")

    monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", crash)
    with pytest.raises(KeyError):
        start(tmp_path, *SMALL_SCENES)
    monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", original)
    start(tmp_path, *SMALL_SCENES)
    assert_same(state(finished[0]), state(tmp_path))


def test_a_run_ends_with_a_picture_in_its_folder_and_in_tensorboard(finished: tuple[Path, dict[str, Any]]) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [picture] = finished[0].glob("runs/**/detections.png")
    with Image.open(picture) as image:
        assert image.size == (4 * 320 + 5 * 4, 2 * 320 + 3 * 4)
    events = EventAccumulator(str(picture.parent))
    events.Reload()
    assert events.Tags()["images"] == ["test"]
    assert {"train/loss", "test/map", "test/map50", "test/map75"} <= set(events.Tags()["scalars"])


def test_the_rate_follows_the_schedule() -> None:
    task = build_on_meta(chosen_of("+row/table4b=mobilenet_ssd")).task
    rates = [task.rate(step) for step in (0, 79_999, 80_000, 99_999, 100_000, 119_999)]  # type: ignore[attr-defined]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert task.epochs == 232
    task = build_on_meta(chosen_of("+row/table4b=mobilenet_ssd", "recipe=ssd_short")).task
    assert [task.rate(step) for step in (0, 250, 500)] == pytest.approx([0.1, 0.55, 1])  # type: ignore[attr-defined]
    task = build_on_meta(chosen_of("+row/table4a=resnet101")).task
    assert (task.last_step, task.epochs) == (490_000, 5)
    assert [task.rate(step) for step in (349_999, 350_000)] == pytest.approx([1, 0.1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", ["one", "several CPUs", "several GPUs"])
def test_frozen_norms_stay_as_they_are_whoever_calls_train(processes: str) -> None:
    """Also where several processes synchronise the normalisations, for which other layers take their places."""
    chosen = chosen_of("+row/table4a=resnet101_bam", "data.size=64", "recipe.freeze_norms=backbone")
    _, network, task = build(chosen_of("data=scenes", "recipe=demo_detection", "backbone=ssd_resnet20",
                                       "attention=bam", "attention.reduction=8", "recipe.freeze_norms=backbone",
                                       "recipe.freeze_stages=2"))  # fmt: skip
    assert chosen.recipe.arguments["freeze_norms"] == "backbone"
    if processes != "one":
        synchronise(network, gpu=processes == "several GPUs")
    learner = task.learner()
    learner.train()
    kinds = {"one": _BatchNorm, "several CPUs": SyncBatchNormCPU, "several GPUs": nn.SyncBatchNorm}
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds[processes])}
    assert any(".attention." in name for name in layers)
    for name, layer in layers.items():
        frozen = name.startswith("backbone.") and ".attention." not in name
        assert layer.training != frozen, name
        assert all(value.requires_grad != frozen for value in layer.parameters())
    assert not network.get_parameter("backbone.stem.conv1.weight").requires_grad
    assert not network.get_parameter("backbone.stages.0.0.branch.conv1.weight").requires_grad
    assert network.get_parameter("backbone.stages.1.0.branch.conv1.weight").requires_grad
    assert network.get_parameter("backbone.stages.0.attention.channel.fc0.weight").requires_grad
    optimizer = learner.configure_optimizers()["optimizer"]
    trained = sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
    assert trained == sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=scenes", "backbone=resnet20", "recipe=demo_detection"], "needs a detector as its backbone"),
        (["data=shapes", "backbone=ssd_resnet20", "recipe=demo_detection"], "needs data with boxes"),
        (["data=scenes", "backbone=resnet20", "recipe=demo"], "needs data with labels"),
        (["data=shapes", "backbone=ssd_resnet20", "recipe=demo"], "needs a classifier as its backbone"),
        (["data=scenes", "backbone=ssd_vgg16", "recipe=ssd"], "images of 64 x 64 are too small for this backbone"),
        (["data=voc", "data.size=512", "backbone=stairnet_vgg16", "recipe=ssd"], "too large for this detector"),
        (["data=voc", "backbone=stairnet_mobilenet", "recipe=ssd", "recipe.batch_size=5"], "would have one"),
        (["+row/table4a=resnet101_bam", "recipe.freeze_norms=none"], "one image a step"),
        (["data=scenes", "backbone=ssd_resnet20", "recipe=demo_detection", "recipe.steps=5"], "exactly one of them"),
        (["data=voc", "data.train=[VOC2007/dogs]", "backbone=ssd_vgg16", "recipe=ssd"], "official=false takes others"),
        (["data=voc", "data.train=[../x]", "data.official=false", "backbone=ssd_vgg16", "recipe=ssd"], "data.train"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(bam_train: Command, words: list[str], said: str) -> None:
    ended = bam_train(*words, "attention=none", *CPU) if "+row" not in words[0] else bam_train(*words, *CPU)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("data", ["coco", "voc"])
def test_data_that_is_not_there_is_named(bam_train: Command, data: str) -> None:
    backbone, recipe = ("ssd_vgg16", "ssd") if data == "voc" else ("faster_rcnn_resnet101", "coco")
    ended = bam_train(
        f"data={data}", f"backbone={backbone}", "attention=none", f"recipe={recipe}", "data_root=nowhere", *CPU
    )
    assert ended.code == 2
    assert "data_root must be the folder that holds" in ended.err
    assert ended.err.count("\n") == 1


def test_what_is_likely_to_diverge_is_said(voc_mini: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, task = build_on_meta(chosen_of("+row/table4b=vgg16_ssd"))
    assert "weights=FILE" in str(task.advice(pretrained=False))
    assert task.advice(pretrained=True) is None
    _, _, task = build_on_meta(chosen_of("+row/table4b=vgg16_ssd", "recipe=ssd_short"))
    assert task.advice(pretrained=False) is None
    _, _, task = build_on_meta(chosen_of("+row/table4b=mobilenet_ssd"))
    assert task.advice(pretrained=False) is None


def test_a_report_says_what_was_measured(bam_tables: Command, finished: tuple[Path, dict[str, Any]]) -> None:
    row = tables.load_table("demo_detection").rows[0]
    assert row.override == "+row/demo_detection=baseline"
    ended = bam_tables("report", "demo_detection", "--output-dir", str(finished[0]))
    assert ended.code == 0
    assert "mAP" in ended.out
    store = (finished[0] / "results/runs.csv").read_text()
    assert f"{finished[1]['metrics']['map50']}" in store


def test_build_names_the_recipe_that_fails() -> None:
    with pytest.raises(ConfigError, match="recipe"):
        build_on_meta(chosen_of("data=scenes", "backbone=resnet20", "recipe=demo_detection", "attention=none"))


def test_metrics_name_the_best_tested_epoch(tmp_path: Path) -> None:
    result = start(tmp_path, *SMALL_SCENES, "recipe.epochs=3", "recipe.test_every=2")
    history = result["epochs"]
    assert ["test/map" in figures for figures in history] == [False, True, True]
    best = max((1, 2), key=lambda epoch: history[epoch]["test/map"])
    assert result["metrics"]["best_epoch"] == best + 1
    assert json.dumps(result["metrics"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_a_checkpoint_fits_another_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setattr(ranks, "all_reduce_sum", lambda values: values)
    learners = []
    for processes in (before, after):
        monkeypatch.setattr(ranks, "size", lambda processes=processes: processes)
        learners.append(build(chosen_of(*SMALL_SCENES)).task.learner())
    monkeypatch.setattr(ranks, "size", lambda: before)
    checkpoint = {"state_dict": learners[0].state_dict()}
    learners[0].on_save_checkpoint(checkpoint)
    monkeypatch.setattr(ranks, "size", lambda: after)
    learners[1].on_load_checkpoint(checkpoint)
    learners[1].load_state_dict(checkpoint["state_dict"])


TWO_PROCESSES = {
    "ssd": (*SMALL_SCENES, "recipe.epochs=1", "recipe.lr=1e-6", "recipe.clip=null"),
    "faster_rcnn": (
        "data=scenes", "data.train_size=5", "data.test_size=2", "backbone=faster_rcnn_resnet101", "backbone.neck=fpn",
        "attention=bam", "recipe=coco_short", "recipe.warmup_steps=0", "recipe.steps=1", "recipe.batch_size=5",
        "recipe.freeze_norms=none", "recipe.clip=null", *CPU,
    ),
}  # fmt: skip
"""A few steps of an epoch: afterwards, rounding grows too fast to be told from a mistake. Batches of five have shares of
two and of three images, so that a mean that ignores their weights is found out."""


@pytest.mark.parametrize("which", ["ssd", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_two_processes_end_where_one_does(tmp_path: Path, which: str) -> None:
    start_from = []
    if which == "faster_rcnn":  # random weights of 101 layers would multiply rounding by thousands
        weights = ResNet(1, depth=101, stem="imagenet").state_dict()
        weights |= {name: torch.zeros_like(one) for name, one in weights.items() if name.endswith("bn3.weight")}
        save_weights(weights, tmp_path / "resnet101.safetensors")
        start_from = [f"weights={tmp_path / 'resnet101.safetensors'}"]
    histories, states = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        words = [*TWO_PROCESSES[which], *start_from, "trainer=ddp", *CPU]
        words += [f"trainer.devices={processes}", f"output_dir={folder}"]
        subprocess.run([sys.executable, "-m", "bam_exp", *words], check=True, timeout=300)
        [result] = folder.glob("runs/**/result.json")
        histories.append(json.loads(result.read_text())["epochs"])
        states.append(state(folder))
    assert histories[1][0]["train/loss"] == pytest.approx(histories[0][0]["train/loss"], rel=1e-4)
    assert histories[1][0]["test/images"] == histories[0][0]["test/images"] == (16 if which == "ssd" else 2)
    assert histories[1][0]["test/map50"] == pytest.approx(histories[0][0]["test/map50"], abs=0.5)
    gradients, ends = [], []
    for one in states:
        [optimizer] = one["optimizer_states"]
        gradients.append(torch.cat([each["momentum_buffer"].flatten() for each in optimizer["state"].values()]))
        ends.append(one["state_dict"])
    assert (gradients[1] - gradients[0]).norm() < 5e-3 * gradients[0].norm()
    assert ends[0].keys() == ends[1].keys()  # a run may go on with another number of processes
    for name, weight in ends[0].items():
        torch.testing.assert_close(
            ends[1][name], weight, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
