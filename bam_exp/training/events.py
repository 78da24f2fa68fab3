"""Writing a file of TensorBoard's events.

TensorBoard's own writer has a thread: a full disk shows as the traceback of that thread and, at some later call, as an error
that does not name the file; or not at all, if the call before was the last.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any, cast

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from bam_exp.errors import WriteError
from bam_exp.files import reason_of


class EventWriter(SummaryWriter):
    """PyTorch's SummaryWriter whose events are in the file when a call returns."""

    file_writer: Any
    all_writers: Any

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _EventFile(Path(self.log_dir))
            self.all_writers = {self.log_dir: self.file_writer}
        return cast(FileWriter, self.file_writer)


class _EventFile(FileWriter):
    """One event file in a folder, under the name that TensorBoard expects.

    Every method raises WriteError, naming the file, if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.event_writer = self
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.0"
        self.path = folder / name
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        self.add_event(Event(file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    def add_event(self, event: Event, step: int | None = None, walltime: float | None = None) -> None:
        """Write an event."""
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        try:
            RecordWriter(self._file).write(event.SerializeToString())
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Do nothing: every event is in the file already."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(f"{self.path}: cannot be written ({reason_of(error)})")
