"""Training and testing a detector: its own losses, mean average precision, SGD with a schedule by steps."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, distributed, nn

from bam_exp.data.boxes import to_photo
from bam_exp.data.target import Target
from bam_exp.machine import ranks
from bam_exp.tasks.average_precision import Found, average_precision
from bam_exp.tasks.gallery import Shown, gallery
from bam_exp.tasks.learner import Learner

if TYPE_CHECKING:
    from bam_exp.tasks.detection import Detection

Batch = tuple[Tensor, list[Target]]


class DetectionLearner(Learner):
    """The training and testing of a detector.

    For each epoch it records the mean loss of its steps and, where the epoch was tested, the mean average precision (%) on
    the test set.
    """

    task: "Detection"
    train_sums: Tensor

    def __init__(self, task: "Detection") -> None:
        super().__init__(task)
        # Sums over the epoch so far, in double precision: loss, steps. They are in the state dict, so that a run that
        # continues inside an epoch ends it with the same figures.
        self.register_buffer("train_sums", torch.zeros(2, dtype=torch.float64))
        if ranks.size() > 1:
            # Its gradient is the weight of this rank's share of a batch, so that the exchange of gradients, which takes the
            # mean over the ranks, brings every rank the weight of the whole batch without a collective of its own.
            self.batch_weight = nn.Parameter(torch.zeros(()))
        self._rows: list[Tensor] = []
        self._tested: list[int] = []
        self._shown: list[Shown] = []
        self._figures: dict[str, float] = {}

    def train(self, mode: bool = True) -> Self:
        """Change between training and evaluation; frozen normalisations stay in evaluation, whoever calls this."""
        super().train(mode)
        for name in self.task.frozen_norms:
            self.network.get_submodule(name).eval()
        return self

    def configure_optimizers(self) -> Any:
        """SGD on the weights that are trained, its rate a function of the step."""
        weights = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(weights, **self.task.sgd)
        rate = self.task.rate
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step))  # noqa: PLW0108 (the checkpoint would hold a bound method's attributes)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The loss of one batch; with several ranks the loss of this rank's share, times its weight."""
        images, targets = batch
        self.seed_step()
        terms, weight = self.task.detector.losses(self.network(images), images, targets)
        loss = torch.stack(list(terms.values())).sum()
        if ranks.size() == 1:
            self._count(loss)
            return loss
        self._share = (loss * weight).detach()
        return loss * weight + self.batch_weight * weight

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient. Lightning's own form refuses a fused optimizer under autocast.

        Its reason is the scaling of gradients in float16, which bfloat16 does without.
        """
        if gradient_clip_val is not None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """With several ranks, divide gradients and loss by the weight of the whole batch, which is now known."""
        if ranks.size() == 1:
            return
        assert self.batch_weight.grad is not None
        mean = self.batch_weight.grad.clamp(min=1 / ranks.size())
        self.batch_weight.grad = None
        gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        torch._foreach_div_([gradient for gradient in gradients if gradient is not None], mean)
        self._share /= mean
        self._count(self._share)

    def _count(self, loss: Tensor) -> None:
        """Add the loss of a step to the sums of the epoch; with several ranks, what this rank has of it."""
        with torch.no_grad():
            self.train_sums[0].add_(loss / ranks.size())
            self.train_sums[1].add_(1 / ranks.size())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """As in every task; the loss is the one that the weight of the whole batch gives."""
        super().on_train_batch_end(outputs if ranks.size() == 1 else {"loss": self._share}, batch, batch_idx)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """The detections in one batch of the test set, in pixels of their photos."""
        images, targets = batch
        found = self.task.detector.detections(self.network(images), images, targets)
        for image, target, one in zip(images, targets, found, strict=True):
            self._tested.append(target.number)
            photo = self.truth.sizes[target.number].tolist()
            boxes = to_photo(one["boxes"].double(), target.size, photo)
            index = torch.full_like(boxes[:, :1], target.number)
            row = [index, boxes, one["scores"].double()[:, None], one["labels"].double()[:, None]]
            self._rows.append(torch.cat(row, dim=1).cpu())
            if ranks.rank() == 0 and len(self._shown) < 4:
                self._shown.append(Shown(image.cpu(), target, {key: value.cpu() for key, value in one.items()}))

    def on_train_start(self) -> None:
        """Sums in a checkpoint are totals over all ranks: rank 0 resumes from them, the others from zero."""
        if ranks.rank():
            self.train_sums.zero_()

    def on_train_epoch_start(self) -> None:
        """Reset the sums of training. Lightning does not call this when a run continues inside an epoch."""
        self.train_sums.zero_()

    def on_validation_epoch_start(self) -> None:
        """Forget the detections of the last evaluation."""
        self._rows, self._tested, self._shown = [], [], []
        self.truth = self.task.data.annotations("test")
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Gather the detections of all ranks, judge them, and draw the first of them."""
        own = (torch.cat(self._rows), self._tested)
        parts = [own]
        if ranks.size() > 1:
            parts = [own] * ranks.size()
            distributed.all_gather_object(parts, own)
        figures: dict[str, float] = {}
        if ranks.rank() == 0:
            tested = sorted(index for _, indices in parts for index in indices)
            rows = torch.cat([rows for rows, _ in parts]).numpy()
            # In the order of the images, as one process finds them: equal scores are then ranked alike.
            found = Found.of(rows[np.argsort(rows[:, 0], kind="stable")])
            figures = average_precision(
                self.truth, found, tested, protocol=self.task.data.protocol, num_classes=self.task.data.num_classes
            )
            figures["images"] = len(tested)
            self.picture = gallery(self._shown, self.task.data)
        self._figures = ranks.broadcast(figures)
        self._rows, self._tested, self._shown = [], [], []

    def train_figures(self) -> dict[str, float]:
        """The mean loss of the steps of the epoch."""
        loss, steps = ranks.all_reduce_sum(self.train_sums).tolist()
        if ranks.rank():
            self.train_sums.zero_()
        return {"train/loss": loss / steps}

    def test_figures(self) -> dict[str, float]:
        """Mean average precision and number of images of the last evaluation; empty if none since the last epoch."""
        return dict(self._figures)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history.

        Raises:
            Diverged: if the training loss is not finite.
        """
        super().on_train_epoch_end()
        self._figures = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums over all ranks and the picture, and what every task saves."""
        if ranks.size() > 1:
            checkpoint["state_dict"]["train_sums"] = ranks.all_reduce_sum(self.train_sums.clone())
            del checkpoint["state_dict"]["batch_weight"]  # a run may go on with another number of processes
        checkpoint["picture"] = (
            None if self.picture is None else torch.frombuffer(bytearray(self.picture), dtype=torch.uint8)
        )
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the picture, and what every task restores."""
        if ranks.size() > 1:
            checkpoint["state_dict"]["batch_weight"] = self.batch_weight.detach()
        picture = checkpoint["picture"]
        self.picture = None if picture is None else picture.numpy().tobytes()
        super().on_load_checkpoint(checkpoint)

    def metrics(self) -> dict[str, float | int]:
        """The test figures of the last epoch, and of the best tested one, which is chosen on the test set."""
        headline, last = self.task.headline, self.history[-1]
        best = self.best_epoch()
        names = ("map", "map50", "map75")
        return {
            **{name: last[f"test/{name}"] for name in names if f"test/{name}" in last},
            "train_loss": last["train/loss"],
            f"best_{headline}": self.history[best - 1][self.headline],
            "best_epoch": best,
            "test_images": int(last["test/images"]),
        }
