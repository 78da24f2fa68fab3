"""The parts of every backbone: stem, stages, head and seams; and the layers that the families share."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec

import torch
from torch import Tensor, nn

P = ParamSpec("P")


@dataclass(frozen=True)
class Seam:
    """A place in a backbone where an attention can stand."""

    name: str
    """Dotted name of an `nn.Sequential` inside the backbone; an attention is appended at its end."""
    channels: int
    """Width of the map there."""
    block: Callable[[], nn.Module] | None = None
    """Makes one more initialised block of the backbone's type, which keeps width and size; None if no such block exists."""


class Backbone(nn.Module):
    """Stem, stages, head: from (N, 3, H, W) images, H and W at least `min_size`, to (N, num_classes) logits.

    Under autocast the head computes in float32, so the logits are float32 too.

    `seams` holds, in the order of the forward pass, the places of each kind that the backbone has:
    `bottleneck`: where the map is about to shrink;
    `block`: the end of a block's branch, before the addition or concatenation; without a branch, the end of the block;
    `block_output`: the output of a block, after the addition or concatenation.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: nn.Sequential,
        head: nn.Module,
        *,
        seams: dict[str, list[Seam]],
        min_size: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages
        self.head = head
        self.seams = seams
        self.min_size = min_size
        """The smallest side of an image: the total stride, or the smallest side that runs if a pooling does not pad."""
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.stem(x))
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]  # public, but not in __all__
            return self._logits(features)
        logits: Tensor = self.head(features)
        return logits

    @torch.jit.unused
    def _logits(self, features: Tensor) -> Tensor:
        """The logits for the last map, computed in float32 under autocast, too.

        In bfloat16 a logit has 8 significant bits, and in one image of fifty several classes share the highest.
        """
        logits: Tensor
        if features.is_meta or not torch.is_autocast_enabled(features.device.type):
            logits = self.head(features)
            return logits
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.float())
        return logits

    def torchvision_names(self) -> dict[str, str]:
        """Map the names of the layers in torchvision's equal network to the names here.

        Raises ValueError if torchvision has no network that computes the same.
        """
        raise ValueError(f"{type(self).__name__}: torchvision has no such network")

    def from_torchvision(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return torchvision's state dict under the names of this network, for `load_state_dict`.

        With an attention attached, load with `strict=False`; for another number of classes, leave the classifier out.
        Raises ValueError for a weight that has no place here, and if torchvision has no network that computes the same.
        """
        names = self.torchvision_names()
        renamed = {}
        for name, weight in weights.items():
            layer, _, leaf = name.rpartition(".")
            if layer not in names:
                raise ValueError(f"torchvision's weight {name!r} has no place in this {type(self).__name__}")
            renamed[f"{names[layer]}.{leaf}"] = weight
        return renamed


class Residual(nn.Module):
    """One residual block: out(branch(pre(x)) + shortcut(pre(x)))."""

    def __init__(
        self,
        branch: nn.Sequential,
        shortcut: nn.Module,
        *,
        pre: nn.Module | None = None,
        out: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.pre = nn.Identity() if pre is None else pre
        self.branch = branch
        self.shortcut = shortcut
        self.out = nn.Sequential() if out is None else out

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        out: Tensor = self.out(self.branch(x) + self.shortcut(x))
        return out


def residual_stages(
    block: Callable[[int, int, int], nn.Module], stem_width: int, widths: Sequence[int], blocks: Sequence[int]
) -> tuple[nn.Sequential, dict[str, list[Seam]]]:
    """Stages of residual blocks with their seams; each stage but the first halves the map in its first block.

    `block(channels_in, channels, stride)` makes a block; `widths` and `blocks` are the stages' widths and lengths.
    """
    stages = nn.Sequential()
    seams: dict[str, list[Seam]] = {"bottleneck": [], "block": [], "block_output": []}
    channels_in = stem_width
    for i, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
        stage = nn.Sequential()
        one_more = partial(initialised, block, channels, channels, 1)
        for j in range(count):
            stage.append(block(channels_in, channels, 2 if i > 0 and j == 0 else 1))
            seams["block"].append(Seam(f"stages.{i}.{j}.branch", channels))
            seams["block_output"].append(Seam(f"stages.{i}.{j}.out", channels, one_more))
            channels_in = channels
        stages.append(stage)
        if i < len(widths) - 1:
            seams["bottleneck"].append(Seam(f"stages.{i}", channels, one_more))
    return stages, seams


def sequential(**layers: nn.Module) -> nn.Sequential:
    """An `nn.Sequential` of named layers."""
    return nn.Sequential(OrderedDict(layers))


def conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size of the map at stride 1."""
    return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def linear_head(channels: int, num_classes: int, **before: nn.Module) -> nn.Sequential:
    """The layers `before`, the mean over the map, and a linear classifier."""
    return sequential(**before, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))


def scaled(channels: int, factor: float, knob: str) -> int:
    """Return `channels` times `factor`, rounded down. Raises ValueError, which names the `knob`, if the result is 0."""
    width = int(channels * factor)
    if width < 1:
        raise ValueError(f"{knob}={factor} leaves no channel of {channels}: it must be at least {1 / channels:g}")
    return width


def initialise(module: nn.Module) -> None:
    """Initialise every convolution, BatchNorm and linear layer inside `module` as the released code does.

    Convolutions: Kaiming normal over fan-out; linear layers: Kaiming normal over fan-in; BatchNorm: weight 1, bias 0;
    other biases 0. The released code goes by names, and so leaves the convolutions of shortcuts (`downsample`) at
    PyTorch's default; here they are like all others. On the meta device nothing is done.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear) or layer.weight.is_meta:
            continue  # on meta, the first random number would cost a second of imports
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            nn.init.ones_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialised(make: Callable[P, nn.Module], *args: P.args, **kwargs: P.kwargs) -> nn.Module:
    """Call `make` with its arguments and return the module, initialised."""
    module = make(*args, **kwargs)
    initialise(module)
    return module
