"""A SLURM cluster for the tests of this folder, and the results that they must find again."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from .cluster import Cluster, Unavailable, cluster

RUN = (*(word for word in TINY if "epochs" not in word), "recipe.epochs=8", "trainer.checkpoint_minutes=0.005")
"""Overrides of a run that lasts some seconds, and saves often: time to disturb it in."""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A cluster of two nodes; skips with the reason where there can be none."""
    try:
        with cluster() as made:
            yield made
    except Unavailable as error:
        pytest.skip(f"no SLURM: {error}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What runs with seeds 0 to 3 measure on this machine when nothing happens to them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, "-m", "bam_exp", "-m", "seed=0,1,2,3", *RUN], cwd=folder, check=True, timeout=600)
    return measured(folder)


def measured(folder: Path) -> dict[int, dict[str, Any]]:
    """Of each finished run: what it measured, without what depends on when and where."""
    found = (json.loads(path.read_text()) for path in folder.glob("runs/**/result.json"))
    return {
        result["run"]["seed"]: {key: result[key] for key in ("fingerprint", "metrics", "epochs")} for result in found
    }
