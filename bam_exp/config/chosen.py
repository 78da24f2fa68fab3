"""The choices of a run, resolved and checked once, so that nothing behind them reads a config."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bam_exp.config.choices import GROUPS, NAME, SETTINGS, choice_file, choice_names, nearest
from bam_exp.config.messages import one_line
from bam_exp.config.targets import Factory, call, defaults_of, find_target
from bam_exp.errors import ConfigError
from bam_exp.files import WEIGHTS

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Choice:
    """The choice of one group: a file of conf/<group>, the callable that it names and the keyword arguments for it.

    It is plain data; the callable is imported when it is asked for.
    """

    group: str
    name: str
    target: str | None
    """The `_target_`; None for the attention `none`."""
    arguments: Mapping[str, Any]
    changed: Mapping[str, Any]
    """The arguments that differ from the choice's file."""
    defaults: Mapping[str, Any]
    """The defaults of the callable's parameters."""
    metrics: Sequence[str]
    """The figures that a recipe measures; none for the other groups."""

    @classmethod
    def of(cls, cfg: "DictConfig", group: str, name: str) -> Self:
        """The choice that a composed config contains; `name` is the file that Hydra took.

        Raises:
            ConfigError: for a name that is a path, a foreign target, or a key that the callable does not have.
        """
        from omegaconf import DictConfig, OmegaConf

        node = cfg.get(group)
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{group}={node}: should be one of {', '.join(choice_names(group))}")
        if not NAME.fullmatch(name) or name.endswith((".yaml", ".yml")):
            raise ConfigError(
                f"{group}={name}: should be a name, not a path (there are {', '.join(choice_names(group))})"
            )
        arguments: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
        target = arguments.pop("_target_", "")
        factory = find_target(group, target)
        allowed = defaults_of(group, factory)
        for key, value in arguments.items():
            if key not in allowed:
                chosen = "none" if factory is None else factory.__name__
                listed = ", ".join(allowed) or "no keys at all"
                raise ConfigError(
                    f"{group}.{key}={value}: {group} {chosen} has no such key{nearest(key, allowed)} (it has {listed})"
                )
        file = choice_file(group, name)
        # A key that was deleted, `~group.key`, has the default of the callable.
        deleted = [key for key in file if key not in arguments and key in allowed]
        arguments |= {key: allowed[key] for key in deleted if allowed[key] is not inspect.Parameter.empty}
        changed = {key: value for key, value in arguments.items() if key not in file or value != file[key]}
        defaults = {key: value for key, value in allowed.items() if value is not inspect.Parameter.empty}
        return cls(group, name, target, arguments, changed, defaults, tuple(getattr(factory, "metrics", ())))

    @cached_property
    def factory(self) -> Factory | None:
        """The callable; None for the attention `none`."""
        return find_target(self.group, self.target)

    @property
    def settings(self) -> dict[str, Any]:
        """The target and every argument, as `result.json` records them."""
        return {"_target_": self.target, **self.arguments}

    @property
    def identity(self) -> dict[str, Any]:
        """`settings` without values equal to the callable's defaults, so that a new parameter invalidates no result."""
        unlike = {
            key: value
            for key, value in self.arguments.items()
            if key not in self.defaults or self.defaults[key] != value
        }
        return {"_target_": self.target, **unlike}

    def make(self, *context: Any, **more: Any) -> Any:
        """The result of calling the factory with `context` and the arguments.

        Raises:
            ConfigError: if a value has the wrong type or is out of range, naming the key.
        """
        assert self.factory is not None
        return call(self.group, self.factory, *context, **self.arguments, **more)


@dataclass(frozen=True)
class Chosen:
    """Everything that was chosen for one run."""

    data: Choice
    backbone: Choice
    attention: Choice
    recipe: Choice
    trainer: Choice
    seed: int
    data_root: Path
    output_dir: Path
    weights: Path | None
    """Weights to start from."""
    evaluate: Path | None
    """Weights to test; nothing is trained."""
    images: tuple[Path, ...] = ()
    """Photos whose classes the weights under test are to name."""

    @classmethod
    def of(cls, cfg: "DictConfig", names: Mapping[str, str] | None = None) -> Self:
        """The choices that a composed config makes.

        Args:
            names: the files that Hydra took, group to choice; without it, `cfg` contains its `hydra` node.

        Raises:
            ConfigError: naming the key that is wrong.
        """
        for key in map(str, cfg):
            if key not in (*GROUPS, *SETTINGS, "hydra"):
                allowed = (*GROUPS, *SETTINGS)
                raise ConfigError(
                    f"{key}={_shortened(cfg[key])}: no such key{nearest(key, allowed)} (there are {', '.join(allowed)})"
                )
        settings = {key: _setting(cfg, key) for key in SETTINGS}
        if settings["evaluate"] is not None and settings["weights"] is not None:
            raise ConfigError(
                f"weights={settings['weights']}: evaluate= tests its own weights and trains nothing; leave it out"
            )
        seed = settings["seed"]
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ConfigError(f"seed={seed}: should be a whole number from 0 to 2147483647")
        names = names or cfg.hydra.runtime.choices
        return cls(
            **{group: Choice.of(cfg, group, str(names[group])) for group in GROUPS},
            seed=seed,
            data_root=_folder("data_root", settings["data_root"]),
            output_dir=_folder("output_dir", settings["output_dir"]),
            weights=_weights_file("weights", settings["weights"]),
            evaluate=_weights_file("evaluate", settings["evaluate"]),
            images=_photos(settings["images"], settings["evaluate"]),
        )

    def to_json(self) -> dict[str, Any] | None:
        """These choices as plain JSON; None if they depend on files outside the configs, or are not plain."""
        data = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        if any((self.weights, self.evaluate, self.images)):
            return None
        try:
            same = self.from_json(json.loads(json.dumps(data))) == self
        except (TypeError, ValueError):
            return None
        return data if same else None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The choices that `to_json` has written."""
        groups: dict[str, Any] = {
            group: Choice(**{**data[group], "metrics": tuple(data[group]["metrics"])}) for group in GROUPS
        }
        folders: dict[str, Any] = {key: Path(data[key]) for key in ("data_root", "output_dir")}
        return cls(**groups, **folders, seed=data["seed"], weights=None, evaluate=None)

    def group(self, name: str) -> Choice:
        """The choice of a group."""
        choice: Choice = getattr(self, name)
        return choice

    def with_seed(self, seed: int) -> Self:
        """The same with another seed."""
        return replace(self, seed=seed)


def _setting(cfg: "DictConfig", key: str) -> Any:
    """The value of a top-level key, with what it refers to resolved; None without it."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return cfg.get(key)
    except OmegaConfBaseException as error:  # which does not always name the key
        raise ConfigError(f"{key}: {one_line(error)}") from error


def _folder(key: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}={value}: should be the path of a folder")
    return Path(value).expanduser()


def _weights_file(key: str, value: object) -> Path | None:
    """The file of weights that a setting means: itself, or the one in the folder of a run."""
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    if isinstance(value, str) and not path.exists():
        raise ConfigError(f"{key}={value}: there is no such file or folder")
    if isinstance(value, str) and path.is_dir():
        path /= WEIGHTS
        if not path.is_file():
            raise ConfigError(f"{key}={value}: no folder of a finished run (it has no {WEIGHTS})")
    elif not isinstance(value, str) or not path.is_file():
        raise ConfigError(
            f"{key}={value}: should be a .safetensors file (`bam-weights import` makes them), or the folder of a run"
        )
    return path


def _photos(value: object, evaluate: object) -> tuple[Path, ...]:
    if value is None:
        return ()
    from omegaconf import ListConfig

    values = value if isinstance(value, ListConfig) else [value]
    if evaluate is None:
        raise ConfigError(f"images={_shortened(value)}: needs evaluate=RUN, the network that is to name their classes")
    if not values:
        raise ConfigError("images=[]: should name at least one photo")
    paths = tuple(Path(str(name)).expanduser() for name in values)
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"images={path}: there is no such file")
    return paths


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
