"""The lines of finished runs, read from their folders once: a `result.json` that has not changed is not read again."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bam_exp.config import NAMED, kept_file
from bam_exp.files import write_cache
from bam_exp.runs.folder import ERROR, RESULT
from bam_exp.runs.line import COLUMNS, Line, line_of

Stamp = list[int]
"""Modification time in nanoseconds, size and inode of a file."""


class Finished:
    """The lines of the runs of an output folder, kept in the user's cache folder between commands."""

    def __init__(self, output_dir: Path) -> None:
        self.runs = output_dir / "runs"
        where = hashlib.sha256(str(self.runs.absolute()).encode()).hexdigest()[:16]
        self._path = kept_file(f"folders-{where}.json")
        self._kept = _read(self._path)
        self._changed = False

    def line(self, name: str) -> Line | None:
        """The line of the run of this name, or None if it has no result.

        Raises:
            ConfigError: if its result is damaged.
        """
        stamp = _stamp(f"{self.runs}/{name}/{RESULT}")
        if stamp is None:
            return None
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            line = line_of(self.runs / name)
            if line is None:
                return None
            kept = self._kept[name] = (stamp, list(line.values()))
            self._changed = True
        return dict(zip(COLUMNS, kept[1], strict=True))

    def names(self) -> list[str]:
        """The names of the runs that are finished or have failed; copies beside them, as `seed0.bak`, do not count."""
        names = [
            name
            for name in _folders(str(self.runs), len(NAMED) + 1)
            if name.rpartition("/seed")[2].isdecimal()
            and any(_stamp(f"{self.runs}/{name}/{file}") is not None for file in (RESULT, ERROR))
        ]
        return sorted(names, key=lambda name: name.split("/"))

    def save(self) -> None:
        """Write what was read, for the next command."""
        if self._changed and self._path is not None:
            text = json.dumps(self._kept, separators=(",", ":"))
            write_cache(self._path, lambda part: part.write_text(text, encoding="utf-8"))
            self._changed = False


def _read(path: Path | None) -> dict[str, tuple[Stamp, list[str]]]:
    """What was kept; nothing if it is damaged."""
    try:
        kept = json.loads(path.read_bytes()) if path is not None else {}
        whole = isinstance(kept, dict) and all(
            len(stamp) == 3 and len(cells) == len(COLUMNS) for stamp, cells in kept.values()
        )
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return kept if whole else {}


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of thousands of files takes longer than the question)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size, status.st_ino] if stat.S_ISREG(status.st_mode) else None


def _folders(folder: str, depth: int, inside: str = "") -> Iterator[str]:
    """The paths of the folders so many levels below, relative to `folder`."""
    try:
        with os.scandir(f"{folder}/{inside}") as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return
    for name in names:
        if depth == 1:
            yield inside + name
        else:
            yield from _folders(folder, depth - 1, f"{inside}{name}/")
