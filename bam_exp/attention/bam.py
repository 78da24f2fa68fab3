"""BAM: bottleneck attention module (Park, Woo, Lee, Kweon, BMVC 2018, section 3 and Figure 2)."""

from collections import OrderedDict
from typing import Any, Final, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bam_exp.attention.gate import attention, gate, pool
from bam_exp.attention.knobs import Device, Dilation, Rounding, hidden_width
from bam_exp.schema import checked


class AttentionMaps(NamedTuple):
    """The attention of a BAM for a map of N x C x H x W."""

    channel: Tensor | None
    """N x C: the channel branch with its norm, before it is combined; None without that branch."""
    spatial: Tensor | None
    """N x 1 x H x W, signed: the spatial branch with its norm, before it is expanded to C channels and combined. With
    norm="paper", `spatial_norm.weight` and `.bias` (C each) turn it into what is combined. None without that branch."""
    attention: Tensor
    """N x C x H x W, from 0 to 1: M(F), the sigmoid of the combined branches."""


class BAM(nn.Module):
    """F + F * sigmoid(M), where M combines a channel branch (N x C) and a spatial branch (N x 1 x H x W).

    With k = channels / reduction, the channel branch is global average pooling and an MLP C -> k -> C; the spatial
    branch is a 1x1 convolution to k channels, two dilated 3x3 convolutions and a 1x1 convolution to one channel. Both
    are expanded to C x H x W. Input and output are N x C x H x W for any H and W, in the same memory format. A batch of
    one image is possible in eval mode only, because the channel branch has a batch norm over N. `attention_maps` returns
    what the module attends to.

    Args:
        channels: the number C of channels of the map.
        reduction: the ratio r = C / k of the paper.
        dilation: the dilation d of the two 3x3 convolutions.
        branches: which branches there are; one branch alone gives F + F * sigmoid(that branch) (Table 1(b)).
        combine: how both branches are combined, element by element (Table 1(b)).
        norm: where the batch norms are.
            "paper": a batch norm and a ReLU follow every hidden layer, and a batch norm over C ends both branches, as the
            text says and the printed parameters demand: 3Ck + 18k^2 + 5C + 13k + 1 parameters.
            "equations": hidden layers have neither; a batch norm over C ends the channel branch and one over 1 the
            spatial branch, as the equations are printed: 3Ck + 18k^2 + 3C + 5k + 3.
            "released": only the hidden layers have a batch norm and a ReLU, as in the authors' code:
            3Ck + 18k^2 + C + 13k + 1.
        rounding: what happens where k is no whole number, see `hidden_width`.
        device: where the weights are, as in PyTorch's own layers.
        dtype: the type of the weights, as in PyTorch's own layers.

    Raises:
        ValueError: if reduction does not divide channels and rounding is "exact".
    """

    _expands: Final[bool]  # Final lets torch.jit.script leave out the branch that is not taken

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        reduction: PositiveInt = 16,
        dilation: Dilation = 4,
        *,
        branches: Literal["both", "channel", "spatial"] = "both",
        combine: Literal["sum", "product", "max"] = "sum",
        norm: Literal["paper", "equations", "released"] = "paper",
        rounding: Rounding = "exact",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.branches, self.combine = branches, combine
        hidden = hidden_width(channels, reduction, rounding)
        self.channel: nn.Module | None = None
        self.channel_norm: nn.Module | None = None
        self.spatial: nn.Module | None = None
        self.spatial_norm: Any = None  # a module of one of three classes, or None
        if branches != "spatial":
            self.channel = _channel_branch(channels, hidden, norm != "equations")
            self.channel_norm = nn.Identity() if norm == "released" else nn.BatchNorm1d(channels)
        if branches != "channel":
            self.spatial = _spatial_branch(channels, hidden, dilation, norm != "equations")
            ends = {"paper": ExpandedBatchNorm(channels), "equations": nn.BatchNorm2d(1), "released": nn.Identity()}
            self.spatial_norm = ends[norm]
        self._expands = branches != "channel" and norm == "paper"
        self._initialise()
        self.to(device=device, dtype=dtype)

    def _initialise(self) -> None:
        # The authors' code initialises convolutions with Kaiming's normal distribution over fan-out and all biases with 0.
        # It picks layers by "conv" in their names, so the weights of the MLP keep PyTorch's default.
        for module in self.modules():
            if (
                isinstance(module, nn.Conv2d) and not module.weight.is_meta
            ):  # on meta, the first random number costs seconds of imports
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        channel, spatial = self._branches(x)
        if spatial is None:
            assert channel is not None
            return x * (1 + channel.sigmoid())[:, :, None, None]
        scale, shift, floor = self._combined(channel)
        return gate(x, scale, spatial, shift, floor)

    @torch.jit.export
    def attention_maps(self, x: Tensor) -> AttentionMaps:
        """The attention maps of an N x C x H x W map; `forward(x)` equals `x + x * attention_maps(x).attention`.

        In training mode this call, like `forward`, uses the statistics of the batch and updates the running ones.
        """
        channel, spatial = self._branches(x)
        if spatial is None:
            assert channel is not None
            return AttentionMaps(channel, None, channel.sigmoid()[:, :, None, None].expand_as(x))
        scale, shift, floor = self._combined(channel)
        return AttentionMaps(channel, spatial, attention(x, scale, spatial, shift, floor))

    def _branches(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The channel branch, N x C, and the spatial branch, N x 1 x H x W; None for a branch that is absent."""
        channel: Tensor | None = None
        spatial: Tensor | None = None
        if self.channel is not None and self.channel_norm is not None:
            channel = self.channel_norm(self.channel(pool(x)))
        if self.spatial is not None and self.spatial_norm is not None:
            spatial = self.spatial_norm(self.spatial(x))
        return channel, spatial

    def _combined(self, channel: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Scale, shift and floor of M = max(floor, scale * spatial + shift), where None is the neutral element."""
        scale: Tensor | None = None
        shift: Tensor | None = None
        floor: Tensor | None = None
        if self._expands:
            scale, shift = self.spatial_norm.weight[None], self.spatial_norm.bias[None]
        if channel is not None:
            if self.combine == "sum":
                shift = channel if shift is None else channel + shift
            elif self.combine == "product":
                scale = channel if scale is None else channel * scale
                shift = None if shift is None else channel * shift
            else:
                floor = channel
        return scale, shift, floor

    def extra_repr(self) -> str:
        return f"branches={self.branches}, combine={self.combine}"


class ExpandedBatchNorm(nn.Module):
    """BatchNorm2d(C) of an N x 1 x H x W map expanded to C channels, without the expanded map.

    All channels are equal and so are their means and variances, so `norm` keeps them once. Only weight and bias (C each)
    tell the channels apart. The output is the normalised N x 1 x H x W map; whoever expands it applies weight and bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The base class, because many networks set weight and bias of each of their BatchNorm1d, 2d and 3d, and tools such as
        # torch.fx's quantisation expect both there. A class of our own would be traced with the training mode of that moment.
        self.norm = _BatchNorm(1, affine=False)
        self.norm._check_input_dim = _accept  # type: ignore[method-assign]
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        """Set weight and bias to their initial values; tools that take a network from the meta device call this."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, spatial: Tensor) -> Tensor:
        normalised: Tensor = self.norm(spatial)
        return normalised


def _accept(input: Tensor) -> None:
    """The subclasses of _BatchNorm check the number of dimensions only to be strict; the computation takes any number."""


def _channel_branch(channels: int, hidden: int, hidden_norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(fc0=nn.Linear(channels, hidden))
    if hidden_norm:
        layers.update(bn0=nn.BatchNorm1d(hidden), relu0=nn.ReLU(inplace=True))
    layers["fc1"] = nn.Linear(hidden, channels)
    return nn.Sequential(layers)


def _spatial_branch(channels: int, hidden: int, dilation: int, hidden_norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(3):
        if i == 0:
            layers["conv0"] = nn.Conv2d(channels, hidden, 1)
        else:
            layers[f"conv{i}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        if hidden_norm:
            layers.update({f"bn{i}": nn.BatchNorm2d(hidden), f"relu{i}": nn.ReLU(inplace=True)})
    layers["conv3"] = nn.Conv2d(hidden, 1, 1)
    return nn.Sequential(layers)
