"""Checkpoints that survive a kill, a full disk and a flipped bit: written to a part, synced, renamed, with their digest."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from bam_exp.errors import CheckpointError
from bam_exp.files import sync_folder

_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{16})\.pt")
_PART = ".checkpoint.part"
_OWNER = "bam_exp_fingerprint"
"""The key of a checkpoint that holds the fingerprint of its run."""
GENERATIONS = 2
_DIGITS = 16


class Checkpoints(CheckpointIO):
    """The checkpoints of one run in its folder: `checkpoint-<step>-<digest>.pt`, the newest two.

    The digest (the first 16 hex digits of the file's SHA-256) is part of the name, so that file and digest appear in one
    atomic rename. A kill at any moment leaves the previous generations and at most one `.part`, which the next save replaces.
    A checkpoint contains the fingerprint of its run, which includes the schema of results: it fits no other run.
    """

    def __init__(self, folder: Path, fingerprint: str | None = None) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a generation; `path` is ignored, because the name is made from the step and the content.

        Raises:
            CheckpointError: if the disk is full or the folder read-only; the earlier generations stay.
        """
        part = self.folder / _PART
        try:
            with part.open("wb") as file:
                hashed = _Hashed(file)
                owned = checkpoint if self.fingerprint is None else {**checkpoint, _OWNER: self.fingerprint}
                torch.save(owned, cast(IO[bytes], hashed))
                file.flush()
                os.fsync(file.fileno())
            name = f"checkpoint-{checkpoint['global_step']:08d}-{hashed.digest()}.pt"
            part.replace(self.folder / name)
            sync_folder(self.folder)
            # The file just written counts as the newest, whatever the numbers of steps in the names of the others say.
            others = [old for old in self._generations() if old.name != name]
            for old in others[GENERATIONS - 1 :]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.folder}: cannot write a checkpoint ({_reason(error, self.folder)}); the earlier ones are untouched"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of one generation, on the CPU unless told otherwise; only tensors and plain values are admitted.

        Raises:
            CheckpointError: if the file is damaged or belongs to another run.
        """
        path = Path(path)
        match = _NAME.fullmatch(path.name)
        if match is None or _digest(path) != match.group(2):
            raise CheckpointError(f"{path}: damaged (its content does not have the digest in its name)")
        content: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        if not self._belongs(content.pop(_OWNER, None)):
            raise CheckpointError(f"{path}: belongs to another run")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one generation."""
        Path(path).unlink(missing_ok=True)

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """The newest generation that is whole and belongs to this run.

        Every other one is reported by a line and renamed to `<name>.unusable`, so that it does not count as a generation.
        """
        usable, unusable = None, []
        for path in self._generations():
            if (reason := self._fault(path)) is None:
                usable = path
                break
            unusable.append(f"{path.name} {reason}")
            path.replace(path.with_name(f"{path.name}.unusable"))
        for index, line in enumerate(unusable, start=1):
            rest = f"continuing from {usable.name}" if usable else "no other is left, so the run starts anew"
            say(line + (f"; {rest}" if index == len(unusable) else ""))
        return usable

    def _fault(self, path: Path) -> str | None:
        """The reason why a checkpoint cannot be used, or None."""
        try:
            match = _NAME.fullmatch(path.name)
            if match is None or _digest(path) != match.group(2):
                return "is damaged"
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch.load raises whatever its parser happens to meet
            return f"cannot be read ({' '.join(str(error).split())[:80]})"
        return None if self._belongs(content.get(_OWNER)) else "belongs to another run"

    def _belongs(self, fingerprint: object) -> bool:
        """Return whether a checkpoint with this fingerprint is of this run; version 0.1.0 stored none."""
        return fingerprint is None or self.fingerprint is None or fingerprint == self.fingerprint

    def keep_only_newest(self) -> None:
        """Delete all but the newest generation, once a run is done."""
        for old in self._generations()[1:]:
            old.unlink(missing_ok=True)

    def _generations(self) -> list[Path]:
        """The generations, the highest step first; of equal steps, the one that was written last."""
        paths = [path for path in self.folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (path.name[:19], path.stat().st_mtime_ns), reverse=True)


def _reason(error: BaseException, folder: Path) -> str:
    cause: BaseException | None = error
    while cause is not None:  # torch.save reports a failed write as a RuntimeError about positions in its archive
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return "no space left on device" if shutil.disk_usage(folder).free < 2**24 else " ".join(str(error).split())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


class _Hashed:
    """A file for torch.save, which writes it from beginning to end, that computes the digest of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._sha256.hexdigest()[:_DIGITS]
