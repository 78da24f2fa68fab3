"""Weights from a file: tested without training, and trained on from, under a name of their own."""

import json
from pathlib import Path

from conftest import TINY, Command, chosen_of

from bam_exp.build import build
from bam_exp.weights import save_weights


def weights_file(path: Path, *words: str) -> Path:
    save_weights(build(chosen_of(*words)).network.state_dict(), path)
    return path


def test_evaluate_tests_a_file_and_trains_nothing(bam_train: Command, tmp_path: Path) -> None:
    file = weights_file(tmp_path / "some.safetensors")
    ended = bam_train(f"evaluate={file}", *TINY)
    assert ended.code == 0
    assert "top-1 error" in ended.out
    assert "40 images of shapes" in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["some.safetensors"]


def test_weights_of_another_network_are_refused(bam_train: Command, tmp_path: Path) -> None:
    file = weights_file(tmp_path / "some.safetensors", "attention=none")
    ended = bam_train(f"evaluate={file}", *TINY)
    assert ended.code == 2
    [line] = ended.err.strip().splitlines()
    assert "some.safetensors" in line
    assert "attention" in line


def test_training_on_from_plain_weights_is_another_run(bam_train: Command, tmp_path: Path) -> None:
    file = weights_file(tmp_path / "plain.safetensors", "attention=none")
    assert bam_train(f"weights={file}", *TINY).code == 0
    [result] = tmp_path.glob("runs/*/resnet20-weights_plain/bam/*/seed0/result.json")
    assert "weights" in json.loads(result.read_text())["figures_from"]
