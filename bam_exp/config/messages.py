"""One line for the user out of an error of Hydra, OmegaConf, PyYAML or this package."""

import re
import sys
from collections.abc import Iterator

from bam_exp.config.choices import GROUPS, SETTINGS, choice_file, choice_names, nearest


def refused() -> tuple[type[Exception], ...]:
    """The exceptions by which composing and checking a config refuse wrong input.

    Those of PyYAML, Hydra, OmegaConf and submitit are among them once these are imported: no command waits for them only to catch
    nothing.
    """
    names = ("yaml", "hydra.errors", "omegaconf.errors", "submitit.core.utils")
    yaml, hydra, omegaconf, submitit = map(sys.modules.get, names)
    return (
        ValueError,
        *([yaml.YAMLError] if yaml is not None else []),
        *([submitit.FailedJobError] if submitit is not None else []),  # sbatch has refused a job
        *([hydra.HydraException] if hydra is not None else []),
        *([omegaconf.OmegaConfBaseException] if omegaconf is not None else []),
    )


def one_line(error: BaseException) -> str:
    """The message of an error in one line that names the key, the value and what would be right."""
    hydra = sys.modules.get("hydra.errors")
    if hydra is not None and isinstance(error, hydra.MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        parent = re.match(r"In '([^']+)'", str(error))
        named_by = (
            f"{parent.group(1)}: its defaults name "
            if parent and parent.group(1) not in ("config", "hydra/config")
            else ""
        )
        options = [str(option) for option in error.options or choice_names(group)]
        return named_by + _no_such_choice(group, choice, options)
    text = str(error)
    if hydra is not None and isinstance(error, hydra.HydraException):
        if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
            key = match.group(1).lstrip("+~")
            if "/" in key and "already" in text:
                return f"{key}: " + " ".join(text.split())
            known = list(_all_keys())
            if key in known and "already" in text:
                return f"{key}: the config has this key already; leave out the plus"
            if key in known:
                return f"{key}: the {key.partition('.')[0]} that was chosen has no such key"
            return f"{key}: no such key{nearest(key, known)}"
        if match := re.search(r"Could not find '([^']+)'", text):
            group, _, choice = match.group(1).rpartition("/")
            return _no_such_choice(group, choice, choice_names(group))
    omegaconf = sys.modules.get("omegaconf.errors")
    if omegaconf is not None and isinstance(error, omegaconf.OmegaConfBaseException):
        text = text.partition("\n")[0]  # what follows are names of OmegaConf's own types
        if error.full_key:
            return f"{error.full_key}: {text}"
    return " ".join(text.split()) or type(error).__name__


_PLUGINS = {"hydra/sweeper": {"optuna": "optuna"}, "hydra/launcher": {"submitit": "slurm"}}
"""The extras of this package that bring choices of Hydra's own groups, by the beginning of the choice."""


def _no_such_choice(group: str, choice: str, options: list[str]) -> str:
    if not group:
        return (
            f"{choice}: no config of this name is in the search path; --config-dir DIR adds a folder to the configs of "
            "bam_exp, and --config-path DIR replaces them"
        )
    for begin, extra in _PLUGINS.get(group, {}).items():
        if choice.startswith(begin) and not any(option.startswith(begin) for option in options):
            return f"{group}={choice}: is not installed; pip install 'bam_exp[{extra}]' brings it"
    return f"{group}={choice}: there is no such {group}{nearest(choice, options)} (there are {', '.join(options)})"


def _all_keys() -> Iterator[str]:
    yield from (*GROUPS, *SETTINGS)
    for group in GROUPS:
        for choice in choice_names(group):
            yield from (f"{group}.{key}" for key in choice_file(group, choice))
