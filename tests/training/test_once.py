"""One start of one run reads its config once, builds two networks, one of them on the meta device, and prepares its data once."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TINY, Command

from bam_exp.backbones import ResNet
from bam_exp.config import Chosen
from bam_exp.data import Shapes
from bam_exp.machine import Machine


def test_a_start_does_everything_once(bam_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: type, name: str, as_name: Callable[[Any], str]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)  # the signature is the schema
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            result = original(self, *arguments, **keywords)
            counts[as_name(self)] += 1
            return result

        monkeypatch.setattr(owner, name, call)

    of = Chosen.of.__func__  # type: ignore[attr-defined]

    def read(cls: type[Chosen], *arguments: Any) -> Chosen:
        counts["config read"] += 1
        chosen: Chosen = of(cls, *arguments)
        return chosen

    monkeypatch.setattr(Chosen, "of", classmethod(read))
    counted(ResNet, "__init__", lambda network: f"network on {next(network.parameters()).device}")
    counted(Shapes, "__init__", lambda _: "data set")
    counted(Shapes, "prepare", lambda _: "data prepared")
    counted(Machine, "__post_init__" if hasattr(Machine, "__post_init__") else "__init__", lambda _: "machine")
    assert bam_train(*TINY, "recipe.max_steps=2").code == 0
    assert counts == {
        "config read": 1, "network on meta": 1, "network on cpu": 1, "data set": 1, "data prepared": 1, "machine": 1,
    }  # fmt: skip
