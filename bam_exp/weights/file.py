"""Weights from elsewhere: torchvision's and the authors' checkpoints under the names here, kept as safetensors."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bam_exp.backbones.backbone import Backbone
from bam_exp.files import sync_folder
from bam_exp.weights.released import from_released


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a file of torchvision or of the authors, under their names; nothing in it is executed.

    Raises ValueError if it holds none.
    """
    # The variable overrides even an explicit weights_only=True.
    forced = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of plain weights ({_first_line(error)})") from error
    finally:
        if forced is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = forced
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        raise ValueError(f"{path}: holds no state dict")
    return {str(name): weight for name, weight in content.items()}


def renamed(weights: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
    """Weights under torchvision's names, or the authors', under those of this network.

    The authors' names are torchvision's, save for a prefix `module.` and the attentions, `bam1` to `bam3`, which stand
    after `layer1` to `layer3` (MODELS/model_resnet.py of Jongchan/attention-module).
    Raises ValueError for a weight that has no place here.
    """
    plain = {name.removeprefix("module."): weight for name, weight in weights.items()}
    placed = {re.sub(r"^bam(\d+)\.", r"layer\1.attention.", name): one for name, one in from_released(plain).items()}
    return network.from_torchvision(placed)


def save_weights(weights: Mapping[str, Tensor], path: Path, *, source: str) -> None:
    """Write a safetensors file that `load_weights` reads; it appears whole or not at all. Raises ValueError."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: one.contiguous() for name, one in weights.items()}, part, metadata={"source": source})
        part.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written ({_first_line(error)})") from error


def load_weights(network: nn.Module, path: Path, *, onto: bool = False) -> list[str]:
    """`put_weights` of a safetensors file, which names itself in an error. Raises ValueError."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a file of weights that bam_exp has written ({_first_line(error)})") from error
    return put_weights(network, weights, source=path, onto=onto)


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: object, onto: bool = False) -> list[str]:
    """Copy weights into a network, in place; returns the names of those that keep their values.

    Without `onto` there are none: every weight must be there, and fit. With it, for training on from weights of a
    network without an attention or with other classes, attentions that are lacking and a classifier of another shape
    keep theirs.
    Raises ValueError, which names `source` and the first weight that is missing, superfluous or of another shape.
    """
    own = network.state_dict()
    kept: list[str] = []
    if onto:
        reshaped = {_layer(name) for name, one in weights.items() if name in own and one.shape != own[name].shape}
        replaced = {layer for layer in reshaped if layer.startswith("head.")}
        weights = {name: one for name, one in weights.items() if _layer(name) not in replaced}
        kept = [name for name in own if name not in weights and (_layer(name) in replaced or _of_an_attention(name))]
    # num_batches_tracked is a count that PyTorch 0.4.0 did not have, and that is not used with a momentum.
    missing = [n for n in own if n not in weights and n not in kept and not n.endswith(".num_batches_tracked")]
    superfluous = [name for name in weights if name not in own]
    if missing or superfluous:
        first = f"it lacks {missing[0]}" if missing else f"it has a {superfluous[0]}"
        hint = ""
        if any(map(_of_an_attention, missing + superfluous)):
            hint = f"; the {'file' if missing else 'network'} has no such attention"
        raise ValueError(
            f"{source}: not of this network: {first} ({len(missing)} missing, {len(superfluous)} too many){hint}"
        )
    for name, one in own.items():
        if name in weights and weights[name].shape != one.shape:
            sizes = " and should be ".join(" x ".join(map(str, size)) for size in (weights[name].shape, one.shape))
            raise ValueError(f"{source}: not of this network: {name} is {sizes}")
    network.load_state_dict(weights, strict=False)
    return kept


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _of_an_attention(name: str) -> bool:
    return ".attention." in name


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
