"""Image classification: what there is to learn, and by which recipe."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from bam_exp.schema import checked

if TYPE_CHECKING:
    from bam_exp.tasks.classifier import Learner

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Classification:
    """One network to learn one data set by one recipe; its keyword arguments are the recipe. `learner` makes what trains.

    Args:
        network: maps float images N x 3 x H x W to logits N x classes.
        data: the data set (see `bam_exp.data`).
        seed: with the epoch and the index, decides order and augmentation.
        epochs: passes over the training set.
        max_steps: stop after so many optimizer steps, and test on at most so many batches, for trying things out; None for
            no limit. `test_images` of the result says how many images the test error is of.
        batch_size: images a step, of all processes together; the last batch of an epoch is smaller, none is dropped.
        lr, momentum, nesterov, weight_decay: of SGD; the decay is on all parameters, as in the released script.
        milestones: fractions of the epochs after which the learning rate is multiplied by `gamma`: from the first epoch
            that begins then, to a tenth of an epoch.
        lr_scaling: "linear" multiplies `lr` by batch_size / lr_batch_size (Goyal et al. 2017, without their warm-up).
        batch_norm_parts: batch normalisation takes mean and variance over each of so many equal parts of a batch: 1, or as
            many as there are processes, each of which then takes them over its share.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        data: Any,
        seed: int,
        *,
        epochs: PositiveInt,
        max_steps: PositiveInt | None = None,
        batch_size: Annotated[int, Field(ge=2)] = 128,
        lr: PositiveFloat = 0.1,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        nesterov: bool = False,
        weight_decay: NonNegativeFloat = 5e-4,
        milestones: list[Fraction] = [0.5, 0.75],  # noqa: B006 (read only)
        gamma: Annotated[float, Field(gt=0, le=1)] = 0.1,
        lr_scaling: Literal["none", "linear"] = "none",
        lr_batch_size: PositiveInt = 256,
        batch_norm_parts: PositiveInt = 1,
    ) -> None:
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
        self.milestones = [math.ceil(fraction * epochs - 0.1) for fraction in milestones]
        self.gamma = gamma
        self.batch_norm_parts = batch_norm_parts

    @property
    def limits(self) -> dict[str, int | float]:
        """Where Lightning stops, and how much of the test set it takes."""
        return {
            "max_epochs": self.epochs,
            "max_steps": self.max_steps or -1,
            "limit_val_batches": self.max_steps or 1.0,
        }

    def learner(self) -> "Learner":
        """The Lightning module of this task."""
        from bam_exp.tasks.classifier import Learner  # four seconds, which whatever only checks a config does without

        return Learner(self)
