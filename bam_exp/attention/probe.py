"""A run of a network on the meta device, where neither weights nor maps take memory, and what each module yields in it."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves, tree_map

from bam_exp.attention.insert import insert, remove

TOLERANCE = 3
"""Pixels by which a map may miss the proportions of the image: unpadded convolutions and rounding."""


class ProbeError(ValueError):
    """The network could not be run on an example of its input."""


@dataclass(frozen=True)
class Map:
    """A map of features: C x H x W, which lies as N x H x W x C where `channels_last`."""

    channels: int
    height: int
    width: int
    channels_last: bool = False

    def __str__(self) -> str:
        layout = "N x H x W x C" if self.channels_last else "N x C x H x W"
        return f"{self.channels} channels, {self.height} x {self.width}, {layout}"

    def is_smaller_than(self, other: "Map") -> bool:
        return self.height < other.height and self.width < other.width


@dataclass
class Call:
    """One call of a module: when it began and ended in the order of all such events, what came in and what went out."""

    name: str
    module: nn.Module
    start: int
    end: int = 0
    source: Tensor | None = None
    source_node: Node | None = None
    output: Any = None
    node: Node | None = None


@dataclass
class Run:
    """A forward pass."""

    image: Tensor
    start: Node | None
    """The autograd node of the image."""
    output: Any = None
    calls: list[Call] = field(default_factory=list)

    def map_of(self, tensor: object) -> Map | None:
        """The map that a tensor is, None if it is none; the proportions of the image tell H x W from C.

        For a square image the two equal dimensions are H and W.
        """
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[0] != self.image.shape[0]:
            return None
        _, a, b, c = tensor.shape
        height, width = self.image.shape[2:]
        misses = {False: abs(b - c * height / width), True: abs(a - b * height / width)}
        if height == width:
            if misses[False] and misses[True]:
                return None
            if not misses[False] and not misses[True] and a > 1:
                raise ProbeError(
                    f"a map of {a} x {b} x {c} in a run on a square image: "
                    "what is its width cannot be told; say it with channels="
                )
        channels_last = misses[True] < misses[False]
        if misses[channels_last] > TOLERANCE:
            return None
        return Map(c, a, b, True) if channels_last else Map(a, b, c)


class Probe:
    """A copy of a network on the meta device, in eval mode, with an input that it takes.

    Args:
        network: any network; it is left as it is, and its weights are not copied.
        example: an input, or a tuple of inputs; None tries images of several sizes, first one that is not square, with
            as many channels as the first convolution has.

    Raises:
        ProbeError: if the network cannot be copied or run.
    """

    run: Run
    """A forward pass with the calls of all modules and their autograd graph."""

    def __init__(self, network: nn.Module, example: Any = None) -> None:
        try:
            self.network = meta_copy(network)
        except Exception as error:
            raise ProbeError(f"{type(network).__name__} cannot be copied to the meta device ({_line(error)})") from error
        errors = []
        for inputs in _inputs(self.network, example):
            self.inputs = inputs
            try:
                self.run = self._run()
                return
            except ProbeError:
                raise
            except Exception as error:  # other people's code raises anything
                errors.append(f"{_shapes(inputs)}: {_line(error)}")
        raise ProbeError(
            f"{type(network).__name__} does not run on {errors[0]}; give an input that it takes with example=, or name "
            "the places with at=[...] and their widths with channels=[...]"
        )

    def __str__(self) -> str:
        return _shapes(self.inputs)

    def _run(self) -> Run:
        leaves = [x for x in tree_leaves(self.inputs) if isinstance(x, Tensor)]
        images = [x for x in leaves if x.ndim == 4 and x.is_floating_point()]
        if not images:
            raise ProbeError(f"no image of N x C x H x W among {self}")
        image = images[0].detach().requires_grad_() * 1  # not a leaf, which may not be changed in place
        inputs = tree_map(lambda x: image if x is images[0] else x, self.inputs)
        run, open_calls, clock = Run(image, image.grad_fn), [], iter(range(1 << 62))

        def before(module: nn.Module, args: tuple[Any, ...], name: str) -> None:
            call = Call(name, module, next(clock))
            source = next((x for x in args if isinstance(x, Tensor)), None)
            if source is not None:
                call.source, call.source_node = source.detach(), source.grad_fn
            open_calls.append(call)

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            call = open_calls.pop()
            call.end, call.output = next(clock), output
            if isinstance(output, Tensor):
                call.output, call.node = output.detach(), output.grad_fn
            run.calls.append(call)

        hooks = []
        for name, module in self.network.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda m, a, name=name: before(m, a, name)))
            hooks.append(module.register_forward_hook(after))
        try:
            run.output = self._forward(inputs, grad=True)
        finally:
            for hook in hooks:
                hook.remove()
        return run

    def runs_once(self, name: str, way: str, shape: torch.Size) -> bool:
        """Whether a module put there runs exactly once, on a map of that shape."""
        witness = _Witness()
        insert(self.network, name, way, witness)
        with suppress(Exception):
            self._forward(self.inputs)
        witness_saw = witness.shapes
        remove(self.network)
        return witness_saw == [shape]

    def _forward(self, inputs: tuple[Any, ...], *, grad: bool = False) -> Any:
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            return self.network(*inputs)


class _Witness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size | None] = []

    def forward(self, x: Any) -> Any:
        self.shapes.append(x.shape if isinstance(x, Tensor) else None)
        return x


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode whose weights and buffers are on the meta device, without copying them first."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.is_floating_point()) if is_parameter else empty
    return copy.deepcopy(network, memo).eval()


def _inputs(network: nn.Module, example: Any) -> Iterator[tuple[Any, ...]]:
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    if example is not None:
        given = example if isinstance(example, tuple) else (example,)
        yield tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, given)
        return
    convolution = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if convolution is None else convolution.in_channels
    # timm's networks say for which size they are made.
    said = getattr(network, "pretrained_cfg", None) or {}
    height, width = (said.get("input_size") or (3, 224, 224))[1:] if isinstance(said, dict) else (224, 224)
    for size in ((height, width + 64), (height, width), (256, 256), (32, 32)):
        yield (torch.empty(1, channels, *size, device="meta", dtype=dtype),)


def _shapes(inputs: tuple[Any, ...]) -> str:
    shapes = [" x ".join(map(str, x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in tree_leaves(inputs)]
    return ", ".join(shapes)


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
