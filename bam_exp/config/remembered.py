"""What follows from the configs and the code alone, worked out once and kept in the user's cache folder.

The names, settings and counts of a table's rows take Hydra and PyTorch to work out, and seconds; read back they take
milliseconds. The folder of a value is named for a digest of everything that the value follows from, so a change of a config or of
the code makes a new folder, and nothing has to be kept current. A file that is damaged is worked out again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bam_exp.config.choices import config_dir, extra_folders, packages
from bam_exp.files import cache_file, write_cache

_FOLDER = "rows-"
_KEPT_DAYS = 30
_LIBRARIES = ("torch", "scipy", "matplotlib")
"""Libraries whose results are kept: a count by PyTorch, a statistic, a picture."""


def remembered(kind: str, key: object, make: Callable[[], Any]) -> Any:
    """The value of `make()`, which is plain JSON and a function of `key`, the configs and the code; from the cache if it has it.

    None, which stands for a value that cannot be kept, is not written.
    """
    digest = _digest(config_dir(), tuple(extra_folders()), packages())
    name = hashlib.sha256(json.dumps([kind, key], sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = None if digest is None else cache_file(f"{_FOLDER}{digest}/{kind}-{name}.json")
    if path is None:
        return make()
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        pass
    value = make()
    if value is not None:
        if not path.parent.is_dir():
            _delete_old(path.parent.parent)
        write_cache(path, lambda part: part.write_text(json.dumps(value), encoding="utf-8"))
    return value


def kept_file(name: str) -> Path | None:
    """The path of a file of the cache for values that follow from the code and from files that the caller compares."""
    return cache_file(f"{_FOLDER}{_digest(config_dir(), (), frozenset({'bam_exp'}))}/{name}")


@lru_cache(maxsize=8)
def _digest(conf: Path, extra: tuple[Path, ...], admitted: frozenset[str]) -> str | None:
    """A digest of the configs, the code of the admitted packages and the versions of the libraries that values depend on.

    None if values may depend on more: a user's config that interpolates anything, or a package that cannot be found.
    """
    digest = hashlib.sha256()
    for library in _LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"no {library}\n".encode())
    for folder in (conf, *extra):
        for name, content in _files(folder, "*.yaml"):
            if folder != conf and b"${" in content:
                return None
            _add(digest, f"{name}", content)
    for package in sorted(admitted):
        folders = _folders_of(package)
        if not folders:
            return None
        for folder in folders:
            for name, content in _files(folder, "*.py"):
                _add(digest, f"{package}/{name}", content)
    return digest.hexdigest()[:16]


def _add(digest: Any, name: str, content: bytes) -> None:
    digest.update(f"{name} {len(content)}\n".encode())
    digest.update(content)


def _files(folder: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob(pattern)):
        yield str(path.relative_to(folder)), path.read_bytes()


def _folders_of(package: str) -> list[Path]:
    """The folders of a package's code; none for what is no package."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []


def _delete_old(cache: Path) -> None:
    """Delete what was kept for configs and code of a month ago."""
    for folder in cache.glob(f"{_FOLDER}*"):
        try:
            if folder.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
