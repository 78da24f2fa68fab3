"""The structure of the package: layers, no circles, no long files or functions."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx
import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "bam_exp"
LONGEST_FILE, LONGEST_FUNCTION = 250, 60


def test_every_module_imports_lower_layers_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Deferred imports count; those for type checkers only do not."""
    imports = grimp.build_graph("bam_exp", cache_dir=None, exclude_type_checking_imports=True)
    graph = networkx.DiGraph()
    for module in imports.modules:
        # Importing a module of a package runs the package's __init__, which is not a dependency of its own modules.
        for imported in imports.find_modules_directly_imported_by(module):
            graph.add_edge(module, imported)
    assert [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1] == []


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file with their numbers of lines."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_or_function_is_too_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST_FILE
    assert [(name, lines) for name, lines in functions(file) if lines > LONGEST_FUNCTION] == []


READERS = ("commands/", "doctor/", "machine/", "sweeps/", "processes.py", "cpu.py", "entry.py")
"""Where the environment and the command line are read. Sweeps hand their environment on to the processes they start."""
FOREIGN = {
    "weights/checkpoint.py": ["os.environ"],  # keeps a variable of PyTorch from having a file executed
    "files.py": ["os.environ"],  # XDG_CACHE_HOME, where a user's caches are
    "bench/store.py": ["os.environ"],  # the environment of the commands that it measures
}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_environment_is_read_where_commands_start_and_machines_are_described(file: Path) -> None:
    name = str(file.relative_to(PACKAGE))
    if name.startswith(READERS):
        return
    nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute))
    used = {ast.unparse(node) for node in nodes} & {"os.environ", "os.getenv", "os.environb", "sys.argv"}
    assert sorted(used) == FOREIGN.get(name, [])
