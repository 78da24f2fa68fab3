"""Every row that can be trained does train: one step lowers the loss, and every parameter of its attention gets a gradient.

The rows are those that `bam-train -m '+row/<table>=glob(*)'` would run, for every table of classifiers. And every command that
docs/faithfulness.md gives for the other way of a fork can be run.
"""

import re
import shlex
from collections.abc import Iterator

import pytest
import torch
from conftest import REPOSITORY, run_of
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn
from torch.nn import functional as F

from bam_exp import config, tables
from bam_exp.attention import SE
from bam_exp.build import build
from bam_exp.tables import Row

TABLES = [table for table in map(tables.load_table, tables.table_names()) if table.task == "classification"]

CANCELLED = re.compile(r"\.attention\.(channel\.fc[01]|spatial\.conv[0-3])\.bias$")
"""The biases of BAM's layers: each layer is followed by a batch norm, which subtracts the mean over the batch and with it
any bias. Their gradient is zero by mathematics, so that only noise of rounding is left of it."""

LOWER = 0.01
"""The share of the loss that a step is to take away, to first order."""


def networks() -> dict[str, Row]:
    """One row for each network: rows that differ in nothing but the recipe or that tables share are one."""
    found: dict[frozenset[tuple[str, object]], Row] = {}
    for table in TABLES:
        for row in table.rows:
            chosen = frozenset((key, value) for key, value in row.set.items() if not key.startswith("recipe"))
            found.setdefault(chosen, row)
    return {f"{row.table}-{row.name}": row for row in found.values()}


NETWORKS = networks()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("table", map(tables.load_table, tables.table_names()), ids=lambda table: table.name)
def test_glob_gives_every_row(table: tables.Table) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        options = GlobalHydra.instance().config_loader().get_group_options(f"row/{table.name}")
    assert sorted(options) == sorted(row.name for row in table.rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_lowers_the_loss_and_reaches_the_whole_attention(name: str) -> None:
    row = NETWORKS[name]
    torch.manual_seed(0)
    data, network, _ = build(row.chosen())
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # a loss is compared with itself, one step later
        if isinstance(layer, SE):
            # No batch norm stands before its ReLU, and in the narrowest network it has one hidden unit, which chance may
            # leave off for every image. Here all units are on.
            nn.init.ones_(layer.mlp[0].bias)
    side = 2 * network.min_size
    images, labels = torch.randn(8, 3, side, side), torch.randint(data.num_classes, (8,))

    before = loss_of(network, images, labels)
    before.backward()
    attention = {key: weight for key, weight in network.named_parameters() if ".attention." in key}
    assert bool(attention) == (row.set.get("attention", "bam") != "none")
    dead = [
        key
        for key, weight in attention.items()
        if weight.grad is None or not weight.grad.isfinite().all() or not (weight.grad.any() or CANCELLED.search(key))
    ]
    assert not dead

    # As long a step as should lower the loss by 1 %: long enough to be no rounding, short enough for the slope to hold.
    squares = sum(weight.grad.square().sum().item() for weight in network.parameters() if weight.grad is not None)
    torch.optim.SGD(network.parameters(), lr=LOWER * before.item() / squares).step()
    with torch.no_grad():
        after = loss_of(network, images, labels)
    assert after < (1 - LOWER / 2) * before


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network.train()(images), labels)


def commands() -> list[str]:
    text = (REPOSITORY / "docs" / "faithfulness.md").read_text()
    return re.findall(r"^bam-train (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_the_other_way_of_a_fork_can_be_typed_and_is_a_run_of_its_own(command: str) -> None:
    row, *changes = shlex.split(command, comments=True)
    if row.startswith("+row/") and any(not change.startswith("trainer.") for change in changes):
        assert run_of(row, *changes).name != run_of(row).name
    else:
        run_of(row, *changes)
