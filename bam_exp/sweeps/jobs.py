"""The jobs of a sweep, and what no sweep can do."""

from collections.abc import Iterator
from itertools import product

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from bam_exp.config import Chosen, parse_overrides, swept_values
from bam_exp.errors import ConfigError
from bam_exp.machine.world import World
from bam_exp.sweeps.slurm import check_launcher


def check_sweep(master: DictConfig) -> None:
    """Refuse what no sweep can do.

    Raises:
        ConfigError: naming the key.
    """
    if (world := World.from_environment()).size > 1:
        raise ConfigError(
            f"a sweep starts the processes of its runs itself: trainer.devices=…, without {world.starter}"
        )
    for override in parse_overrides(_typed(master)):
        if override.key_or_group == "experiment" and override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one table at a time; start a sweep for each")
        if override.key_or_group in ("evaluate", "images") and override.value() is not None:
            raise ConfigError(f"{override.input_line}: a sweep trains; test one network at a time, without -m")
    _check_hydras_own(master)
    check_launcher(master.hydra.runtime.choices["hydra/launcher"])
    if master.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true: every run has a folder of its own; leave this out")


def _typed(master: DictConfig) -> list[str]:
    """The overrides of the sweep, with interpolations as they were typed: each job resolves its own."""
    overrides: list[str] = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return overrides


def _check_hydras_own(master: DictConfig) -> None:
    """Refuse settings of Hydra's sweeper and launcher by which they would fail later, in an error of their own."""
    hydra = OmegaConf.to_container(master.hydra, resolve=False)
    assert isinstance(hydra, dict)
    sweeper, launcher = hydra.get("sweeper") or {}, hydra.get("launcher") or {}
    most = sweeper.get("max_batch_size")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ConfigError(f"hydra.sweeper.max_batch_size={most}: should be a whole number from 1, or null")
    if launcher.get("n_jobs") == 0:
        raise ConfigError("hydra.launcher.n_jobs=0: should be the number of runs at a time, or -1 for one on each core")


def jobs_of(master: DictConfig) -> Iterator[tuple[tuple[str, ...], Chosen]]:
    """What each job chooses: the product of the values of all overrides, of which the last for a key counts.

    Before it stands a key that is the same for jobs that differ by their seed only, of which one is composed and to be checked.
    """
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
    overrides = parse_overrides([*words, *_typed(master)], loader)
    values = {override.get_key_element(): swept_values(override) for override in overrides}
    composed: dict[tuple[str, ...], Chosen] = {}
    for job in product(*values.values()):
        job_words = {key: f"{key}={value}" for key, value in zip(values, job, strict=True)}
        typed_seed = job_words.pop("seed", None)
        seed = (typed_seed or "").removeprefix("seed=")
        apart_from_seed = tuple(job_words.values())
        if apart_from_seed in composed and seed.isdecimal() and seed == str(int(seed)) and int(seed) < 2**31:
            yield apart_from_seed, composed[apart_from_seed].with_seed(int(seed))
            continue
        cfg = loader.load_sweep_config(master, [*apart_from_seed, *([] if typed_seed is None else [typed_seed])])
        chosen = Chosen.of(cfg, cfg.hydra.runtime.choices)
        if _interpolates(cfg):  # perhaps the seed
            yield (*apart_from_seed, seed), chosen
        else:
            composed[apart_from_seed] = chosen
            yield apart_from_seed, chosen


def _interpolates(cfg: DictConfig) -> bool:
    """Return whether a value outside Hydra's own settings refers to another."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return "${" in OmegaConf.to_yaml(own, resolve=False)
