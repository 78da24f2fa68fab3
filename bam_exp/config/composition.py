"""Composing configs by Hydra."""

import re
import shlex
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from bam_exp.config.choices import GROUPS, PATHS, choice_names, config_dir, extra_folders
from bam_exp.config.messages import one_line, refused
from bam_exp.errors import ConfigError

if TYPE_CHECKING:  # importing Hydra takes a fifth of a second, which a command that composes nothing does without
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

_SECRET = re.compile(r"(password|passwd|secret|token|api_?key|credential|private_?key)", re.IGNORECASE)


def composing() -> AbstractContextManager[None]:
    """Context manager that initialises Hydra once for several calls of `compose`."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(config_dir()), version_base="1.3")


def compose(overrides: Iterable[str]) -> "DictConfig":
    """The config that these overrides give, including its `hydra` node.

    Raises:
        ConfigError: if they name something that does not exist.
    """
    import hydra

    overrides = list(overrides)
    check_overrides(overrides)
    parse_overrides(overrides)
    try:
        with composing():
            return hydra.compose("config", [*search_path(), *overrides], return_hydra_config=True)
    except refused() as error:
        raise ConfigError(one_line(error)) from error


def search_path() -> list[str]:
    """The override by which Hydra finds the choices of the user's folders; none if there are none."""
    if not extra_folders():
        return []
    from hydra.core.override_parser.types import Quote, QuotedString

    folders = ",".join(QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in extra_folders())
    return [f"hydra.searchpath=[{folders}]"]


def parse_overrides(overrides: Iterable[str], loader: "ConfigLoader | None" = None) -> "list[Override]":
    """Overrides as Hydra's own parser understands them.

    Args:
        loader: resolves `glob(…)` to the choices of a group.

    Raises:
        ConfigError: if one of them is not an override, or a sweep over sweeps, which Hydra parses and cannot run. A path that
            needs quotes is shown with them.
    """
    overrides = list(overrides)
    if not overrides:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, Quote, QuotedString, Sweep

    parser = OverridesParser.create(config_loader=loader)
    parsed: list[Override] = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except refused() as error:
            key, _, value = override.partition("=")
            if key in PATHS and value[:1] not in ("'", '"'):
                typed = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
                raise ConfigError(f"{override}: this path needs quotes inside the shell's, as in {typed}") from error
            raise ConfigError(f"{override or repr(override)}: not of the form key=value ({one_line(error)})") from error
    for each in parsed:
        choices = each.value()
        if isinstance(choices, ChoiceSweep) and any(isinstance(one, Sweep | Glob) for one in choices.list):
            raise ConfigError(f"{each.input_line}: a sweep within a sweep; write the values out, separated by commas")
    return parsed


def swept_values(override: "Override") -> list[str]:
    """The values of an override, as Hydra writes each on a command line: several for a sweep, else one.

    Raises:
        ConfigError: for a sweep that has no value, or an interval, whose values only a search can choose.
    """
    if override.is_discrete_sweep():
        try:
            values = [str(value) for value in override.sweep_string_iterator()]
        except ValueError as error:
            raise ConfigError(f"{override.input_line}: {error}") from error
        if not values:
            raise ConfigError(f"{override.input_line}: names no value at all")
        return values
    if override.is_sweep_override():
        raise ConfigError(
            f"{override.input_line}: only a sweeper that searches, hydra/sweeper=optuna, takes an interval"
        )
    return [str(override.get_value_element_as_str())]


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse overrides that give a group nothing, a list or a mapping, and keys that look like secrets.

    Raises:
        ConfigError: naming the key; it never repeats the value of a secret, which Hydra would store in plain text.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        removed, key = key.startswith("~"), key.lstrip("+~")
        if _SECRET.search(key):
            raise ConfigError(f"{key}=…: looks like a secret; no run needs one, and it would be stored in plain text")
        if key in GROUPS and (removed or value in ("", "null") or value.startswith(("[", "{", "/", ".", "~"))):
            raise ConfigError(f"{override}: {key} should be one of {', '.join(choice_names(key))}")
