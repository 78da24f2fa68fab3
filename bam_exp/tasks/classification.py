"""Image classification and its recipe."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SkipValidation
from torch import nn

from bam_exp.data.dataset import DataSet
from bam_exp.detectors import Detector
from bam_exp.figures import METRICS
from bam_exp.schema import checked
from bam_exp.tasks.task import Task, one_cycle

if TYPE_CHECKING:
    from bam_exp.tasks.classifier import Classifier

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Classification(Task):
    """A network that learns to classify the images of a data set.

    Args:
        network: maps float images N x 3 x H x W to logits N x classes.
        data: the data set (see `bam_exp.data.dataset`).
        seed: determines order and augmentation, together with the epoch and the index of an image.
        epochs: passes over the training set.
        max_steps: stop after so many optimizer steps, and test on at most so many batches, to try things out; None for no
            limit. `test_images` of the result is the number of images that were tested.
        batch_size: images in a step, of all processes together. The last batch of an epoch may be smaller; none is dropped.
        lr, momentum, nesterov, weight_decay: of SGD. The decay applies to all parameters, as in the released script.
        schedule: "steps" multiplies the learning rate by `gamma` at each of `milestones`; "one_cycle" lets it rise from 0.04
            `lr` to `lr` in the first 30 % of the steps and fall to nearly zero in the rest.
        milestones: fractions of `epochs`, rounded up to whole epochs (with a tolerance of 0.1 epoch).
        lr_scaling: "linear" multiplies `lr` by batch_size / lr_batch_size (Goyal et al. 2017, without their warm-up).
        batch_norm_parts: 1 for batch normalisation by the statistics of the whole batch; the number of processes for
            statistics of each process's share.

    Raises:
        ValueError: if the arguments do not fit each other or the data.
    """

    headline = "top1_error"
    metrics: ClassVar[tuple[str, ...]] = METRICS["classification"]

    @checked
    def __init__(
        self,
        network: nn.Module,
        data: SkipValidation[DataSet],
        seed: int,
        *,
        epochs: PositiveInt,
        max_steps: PositiveInt | None = None,
        batch_size: Annotated[int, Field(ge=2)] = 128,
        lr: PositiveFloat = 0.1,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        nesterov: bool = False,
        weight_decay: NonNegativeFloat = 5e-4,
        schedule: Literal["steps", "one_cycle"] = "steps",
        milestones: list[Fraction] = [0.5, 0.75],  # noqa: B006 (read only)
        gamma: Annotated[float, Field(gt=0, le=1)] = 0.1,
        lr_scaling: Literal["none", "linear"] = "none",
        lr_batch_size: PositiveInt = 256,
        batch_norm_parts: PositiveInt = 1,
    ) -> None:
        if isinstance(network, Detector):
            raise ValueError(
                "a recipe for classification needs a classifier as its backbone, and this one is a detector"
            )
        if getattr(data, "task", "classification") != "classification":
            raise ValueError("a recipe for classification needs data with labels, and this one has boxes for detection")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0")
        if lr_scaling == "none" and lr_batch_size != 256:
            raise ValueError(f"lr_batch_size={lr_batch_size} needs lr_scaling=linear")
        if lr_scaling == "linear":
            lr *= batch_size / lr_batch_size
        if data.train_size % batch_size == 1:
            raise ValueError(
                f"batch_size={batch_size}: the last batch of {data.train_size} images would have one, which batch "
                f"normalisation cannot train on; {batch_size + 1} or {batch_size - 1} would do"
            )
        self.network = network
        self.data = data
        self.seed = seed
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.sgd = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self.schedule = schedule
        self.milestones = [math.ceil(fraction * epochs - 0.1) for fraction in milestones]
        self.gamma = gamma
        self.batch_norm_parts = batch_norm_parts

    def rate(self, step: int) -> float:
        """Factor on the learning rate after so many steps, with the schedule `one_cycle`."""
        return one_cycle(step / (self.epochs * math.ceil(self.data.train_size / self.batch_size)))

    def learner(self) -> "Classifier":
        """The Lightning module that trains and tests a classifier."""
        from bam_exp.tasks.classifier import Classifier

        return Classifier(self)
