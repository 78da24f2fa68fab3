"""The weights that a run leaves in its folder."""

from collections.abc import Mapping

from torch import nn

from bam_exp.build import describe
from bam_exp.data.dataset import DataSet
from bam_exp.files import WEIGHTS
from bam_exp.runs.run import SCHEMA, Run
from bam_exp.weights import save_weights

BEST_WEIGHTS = "weights-best.safetensors"


def write_weights(
    run: Run,
    network: nn.Module,
    data: DataSet,
    *,
    epoch: int,
    figures: Mapping[str, float],
    precision: str,
    best: bool = False,
) -> None:
    """Write the weights of a run's network into its folder, with everything that is needed to use them.

    Args:
        epoch: the epoch after which they are written, counted from 1.
        figures: what was measured then.
        best: whether these are the weights of the best epoch so far, which have a file of their own.

    Raises:
        DataError: if the file cannot be written.
    """
    metadata = describe(
        run.chosen,
        data,
        source=run.name,
        overrides=run.overrides,
        fingerprint=run.fingerprint,
        schema_version=SCHEMA,
        precision=precision,
        epoch=epoch,
        figures=figures,
    )
    save_weights(network.state_dict(), run.folder / (BEST_WEIGHTS if best else WEIGHTS), header=metadata.to_header())
