"""A trained network out of a weights file, in Python."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bam_exp.attention import attach
from bam_exp.backbones.backbone import Backbone
from bam_exp.errors import DataError
from bam_exp.weights.file import load_weights
from bam_exp.weights.metadata import Metadata, read_metadata, weights_file

_PACKAGES = ("bam_exp.attention", "bam_exp.backbones")
"""The modules that may define the parts of a network; a file must not import other code."""


def load_network(path: str | Path) -> Backbone:
    """Build the network that a weights file describes, with these weights and in evaluation mode, on the CPU.

    Args:
        path: a weights file that a run or `bam-weights import` has written, or the folder of a run.

    Returns:
        A network that maps normalised images N x 3 x H x W to logits N x classes; `read_metadata` has the names of the classes.

    Raises:
        DataError: if the file is damaged, or describes a network that is not of this package.
    """
    path = weights_file(path)
    metadata = read_metadata(path)
    if metadata is None:
        raise DataError(f"{path}: does not say of which network it is; build the network and use load_weights")
    with torch.device("meta"):
        network = _build(metadata, path)
    network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):  # old files have none
            buffer.zero_()
    load_weights(network, path)
    return network.eval()


def _build(metadata: Metadata, path: Path) -> Backbone:
    try:
        backbone, attention = dict(metadata.config["backbone"]), dict(metadata.config["attention"])
        make, kind = _target(backbone.pop("_target_"), path), _target(attention.pop("_target_"), path)
        network = make(len(metadata.classes), **backbone)
        attach(network, kind, **attention)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: its network cannot be built ({' '.join(str(error).split())})") from error
    if not isinstance(network, nn.Module) or not isinstance(network, Backbone):
        raise DataError(f"{path}: {metadata.config['backbone']['_target_']} is not a backbone")
    return network


def _target(name: str | None, path: Path) -> Any:
    """The callable with this dotted name; None for no attention."""
    if name is None:
        return None
    package, _, member = name.rpartition(".")
    if package not in _PACKAGES or member not in import_module(package).__all__:
        raise DataError(f"{path}: is of a {name}, which is not of this package; build the network and use load_weights")
    return getattr(import_module(package), member)
