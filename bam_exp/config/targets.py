"""Callables that configs name: finding them, their parameters, and calling them with errors that name the config's key."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from bam_exp.config.choices import choice_file, choice_names, nearest, packages
from bam_exp.errors import ConfigError

Factory = Callable[..., Any]

ATTACH_KEYS: Mapping[str, str] = {"at": "bottleneck"}
"""Keys of the attention group that `attach` takes, not the attention itself, with their defaults."""

FROM_BACKBONE = frozenset({"block", "device", "dtype"})
"""Parameters of an attention that follow from the backbone it is attached to, so no config sets them."""


def find_target(group: str, name: object) -> Factory | None:
    """The callable that a `_target_` names; None for the attention `none`.

    Raises:
        ConfigError: if neither bam_exp nor a package that the user named defines it, or if no config of the group names it.
    """
    if name is None and group == "attention":
        return None
    if not isinstance(name, str) or not _is_admitted(name):
        raise ConfigError(f"{group}._target_={name}: {_ADMITTED}")
    module_name, _, attribute = name.rpartition(".")
    try:
        target = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{group}._target_={name}: there is no such thing in {name.partition('.')[0]}") from error
    # The object itself decides, not the name by which it is reached: bam_exp.runs.result.os.system starts with "bam_exp." too.
    if not _is_admitted(getattr(target, "__module__", None) or "") or not callable(target):
        raise ConfigError(f"{group}._target_={name}: {_ADMITTED}")
    allowed = {choice_file(group, choice).get("_target_") for choice in choice_names(group)}
    if name not in allowed:
        listed = ", ".join(sorted(str(option) for option in allowed if option))
        raise ConfigError(
            f"{group}._target_={name}: not a target of the group {group}{nearest(name, allowed)} ({listed})"
        )
    return target  # type: ignore[no-any-return]


_ADMITTED = "only what bam_exp itself defines can be a target, or a package named in BAM_EXP_PACKAGES"


def _is_admitted(name: str) -> bool:
    """Return whether a dotted name belongs to a package whose callables configs may name."""
    return name.partition(".")[0] in packages()


def defaults_of(group: str, factory: Factory | None) -> dict[str, Any]:
    """The keys that a config of this group may have, with their defaults (`inspect.Parameter.empty` where there is none)."""
    if factory is None:
        return {}
    keys: dict[str, Any] = dict(ATTACH_KEYS) if group == "attention" else {}
    for name, parameter in inspect.signature(factory).parameters.items():
        is_key = parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
        if is_key and not (group == "attention" and name in FROM_BACKBONE):
            keys[name] = parameter.default
    return keys


def call(group: str, factory: Factory, *context: Any, **arguments: Any) -> Any:
    """The result of `factory(*context, **arguments)`.

    Raises:
        ConfigError: if a value has the wrong type or is out of range, naming the first such key.
    """
    import pydantic

    from bam_exp.schema import ArgumentError

    try:
        return factory(*context, **arguments)
    except ArgumentError as error:
        raise ConfigError(f"{group}.{error.name}={error.value}: {error.reason}") from error
    except pydantic.ValidationError as error:  # of the dataclass Machine
        first = error.errors(include_url=False)[0]
        key = ".".join([group, str(first["loc"][0])])
        raise ConfigError(f"{key}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{group}: {error}") from error
