"""Writing checkpoints in a thread, while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from bam_exp.training.checkpoints import Checkpoints


class CheckpointWriter(Checkpoints):
    """Checkpoints of a run that a thread writes, from a copy of what they contain; one at a time.

    An error of the thread is raised by the next call of `check`, `finish` or `save_checkpoint`.
    """

    def __init__(self, folder: Path, fingerprint: str | None = None) -> None:
        super().__init__(folder, fingerprint)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Copy a checkpoint and let the thread write the copy, after the one that it may be writing.

        Raises:
            CheckpointError: if the one before could not be written.
        """
        self.finish()
        content = apply_to_collection(checkpoint, Tensor, _copy)
        copied = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # The copies are made between the kernels of two steps; the thread, and not this one, waits for them.
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._writing = self._thread.submit(self._write, content, path, copied)

    def _write(self, content: dict[str, Any], path: str | Path, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        super().save_checkpoint(content, path)

    @property
    def is_writing(self) -> bool:
        """Whether the thread is still writing."""
        return self._writing is not None and not self._writing.done()

    def check(self) -> None:
        """Raise the error of the last write, if it has ended with one.

        Raises:
            CheckpointError: as `Checkpoints.save_checkpoint` does.
        """
        if not self.is_writing:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            CheckpointError: as `Checkpoints.save_checkpoint` does.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """Wait for the thread, however training has ended. This raises nothing; `finish` does."""
        if self._writing is not None:
            wait([self._writing])


def _copy(tensor: Tensor) -> Tensor:
    """A copy in the memory of the host, with the same strides; that of a tensor on a GPU is complete when its stream is."""
    if not tensor.is_cuda:
        return tensor.detach().clone()
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor.detach(), non_blocking=True)
