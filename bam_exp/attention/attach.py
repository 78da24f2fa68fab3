"""Attention is appended to a backbone at its seams, not written into it."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

_INPUT = "1 x 3 x 224 x 224"


def attach(
    backbone: Network, kind: Callable[..., nn.Module] | None, *, at: str | list[str] = "bottleneck", **knobs: Any
) -> Network:
    """Append kind(channels, **knobs) to the nn.Sequential of each seam, in place; returns the backbone.

    The names of the weights that were there stay: plain weights still load with strict=False, missing only keys with
    "attention". The new modules take the backbone's device (meta too), dtype and training mode. Attach before an
    optimizer is made.

    Args:
        backbone: a Backbone, or any network of nn.Sequential modules when `at` is a list.
        kind: makes the attention for a width; one with a parameter `block` is given one of the backbone's own blocks.
            None attaches nothing.
        at: a kind of seam that the backbone states ("bottleneck", "block", "block_output"), or a list of names of
            nn.Sequential modules that yield N x C x H x W maps; their widths are found by a run on 1 x 3 x 224 x 224.
        knobs: keyword arguments of kind.

    Raises:
        ValueError: if there is no such seam, if it has an attention already, or if the kind refuses its width.
    """
    if kind is None:
        if knobs:
            raise ValueError(f"{next(iter(knobs))}={next(iter(knobs.values()))}: no attention, so it has no knobs")
        return backbone
    seams = _named(backbone, at) if isinstance(at, list) else _stated(backbone, at)
    places = [_place(backbone, seam.name) for seam in seams]
    reference = next(backbone.parameters())
    modules = [_make(kind, seam, knobs) for seam in seams]
    for place, module in zip(places, modules, strict=True):
        place.add_module("attention", module.to(reference.device, reference.dtype).train(backbone.training))
    return backbone


@dataclass(frozen=True)
class _Seam:
    name: str
    channels: int
    block: None = None


def _stated(backbone: nn.Module, at: str) -> list[Any]:
    """The seams of one kind that a Backbone states."""
    owner = type(backbone).__name__
    seams: dict[str, list[Any]] | None = getattr(backbone, "seams", None)
    if seams is None:
        found = ", ".join(name for name, child in backbone.named_children() if _is_sequential(child)) or "…"
        raise ValueError(f"at={at}: {owner} states no seams; name nn.Sequential modules of it, as in at=[{found}]")
    if at not in seams:
        raise ValueError(f"at={at}: {owner} offers {', '.join(seams)}")
    return seams[at]


def _named(backbone: nn.Module, names: list[str]) -> list[_Seam]:
    """Seams at modules of any network, with the widths that a run of a copy on the meta device finds there."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"at=[{','.join(names)}]: should name one or more different nn.Sequential modules")
    for name in names:
        _place(backbone, name)
    outputs: dict[str, object] = {}
    network = copy.deepcopy(backbone).to("meta").eval()
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output))
    x = torch.empty(1, 3, 224, 224, device="meta", dtype=next(network.parameters()).dtype)
    try:
        with torch.no_grad():
            network(x)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"at=[{','.join(names)}]: widths are not known: a run on {_INPUT} failed ({reason})"
        ) from error
    seams = []
    for name in names:
        output = outputs.get(name)
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"at={name}: yields {shape} in a run on {_INPUT}, not a map of N x C x H x W")
        seams.append(_Seam(name, output.shape[1]))
    return seams


def _place(backbone: nn.Module, name: str) -> nn.Sequential:
    """The nn.Sequential of a seam, free for an attention."""
    try:
        module = backbone.get_submodule(name)
    except AttributeError:
        raise ValueError(f"at={name}: {type(backbone).__name__} has no module of that name") from None
    if not isinstance(module, nn.Sequential) or not _is_sequential(module):
        raise ValueError(f"at={name}: is a {type(module).__name__}; only an nn.Sequential runs what is appended to it")
    if "attention" in dict(module.named_children()):
        raise ValueError(f"at={name}: has an attention already ({type(module.attention).__name__})")
    return module


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _make(kind: Callable[..., nn.Module], seam: Any, knobs: dict[str, Any]) -> nn.Module:
    if "block" in inspect.signature(kind).parameters:
        if seam.block is None:
            raise ValueError(
                f"seam {seam.name}: one more block makes no sense there, because the backbone has no block of its own "
                "that keeps width and size at this place"
            )
        knobs = {**knobs, "block": seam.block()}
    try:
        return kind(seam.channels, **knobs)
    except ValidationError:  # a wrong knob, whatever the seam
        raise
    except ValueError as error:
        raise ValueError(f"seam {seam.name}: {error}") from error
