"""`bam-train` (also `python -m bam_exp`): one run, or a sweep of them."""

import os
import sys

# Before torch is imported: OpenMP threads that wait should soon sleep. Where another process wants one of the cores, threads
# that spin for long made a step up to 16 times slower (2 threads on 2 cores); never spinning costs a sixth of a step.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Asking whether there is a GPU must not initialise CUDA, which then no longer hears which one a run has leased.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import hydra
from omegaconf import OmegaConf

from bam_exp.commands import tables
from bam_exp.config import choices as config
from bam_exp.sweeps.sweep import refuse, start


def main() -> None:
    """Run the Hydra application; what was typed wrong ends in one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, instead of being printed over many lines
    OmegaConf.register_new_resolver("choices", lambda group: ", ".join(config.choices(group)), replace=True)
    OmegaConf.register_new_resolver("experiments", lambda: ", ".join(tables.trained()), replace=True)
    try:
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        config.check_overrides(words)
        tables.register(words)
        hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="config")(start)()
    except Exception as error:
        refuse(error)


if __name__ == "__main__":
    main()
