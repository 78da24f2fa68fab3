"""A config of an attention is `_target_`, `at`, and every knob of its callable, spelled out; each makes a module."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import bam_exp.attention
from bam_exp.attention import attach

CONF = Path(__file__).resolve().parents[2] / "conf" / "attention"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))


def read(choice: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / f"{choice}.yaml").read_text())
    return content


def test_auto_is_a_place_in_configs_too() -> None:
    """`attention.at=auto` finds the seams that the backbone states, and a run is named after it."""
    from conftest import ready

    run, parts, _ = ready("attention.at=auto", "attention.reduction=8")
    _, stated, _ = ready("attention.reduction=8")
    assert "bam-at_auto-reduction8" in run.name
    assert list(parts.network.state_dict()) == list(stated.network.state_dict())


def test_the_baseline_has_no_attention() -> None:
    assert read("none") == {"_target_": None}


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice != "none"])
def test_keys_are_the_signature_and_build(choice: str) -> None:
    config = read(choice)
    package, _, name = config["_target_"].rpartition(".")
    assert package == "bam_exp.attention"
    kind = getattr(bam_exp.attention, name)
    parameters = inspect.signature(kind).parameters.values()
    knobs = {parameter.name: parameter.default for parameter in parameters if parameter.name != "channels"}
    for given in ("block", "device", "dtype"):  # the backbone gives them
        knobs.pop(given, None)
    assert list(config) == ["_target_", "at", *knobs]
    if choice in ("bam", "se", "cbam", "eca"):
        assert {key: config[key] for key in knobs} == knobs  # the plain choice is the callable's default
    if name != "ConvBlock":
        kind(64, **{key: config[key] for key in knobs})


def test_where_each_goes_by_default() -> None:
    """BAM and the block it is compared with at the bottlenecks, the others where their own papers put them."""
    places = {choice: read(choice)["at"] for choice in CHOICES if choice != "none"}
    assert {places[choice] for choice in ("bam", "bam_equations", "bam_released", "conv_block")} == {"bottleneck"}
    assert {places[choice] for choice in ("se", "cbam", "eca")} == {"block"}
    assert inspect.signature(attach).parameters["at"].default == "bottleneck"


@pytest.mark.parametrize(("choice", "parameters"), [("bam", 18385), ("bam_equations", 17747), ("bam_released", 17361)])
def test_the_three_forms_of_bam(choice: str, parameters: int) -> None:
    """At 256 channels and r = 16, by the closed forms of paper.md."""
    config = read(choice)
    bam = bam_exp.attention.BAM(256, **{key: value for key, value in config.items() if key not in ("_target_", "at")})
    assert sum(parameter.numel() for parameter in bam.parameters()) == parameters
    assert bam.combine == ("product" if choice == "bam_released" else "sum")
    assert isinstance(bam, nn.Module)
    assert bam.eval()(torch.randn(1, 256, 2, 2)).shape == (1, 256, 2, 2)
