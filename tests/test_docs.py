"""README and docs/: links lead somewhere, commands are accepted, snippets do what the page says they print."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY, chosen_of

from bam_exp import config
from bam_exp.tables import load_table, table_names

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


PARSED = ("tables", "data", "weights", "maps", "bench", "doctor")


def others() -> list[str]:
    """Every command of the docs beside bam-train and Hydra's, without those that leave something out."""
    whole = "\n".join(page.read_text().replace("\\\n", " ") for page in PAGES)
    commands = {line.partition(" #")[0].strip() for line in re.findall(r"^ *bam-.*$", whole, re.MULTILINE)}
    named = tuple(f"bam-{command} " for command in PARSED)
    return sorted(line for line in commands if f"{line} ".startswith(named) and not re.search(r"\.\.\.|…", line))


@pytest.mark.parametrize("line", others())
def test_every_other_command_is_understood(line: str) -> None:
    """By the parser of the command itself; what the commands do is tested where they are."""
    command, *words = shlex.split(line)
    parser = import_module(f"bam_exp.commands.{command.removeprefix('bam-')}")._parser()
    options = parser.parse_args(words)
    if command == "bam-tables":
        for table in (word for word in options.words if "=" not in word and word != "simam"):
            load_table("table1a" if table == "TABLE" else table)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for page in PAGES
        for _, text in BLOCK.findall(page.read_text())
        for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
    }
    assert {"demo", "test", "docs"} <= named <= targets


SNIPPET = re.compile(r"(<!-- not run: .+ -->\n+)?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text())]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name)
def test_every_python_snippet_runs(page: Path) -> None:
    """In the order of the page, with what earlier snippets have defined. Of a marked one, the names from bam_exp exist."""
    defined: dict[str, object] = {}
    for marked, text in SNIPPET.findall(page.read_text()):
        code = compile(text, name(page), "exec")
        if not marked:
            exec(code, defined)
            continue
        for line in re.findall(r"^from bam_exp.* import .+$", text, re.MULTILINE):
            exec(line, {})


def test_every_table_has_its_section() -> None:
    """With what it shows, the command that makes it, its size and ours beside the paper's."""
    page = (REPOSITORY / "docs" / "tables.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^###? |^Next: )", page, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == table_names()
    for table in map(load_table, table_names()):
        section = sections[table.name]
        distinct = {repr(sorted(row.set.items(), key=str)) for row in table.rows}
        seeds = f"{len(table.seeds)} seed{'s' * (len(table.seeds) > 1)}"
        assert f"`bam-train +experiment={table.name}" in section
        assert f"{len(distinct)} networks x {seeds}" in section.replace("\n", " ")


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
