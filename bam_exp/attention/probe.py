"""A run of a network on the meta device, where neither weights nor maps take memory, and what each module yields in it."""

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves, tree_map

from bam_exp.attention.insert import insert, remove

TOLERANCE = 4
"""Pixels by which a map may miss the proportions of the image and a whole stride: unpadded convolutions and rounding."""


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
        """Whether both sides are; a convolution without padding or a pooling to a fixed size makes no new size."""
        return self.height < 0.8 * other.height and self.width < 0.8 * other.width


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
        """The map that a tensor is, None if it is none.

        A map has the proportions of the image at a whole stride, which tells H x W from C. Where the image is square
        and all three are equal, the layout is that of the other maps.
        """
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[0] != self.image.shape[0]:
            return None
        first, middle, last = tensor.shape[1:]
        misses = {False: self._miss(middle, last), True: self._miss(first, middle)}
        channels_last = misses[True] < misses[False]
        if misses[True] == misses[False] and self._square and max(misses.values()) == 0 and first > 1:
            channels_last = self._usually_channels_last
        if misses[channels_last] > TOLERANCE:
            return None
        return Map(last, first, middle, True) if channels_last else Map(first, middle, last)

    def _miss(self, height: int, width: int) -> float:
        """By how many pixels height and width are not those of the image at a whole stride."""
        of_image = self.image.shape[2:]
        if self._square and height != width:
            return float("inf")
        shape = abs(height - width * of_image[0] / of_image[1])
        stride = min(abs(height - of_image[0] / stride) for stride in range(1, of_image[0] + 1))
        return shape if stride <= TOLERANCE else float("inf")

    @property
    def _square(self) -> bool:
        return self.image.shape[2] == self.image.shape[3]

    @cached_property
    def _usually_channels_last(self) -> bool:
        shapes = [
            call.output.shape[1:] for call in self.calls if isinstance(call.output, Tensor) and call.output.ndim == 4
        ]
        return sum(a == b != c for a, b, c in shapes) > sum(a != b == c for a, b, c in shapes)


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
            with _plain_mode():
                self.network, tries = meta_copy(network), list(_inputs(network, example))
        except Exception as error:
            raise ProbeError(
                f"{type(network).__name__} cannot be copied to the meta device ({_line(error)})"
            ) from error
        errors = []
        for inputs in tries:
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
            raise ProbeError(f"no image of N x C x H x W in floating-point numbers among {self}")
        with _plain_mode(), torch.enable_grad():
            image = images[0].detach().requires_grad_() * 1  # not a leaf, which may not be changed in place
        inputs = tree_map(lambda x: image if x is images[0] else x, self.inputs)
        run, open_calls, clock = Run(image, image.grad_fn), [], count()

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
        inserted = insert(self.network, name, way, witness)
        with suppress(Exception):
            self._forward(self.inputs)
        remove(self.network, inserted)
        return witness.shapes == [shape]

    def _forward(self, inputs: tuple[Any, ...], *, grad: bool = False) -> Any:
        with _plain_mode(), torch.set_grad_enabled(grad):
            return self.network(*inputs)


@contextmanager
def _plain_mode() -> Iterator[None]:
    """Neither the inference mode of the caller nor what the network has compiled."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


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
    plain = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    for tensor in (*plain, *network.parameters(), *network.buffers()):
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
    channels = [3] if convolution is None else [convolution.in_channels, 3]
    # timm's networks say for which size they are made.
    said = getattr(network, "pretrained_cfg", None) or {}
    height, width = (said.get("input_size") or (3, 224, 224))[1:] if isinstance(said, dict) else (224, 224)
    sizes = ((height, width + 64), (height, width), (256, 256), (300, 300), (32, 32))
    for width_in, size in product(dict.fromkeys(channels), dict.fromkeys(sizes)):
        yield (torch.empty(1, width_in, *size, device="meta", dtype=dtype),)


def _shapes(inputs: tuple[Any, ...]) -> str:
    shapes = [" x ".join(map(str, x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in tree_leaves(inputs)]
    return ", ".join(shapes)


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
