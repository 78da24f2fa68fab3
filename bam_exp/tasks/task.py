"""The contract of a task: what a network is trained for, and what is measured."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from bam_exp.data.dataset import DataSet

if TYPE_CHECKING:
    from bam_exp.tasks.learner import Learner


def one_cycle(done: float) -> float:
    """Factor on the learning rate when this part of the training, 0 ... 1, is done (Smith & Topin 2018).

    It rises from 0.04 to 1 in the first 30 % and falls to 0.0001 in the rest, each along half a cosine.
    """
    begin, end, part = (0.04, 1.0, done / 0.3) if done < 0.3 else (1.0, 1e-4, (done - 0.3) / 0.7)
    return end + (begin - end) * (1 + math.cos(math.pi * min(1.0, part))) / 2


class Task(ABC):
    """A network that learns a data set by a recipe; the keyword arguments of a task are the recipe."""

    headline: str
    """The figure (see `figures`) by which runs are judged."""
    metrics: ClassVar[tuple[str, ...]]
    """The figures that a result has, in the order of the columns of `runs.csv`."""

    network: nn.Module
    data: DataSet
    seed: int
    epochs: int
    max_steps: int | None
    batch_size: int
    """Images in a step, of all processes together."""
    batch_norm_parts: int = 1
    """Batch normalisation takes its statistics over each of so many equal parts of a batch."""
    sgd: dict[str, Any]
    """Keyword arguments of torch.optim.SGD."""

    @property
    def last_step(self) -> int | None:
        """The optimizer step after which training stops, or None if it stops after the last epoch."""
        return self.max_steps

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that Lightning's trainer is given.

        `last_step` is not among them: a run that resumes with Lightning's max_steps at the end of an epoch repeats the epoch's
        end without training. The learner stops there instead.
        """
        return {"max_epochs": self.epochs, "limit_val_batches": self.max_steps or 1.0}

    def advice(self, *, pretrained: bool) -> str | None:
        """A sentence for the user before training, if the run is likely to fail; `pretrained` if it starts from weights."""
        return None

    @abstractmethod
    def learner(self) -> "Learner":
        """The Lightning module that trains and tests. Importing Lightning takes seconds, so this imports it late."""
