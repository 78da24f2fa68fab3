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

from bam_exp.attention.released import from_released
from bam_exp.backbones.backbone import Backbone
from bam_exp.checkpoint import sync_folder


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
    """Load a safetensors file into a network, in place; the names of the weights that keep their values.

    Without `onto` these are none: every weight must be there, and fit. onto: to train on from plain weights, of a
    network without an attention or with another number of classes: attentions and a classifier of another shape keep
    their values.
    Raises ValueError, which names the first weight that is missing, superfluous or of another shape.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a file of weights that bam_exp has written ({_first_line(error)})") from error
    own = network.state_dict()
    kept = []
    if onto:
        *_, classifier = (name.rpartition(".")[0] for name in own if not _of_an_attention(name))
        replaced = {n for n in weights if n.startswith(f"{classifier}.") and n in own and weights[n].shape != own[n].shape}
        if replaced:
            weights = {name: one for name, one in weights.items() if not name.startswith(f"{classifier}.")}
        kept = [
            name for name in own if name not in weights and (_of_an_attention(name) or name.startswith(f"{classifier}.") and replaced)
        ]
    # A count of batches that only momentum=None would read; PyTorch 0.4.0 did not have it.
    missing = [n for n in own if n not in weights and n not in kept and not n.endswith("num_batches_tracked")]
    superfluous = [name for name in weights if name not in own]
    if missing or superfluous:
        first, what = (missing[0], "has no") if missing else (superfluous[0], "has a")
        hint = ""
        if any(map(_of_an_attention, missing)):
            hint = "; these are weights of a network without this attention"
        elif any(map(_of_an_attention, superfluous)):
            hint = "; these are weights of a network with an attention"
        number = f"{len(missing)} missing, {len(superfluous)} too many of {len(own)}"
        raise ValueError(f"{path}: not of this network: it {what} {first} ({number}){hint}")
    for name, one in weights.items():
        if one.shape != own[name].shape:
            raise ValueError(
                f"{path}: not of this network: {name} is {_size(one)} and should be {_size(own[name])}"
            )
    network.load_state_dict(weights, strict=False)
    return kept


def _of_an_attention(name: str) -> bool:
    return ".attention." in name


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
