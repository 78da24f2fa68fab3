"""Checkpoints of torchvision and of the BAM authors, under the names that our networks use."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_exp.backbones.backbone import Backbone
from bam_exp.errors import DataError
from bam_exp.weights.file import first_line
from bam_exp.weights.released import from_released


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a .pth file, under the names that it has there. Nothing in the file is executed.

    The state dict is the content of the file or its entry "state_dict". Raises DataError if there is none.
    """
    # This variable of PyTorch would override even an explicit weights_only=True.
    forced = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        with warnings.catch_warnings(action="ignore"):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or first_line(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # An unpickler that is given garbage may raise anything.
        raise DataError(f"{path}: not a checkpoint of plain weights, or a damaged one") from error
    finally:
        if forced is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = forced
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(map(_is_plain, content.values())):
        raise DataError(f"{path}: holds no state dict of plain tensors")
    return {str(name): weight for name, weight in content.items()}


def renamed(weights: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
    """Translate the names of torchvision's weights, or of the authors', to those of our network.

    The authors' names are torchvision's, except for a prefix `module.` and the attentions `bam1` to `bam3`, which follow
    `layer1` to `layer3` (MODELS/model_resnet.py of Jongchan/attention-module).
    Raises ValueError for a weight that has no place in the network.
    """
    plain = {name.removeprefix("module."): weight for name, weight in weights.items()}
    placed = {
        re.sub(r"^bam(\d+)\.", r"layer\1.attention.", name): weight for name, weight in from_released(plain).items()
    }
    return network.from_torchvision(placed)


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
