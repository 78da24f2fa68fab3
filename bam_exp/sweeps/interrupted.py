"""Interrupting a sweep: its runs save their checkpoints, and then a line says what is done and what is not."""

import os
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from bam_exp.console import say
from bam_exp.runs.folder import has_checkpoint, is_done
from bam_exp.runs.lock import running_elsewhere
from bam_exp.runs.run import Run

STOP_S = 60
"""Seconds for which an interrupted sweep waits for runs that are saving a checkpoint."""


@contextmanager
def runs_outlive_workers() -> Iterator[None]:
    """Context manager in which joblib kills its workers only, and not their runs, which then save their checkpoints and end.

    Joblib kills all workers with everything they have started after Ctrl-C, and also if one of them has been killed.
    """
    from joblib.externals.loky import process_executor

    def kill(worker: BaseProcess) -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    with mock.patch.object(process_executor, "kill_process_tree", kill):
        yield


def say_interrupted(runs: Sequence[Run], elsewhere: Collection[Path], command: str) -> None:
    """Say which runs are done, stopped and not begun, and how the sweep is continued.

    Args:
        elsewhere: folders of runs that other processes were training when the sweep began; they are not waited for.
    """
    _await_end([run for run in runs if run.folder not in elsewhere])
    done = sum(is_done(run) for run in runs)
    stopped = sum(not is_done(run) and has_checkpoint(run.folder) for run in runs)
    say(
        f"sweep interrupted: {done} of {len(runs)} runs done, {stopped} stopped with a checkpoint, "
        f"{len(runs) - done - stopped} not begun; continue with: {command}"
    )


def _await_end(runs: Sequence[Run]) -> None:
    """Wait until no run is trained any more: `STOP_S` seconds at most, and not after another Ctrl-C.

    The runs of joblib's workers notice within two seconds that these have gone, and then save their checkpoints.
    """
    end = time.monotonic() + STOP_S
    with suppress(KeyboardInterrupt):
        while any(map(running_elsewhere, runs)) and time.monotonic() < end:
            time.sleep(0.2)
