"""Attaching attention modules to a network at places that it states, that the caller names, or that are found."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bam_exp.attention.insert import ChannelsLast, attentions, insert, place_of, record_of, remove, runs
from bam_exp.attention.places import Place, found, has, named, stated
from bam_exp.attention.probe import Map
from bam_exp.schema import ArgumentError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Attached:
    """What stands in a network. As text it has one line for each place and for each map that was left out."""

    places: tuple[Place, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.places), *(f"left out: {line}" for line in self.left_out), *self.notes])


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
        example: an input of the network, or a tuple of its inputs, from which places or their widths are found (on the
            meta device). By default it is an image of 224 x 288, and if the network refuses that, of other sizes.
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
    if isinstance(kind, nn.Module):
        raise ValueError(f"{type(kind).__name__}(...) is one module; give the class, which makes one for each place")
    places, left_out, notes = _places(backbone, at, example, channels)
    if at == "auto":
        knobs, notes = _rounded(kind, knobs, places)
    modules = [_make(kind, place, knobs) for place in places]
    for place, module in zip(places, modules, strict=True):
        _put(backbone, replace(place, kind=getattr(kind, "__name__", type(module).__name__)), module)
    notes += [
        f"{place.name} is a batch norm, behind which a hook runs the attention: convert_sync_batchnorm and the fusion of layers "
        "drop it"
        for place in places
        if place.way == "hook" and isinstance(backbone.get_submodule(place.name), _BatchNorm)
    ]
    earlier_left_out, earlier_notes = _remarks(backbone)
    backbone.__dict__["_attach_remarks"] = ((*earlier_left_out, *left_out), (*earlier_notes, *notes))
    return backbone


def detach(network: Network) -> Network:
    """Take out every attention that `attach` has put into the network or its parts, in place; returns the plain network.

    Raises:
        ValueError: if there is none.
    """
    names = attentions(network)
    if not names:
        raise ValueError(f"{type(network).__name__} has no attention that attach has put there")
    for name in names:
        remove(network, name)
    for module in network.modules():
        module.__dict__.pop("_attach_remarks", None)
    return network


def attached(network: nn.Module) -> Attached | None:
    """Return what `attach` has put into this network and its parts, for printing; None if that is nothing."""
    places = []
    for name in attentions(network):
        record = record_of(network.get_submodule(name))
        assert isinstance(record, Place)
        places.append(replace(record, name=place_of(name), runs=runs(network, name)))
    remarks: tuple[list[str], list[str]] = ([], [])
    for name, module in network.named_modules():
        for lines, own in zip(remarks, _remarks(module), strict=True):
            lines += [f"{line} (in {name})" if name else line for line in own]
    return Attached(tuple(places), *map(tuple, remarks)) if places else None


def _remarks(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `attach` has left out of this module, and what else it had to say."""
    remarks: tuple[tuple[str, ...], tuple[str, ...]] = module.__dict__.get("_attach_remarks", ((), ()))
    return remarks


def _places(
    network: nn.Module, at: str | Sequence[str], example: Any, channels: int | Sequence[int] | None
) -> tuple[list[Place], list[str], list[str]]:
    """The places that `at` means, the maps that are left out, and what else there is to say."""
    if at == "auto":
        if channels is not None:
            raise ValueError(f'channels={channels}: with at="auto" the widths are found; name the places with at=[...]')
        return *found(network, example), []
    if isinstance(at, str) and (at in getattr(network, "seams", ()) or not has(network, at)):
        places = stated(network, at)
        if channels is not None or example is not None:
            raise ValueError(
                f"at={at}: the network states these seams and their widths; leave out channels= and example="
            )
        return places, [], []
    if not isinstance(at, Sequence):
        raise ValueError(f'at={at}: should be "auto", a kind of seam, or one or several names of modules')
    places, notes = named(network, (at,) if isinstance(at, str) else tuple(at), example, channels)
    return places, [], notes


def _rounded(
    kind: Callable[..., nn.Module], knobs: dict[str, Any], places: list[Place]
) -> tuple[dict[str, Any], list[str]]:
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


def _put(network: nn.Module, place: Place, module: nn.Module) -> None:
    reference = _reference(network, place.name)
    channels_last = isinstance(place.map, Map) and place.map.channels_last
    attention = (ChannelsLast(module) if channels_last else module).to(reference.device, reference.dtype)
    insert(network, place.name, place.way, attention.train(network.training), place)


def _reference(network: nn.Module, name: str) -> Tensor:
    """The floating-point weight whose device and dtype an attention behind the module of that name takes.

    It is the module's first one or, if it has none, the last one before it or else the first one of the network.
    """
    place = network.get_submodule(name)
    before = takewhile(lambda module: module is not place, network.modules())
    preceding = [weight for module in before for weight in module.parameters(recurse=False)]
    for weight in (*place.parameters(), *reversed(preceding), *network.parameters()):
        if weight.is_floating_point():
            return weight
    return torch.empty(())


def _make(kind: Callable[..., nn.Module], place: Place, knobs: dict[str, Any]) -> nn.Module:
    if "block" in inspect.signature(kind).parameters:
        if place.block is None:
            raise ValueError(
                f"seam {place.name}: one more block makes no sense there, because the backbone has no block of its own "
                "that keeps width and size at this place"
            )
        knobs = {**knobs, "block": place.block()}
    try:
        module = kind(place.channels, **knobs)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{getattr(kind, '__name__', kind)}: should make a torch.nn.Module, not a {type(module).__name__}"
            )
        return module
    except ArgumentError:  # a wrong knob, whatever the place
        raise
    except ValueError as error:
        raise ValueError(f"seam {place.name}: {error}") from error
