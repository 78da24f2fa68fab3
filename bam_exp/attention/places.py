"""The places of a network where an attention can stand: those that it states, that are named, or that are found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from bam_exp.attention.auto import bottlenecks
from bam_exp.attention.insert import attentions, is_sequential, ways
from bam_exp.attention.probe import Map, Probe, ProbeError


@dataclass(frozen=True)
class Place:
    """A place where an attention stands."""

    name: str
    """The module behind whose output it stands."""
    map: Map | int
    """The map there, or its width where the network was not run."""
    way: str
    """The way in which it was inserted, see `bam_exp.attention.insert.ways`."""
    block: Callable[[], nn.Module] | None = None
    """Makes one more block of the backbone's own type."""
    kind: str = ""
    """The name of the attention that stands there."""
    runs: bool = True
    """Whether the attention is run: `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, for one, drops hooks."""

    def __str__(self) -> str:
        name = self.name or "the module itself"
        line = f"{self.kind} behind {name}: {self.map}"
        line += " channels" if isinstance(self.map, int) else ""
        return line if self.runs else f"{line}; NOT RUN, because the hook of {name} is gone"

    @property
    def channels(self) -> int:
        return self.map if isinstance(self.map, int) else self.map.channels


def stated(backbone: nn.Module, at: str) -> list[Place]:
    """The seams of one kind that a Backbone states."""
    owner = type(backbone).__name__
    seams: dict[str, list[Any]] | None = getattr(backbone, "seams", None)
    if seams is None:
        names = [name for name, child in backbone.named_children() if is_sequential(child)]
        listed = ", ".join(names or ["…"])
        raise ValueError(f'at={at}: {owner} states no seams; take at="auto" or name modules of it, as in at=[{listed}]')
    if at not in seams:
        raise ValueError(f"at={at}: {owner} offers {', '.join(seams)}")
    return [Place(seam.name, seam.channels, _ways(backbone, seam.name)[0], seam.block) for seam in seams[at]]


def found(backbone: nn.Module, example: Any) -> tuple[list[Place], list[str]]:
    """The bottlenecks that the run of a copy shows, each at the first of its modules where an attention runs once."""
    if names := attentions(backbone):
        raise ValueError(
            f"at=auto: {type(backbone).__name__} has attentions already ({', '.join(names)}); detach them first"
        )
    try:
        probe = Probe(backbone, example)
    except ProbeError as error:
        raise ValueError(f"at=auto: {error}") from error
    choices, left_out = bottlenecks(probe)
    places = []
    for choice in choices:
        shape = choice.call.output.shape
        tries = [(name, way) for name in choice.names for way in ways(backbone, name)]
        tries.sort(key=lambda one: one[1] == "after")
        _check_not_compiled(backbone, choice.names[0])
        fitting = next((one for one in tries if probe.runs_once(*one, shape)), None)
        if fitting is None:
            raise ValueError(f"at=auto: no module put behind {' or '.join(choice.names)} runs exactly once")
        places.append(Place(fitting[0], choice.map, fitting[1]))
    return places, left_out


def named(
    backbone: nn.Module, names: tuple[str, ...], example: Any, channels: int | Sequence[int] | None
) -> tuple[list[Place], list[str]]:
    """Places at modules of any network, with the maps that the run of a copy shows there, and what to say about that."""
    listed = f"at=[{','.join(map(str, names))}]"
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{listed}: should name one or more different modules")
    possible = {name: _ways(backbone, name) for name in names}
    if len({id(backbone.get_submodule(name)) for name in names}) < len(names):
        raise ValueError(f"{listed}: two of these are names of one module")
    if channels is not None:
        widths = list(channels) if isinstance(channels, Sequence) else [channels] * len(names)
        if len(widths) != len(names) or not all(isinstance(width, Integral) and width > 0 for width in widths):
            raise ValueError(f"channels={channels}: should be the width at each of {listed}")
        return [Place(name, int(width), possible[name][0]) for name, width in zip(names, widths, strict=True)], []
    root, probe = _probe_around(backbone, names, example)
    places = []
    for name in names:
        inner = name[len(root) + 1 :] if root else name
        module = probe.network.get_submodule(inner)
        calls = [call for call in probe.run.calls if call.module is module]  # it may have other names, too
        output: Any = calls[-1].output if calls else None
        try:
            here = probe.run.map_of(output)
        except ProbeError as error:
            raise ValueError(f"at={name}: {error}") from error
        if here is None:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ if calls else "nothing"
            raise ValueError(f"at={name}: yields {what} in a run on {probe}, not a map of N x C x H x W")
        way = next((way for way in possible[name] if probe.runs_once(inner, way, output.shape)), None)
        if way is None:
            times = f"; it is called {len(calls)} times" if len(calls) > 1 else ""
            raise ValueError(
                f"at={name}: what is put behind this {_owner(backbone, name)} does not run exactly once{times}"
            )
        places.append(Place(name, here, way))
    return places, [f"seen in a run of {root} alone: the whole network takes no image by itself"] if root else []


def _probe_around(backbone: nn.Module, names: tuple[str, ...], example: Any) -> tuple[str, Probe]:
    """A probe of the network or, if it refuses images, of the outermost part around all places that takes one."""
    parts = [name.split(".") for name in names]
    shared = [part[0] for part in zip(*parts, strict=False) if len(set(part)) == 1]
    first: ProbeError | None = None
    for depth in range(len(shared) + 1 if example is None else 1):
        root = ".".join(shared[:depth])
        try:
            return root, Probe(backbone.get_submodule(root), example)
        except ProbeError as error:
            first = first or error
    raise ValueError(f"at=[{','.join(names)}]: widths are not known: {first}") from first


def _ways(backbone: nn.Module, name: str) -> list[str]:
    """Return the ways in which an attention can be put behind a module.

    Raises:
        ValueError: if there is no such module, or if it has an attention already.
    """
    if not isinstance(name, str) or not has(backbone, name):
        raise ValueError(f"at={name}: {type(backbone).__name__} has no module of that name")
    _check_not_compiled(backbone, name)
    attention = getattr(backbone.get_submodule(name), "attention", None)
    if isinstance(attention, nn.Module) and "_attached" in attention.__dict__:
        raise ValueError(f"at={name}: has an attention already ({type(attention).__name__})")
    possible = list(ways(backbone, name))
    if not possible:
        raise ValueError(f"at={name}: this {_owner(backbone, name)} has an attribute `attention` of its own")
    return possible


def _check_not_compiled(backbone: nn.Module, name: str) -> None:
    """Refuse a module inside one that torch.compile has made: its compiled code may not see what is put there."""
    if "_orig_mod" in name.split("."):
        raise ValueError(f"at={name}: this part of the network is compiled; attach before torch.compile")


def has(backbone: nn.Module, name: str) -> bool:
    try:
        backbone.get_submodule(name)
    except AttributeError:
        return False
    return bool(name)


def _owner(backbone: nn.Module, name: str) -> str:
    return type(backbone.get_submodule(name)).__name__
