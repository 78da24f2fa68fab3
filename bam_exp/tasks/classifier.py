"""Training and testing a classifier: cross-entropy, top-1 and top-5 error, SGD with a stepwise learning rate."""

import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bam_exp.data.batches import Batches
from bam_exp.machine import ranks
from bam_exp.tasks.learner import Learner

if TYPE_CHECKING:
    from bam_exp.tasks.classification import Classification


class Classifier(Learner):
    """The training and testing of a classifier.

    For each epoch it records mean loss and top-1 error of training, the number of images that had to be skipped, if any, and
    loss, top-1 and top-5 error (%) of the test set.
    """

    task: "Classification"
    train_sums: Tensor
    test_sums: Tensor
    bounds: Tensor

    def __init__(self, task: "Classification") -> None:
        super().__init__(task)
        # Sums over the epoch so far, in double precision: loss, wrong at top 1, wrong at top 5, images. They are in the state
        # dict, so that a run that continues inside an epoch ends it with the same figures.
        self.register_buffer("train_sums", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("test_sums", torch.zeros(4, dtype=torch.float64), persistent=False)
        # The ranks from which a label is wrong at top 1, is wrong at top 5 and counts as an image, which each one does.
        self.register_buffer("bounds", torch.tensor([1, 5, 0]), persistent=False)
        self.test_hits: list[Tensor] = []
        """For each batch of the evaluation, whether each image's label is ranked first: bool, of this rank's share."""
        self.correct = np.zeros(0, dtype=bool)
        """The same for every image of the test set, in order, after an evaluation."""

    def configure_optimizers(self) -> Any:
        """SGD, whose learning rate changes at the epochs of `milestones` or, in one cycle, after every step."""
        optimizer = torch.optim.SGD(self.network.parameters(), **self.task.sgd)
        if self.task.schedule == "one_cycle":
            rate = self.task.rate
            cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step))  # noqa: PLW0108 (the checkpoint would hold a bound method's attributes)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.task.milestones, self.task.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch. With several ranks each has a share, weighted so that the mean gradient is the batch's.

        The size of the batch is known to every rank without asking the others, unless photos are left out of it.
        """
        images, labels = batch
        self.seed_step()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self._accumulate(self.train_sums, ranks_of_labels(logits, labels), loss)
        if ranks.size() == 1:
            return loss
        batches: Batches = self.trainer.train_dataloader  # type: ignore[assignment]  # see `train_dataloader`
        if batches.complete:
            return loss * (ranks.size() * labels.numel() / batches.samples_in(index))
        count = loss.new_full((), labels.numel(), dtype=torch.float32)
        return loss * (ranks.size() * count / ranks.all_reduce_sum(count.clone()))

    def sample_images(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The first 16 images of a batch as they were before normalisation."""
        images = batch[0][:16].float().cpu()
        data: Any = self.task.data
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        return (images * std + mean).clamp(0, 1)

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """The errors of one batch of the test set."""
        images, labels = batch
        logits = self.network(images)
        rank = ranks_of_labels(logits, labels)
        self._accumulate(self.test_sums, rank, F.cross_entropy(logits, labels))
        self.test_hits.append(rank < 1)

    @torch.no_grad()
    def _accumulate(self, sums: Tensor, rank: Tensor, loss: Tensor) -> None:
        """Add a batch to the sums: its mean loss and the rank of each image's label."""
        sums[0].add_(loss, alpha=rank.numel())
        sums[1:].add_((rank[:, None] >= self.bounds).sum(0))  # wrong at top 1, wrong at top 5, images

    def on_train_start(self) -> None:
        """Sums in a checkpoint are totals over all ranks: rank 0 resumes from them, the others from zero."""
        if ranks.rank():
            self.train_sums.zero_()

    def on_train_epoch_start(self) -> None:
        """Reset the sums of training. Lightning does not call this when a run continues inside an epoch."""
        self.train_sums.zero_()

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of evaluation."""
        self.test_sums.zero_()
        self.test_hits.clear()
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Add up the sums of all ranks, and collect which images were right."""
        ranks.all_reduce_sum(self.test_sums)
        shares = ranks.all_gather([hits.tolist() for hits in self.test_hits])
        self.correct = np.array(
            [hit for batch in zip(*shares, strict=True) for hits in batch for hit in hits], dtype=bool
        )

    def train_figures(self) -> dict[str, float]:
        """Mean loss and top-1 error of the epoch, and the number of skipped images, if any."""
        train = _means(ranks.all_reduce_sum(self.train_sums))
        if ranks.rank():
            self.train_sums.zero_()
        figures = {"train/loss": train["loss"], "train/top1_error": train["top1_error"]}
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if skipped := min(batches * self.task.batch_size, self.task.data.train_size) - train["images"]:
            figures["train/skipped_images"] = skipped  # they could not be decoded
        return figures

    def test_figures(self) -> dict[str, float]:
        """Loss, errors and number of images of the last evaluation; empty if there has been none since the last epoch."""
        return _means(self.test_sums) if self.test_sums[3] > 0 else {}

    def details(self) -> dict[str, Any]:
        """Which test images were right at top 1, so that a report can compare two networks image by image.

        `correct` is the base64 text of numpy.packbits of one bit for each image, in the order of the test set. It is left out if
        an image could not be decoded, because the bits would then not tell which.
        """
        tested = min(self.task.data.test_size, (self.task.max_steps or math.inf) * self.task.batch_size)
        if len(self.correct) != tested:
            return {}
        return {"correct": base64.b64encode(np.packbits(self.correct).tobytes()).decode()}

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history.

        Raises:
            Diverged: if the training loss is not finite.
        """
        super().on_train_epoch_end()
        self.test_sums.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums over all ranks, and what every task saves."""
        if ranks.size() > 1:
            checkpoint["state_dict"]["train_sums"] = ranks.all_reduce_sum(self.train_sums.clone())
        super().on_save_checkpoint(checkpoint)

    def metrics(self) -> dict[str, float | int]:
        """The test figures of the last epoch, and of the best one, which is chosen on the test set."""
        best, last = self.best_epoch(), self.history[-1]
        return {
            "top1_error": last["test/top1_error"],
            "top5_error": last["test/top5_error"],
            "test_loss": last["test/loss"],
            "train_loss": last["train/loss"],
            "best_top1_error": self.history[best - 1]["test/top1_error"],
            "best_epoch": best,
            "test_images": int(last["test/images"]),
        }


def ranks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of classes that are ranked before the label of each image, as int64 N.

    Equal logits are ranked by the index of the class, as argmax does; NaN is ranked first, and a label with NaN last. A network
    whose output is the same for all images is therefore at chance level, and one whose output is NaN is always wrong.

    Args:
        logits: N x classes.
        labels: int64 N.
    """
    logit, label = logits.gather(1, labels[:, None]), labels[:, None]
    earlier = torch.arange(logits.shape[1], device=logits.device) < label
    behind = torch.where(earlier, logits < logit, logits <= logit)
    return (~behind).sum(1)


def _means(sums: Tensor) -> dict[str, float]:
    loss, wrong1, wrong5, count = sums.tolist()
    return {
        "loss": loss / count,
        "top1_error": 100 * wrong1 / count,
        "top5_error": 100 * wrong5 / count,
        "images": count,
    }
