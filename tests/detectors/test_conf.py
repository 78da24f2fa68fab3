"""A detector's config holds every keyword of its factory, and every seam is one that an attention can be appended to."""

import inspect

import pytest
import torch
from conftest import REPOSITORY
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf
from torch import nn

CONF = REPOSITORY / "conf" / "backbone"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml") if "bam_exp.detectors." in path.read_text())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_config_holds_every_keyword_and_its_default(choice: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{choice}.yaml"))
    factory = get_method(config.pop("_target_"))
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert config == keywords


@pytest.mark.parametrize("choice", CHOICES)
def test_every_seam_is_a_sequential(choice: str) -> None:
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(CONF / f"{choice}.yaml"), 20, _convert_="all")
    assert {"bottleneck", "classifier"} <= set(network.seams)
    for seams in network.seams.values():
        for seam in seams:
            assert isinstance(network.get_submodule(seam.name), nn.Sequential)
