"""Attaching attention modules to a network at places that it states, that the caller names, or that are found."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bam_exp.attention.insert import ChannelsLast, attentions, insert, remove
from bam_exp.attention.places import Place, found, has, named, stated
from bam_exp.attention.probe import Map
from bam_exp.schema import ArgumentError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Attached:
    """The result of `attach`. As text it has one line for each place and for each map that was left out."""

    kind: str
    places: tuple[Place, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = [f"{self.kind} behind {place.name}: {place.map}" for place in self.places]
        widths = [
            f"{line} channels" if isinstance(place.map, int) else line
            for line, place in zip(what, self.places, strict=True)
        ]
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
        places, left_out = found(backbone, example)
        knobs, notes = _rounded(kind, knobs, places)
    elif isinstance(at, str) and (at in getattr(backbone, "seams", ()) or not has(backbone, at)):
        places = stated(backbone, at)
    elif isinstance(at, Sequence):
        places = named(backbone, (at,) if isinstance(at, str) else tuple(at), example, channels)
    else:
        raise ValueError(f'at={at}: should be "auto", a kind of seam, or one or several names of modules')
    modules = [_make(kind, place, knobs) for place in places]
    for place, module in zip(places, modules, strict=True):
        reference = _reference(backbone.get_submodule(place.name), backbone)
        wrap = isinstance(place.map, Map) and place.map.channels_last
        attention = (ChannelsLast(module) if wrap else module).to(reference.device, reference.dtype)
        insert(backbone, place.name, place.way, attention.train(backbone.training))
    name = getattr(kind, "__name__", type(modules[0]).__name__)
    backbone._attached_report = Attached(name, tuple(places), tuple(left_out), tuple(notes))  # type: ignore[assignment]
    return backbone


def detach(network: Network) -> Network:
    """Take out every attention that `attach` has put into the network, in place; returns the plain network.

    Raises:
        ValueError: if there is none.
    """
    names = attentions(network)
    if not names:
        raise ValueError(f"{type(network).__name__} has no attention that attach has put there")
    for name in names:
        remove(network, name)
    network.__dict__.pop("_attached_report", None)
    return network


def attached(network: nn.Module) -> Attached | None:
    """Return the result of the last `attach` to this network, for printing; None if nothing is attached."""
    report: Attached | None = network.__dict__.get("_attached_report")
    return report


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


def _reference(*modules: nn.Module) -> Tensor:
    """The first floating-point weight of these modules, whose device and dtype an attention takes."""
    weights = (weight for module in modules for weight in module.parameters() if weight.is_floating_point())
    return next(weights, torch.empty(()))


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
    except ArgumentError:  # a wrong knob, whatever the place
        raise
    except ValueError as error:
        raise ValueError(f"seam {place.name}: {error}") from error
