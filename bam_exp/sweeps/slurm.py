"""What a sweep by SLURM needs besides submitit: a machine that has SLURM, and lost jobs that count as failed runs."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from hydra.core.utils import JobReturn, JobStatus

from bam_exp.errors import ConfigError
from bam_exp.runs.folder import is_done, record_failure
from bam_exp.runs.run import Run


def check_launcher(launcher: str) -> None:
    """Refuse a sweep by SLURM on a machine without it.

    Raises:
        ConfigError: if there is no srun.
    """
    if launcher == "submitit_slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm: this machine has no srun; a login node of a SLURM cluster has it"
        )


def lost_jobs_recorded(runs: Sequence[Run]) -> AbstractContextManager[Any]:
    """Context manager in which a job that SLURM has lost is recorded as a failed run; submitit would raise and end the sweep.

    Neither submitit nor Hydra's launcher has a hook for this, so submitit's `Job.results` is replaced. The launcher asks for
    the results in the order of its jobs, which is that of `runs`.
    """
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    wait_for: Any = Job.results
    run_of_job: dict[str, Run] = {}
    remaining = iter(runs)

    def results(job: Any) -> list[JobReturn]:
        if job.job_id not in run_of_job:
            run_of_job[job.job_id] = next(remaining)
        run = run_of_job[job.job_id]
        try:
            returned: list[JobReturn] = wait_for(job)
        except UncompletedJobError as error:
            reason = str(error).partition("\n")[0] if job.state == "COMPLETED" else f"job lost (state {job.state})"
            print(f"{run.name}: {reason}; its log is {job.paths.stderr}", file=sys.stderr, flush=True)
            if not is_done(run):
                record_failure(run, reason)
            return [JobReturn(status=JobStatus.COMPLETED)]
        return returned

    return mock.patch.object(Job, "results", results)
