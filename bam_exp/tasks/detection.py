"""Object detection: what there is to learn, and by which recipe."""

import copy
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SkipValidation
from torch import nn

from bam_exp.data.boxed_set import DetectionSet
from bam_exp.data.dataset import DataSet
from bam_exp.detectors import Detector
from bam_exp.figures import METRICS
from bam_exp.schema import checked
from bam_exp.tasks.task import Task, one_cycle

if TYPE_CHECKING:
    from bam_exp.tasks.detector import DetectionLearner

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Detection(Task):
    """One detector to learn one data set by one recipe; its keyword arguments are the recipe.

    Args:
        network: a detector (see `bam_exp.detectors`).
        data: a data set of photos with boxes.
        seed: with the epoch and the index, decides order and augmentation.
        epochs: passes over the training set; null where `steps` says how long to train.
        steps: optimizer steps to train, in place of `epochs`; the last epoch may then be a part of one.
        max_steps: stop after so many optimizer steps, and test on at most so many batches, for trying things out.
        batch_size: images a step, of all processes together; the last batch of an epoch is smaller, none is dropped.
        lr, momentum, weight_decay: of SGD.
        schedule: "steps" multiplies `lr` by `gamma` after each of `milestones`, fractions of the training; "one_cycle"
            raises it along a cosine to `lr` in the first 30 % of the training and lets it fall to nothing.
        warmup_steps: steps in which the rate of schedule "steps" grows linearly from a tenth of it.
        clip: largest norm of the gradient; null does not limit it.
        test_every: epochs between two tests; the last epoch is always tested.
        freeze_norms: batch normalisations that keep the mean, variance, scale and shift of pretrained weights: "backbone",
            those of the network apart from its attentions; "all", those of the attentions as well.
        freeze_stages: how many parts of the backbone keep their weights: 1, the stem; 2, also the first stage; and so on.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    data: DetectionSet
    metrics: ClassVar[tuple[str, ...]] = METRICS["detection"]

    @checked
    def __init__(
        self,
        network: nn.Module,
        data: SkipValidation[DataSet],
        seed: int,
        *,
        epochs: PositiveInt | None = None,
        steps: PositiveInt | None = None,
        max_steps: PositiveInt | None = None,
        batch_size: PositiveInt = 32,
        lr: PositiveFloat = 1e-3,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 5e-4,
        schedule: Literal["steps", "one_cycle"] = "steps",
        milestones: list[Fraction] = [0.66666667, 0.83333333],  # noqa: B006 (read only)
        gamma: Annotated[float, Field(gt=0, le=1)] = 0.1,
        warmup_steps: NonNegativeInt = 0,
        clip: PositiveFloat | None = None,
        test_every: PositiveInt = 1,
        freeze_norms: Literal["none", "backbone", "all"] = "none",
        freeze_stages: Annotated[int, Field(ge=0, le=5)] = 0,
    ) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: exactly one of them should be a number")
        if schedule == "one_cycle" and warmup_steps:
            raise ValueError(f"warmup_steps={warmup_steps}: schedule=one_cycle has its own warm-up")
        if not isinstance(network, Detector):
            raise ValueError("a recipe for detection needs a detector as its backbone, and this one is a classifier")
        if getattr(data, "task", "classification") != "detection":
            raise ValueError("a recipe for detection needs data with boxes, and these are for classification")
        if network.max_size is not None and data.size > network.max_size:
            raise ValueError(
                f"images of {data.size} pixels are too large for this detector (at most {network.max_size})"
            )
        self.network = self.detector = network
        self.data = cast(DetectionSet, data)
        self.seed = seed
        self.max_steps = max_steps
        self.batch_size = batch_size
        in_epoch = math.ceil(data.train_size / batch_size)
        self.steps = steps or epochs * in_epoch  # type: ignore[operator]
        self.epochs = math.ceil(self.steps / in_epoch)
        self.sgd: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.schedule, self.milestones, self.gamma, self.warmup_steps = schedule, milestones, gamma, warmup_steps
        self.clip, self.test_every = clip, test_every
        self.headline = "map" if self.data.protocol == "coco" else "map50"
        self.batch_norm_parts = 1
        self.frozen_norms = self._freeze(freeze_norms, freeze_stages)
        self._check_smallest_batch()

    @property
    def last_step(self) -> int:
        """The optimizer step after which training stops."""
        return min(self.steps, self.max_steps or self.steps)

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that Lightning's trainer is given."""
        return {
            **super().limits,
            "check_val_every_n_epoch": self.test_every,
            "gradient_clip_val": self.clip,
        }

    def rate(self, step: int) -> float:
        """Factor on the learning rate after so many steps."""
        done = step / self.steps
        if self.schedule == "one_cycle":
            return one_cycle(done)
        warm = min(1.0, 0.1 + 0.9 * step / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * self.gamma ** sum(step >= round(fraction * self.steps) for fraction in self.milestones)

    def advice(self, *, pretrained: bool) -> str | None:
        """Warn of what most often ends in a loss that is not a number, and of norms that hold no statistics."""
        if pretrained:
            return None
        if self.frozen_norms:
            return (
                "freeze_norms without weights=FILE: the frozen normalisations keep mean 0 and variance 1, with which no "
                "detector learns well"
            )
        normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in self.detector.backbone.modules())
        if not normalised and self.sgd["lr"] > 3e-4 and not (self.warmup_steps and self.clip):
            return (
                f"a VGG without batch normalisation often diverges from random weights at lr={self.sgd['lr']:g}: give "
                "weights=FILE (scripts/import_weights.py makes one of torchvision's), or recipe.warmup_steps=500 and "
                "recipe.clip=10"
            )
        return None

    def learner(self) -> "DetectionLearner":
        """The Lightning module of this task."""
        from bam_exp.tasks.detector import DetectionLearner  # takes four seconds

        return DetectionLearner(self)

    def _freeze(self, norms: str, stages: int) -> list[str]:
        """Take frozen weights out of the training; returns the names of the normalisations that stay in evaluation mode.

        Names, because a layer may be replaced by one that several processes share.
        """
        backbone = self.detector.backbone
        parts: list[nn.Module] = [backbone.stem, *backbone.stages]
        if stages > len(parts):
            raise ValueError(f"freeze_stages={stages}: the backbone has a stem and {len(parts) - 1} stages")
        for part in parts[:stages]:
            for name, parameter in part.named_parameters():
                if "attention" not in name.split("."):
                    parameter.requires_grad_(False)
        frozen: list[str] = []
        for name, layer in self.network.named_modules():
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                continue
            in_backbone = name.startswith("backbone.") or ".stage." in name  # C4's last stage is in the RoI head
            if norms == "all" or (norms == "backbone" and in_backbone and "attention" not in name.split(".")):
                frozen.append(name)
                for parameter in layer.parameters():
                    parameter.requires_grad_(False)
        return frozen

    def _check_smallest_batch(self) -> None:
        """Refuse a batch of one image where a batch normalisation would have a single value per channel."""
        last = self.data.train_size % self.batch_size
        if 1 not in (last, self.batch_size):
            return
        network = copy.deepcopy(self.network).to("meta").train()
        for name in self.frozen_norms:
            network.get_submodule(name).eval()
        try:
            with torch.no_grad():
                network(torch.empty(1, 3, self.data.size, self.data.size, device="meta"))
        except ValueError as error:
            which = (
                f"the last batch of {self.data.train_size} images would have one" if last == 1 else "one image a step"
            )
            raise ValueError(
                f"batch_size={self.batch_size}: {which}, and a batch normalisation of this network has a single value per "
                f"channel then ({error}); {self.batch_size + 1} would do, or freeze_norms=all with pretrained weights"
            ) from error
