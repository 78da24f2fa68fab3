"""Writing the weights of a run: at its end and, if `trainer.best_weights` is set, after its best epoch."""

from collections.abc import Mapping

from bam_exp.data.dataset import DataSet
from bam_exp.machine import Machine
from bam_exp.runs.run import Run
from bam_exp.runs.weights import write_weights
from bam_exp.tasks.learner import Learner


class WeightsWriter:
    """Writes the weights of a run's network into the run's folder."""

    def __init__(self, run: Run, learner: Learner, data: DataSet, machine: Machine) -> None:
        self.run, self.learner, self.data, self.machine = run, learner, data, machine
        if machine.best_weights:
            learner.epoch_listeners.append(self.write_if_best)

    def write(self, *, best: bool = False) -> None:
        """Write the weights as they are, with the figures of the last epoch.

        Raises:
            DataError: if the file cannot be written.
        """
        figures = self.learner.history[-1].items()
        write_weights(
            self.run,
            self.learner.network,
            self.data,
            epoch=len(self.learner.history),
            figures={name.removeprefix("test/"): value for name, value in figures if name.startswith("test/")},
            precision=self.machine.precision_used,
            best=best,
        )

    def write_if_best(self, figures: Mapping[str, float]) -> None:
        """Write the weights of the best epoch, if that is the one that has ended with these figures."""
        if self.learner.headline in figures and self.learner.best_epoch() == len(self.learner.history):
            self.write(best=True)
