"""Checkpoints that survive a kill, a full disk and a flipped bit: written beside, synced, renamed, with their digest."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from bam_exp.errors import CheckpointError
from bam_exp.files import sync_folder

_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{16})\.pt")
_PART = ".checkpoint.part"
GENERATIONS = 2


class Checkpoints(CheckpointIO):
    """The checkpoints of one run in its folder: `checkpoint-<step>-<digest>.pt`, the newest two.

    The digest (the first 16 hex digits of the file's SHA-256) stands in the name, so that file and digest appear in one
    atomic rename. A kill at any moment leaves the previous generations and at most one `.part`, which the next save replaces.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a generation; `path` only says where, the name is made from the step and the content.

        Raises:
            CheckpointError: if the disk is full or the folder read-only; what was there before stays.
        """
        part = self.folder / _PART
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            name = f"checkpoint-{checkpoint['global_step']:08d}-{_digest(part)}.pt"
            part.replace(self.folder / name)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.folder}: cannot write a checkpoint ({_reason(error, self.folder)}); the earlier ones are untouched"
            ) from error
        for old in self._generations()[GENERATIONS:]:
            old.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of one generation, onto the CPU unless told otherwise; only tensors and plain values are admitted.

        Raises:
            CheckpointError: if the file is not the one that was written.
        """
        path = Path(path)
        found = _NAME.fullmatch(path.name)
        if found is None or _digest(path) != found.group(2):
            raise CheckpointError(f"{path}: damaged (its content does not have the digest in its name)")
        content: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one generation."""
        Path(path).unlink(missing_ok=True)

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """The newest generation whose digest holds; each damaged one is said in a line and passed over."""
        for path in self._generations():
            found = _NAME.fullmatch(path.name)
            if found and _digest(path) == found.group(2):
                return path
            say(f"{path.name} is damaged; continuing from the one before it")
        return None

    def keep_only_newest(self) -> None:
        """Delete all but the newest generation, once a run is done."""
        for old in self._generations()[1:]:
            old.unlink(missing_ok=True)

    def _generations(self) -> list[Path]:
        found = [path for path in self.folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (path.name[:19], path.stat().st_mtime_ns), reverse=True)


def _reason(error: OSError | RuntimeError, folder: Path) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # torch.save reports a disk that is full as a RuntimeError about positions in its archive.
    return "no space left on device" if shutil.disk_usage(folder).free < 2**24 else " ".join(str(error).split())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
