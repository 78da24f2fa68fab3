"""What every test may use."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the tests run side by side, one core each

import getpass
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

if TYPE_CHECKING:
    from bam_exp.build import Parts
    from bam_exp.config import Chosen
    from bam_exp.machine import Machine
    from bam_exp.runs import Run

# Not the folder of the user's runs.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/bam_exp-tests-compiled-{getpass.getuser()}")

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = (
    "data.train_size=160",
    "data.test_size=40",
    "recipe.batch_size=32",
    "recipe.epochs=2",
    "trainer.threads=1",
    "trainer.device=cpu",
    "trainer.precision=float32",
)
"""Overrides that make a run of the built-in data a matter of a second."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def chosen_of(*words: str) -> "Chosen":
    """What these overrides choose."""
    from bam_exp.config import Chosen, compose

    return Chosen.of(compose(words))


def run_of(*words: str) -> "Run":
    """The run that these overrides give."""
    return ready(*words)[0]


def ready(*words: str) -> "tuple[Run, Parts, Machine]":
    """The run that these overrides give, its parts on the meta device, and its machine."""
    from bam_exp.build import build_on_meta, make_machine
    from bam_exp.runs import Run

    chosen = chosen_of(*words)
    machine, parts = make_machine(chosen), build_on_meta(chosen)
    return Run.of(chosen, parts.data.digest), parts, machine


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the tests, which neither read nor write the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _rows() -> None:
    """Rows of tables as configs, as the commands register them."""
    from bam_exp import tables

    tables.register()


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders and packages that a test adds are forgotten after it."""
    from bam_exp.config import choices

    monkeypatch.setattr(choices, "_extra_folders", [])
    monkeypatch.setattr(choices, "_packages", {"bam_exp"})
    for name in ("BAM_EXP_CONF", "BAM_EXP_PACKAGES"):
        monkeypatch.setenv(name, "")
    choices.choice_file.cache_clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and notes beside the project (or at $BAM_SHARED); tests that need it skip without it."""
    folder = Path(os.environ.get("BAM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "README.md").is_file():
        pytest.skip(f"no real data at {folder} (set BAM_SHARED to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def tiny_coco(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data_root of 50 + 50 photos of COCO 2017 with their annotations."""
    return _unpacked(shared / "data/tiny_coco.tar.xz", tmp_path_factory) / "tiny_coco/tiny_coco"


@pytest.fixture(scope="session")
def voc_mini(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data_root of 137 + 137 photos in VOC's layout; their boxes are COCO's."""
    return _unpacked(shared / "data/voc-format-mini.tar", tmp_path_factory) / "voc-format-mini"


@pytest.fixture(scope="session")
def voc_official_bits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official lists of VOC 2007 and a few of its images."""
    return _unpacked(shared / "data/voc2007-official-bits.tar.xz", tmp_path_factory) / "voc2007-official-bits"


def _unpacked(tar: Path, folders: pytest.TempPathFactory) -> Path:
    folder = folders.mktemp("boxes")
    with tarfile.open(tar) as content:
        content.extractall(folder, filter="data")
    return folder


def _command(
    main: Callable[[], None], name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    def run(*words: str) -> Ended:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [name, *words])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            GlobalHydra.instance().clear()
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def bam_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`bam-train` in an empty current folder, in this process; the jobs of a sweep are processes of their own all the same."""
    from bam_exp.commands.train import main

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield _command(main, "bam-train", monkeypatch, capfd)
    torch.set_num_threads(threads)


@pytest.fixture
def bam_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`bam-tables` in the same current folder."""
    from bam_exp.commands.tables import main

    monkeypatch.chdir(tmp_path)
    return _command(main, "bam-tables", monkeypatch, capfd)
