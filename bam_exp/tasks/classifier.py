"""What Lightning trains and tests: cross-entropy, top-1 and top-5 error, SGD with a stepwise learning rate."""

import hashlib
import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from bam_exp.data import Batches
from bam_exp.errors import Diverged
from bam_exp.machine import ranks
from bam_exp.tasks.classification import Classification


class Learner(pl.LightningModule):
    """The training and testing of one task.

    Per epoch it keeps mean training loss and error, the images that had to be skipped, if any, and loss, top-1 and top-5
    error (%) of the test set, in `history` and in TensorBoard. A step neither logs nor waits for the device: sums stay there
    until the epoch ends.
    """

    train_sums: Tensor
    test_sums: Tensor

    def __init__(self, task: Classification) -> None:
        super().__init__()
        self.task = task
        self.network = task.network
        self.history: list[dict[str, float]] = []
        # Sums over the epoch so far, in double precision: loss, wrong at top 1, wrong at top 5, images. In the state dict,
        # so that a run continued inside an epoch closes it with the same figures.
        self.register_buffer("train_sums", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("test_sums", torch.zeros(4, dtype=torch.float64), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes which hook is running forty times a step, and nn.Module.__setattr__ looks through parameters,
        # buffers and modules each time: a sixth of a step's host time.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def train_dataloader(self) -> Batches:
        """The training set, shuffled and augmented."""
        return self._loader("train")

    def val_dataloader(self) -> Batches:
        """The test set, as it is."""
        return self._loader("test")

    def _loader(self, split: Literal["train", "test"]) -> Batches:
        made: Batches = self.task.data.loader(
            split,
            batch_size=self.task.batch_size,
            seed=self.task.seed,
            device=self.trainer.strategy.root_device,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return made

    def configure_optimizers(self) -> Any:
        """SGD, its learning rate changed at the epochs of `milestones`."""
        optimizer = torch.optim.SGD(self.network.parameters(), **self.task.sgd)  # type: ignore[arg-type]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.task.milestones, self.task.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Loss of one batch; of several processes each has its share of it, weighted so that the mean gradient is the batch's."""
        images, labels = batch
        if ranks.rank():  # where rank 0 draws as a single process does, each of the others draws numbers of its own
            digest = hashlib.sha256(
                f"seed {self.task.seed}, step {self.global_step}, rank {ranks.rank()}".encode()
            ).digest()
            torch.manual_seed(int.from_bytes(digest[:4], "big"))
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        _add(self.train_sums, logits, labels, loss)
        if ranks.size() == 1:
            return loss
        count = torch.tensor(float(labels.numel()), device=loss.device)
        return loss * (ranks.size() * count / ranks.sum_over(count.clone()))

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Errors of one batch of the test set."""
        images, labels = batch
        logits = self.network(images)
        _add(self.test_sums, logits, labels, F.cross_entropy(logits, labels))

    def on_train_start(self) -> None:
        """What a checkpoint has of the sums is of all processes: the first goes on with it."""
        if ranks.rank():
            self.train_sums.zero_()

    def on_train_epoch_start(self) -> None:
        """Open the sums of an epoch (not called when a run continues inside one)."""
        self.train_sums.zero_()

    def on_validation_epoch_start(self) -> None:
        """Open the sums of an evaluation, of the first process's network where each has its own batch norm."""
        self.test_sums.zero_()
        if ranks.size() > 1 and self.task.batch_norm_parts > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, 0)

    def on_validation_epoch_end(self) -> None:
        """Close the sums of an evaluation."""
        ranks.sum_over(self.test_sums)

    def on_train_epoch_end(self) -> None:
        """Close the epoch: figures to the history and to TensorBoard.

        Raises:
            Diverged: if the training loss is not finite.
        """
        train = _means(ranks.sum_over(self.train_sums))
        if ranks.rank():
            self.train_sums.zero_()
        if not math.isfinite(train["loss"]):
            raise Diverged(f"the training loss is {train['loss']} in epoch {self.current_epoch + 1}")
        figures = {f"train/{name}": value for name, value in train.items() if name in ("loss", "top1_error")}
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if skipped := min(batches * self.task.batch_size, self.task.data.train_size) - train["images"]:
            figures["train/skipped_images"] = skipped  # they could not be decoded
        if self.test_sums[3] > 0:  # an epoch cut short by max_steps has had no evaluation yet: see `evaluate_last`
            figures |= {f"test/{name}": value for name, value in self.test_figures().items()}
        self._close(figures)
        self.test_sums.zero_()

    def evaluate_last(self) -> None:
        """Evaluate after the last step, where Lightning stopped inside an epoch and so did not."""
        if self.history and "test/top1_error" not in self.history[-1]:
            figures = self.history.pop()
            self.trainer.validate(self, verbose=False)
            self._close(figures | {f"test/{name}": value for name, value in self.test_figures().items()})

    def _close(self, figures: dict[str, float]) -> None:
        self.history.append(figures)
        if "test/top1_error" in figures:
            self.replay(len(self.history) - 1)

    def replay(self, first: int = 0) -> None:
        """Write the curves from this epoch on to TensorBoard."""
        for epoch, figures in enumerate(self.history[first:], start=first + 1):
            if self.logger is not None and "test/top1_error" in figures:
                curves = {name: value for name, value in figures.items() if name != "test/images"}
                self.logger.log_metrics(curves, step=epoch)

    def test_figures(self) -> dict[str, float]:
        """Loss, errors and images of the last evaluation."""
        return _means(self.test_sums)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curves, and the random numbers of whatever draws any (dropout)."""
        if ranks.size() > 1:
            checkpoint["state_dict"]["train_sums"] = ranks.sum_over(self.train_sums.clone())
        checkpoint["history"] = self.history
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available() and self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curves and the random numbers up again."""
        self.history = list(checkpoint["history"])
        torch.set_rng_state(checkpoint["rng"])
        if "cuda_rng" in checkpoint and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])

    def metrics(self) -> dict[str, float | int]:
        """What the run measured: the test figures of the last epoch, and of the best one (chosen on the test set)."""
        errors = [figures["test/top1_error"] for figures in self.history]
        best = min(range(len(errors)), key=errors.__getitem__)
        last = self.history[-1]
        return {
            "top1_error": last["test/top1_error"],
            "top5_error": last["test/top5_error"],
            "test_loss": last["test/loss"],
            "train_loss": last["train/loss"],
            "best_top1_error": errors[best],
            "best_epoch": best + 1,
            "test_images": int(last["test/images"]),
        }


def _add(sums: Tensor, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
    with torch.no_grad():
        # A logit equal to the label's counts against it, and so does NaN: a network that says the same for all is wrong.
        below = (logits < logits.gather(1, labels[:, None])).sum(1)
        classes, count = logits.shape[1], labels.numel()
        sums[0].add_(loss, alpha=count)
        sums[1].add_((below < classes - 1).sum())
        sums[2].add_((below < classes - 5).sum())
        sums[3].add_(count)


def _means(sums: Tensor) -> dict[str, float]:
    loss, wrong1, wrong5, count = sums.tolist()
    return {
        "loss": loss / count,
        "top1_error": 100 * wrong1 / count,
        "top5_error": 100 * wrong5 / count,
        "images": count,
    }
