"""Folders, packages and flags that a command reads from its environment and command line before anything else."""

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from bam_exp.commands.arguments import Parser
from bam_exp.config import extra_folders, packages, use_folders
from bam_exp.errors import ConfigError

CONF = "BAM_EXP_CONF"
"""The environment variable with folders of the user's choices and tables, separated as in PATH."""

PACKAGES = "BAM_EXP_PACKAGES"
"""The environment variable with packages, separated by commas, whose callables configs may name."""

ENTRY_POINT = "bam_exp.conf"
"""The entry point by which an installed package offers its folder of choices, and its callables."""

_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}


def use_environment(config_dir: str | None = None) -> None:
    """Make the choices of the user's folders known: of `--config-dir`, the environment and installed packages.

    Processes that this one starts find the same through the environment.

    Raises:
        ConfigError: if a folder does not exist or repeats a name.
    """
    folders = [Path(folder) for folder in os.environ.get(CONF, "").split(os.pathsep) if folder]
    admitted = [package.strip() for package in os.environ.get(PACKAGES, "").split(",") if package.strip()]
    for package in admitted:
        if not package.isidentifier() or find_spec(package) is None:
            raise ConfigError(
                f"{PACKAGES}={package}: there is no such package; install it, or put its folder on PYTHONPATH"
            )
    for entry in entry_points(group=ENTRY_POINT):
        module = entry.value.partition(":")[0]
        try:
            spec = find_spec(module)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{entry.name}: the entry point {ENTRY_POINT} names {module}, which is no package")
        folders.extend(map(Path, spec.submodule_search_locations))
        admitted.append(module.partition(".")[0])
    use_folders([*folders, *([Path(config_dir)] if config_dir else [])], admitted)
    if extra_folders():
        os.environ[CONF] = os.pathsep.join(map(str, extra_folders()))
    if len(packages()) > 1:
        os.environ[PACKAGES] = ",".join(sorted(packages() - {"bam_exp"}))


def flags_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides, wherever they stand on the command line.

    `experiment=` and `row/…=` are added to the defaults as if they were written with a plus.
    """
    flags: list[str] = []
    overrides: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if word.startswith("-") and word != "-":
            flags.append(word)
            takes_value = word in _WITH_VALUE or (word in ("--info", "-i") and remaining[:1] and remaining[0] in _INFO)
            if takes_value and remaining:
                flags.append(remaining.pop(0))
        else:
            overrides.append(f"+{word}" if word.startswith(("experiment=", "row/")) else word)
    return flags, overrides


def check_flags(flags: Sequence[str]) -> None:
    """End `bam-train` with one line and exit code 2 if Hydra, which would print its usage, does not know a flag or its value."""
    parser = Parser(prog="bam-train", add_help=False)
    for names in (("--help", "-h"), ("--hydra-help",), ("--resolve",), ("--run", "-r"), ("--multirun", "-m")):
        parser.add_argument(*names, action="store_true")
    for names in (("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd")):
        parser.add_argument(*names)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", nargs="?", choices=sorted(_INFO))
    parser.parse_args(flags)


def value_of(flags: Sequence[str], *names: str) -> str | None:
    """The value of a flag, or None if it is not among the flags."""
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name in names:
            return value if equals else flags[index + 1] if index + 1 < len(flags) else None
    return None
