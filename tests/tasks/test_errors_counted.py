"""The errors of a classifier are those of argmax on float32 logits, in either precision."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, chosen_of
from torch import nn

from bam_exp.backbones import VGG, WRN, ResNet, SqueezeNet
from bam_exp.build import build
from bam_exp.tasks.classifier import ranks_of_labels
from bam_exp.weights import load_weights, save_weights

HALF = ("backbone=resnet20", "backbone.widen=0.5", "attention=none")


def test_the_rank_of_a_label_is_that_of_a_stable_sort() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randint(6, (500, 20)).float(), torch.randint(20, (500,))  # few values: full of ties
    order = logits.sort(dim=1, descending=True, stable=True).indices
    assert ranks_of_labels(logits, labels).tolist() == (order == labels[:, None]).int().argmax(1).tolist()
    assert torch.equal(ranks_of_labels(logits, labels) == 0, logits.argmax(1) == labels)


def test_a_network_that_says_the_same_for_all_is_at_chance() -> None:
    labels = torch.arange(20).repeat(5)
    ranks = ranks_of_labels(torch.zeros(100, 20), labels)
    assert (ranks < 1).sum() == 5
    assert (ranks < 5).sum() == 25


def test_not_a_number_is_wrong() -> None:
    labels = torch.arange(20)
    assert (ranks_of_labels(torch.full((20, 20), torch.nan), labels) >= 5).all()
    logits = torch.zeros(20, 20)
    logits[:, 7] = torch.nan
    assert (ranks_of_labels(logits, labels) > 0).all()  # argmax gives 7, whose own logit is no number


@pytest.mark.parametrize(
    "network",
    [
        ResNet(100, depth=20, stem="cifar"),
        WRN(100, depth=10, widen=1),
        SqueezeNet(100),
        SqueezeNet(100, pool="before", stem_padding=1),
        VGG(100, depth=11),
    ],
    ids=["resnet", "wrn", "squeezenet", "squeezenet, pool before", "vgg"],
)
def test_logits_are_float32_under_autocast_and_do_not_tie(network: nn.Module) -> None:
    network.eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
        assert network.stages(network.stem(images)).dtype == torch.bfloat16  # the rest is as fast as before
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    doubles = network.double()(images.double())
    assert doubles.dtype == torch.float64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a half ResNet-20 after two short epochs on `shapes`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data, network, _ = build(chosen_of("data=shapes", "data.train_size=4000", *HALF))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    loader = data.loader("train", batch_size=64, seed=0, device="cpu")
    for epoch in range(2):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "half.safetensors"
    save_weights(network.state_dict(), path)
    return path


def printed(line: str) -> list[float]:
    return [float(value) for value in re.findall(r"error (\d+\.\d+) %", line)]


def test_bfloat16_reports_what_argmax_of_the_same_logits_gives(trained: Path, bam_train: Command) -> None:
    words = (*HALF, "data=shapes", "data.test_size=20000", "recipe.batch_size=500", "trainer.device=cpu")
    ended = bam_train(*words, f"evaluate={trained}", "trainer.precision=bfloat16", "trainer.threads=1")
    assert ended.code == 0, ended.err
    data, network, _ = build(chosen_of(*words))
    load_weights(network, trained)
    network.eval().to(memory_format=torch.channels_last)
    wrong, count = torch.zeros(2), 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for images, labels in data.loader("test", batch_size=500, seed=0, device="cpu"):
            logits = network(images)
            wrong[0] += (logits.argmax(1) != labels).sum()
            wrong[1] += (logits.topk(5).indices != labels[:, None]).all(1).sum()
            count += len(labels)
    assert count == 20_000
    assert printed(ended.out) == pytest.approx((100 * wrong / count).tolist(), abs=0.02)


def test_a_run_records_which_test_images_were_right(bam_train: Command, tmp_path: Path) -> None:
    words = (
        "data.train_size=160",
        "data.test_size=60",
        "recipe.batch_size=32",
        "recipe.epochs=1",
        "trainer.device=cpu",
    )
    assert bam_train(*HALF, *words).code == 0
    [path] = tmp_path.glob("runs/**/result.json")
    result = json.loads(path.read_text())
    right = np.unpackbits(np.frombuffer(base64.b64decode(result["correct"]), np.uint8), count=60)
    assert 100 * (1 - right.mean()) == pytest.approx(result["metrics"]["top1_error"])
