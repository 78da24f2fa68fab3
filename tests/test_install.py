"""What is installed: the wheel works in any folder, the source distribution is complete, and the core needs no extra."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Ended

import bam_exp

EXAMPLE = REPOSITORY / "examples" / "my_attention"
FOLDERS = ("bam_exp", "conf", "docs", "examples", "results", "scripts", "tests", ".github")
LEFT = shutil.ignore_patterns("*.egg-info", "__pycache__", "build", "*.lock", ".lock")
BLOCKED = """
import sys
from bam_exp import entry

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in entry._OF_TRAIN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
"""


def python(*words: str, folder: Path, path: Path | None = None, **variables: str) -> Ended:
    paths = os.pathsep.join([*([str(path)] if path else []), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": paths, **variables},
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, and what setuptools said."""
    pytest.importorskip("setuptools", reason="building needs setuptools in this environment")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"  # a copy: setuptools leaves folders behind where it builds
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=LEFT)
    for path in filter(Path.is_file, REPOSITORY.iterdir()):
        shutil.copy(path, source)
    build = "from setuptools import build_meta as b; b.build_wheel('..'); b.build_sdist('..')"
    ended = python("-c", build, folder=source)
    assert ended.code == 0, ended.err
    (folder / "said.txt").write_text(ended.out + ended.err)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="session")
def site(built: Path, wheel: zipfile.ZipFile) -> Path:
    """A folder as pip fills it from the wheel."""
    folder = built / "site"
    wheel.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def metadata(wheel: zipfile.ZipFile) -> Any:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def files(folder: Path, *patterns: str) -> set[str]:
    return {
        str(path.relative_to(folder))
        for pattern in patterns
        for path in folder.rglob(pattern)
        if path.is_file() and not re.search(r"__pycache__|egg-info|_cache|\.lock$", str(path))
    }


def test_the_wheel_has_every_file_of_the_package(built: Path, wheel: zipfile.ZipFile) -> None:
    expected = {f"bam_exp/{name}" for name in files(REPOSITORY / "bam_exp", "*")}
    expected |= {f"bam_exp/conf/{name}" for name in files(REPOSITORY / "conf", "*.yaml")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert "Package would be ignored" not in (built / "said.txt").read_text()


def test_the_source_distribution_has_what_its_tests_need(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"{folder}/{name}" for folder in FOLDERS for name in files(REPOSITORY / folder, "*")}
    expected |= {
        path.name
        for path in REPOSITORY.glob("*")
        if path.is_file() and path.suffix in (".md", ".cff", ".py", ".txt", ".toml")
    }
    assert sorted(expected - names) == []
    assert {"Makefile", "Dockerfile", "LICENSE", ".pre-commit-config.yaml", "PKG-INFO"} <= names


def test_the_package_says_one_version(metadata: Any) -> None:
    version = bam_exp.__version__
    assert metadata["Version"] == version
    assert f"version: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    first = re.search(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == version


def test_no_link_of_the_description_leads_nowhere_on_a_package_index(metadata: Any) -> None:
    description = metadata.get_payload()
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert [link for link in links if not link.startswith("https:")] == []
    assert "attach(torchvision.models.resnet50(), BAM" in description
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_core_needs_little_more_than_pytorch(metadata: Any) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0] for line in needed}  # type: ignore[index]
    assert names == {"torch", "numpy", "pydantic", "typing-extensions"}


def test_the_oldest_pytorch_that_is_allowed_is_the_one_that_is_tested() -> None:
    oldest = re.findall(r"'(torch\w*)==([\d.]+)\.\*'", (REPOSITORY / "Makefile").read_text())
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    assert dict(oldest) == dict(re.findall(r'"(torch|torchvision)>=([\d.]+)"', pyproject))


def test_the_command_works_from_a_wheel_in_any_folder(site: Path, tmp_path: Path) -> None:
    shown = python("-m", "bam_exp", "+row/table1a=r8", "--cfg", "job", folder=tmp_path, path=site)
    assert "reduction: 8" in shown.out, shown.err
    found = python("-c", "import bam_exp.config as c; print(c.config_dir())", folder=tmp_path, path=site)
    assert found.out.strip() == str(site / "bam_exp" / "conf")


def test_without_the_extra_the_library_works_and_each_command_names_it(tmp_path: Path) -> None:
    commands = ("train", "tables", "bench", "data", "weights", "maps")
    words = {"weights": ["show", "x.safetensors"], "data": ["cifar100", "."]}
    script = f"""{BLOCKED}
from torch import nn
from bam_exp import BAM, attach, attached
layers = [nn.Sequential(nn.Conv2d(a, b, 3, stride=s, padding=1), nn.ReLU()) for a, b, s in [(3, 16, 1), (16, 16, 1), (16, 32, 2)]]
print(len(attached(attach(nn.Sequential(*layers), BAM, at="auto")).places))
sys.meta_path.insert(0, Missing())
for command in {commands}:
    sys.argv[1:] = {words}.get(command, ["--help"])
    try:
        getattr(entry, command)()
    except SystemExit as end:
        print(command, end.code)
entry.doctor()
"""
    ended = python("-c", script, folder=tmp_path)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[: len(commands) + 1] == ["1", *(f"{command} 2" for command in commands)]
    said = ended.err.splitlines()
    assert [line.partition(":")[0] for line in said] == [f"bam-{command}" for command in commands]
    assert all(line.endswith("is not installed; pip install 'bam_exp[train]' brings it") for line in said)


@pytest.mark.slow
def test_the_example_is_swept_by_joblib_and_reported_from_wheels(site: Path, built: Path, tmp_path: Path) -> None:
    """Both packages as pip installs them: nothing of the checkout is on the path, and no variable is set."""
    source = built / "my_attention"
    shutil.copytree(EXAMPLE, source, ignore=LEFT)
    build = "from setuptools import build_meta as b; b.build_wheel('..')"
    assert python("-c", build, folder=source).code == 0
    [wheel] = built.glob("my_attention*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    words = [
        "+experiment=simam", "seed=0", "recipe.epochs=1", "recipe.max_steps=2", "recipe.batch_size=32", "data.train_size=160",
        "data.test_size=40", "trainer.threads=1", "trainer.device=cpu", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    ended = python("-m", "bam_exp", *words, folder=tmp_path, path=site)
    assert ended.code == 0, ended.err
    assert len(list(tmp_path.glob("runs/*/*/*/*/seed0/result.json"))) == 4
    report = next(tmp_path.glob("results/simam--*.md")).read_text()
    assert "SimAM" in report
    reported = python("-m", "bam_exp.commands.tables", "report", "simam", folder=tmp_path, path=site)
    assert reported.code == 0, reported.err
    assert "+ SimAM, every block" in reported.out
