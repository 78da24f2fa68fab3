"""The choices that exist: one YAML file for each, conf/<group>/<choice>.yaml."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bam_exp.errors import ConfigError

GROUPS = ("data", "backbone", "attention", "recipe", "trainer")
"""The config groups; the config of each is the keyword arguments of the callable that its `_target_` names."""

NAMED = ("data", "backbone", "attention", "recipe")
"""The groups that can change a number, in the order in which they name a run's folder. The trainer group is not among them."""

NAME = re.compile(r"\w[\w.+-]*")
"""The names that a choice, which is part of the name of a run's folder, and a row of a table can have."""

SETTINGS = ("seed", "data_root", "output_dir", "weights", "evaluate", "images")
"""The keys beside the groups in conf/config.yaml."""

PATHS = ("data_root", "output_dir", "weights", "evaluate")
"""The settings that are paths."""


def config_dir() -> Path:
    """The folder of the package's configs: `conf` of a checkout, `bam_exp/conf` of an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


_extra_folders: list[Path] = []
_packages: set[str] = {"bam_exp"}


def use_folders(folders: Iterable[Path], packages: Iterable[str] = ()) -> None:
    """Add folders of choices beside the package's own, and admit packages whose callables configs may name.

    A YAML file alone admits nothing: code from outside runs only if the user names its package.

    Raises:
        ConfigError: if there is no such folder, or if it has a choice that the package or another folder has too.
    """
    for folder in folders:
        path = folder.expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"{folder}: there is no such folder of configs")
        if path not in (*_extra_folders, config_dir()):
            _check_new(path)
            _extra_folders.append(path)
    _packages.update(packages)
    choice_file.cache_clear()


def _check_new(folder: Path) -> None:
    for group in (*GROUPS, "table"):
        for path in sorted((folder / group).glob("*.yaml")):
            if path.stem in choice_names(group):
                raise ConfigError(f"{path}: {group} {path.stem} exists already; choose another name")
            if group != "table":  # a table is read when it is named, and a choice also by Hydra, which is less strict
                read_choice(path)


def extra_folders() -> Sequence[Path]:
    """The folders of choices beside the package's own."""
    return tuple(_extra_folders)


def packages() -> frozenset[str]:
    """The packages whose callables configs may name."""
    return frozenset(_packages)


def choice_path(group: str, choice: str) -> Path | None:
    """The file of a choice, or None if there is no such choice."""
    for folder in (config_dir(), *_extra_folders):
        if (path := folder / group / f"{choice}.yaml").is_file():
            return path
    return None


@cache
def choice_file(group: str, choice: str) -> Mapping[str, Any]:
    """The content of a choice's file, or an empty mapping if there is no such file.

    Raises:
        ConfigError: if the file is not a YAML mapping.
    """
    path = choice_path(group, choice)
    return {} if path is None else read_choice(path)


def read_choice(path: Path) -> Mapping[str, Any]:
    """The content of the file of a choice.

    Raises:
        ConfigError: if the file is not a YAML mapping.
    """
    from bam_exp.config.strict_yaml import read_yaml  # here, because bam-doctor works without PyYAML

    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a mapping with a _target_, found {type(content).__name__}")
    return content


def choice_names(group: str) -> list[str]:
    """The names of the choices of a group, sorted."""
    folders = (config_dir(), *_extra_folders)
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def nearest(name: object, allowed: Iterable[object]) -> str:
    """`; did you mean X?` if one of the allowed names is similar, else an empty string."""
    close = difflib.get_close_matches(str(name), [str(option) for option in allowed], n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close else ""
