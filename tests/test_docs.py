"""README and docs/: links lead somewhere, commands are accepted, snippets do what the page says they print."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, chosen_of

from bam_exp import config

PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "results/*.md", "examples/*/*.md") for path in REPOSITORY.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    for target in (target for target in targets if not target.startswith(("http:", "https:"))):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "index.md").read_text()
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")} - {"index.md"}
    assert [page for page in sorted(pages) if f"({page})" not in index] == []


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 120


def test_the_design_names_every_package_and_module_at_the_top() -> None:
    page = (REPOSITORY / "docs" / "design.md").read_text()
    [tree] = [text for _, text in BLOCK.findall(page) if "bam_exp/\n" in text]
    package = REPOSITORY / "bam_exp"
    expected = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    expected += [path.name for path in package.glob("*.py")]
    assert [part for part in sorted(expected) if part not in tree] == []


def commands() -> list[str]:
    """Every bam-train command of the docs that describes one run or sweep completely."""
    lines = [line.strip() for page in PAGES for line in page.read_text().splitlines()]
    whole = [line for line in lines if line.startswith("bam-train ") and "..." not in line and "…" not in line]
    others = ("--help", "--config-dir", "-sc", "simam", "evaluate=", "weights=", "dilatoin", "submitit", "[--")
    return sorted({line for line in whole if not any(other in line for other in others) and not line.endswith("\\")})


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True)[1:] if not word.startswith("-") and word != "job"]
    config.check_overrides(words)
    parsed = config.parse_overrides(words)
    if any(word.key_or_group == "experiment" for word in parsed):
        return
    # Of a sweep, the first job.
    chosen_of(*(
        f"{word.input_line.partition('=')[0]}={next(word.sweep_string_iterator())}"
        if word.is_sweep_override() else word.input_line
        for word in parsed
    ))  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_snippets_are_python(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            compile(text, name(page), "exec")


def test_the_page_about_ones_network_prints_what_it_says() -> None:
    (_, snippet), (_, said), *_ = BLOCK.findall((REPOSITORY / "docs" / "network.md").read_text())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet, {})
    assert printed.getvalue() == said


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "behind each place, in place" in (tmp_path / "api.html").read_text()  # the docstring of attach
