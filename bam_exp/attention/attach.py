"""Attention is appended to a network at places that it states, that are named, or that are found."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import nn

from bam_exp.attention.auto import bottlenecks
from bam_exp.attention.insert import ChannelsLast, insert, is_sequential, remove, ways
from bam_exp.attention.probe import Map, Probe, ProbeError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """Where an attention stands."""

    name: str
    """The module behind whose output it stands."""
    map: Map | int
    """The map there, or its width where the network was not run."""
    way: str
    """How it was inserted, see `bam_exp.attention.insert.ways`."""
    block: Callable[[], nn.Module] | None = None
    """Makes one more block of the backbone's own kind."""

    @property
    def channels(self) -> int:
        return self.map if isinstance(self.map, int) else self.map.channels


@dataclass(frozen=True)
class Attached:
    """What `attach` did; printed, one line for each place and for each map that was left out."""

    kind: str
    places: tuple[Place, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = [f"{self.kind} behind {place.name}: {place.map}" for place in self.places]
        widths = [f"{line} channels" if isinstance(place.map, int) else line for line, place in zip(what, self.places, strict=True)]
        return "\n".join([*widths, *(f"left out: {line}" for line in self.left_out), *self.notes])


def attach(
    backbone: Network,
    kind: Callable[..., nn.Module] | None,
    *,
    at: str | Sequence[str] = "bottleneck",
    example: Any = None,
    channels: int | Sequence[int] | None = None,
    **knobs: Any,
) -> Network:
    r"""Put kind(channels, \*\*knobs) behind each place, in place; returns the backbone.

    The names of the weights that were there stay: plain weights still load with strict=False, missing only keys with
    "attention". The new modules take the backbone's device (meta too), dtype and training mode. Attach before an
    optimizer is made, and before torch.compile or DistributedDataParallel. `attached(backbone)` says where they stand.

    Args:
        backbone: a Backbone, or any other network.
        kind: makes the attention for a width; one with a parameter `block` is given one of the backbone's own blocks.
            None attaches nothing.
        at: the kind of seam that a Backbone states ("bottleneck", "block", "block_output"); or "auto", which finds the
            last map before each shrink of any network and, where a width needs it, passes rounding="floor" and warns;
            or one or several names of modules that yield maps, N x C x H x W or N x H x W x C.
        example: an input of the network, or a tuple of its inputs, from which the places or their widths are found (on
            the meta device). By default it is an image of 224 x 288, and if the network refuses that, of other sizes.
        channels: the width of the map at each named place, N x C x H x W; then the network is not run at all.
        knobs: keyword arguments of kind.

    Raises:
        ValueError: if there is no such place, if it has an attention already, if what is put there does not run exactly
            once in a forward pass, or if the kind refuses a width.
    """
    if kind is None:
        if knobs:
            raise ValueError(f"{next(iter(knobs))}={next(iter(knobs.values()))}: no attention, so it has no knobs")
        return backbone
    left_out: list[str] = []
    notes: list[str] = []
    if at == "auto":
        places, left_out = _found(backbone, example)
        knobs, notes = _rounded(kind, knobs, places)
    elif isinstance(at, str) and (at in getattr(backbone, "seams", ()) or not _has(backbone, at)):
        places = _stated(backbone, at)
    else:
        places = _named(backbone, (at,) if isinstance(at, str) else tuple(at), example, channels)
    modules = [_make(kind, place, knobs) for place in places]
    for place, module in zip(places, modules, strict=True):
        reference = next(_parameters(backbone.get_submodule(place.name), backbone))
        if isinstance(place.map, Map) and place.map.channels_last:
            module = ChannelsLast(module)
        insert(backbone, place.name, place.way, module.to(reference.device, reference.dtype).train(backbone.training))
    name = getattr(kind, "__name__", type(modules[0]).__name__)
    backbone._attached_report = Attached(name, tuple(places), tuple(left_out), tuple(notes))  # type: ignore[assignment]
    return backbone


def detach(network: Network) -> Network:
    """Take out every attention that `attach` has put into the network, in place; returns the plain network.

    Raises:
        ValueError: if there is none.
    """
    if not remove(network):
        raise ValueError(f"{type(network).__name__} has no attention that attach has put there")
    network.__dict__.pop("_attached_report", None)
    return network


def attached(network: nn.Module) -> Attached | None:
    """What the last `attach` to this network did, for printing; None if nothing is attached."""
    report: Attached | None = network.__dict__.get("_attached_report")
    return report


def _stated(backbone: nn.Module, at: str) -> list[Place]:
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


def _found(backbone: nn.Module, example: Any) -> tuple[list[Place], list[str]]:
    """The bottlenecks that the run of a copy shows, each at the first of its modules where an attention runs once."""
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
        fitting = next((one for one in tries if probe.runs_once(*one, shape)), None)
        if fitting is None:
            raise ValueError(f"at=auto: no module put behind {' or '.join(choice.names)} runs exactly once")
        places.append(Place(fitting[0], choice.map, fitting[1]))
    return places, left_out


def _rounded(kind: Callable[..., nn.Module], knobs: dict[str, Any], places: list[Place]) -> tuple[dict[str, Any], list[str]]:
    """The knobs, with rounding="floor" if a width needs it and nothing else was asked for, and what to say about it."""
    parameters = inspect.signature(kind).parameters
    if "rounding" not in parameters or "rounding" in knobs or "reduction" not in parameters:
        return knobs, []
    reduction = knobs.get("reduction", parameters["reduction"].default)
    if not isinstance(reduction, int) or reduction < 1:
        return knobs, []
    widths = [place.channels for place in places if place.channels % reduction]
    if not widths:
        return knobs, []
    listed = ", ".join(map(str, widths))
    note = f'reduction={reduction} does not divide {listed}: hidden widths are rounded down (rounding="floor")'
    warnings.warn(f"attach: {note}", stacklevel=3)
    return {**knobs, "rounding": "floor"}, [note]


def _named(
    backbone: nn.Module, names: tuple[str, ...], example: Any, channels: int | Sequence[int] | None
) -> list[Place]:
    """Places at modules of any network, with the maps that the run of a copy shows there."""
    listed = f"at=[{','.join(map(str, names))}]"
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{listed}: should name one or more different modules")
    possible = {name: _ways(backbone, name) for name in names}
    if channels is not None:
        widths = [channels] * len(names) if isinstance(channels, int) else list(channels)
        if len(widths) != len(names) or not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"channels={channels}: should be the width at each of {listed}")
        return [Place(name, width, possible[name][0]) for name, width in zip(names, widths, strict=True)]
    root, probe = _probe_around(backbone, names, example)
    places = []
    for name in names:
        inner = name[len(root) + 1 :] if root else name
        calls = [call for call in probe.run.calls if call.name == inner]
        output = calls[-1].output if calls else None
        try:
            here = probe.run.map_of(output)
        except ProbeError as error:
            raise ValueError(f"at={name}: {error}") from error
        if here is None:
            what = tuple(output.shape) if hasattr(output, "shape") else type(output).__name__ if calls else "nothing"
            raise ValueError(f"at={name}: yields {what} in a run on {probe}, not a map of N x C x H x W")
        way = next((way for way in possible[name] if probe.runs_once(inner, way, output.shape)), None)
        if way is None:
            times = f"; it is called {len(calls)} times" if len(calls) > 1 else ""
            raise ValueError(f"at={name}: what is put behind this {_owner(backbone, name)} does not run exactly once{times}")
        places.append(Place(name, here, way))
    return places


def _probe_around(backbone: nn.Module, names: tuple[str, ...], example: Any) -> tuple[str, Probe]:
    """A probe of the network or, if it refuses images, of the outermost part around all places that takes one."""
    parts = [name.split(".") for name in names]
    shared = [part[0] for part in zip(*parts, strict=False) if len(set(part)) == 1]
    first: ProbeError | None = None
    for depth in range(len(shared) + 1):
        root = ".".join(shared[:depth])
        try:
            return root, Probe(backbone.get_submodule(root), example)
        except ProbeError as error:
            first = first or error
    raise ValueError(f"at=[{','.join(names)}]: widths are not known: {first}") from first


def _ways(backbone: nn.Module, name: str) -> list[str]:
    """How an attention can be put behind a module.

    Raises:
        ValueError: if there is no such module, or if it has an attention already.
    """
    if not isinstance(name, str) or not _has(backbone, name):
        raise ValueError(f"at={name}: {type(backbone).__name__} has no module of that name")
    attention = getattr(backbone.get_submodule(name), "attention", None)
    if isinstance(attention, nn.Module) and "_attached" in attention.__dict__:
        raise ValueError(f"at={name}: has an attention already ({type(attention).__name__})")
    possible = list(ways(backbone, name))
    if not possible:
        raise ValueError(f"at={name}: this {_owner(backbone, name)} has an attribute `attention` of its own")
    return possible


def _has(backbone: nn.Module, name: str) -> bool:
    try:
        backbone.get_submodule(name)
    except AttributeError:
        return False
    return bool(name)


def _owner(backbone: nn.Module, name: str) -> str:
    return type(backbone.get_submodule(name)).__name__


def _parameters(*modules: nn.Module) -> Iterable[nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters() if parameter.is_floating_point())


def _make(kind: Callable[..., nn.Module], place: Place, knobs: dict[str, Any]) -> nn.Module:
    if "block" in inspect.signature(kind).parameters:
        if place.block is None:
            raise ValueError(
                f"seam {place.name}: one more block makes no sense there, because the backbone has no block of its own "
                "that keeps width and size at this place"
            )
        knobs = {**knobs, "block": place.block()}
    try:
        return kind(place.channels, **knobs)
    except ValidationError:  # a wrong knob, whatever the seam
        raise
    except ValueError as error:
        raise ValueError(f"seam {place.name}: {error}") from error
