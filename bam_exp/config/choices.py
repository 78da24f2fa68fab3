"""The choices that exist: one YAML file for each, conf/<group>/<choice>.yaml."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bam_exp.errors import ConfigError

GROUPS = ("data", "backbone", "attention", "recipe", "trainer")
"""The config groups; the config of each is the keyword arguments of the callable that its `_target_` names."""

NAMED = ("data", "backbone", "attention", "recipe")
"""The groups that can change a number, in the order in which they name a run's folder. The trainer group is not among them."""

SETTINGS = ("seed", "data_root", "output_dir", "weights", "evaluate")
"""The keys beside the groups in conf/config.yaml."""

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe YAML loader; the fast one where PyYAML was built with it."""


def config_dir() -> Path:
    """The folder of the package's configs: `conf` of a checkout, `bam_exp/conf` of an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def read_yaml(path: Path) -> object:
    """The content of a YAML file.

    Raises:
        ConfigError: if it cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), YAML)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


@cache
def choice_file(group: str, choice: str) -> Mapping[str, Any]:
    """The content of conf/<group>/<choice>.yaml, or an empty mapping if there is no such file.

    Raises:
        ConfigError: if the file is not a YAML mapping.
    """
    path = config_dir() / group / f"{choice}.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a mapping with a _target_, found {type(content).__name__}")
    return content


def choice_names(group: str) -> list[str]:
    """The names of the choices of a group, sorted."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def nearest(name: object, allowed: Iterable[object]) -> str:
    """`; did you mean X?` if one of the allowed names is similar, else an empty string."""
    close = difflib.get_close_matches(str(name), [str(option) for option in allowed], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
