"""A finished run as a network that can be looked at: found by its folder or name, rebuilt and given its weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from bam_exp.build import build
from bam_exp.config import NAMED, Chosen, nearest
from bam_exp.data.dataset import DataSet
from bam_exp.errors import ConfigError, DataError
from bam_exp.files import reason_of
from bam_exp.runs.contents import Result, read_file
from bam_exp.runs.folder import BEGUN, CHECKPOINTS, RESULT, failure_of, read_progress
from bam_exp.tasks import Classification
from bam_exp.weights import load_weights, put_weights, read_checkpoint, upright_rgb

WEIGHTS = "weights.safetensors"
_LEARNER = "network."
"""The prefix of the network's weights in a checkpoint."""


class Pictures(DataSet, Protocol):
    """A data set of images that are normalised by these values, per channel, of pixels in 0 ... 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """A finished run with its network."""

    folder: Path
    chosen: Chosen
    data: Pictures
    network: nn.Module
    """Trained, in evaluation mode, on the CPU."""
    top1_error: float
    """Error on the test set, in percent."""

    @property
    def name(self) -> str:
        """`data/backbone/attention/recipe/seed<k>`."""
        return "/".join(self.folder.resolve().parts[-len(NAMED) - 1 :])

    @property
    def baseline(self) -> Path:
        """The folder in which the same run without an attention is, if it was trained."""
        folder = self.folder.resolve()
        return folder.parents[2] / "none" / folder.parent.name / folder.name

    def tests(self, count: int) -> tuple[Tensor, Tensor]:
        """The first test images, `count` at most: normalised images N x 3 x H x W and labels N.

        Raises:
            DataError: if the data is missing or damaged.
        """
        self.data.prepare()
        images, labels = next(iter(self.data.loader("test", batch_size=count, seed=0, device="cpu")))
        return images, labels

    def masks(self, count: int) -> Tensor | None:
        """The masks of the objects in these images, bool N x H x W, or None if the data has none."""
        if not hasattr(self.data, "masks"):
            return None
        masks: Tensor = self.data.masks("test")[:count]
        return masks

    def untrained(self) -> nn.Module:
        """The network as it was before training, in evaluation mode."""
        torch.manual_seed(self.chosen.seed)
        return build(self.chosen).network.eval()


def find_run(word: str, output_dir: Path) -> Path:
    """The folder of a run: a path, or its name under `runs`.

    Raises:
        ConfigError: if there is none.
    """
    runs = output_dir / "runs"
    try:
        for folder in (Path(word), runs / word):
            if (folder / BEGUN).is_file() or (folder / RESULT).is_file():
                return folder
    except OSError as error:  # such as a name that is too long
        raise ConfigError(f"{word}: should be the folder of a run ({reason_of(error)})") from error
    names = sorted(str(path.parent.relative_to(runs)) for path in runs.glob("*/" * (len(NAMED) + 1) + BEGUN))
    hint = nearest(word, names) or (
        f" (the first of {len(names)} is {names[0]})" if names else f" ({runs} has no runs)"
    )
    raise ConfigError(f"{word}: there is no such run; give its folder, or its name under {runs}{hint}")


def load_baseline(run: Trained) -> Trained | None:
    """The run with the attention `none` and all else equal; None if it is not there or not finished.

    Raises:
        ConfigError: if it cannot be used.
    """
    return load_run(run.baseline, run.chosen.data_root) if (run.baseline / RESULT).is_file() else None


def load_run(folder: Path, data_root: Path) -> Trained:
    """Rebuild the network of a finished run from the settings in its `result.json` and load its weights.

    The weights are those of `weights.safetensors`, or else of the newest checkpoint.

    Raises:
        ConfigError: if the run is not finished, is not of a classifier, or has no weights that fit.
    """
    result = _result(folder)
    settings = result.figures_from
    try:
        groups = {group: settings[group] for group in NAMED}
        seed = settings["seed"]
    except KeyError as missing:
        raise ConfigError(
            f"{folder / RESULT}: not a file of bam_exp (figures_from.{missing.args[0]} is missing)"
        ) from missing
    machine = {"_target_": "bam_exp.machine.Machine"}
    config = {**groups, "trainer": machine, "seed": seed, "data_root": str(data_root), "output_dir": "."}
    chosen = Chosen.of(OmegaConf.create(config), {**dict.fromkeys(NAMED, "of_the_run"), "trainer": "default"})
    if chosen.recipe.factory is not Classification:
        raise ConfigError(f"{folder}: maps are drawn of classifiers, and this is a run of {chosen.recipe.target}")
    data, network, _ = build(chosen)
    _load(network, folder)
    return Trained(folder, chosen, data, network.eval(), result.metrics.get("top1_error", math.nan))  # type: ignore[arg-type]  # each data set has mean and std


def _result(folder: Path) -> Result:
    if not (folder / RESULT).is_file():
        progress = read_progress(folder)
        how_far = f" (it is in epoch {progress.epoch} of {progress.epochs})" if progress else ""
        if reason := failure_of(folder):
            how_far = f" (it failed: {reason})"
        raise ConfigError(f"{folder}: this run is not finished{how_far}; the same bam-train command continues it")
    return read_file(folder / RESULT, Result)[0]


def _load(network: nn.Module, folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        load_weights(network, folder / WEIGHTS)
        return
    newest = max(folder.glob(CHECKPOINTS), default=None)  # the step stands in the name, with leading zeros
    if newest is None:
        raise ConfigError(f"{folder}: has neither {WEIGHTS} nor a checkpoint, so its network is lost; train it again")
    weights = {
        name.removeprefix(_LEARNER): weight
        for name, weight in read_checkpoint(newest).items()
        if name.startswith(_LEARNER)
    }
    put_weights(network, weights, source=newest)


def class_names(data: Pictures) -> list[str]:
    """The names of the classes; where the data that has them is missing, their numbers."""
    try:
        return data.class_names()
    except DataError:
        return [f"class {label}" for label in range(data.num_classes)]


def read_images(files: Sequence[str], data: Pictures) -> Tensor:
    """Image files as the network receives them: scaled and cropped centrally to a square, normalised; N x 3 x H x W.

    Raises:
        DataError: naming the file that cannot be read as an image.
    """
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                upright = upright_rgb(opened)
        except UnidentifiedImageError as error:
            raise DataError(f"{file}: not an image that can be read") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{file}: cannot be read as an image ({reason})") from error
        square = ImageOps.fit(upright, (data.size, data.size), Image.Resampling.BILINEAR)
        images.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(data.size, data.size, 3))
    pixels = torch.stack(images).movedim(3, 1) / 255
    return (pixels - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]


def to_pixels(images: Tensor, data: Pictures) -> Tensor:
    """Normalised images N x 3 x H x W as pixels in 0 ... 1, N x H x W x 3."""
    pixels = images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    return pixels.clamp(0, 1).movedim(1, 3)
