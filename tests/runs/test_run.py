"""A run from the command to its folder: result, curves in TensorBoard's own reader, names, and not running twice."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command, chosen_of, run_of

from bam_exp.build import build
from bam_exp.runs import Run


def same(first: Run, second: Run) -> bool:
    return (first.name, first.fingerprint) == (second.name, second.fingerprint)


def test_a_run_is_a_folder_with_everything_in_it(bam_train: Command, tmp_path: Path) -> None:
    ended = bam_train("attention.reduction=8", "seed=3", *TINY)
    assert ended.code == 0
    folder = tmp_path / "runs/shapes-train_size160-test_size40/resnet20/bam-reduction8/demo-epochs2/seed3"
    kinds = {path.name.partition("-")[0].partition(".out")[0] for path in folder.iterdir()}
    assert kinds == {"checkpoint", "events", "run.json", "result.json", "weights.safetensors", ".lock"}
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["metrics"]["top1_error"] <= 100
    assert result["metrics"]["best_top1_error"] <= result["metrics"]["top1_error"]
    assert result["hardware"]["threads"] == 1
    assert result["run"]["attention"] == "bam-reduction8"
    assert result["figures_from"]["attention"]["dilation"] == 4
    assert len(result["epochs"]) == 2
    assert result["start"] <= result["end"]
    for key in (
        "commit",
        "dirty",
        "versions",
        "seconds_per_epoch",
        "data_wait_percent",
        "peak_memory_mib",
        "params",
        "macs",
        "fingerprint",
    ):
        assert key in result


def test_a_finished_run_is_not_run_again(bam_train: Command, tmp_path: Path) -> None:
    assert bam_train(*TINY).code == 0
    [result] = tmp_path.glob("runs/**/result.json")
    before = result.stat().st_mtime_ns
    ended = bam_train(*TINY)
    assert ended.code == 0
    assert "done already" in ended.out
    assert result.stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_number_and_another_another(bam_train: Command, tmp_path: Path) -> None:
    losses = []
    for words in (["output_dir=a"], ["output_dir=b"], ["output_dir=c", "seed=1"]):
        assert bam_train(*words, *TINY).code == 0
        [result] = (tmp_path / words[0].removeprefix("output_dir=")).glob("runs/**/result.json")
        losses.append(json.loads(result.read_text())["epochs"])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_a_limit_on_steps_shows_in_the_name_and_still_ends_with_a_test_error(
    bam_train: Command, tmp_path: Path
) -> None:
    assert bam_train(*TINY, "recipe.max_steps=3").code == 0
    [result] = tmp_path.glob("runs/**/result.json")
    assert "max_steps3" in str(result)
    content = json.loads(result.read_text())
    assert len(content["epochs"]) == 1
    assert content["metrics"]["test_loss"] > 0
    assert content["metrics"]["test_images"] == 40


def test_a_tiny_limit_on_steps_limits_the_test_as_well_and_says_so(bam_train: Command, tmp_path: Path) -> None:
    assert bam_train(*TINY, "recipe.max_steps=1").code == 0
    [result] = tmp_path.glob("runs/**/result.json")
    assert json.loads(result.read_text())["metrics"]["test_images"] == 32


def test_a_row_of_a_table_and_the_same_typed_by_hand_are_one_run() -> None:
    by_row = run_of("+row/table1a=r8")
    by_hand = run_of("data=cifar100", "backbone=resnet50", "attention=bam", "attention.reduction=8", "recipe=cifar100")
    assert same(by_row, by_hand)
    assert by_row.name == "cifar100/resnet50/bam-reduction8/cifar100/seed0"
    assert by_row.fingerprint == by_hand.fingerprint


@pytest.mark.parametrize(
    ("word", "in_name"),
    [
        ("attention.combine=max", "bam-combine_max"),
        ("recipe.lr=0.02", "demo-lr0.02"),
        ("recipe.milestones=[0.3,0.6]", "demo-milestones_0.3_0.6"),
        ("recipe.nesterov=false", "demo-nesterov_false"),
    ],
)
def test_what_can_change_a_number_shows_in_the_name_and_fingerprint(word: str, in_name: str) -> None:
    plain, changed = run_of(), run_of(word)
    assert in_name in changed.name.split("/")
    assert plain.fingerprint != changed.fingerprint
    assert same(run_of(*changed.overrides), changed)
    assert not set("=,") & set(changed.name)


@pytest.mark.parametrize(
    "word", ["trainer.threads=1", "trainer.checkpoint_minutes=5", "data_root=elsewhere", "output_dir=there"]
)
def test_what_cannot_change_a_number_does_not(word: str) -> None:
    assert same(run_of(), run_of(word))
    assert run_of().fingerprint == run_of(word).fingerprint


def test_fingerprints_are_what_they_were() -> None:
    """If this fails, results that are already stored would be taken for another run's, or lost: raise SCHEMA knowingly."""
    assert run_of("+row/table1a=r8").fingerprint == "b6f50cbc0a3ef1f7"
    assert run_of("+row/demo=se").fingerprint == "a5fa45c95e285210"


def test_a_key_left_out_is_its_default() -> None:
    assert run_of("~attention.reduction").fingerprint == run_of().fingerprint
    assert run_of("~attention.reduction").name == run_of().name


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["recipe=cifar100"], [150, 225]),
        (["recipe=cifar100_short"], [15, 23]),
        (["recipe=cifar100_short", "recipe.epochs=3"], [2, 3]),
        (["recipe=imagenet"], [30, 60]),
        (["recipe=imagenet_squeezenet"], [30, 60, 90]),
        (["recipe=cifar100", "recipe.epochs=164", "recipe.milestones=[0.494,0.744]"], [81, 122]),
    ],
)
def test_the_learning_rate_changes_at_the_first_epoch_after_each_milestone(
    words: list[str], changes: list[int]
) -> None:
    with torch.device("meta"):
        _, _, task = build(chosen_of(*words))
    assert task.milestones == changes


def test_one_cycle_is_that_of_pytorch() -> None:
    """But for a step: PyTorch's last step has its smallest rate, ours comes one step short of it."""
    with torch.device("meta"):
        _, _, task = build(chosen_of("recipe=cifar100", "recipe.schedule=one_cycle", "recipe.epochs=20"))
    steps = 20 * 79  # of the 10,000 shapes
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, div_factor=25, final_div_factor=400)
    for step in range(steps - 1):
        assert task.rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=2e-3)
        optimizer.step()
        theirs.step()
