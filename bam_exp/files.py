"""Files that several processes read and write: a reader sees each as a whole or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bam_exp.errors import DataError, WriteError

WEIGHTS = "weights.safetensors"
"""Name of the file of weights in the folder of a run."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; survives a power cut.

    Raises:
        WriteError: naming the file and the reason; the old content stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({reason_of(error)})") from error


def write_output(path: Path, content: bytes) -> None:
    """Write a file whose name the user has typed, and its folder; it appears as a whole or not at all. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except WriteError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason_of(error)})") from error


def clear_parts(folder: Path) -> None:
    """Delete the parts of files that killed processes have left in a folder; the caller holds its lock."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Mapping[str, Any]:
    """The mapping in a file that another process may be writing or may never have written; else an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def cache_file(name: str) -> Path | None:
    """The path of a file in $XDG_CACHE_HOME/bam_exp (by default ~/.cache/bam_exp); None for a user without a home folder."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder, "bam_exp", name)
    try:
        return Path.home() / ".cache" / "bam_exp" / name
    except RuntimeError:
        return None


def write_cache(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that saves time later, as a whole or not at all; a folder that cannot be written is no error."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()


def reason_of(error: OSError) -> str:
    """The reason of an OSError, as `No space left on device`."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__
