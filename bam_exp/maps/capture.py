"""The maps of the attentions in a network, and Grad-CAM."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bam_exp.errors import ConfigError


@dataclass(frozen=True)
class Maps:
    """The maps of one attention, and the map F that it receives, for N images."""

    before: Tensor
    """The norm of F over its channels: N x H x W."""
    channel: Tensor | None
    """The channel branch before the sigmoid, signed: N x C; None without that branch."""
    spatial: Tensor | None
    """The spatial branch before the sigmoid, signed: N x H x W; None without that branch."""
    attention: Tensor
    """M(F) in 0 ... 1, averaged over the channels: N x H x W."""
    after: Tensor
    """The norm of the refined map over its channels: N x H x W."""


def attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The attentions of a network that can tell their maps, by their names, in the order of the network.

    These are the modules with a method `attention_maps`, see `bam_exp.attention.BAM`.

    Raises:
        ConfigError: if there are none.
    """
    modules = {name: module for name, module in network.named_modules() if hasattr(module, "attention_maps")}
    if modules:
        return modules
    others = {type(module).__name__ for name, module in network.named_modules() if name.endswith("attention")}
    if others:
        raise ConfigError(f"attention {others.pop()} has no maps; these have: bam, bam_equations, bam_released")
    raise ConfigError("the network of this run has no attention, so there are no maps of one")


def capture(network: nn.Module, images: Tensor) -> tuple[dict[str, Maps], Tensor]:
    """The maps of each attention, by name, and the logits, of one pass over images N x 3 x H x W."""
    maps: dict[str, Maps] = {}

    def record(name: str, module: nn.Module, x: Tensor, refined: Tensor) -> None:
        channel, spatial, attention = module.attention_maps(x)  # type: ignore[operator]
        maps[name] = Maps(
            before=x.norm(dim=1),
            channel=channel,
            spatial=None if spatial is None else spatial[:, 0],
            attention=attention.mean(1),
            after=refined.norm(dim=1),
        )

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, module, inputs[0], output))
        for name, module in attentions(network).items()
    ]
    try:
        with torch.no_grad():
            logits: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return maps, logits


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the map after the last stage, for one class of each image: N x H x W."""
    from captum.attr import LayerGradCam

    layer = LayerGradCam(network, network.stages)
    cam: Tensor = layer.attribute(images, target=classes, relu_attributions=True)
    return cam[:, 0].detach()
