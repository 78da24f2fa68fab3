"""From what was typed to a config that has been checked: composing, the targets' signatures as schema, one-line errors."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pydantic
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bam_exp.errors import ConfigError

GROUPS = ("data", "backbone", "attention", "recipe", "trainer")
"""The config groups; each is the keyword arguments of the callable that its `_target_` names."""

SETTINGS = ("seed", "data_root", "output_dir", "weights", "evaluate")
"""What stands at the top of conf/config.yaml beside the groups."""

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader, the quick one where PyYAML was built with it."""

_SECRET = re.compile(r"(password|passwd|secret|token|api_?key|credential|private_?key)", re.IGNORECASE)


REFUSED = (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What composing and checking a config raise for something typed or written wrong."""


def config_dir() -> Path:
    """Folder of the configs: `conf` at the top of a checkout, `bam_exp/conf` in an installed wheel."""
    here = Path(__file__).resolve().parent.parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def composing() -> AbstractContextManager[None]:
    """Hydra set up over the configs, unless it is already; around many calls of `compose` it saves them the set-up."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(config_dir()), version_base="1.3")


def compose(overrides: Iterable[str]) -> DictConfig:
    """The config that these overrides give, its `hydra` node included.

    Raises:
        ConfigError: if they name something that does not exist.
    """
    overrides = list(overrides)
    check_overrides(overrides)
    try:
        with composing():
            return hydra_compose("config", overrides, return_hydra_config=True)
    except REFUSED as error:
        raise ConfigError(one_line(error)) from error


@cache
def choice_file(group: str, choice: str) -> Mapping[str, Any]:
    """The content of conf/<group>/<choice>.yaml, or nothing if there is no such file.

    Raises:
        ConfigError: if the file is not a YAML mapping.
    """
    path = config_dir() / group / f"{choice}.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.load(path.read_text(), YAML)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a mapping with a _target_, found {type(content).__name__}")
    return content


def choices(group: str) -> list[str]:
    """The names of the files of a group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def target(group: str, name: object) -> Callable[..., Any] | None:
    """The callable of `bam_exp` that a `_target_` names; None for the attention `none`.

    Raises:
        ConfigError: if it is not something that bam_exp itself defines.
    """
    if name is None and group == "attention":
        return None
    if not isinstance(name, str) or not name.startswith("bam_exp."):
        raise ConfigError(f"{group}._target_={name}: only what bam_exp itself defines can be a target")
    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{group}._target_={name}: there is no such thing in bam_exp") from error
    # The object itself decides, not the name it was found by: bam_exp.runs.run.os.system starts with "bam_exp." too.
    home = getattr(found, "__module__", "")
    if not (home == "bam_exp" or home.startswith("bam_exp.")) or not callable(found):
        raise ConfigError(f"{group}._target_={name}: only what bam_exp itself defines can be a target")
    allowed = {choice_file(group, choice).get("_target_") for choice in choices(group)}
    if name not in allowed:
        listed = ", ".join(sorted(str(one) for one in allowed if one))
        raise ConfigError(
            f"{group}._target_={name}: not a target of the group {group}{nearest(name, allowed)} ({listed})"
        )
    return found  # type: ignore[no-any-return]


def knobs(group: str, kind: Callable[..., Any] | None) -> dict[str, inspect.Parameter]:
    """The keys that a config of this group may have: the keyword-only parameters of its callable (and `at` of attach)."""
    names: dict[str, inspect.Parameter] = {}
    if group == "attention" and kind is not None:
        from bam_exp.attention import attach

        names["at"] = inspect.signature(attach).parameters["at"]
    if kind is not None:
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and (group, name) != ("attention", "block"):
                names[name] = parameter
    return names


def arguments(cfg: DictConfig, group: str) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """The callable of a group's config and its keyword arguments.

    Raises:
        ConfigError: for a foreign target or a key that the callable does not have.
    """
    node = cfg.get(group)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{group}={node}: should be one of {', '.join(choices(group))}")
    content: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    kind = target(group, content.pop("_target_", ""))
    allowed = knobs(group, kind)
    for key, value in content.items():
        if key not in allowed:
            chosen = "none" if kind is None else kind.__name__
            listed = ", ".join(allowed) or "no keys at all"
            raise ConfigError(
                f"{group}.{key}={value}: {group} {chosen} has no such key{nearest(key, allowed)} (it has {listed})"
            )
    return kind, content


def call(group: str, kind: Callable[..., Any], *context: Any, **keywords: Any) -> Any:
    """What the callable of a group makes of its context and keyword arguments.

    Raises:
        ConfigError: if a value has the wrong type or is out of range, naming the first such key.
    """
    try:
        return kind(*context, **keywords)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join([group, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{key}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{group}: {error}") from error


def check_top(cfg: DictConfig) -> None:
    """Refuse keys beside the groups and the settings, and settings of a wrong type.

    Raises:
        ConfigError: naming the key.
    """
    for key in map(str, cfg):
        if key not in (*GROUPS, *SETTINGS, "hydra"):
            allowed = (*GROUPS, *SETTINGS)
            raise ConfigError(
                f"{key}={_short(cfg[key])}: no such key{nearest(key, allowed)} (there are {', '.join(allowed)})"
            )
    seed = cfg.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed={seed}: should be a whole number from 0 to 2147483647")
    for key in ("data_root", "output_dir"):
        value = cfg.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key}={value}: should be the path of a folder")
    for key in ("weights", "evaluate"):
        value = cfg.get(key)
        if value is not None and not (isinstance(value, str) and Path(value).is_file()):
            raise ConfigError(f"{key}={value}: should be a .safetensors file (scripts/import_weights.py makes them)")


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse overrides that Hydra would trip over or store: a group given something that is no name, and secrets.

    Raises:
        ConfigError: naming the key; never the value of a secret, which would be stored in clear.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if _SECRET.search(key):
            raise ConfigError(f"{key}=…: looks like a secret; no run needs one, and it would be stored in clear")
        if key in GROUPS and value.startswith(("[", "{")):
            raise ConfigError(f"{key}={value}: should be one of {', '.join(choices(key))}")


def nearest(name: str, allowed: Iterable[object]) -> str:
    """', did you mean X?' if something allowed is close, else nothing."""
    close = difflib.get_close_matches(str(name), [str(one) for one in allowed], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(error: BaseException) -> str:
    """One line for a person out of an error of Hydra, OmegaConf or bam_exp."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        offered = [str(option) for option in error.options or []]
        return f"{group}={choice}: there is no such {group}{nearest(choice, offered)} (there are {', '.join(offered)})"
    text = str(error)
    if isinstance(error, HydraException | ConfigCompositionException):
        if found := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
            key = found.group(1).lstrip("+~")
            if "/" in key and "already" in text:
                return f"{key}: " + " ".join(text.split())
            known = list(_all_keys())
            if key in known:
                return f"{key}: the {key.partition('.')[0]} that was chosen has no such key"
            return f"{key}: no such key{nearest(key, known)}"
        if found := re.search(r"Could not find '([^']+)'", text):
            group, _, choice = found.group(1).rpartition("/")
            offered = choices(group)
            return (
                f"{group}={choice}: there is no such {group}{nearest(choice, offered)} (there are {', '.join(offered)})"
            )
    return " ".join(text.split()) or type(error).__name__


def _all_keys() -> Iterator[str]:
    yield from (*GROUPS, *SETTINGS)
    for group in GROUPS:
        for choice in choices(group):
            yield from (f"{group}.{key}" for key in choice_file(group, choice))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
