"""Downloading the files of a data set, and their digests."""

import errno
import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bam_exp.errors import DataError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors of reading and writing that come from the disk and not from the network."""


def md5_of(path: Path) -> str:
    """Return the hexadecimal md5 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@contextmanager
def only_process(lock: Path, task: str) -> Iterator[None]:
    """Hold a file lock; wait, and say so on stderr, while another process holds it. Raises OSError."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that has begun {task}", file=sys.stderr, flush=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def fetch(url: str, path: Path, *, md5: str, size: int | None = None) -> None:
    """Download `url` to `path`, unless the file is there with the right digest, and show the progress on stderr.

    Only https is accepted, also in redirects. The bytes go to `path`.part, which a later call continues where the server
    supports ranges, and which becomes `path` once its digest is right. One process at a time downloads to a path.
    size: of the file in bytes; None asks the server. Raises DataError.
    """
    try:
        if path.is_file() and md5_of(path) == md5:
            return
        _require_https(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_process(path.with_name(f".{path.name}.lock"), f"to download {path}"):
            if not (path.is_file() and md5_of(path) == md5):  # Another process may have completed it meanwhile.
                _download(url, path, md5, _length(url) if size is None else size)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be written or read ({error.strerror or error})") from error


def _download(url: str, path: Path, md5: str, size: int) -> None:
    part = path.with_name(f"{path.name}.part")
    continued = part.exists()
    received = _complete(part, url, size)
    if received != md5 and continued:
        print(f"{part}: was damaged, so the download starts again", file=sys.stderr, flush=True)
        part.unlink()
        received = _complete(part, url, size)
    if received != md5:
        part.unlink()
        raise DataError(f"{url}: what arrived has the md5 {received} and should have {md5}; it was deleted")
    part.replace(path)


def _length(url: str) -> int:
    """Ask the server how many bytes a file has."""
    try:
        with build_opener(_HttpsRedirects).open(Request(url, method="HEAD"), timeout=60) as response:
            return int(response.headers["Content-Length"])
    except HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, TypeError, ValueError) as error:
        raise DataError(
            f"{url}: the server does not say how long the file is ({error or type(error).__name__})"
        ) from error


def _complete(part: Path, url: str, size: int) -> str:
    """Append the missing bytes to a file, or write all where the server does not support ranges; return the file's md5."""
    start = part.stat().st_size if part.exists() else 0
    if start >= size:
        return md5_of(part)
    if (free := shutil.disk_usage(part.parent).free) < size - start:
        raise DataError(f"{part.parent}: the disk has {free:,} bytes left, and the download needs {size - start:,}")
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    again = f"the same command again continues {part}"
    try:
        with build_opener(_HttpsRedirects).open(request, timeout=60) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                start = 0
            with part.open("ab" if start else "wb") as file:
                _copy(response, file, start, size, name=urlsplit(url).hostname or url)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # The server's file is shorter than ours.
            return md5_of(part)
        raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and (error.filename or error.errno in _DISK_ERRORS):
            raise DataError(f"{part}: cannot be written ({error.strerror}); {again} once it can") from error
        raise DataError(f"{url}: {error or type(error).__name__}; {again}") from error
    if (received := part.stat().st_size) < size:
        raise DataError(f"{url}: ended after {received:,} of {size:,} bytes; {again}")
    return md5_of(part)


def _copy(source: IO[bytes], file: IO[bytes], start: int, size: int, *, name: str) -> None:
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
            bar = progress.add_task(name, total=size, completed=start)
            while start < size and (chunk := source.read(min(1 << 16, size - start))):
                file.write(chunk)
                start += len(chunk)
                progress.advance(bar, len(chunk))
    finally:
        console.show_cursor()  # Interrupted while it starts, the progress bar would leave the cursor hidden.


class _HttpsRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> Request | None:
        _require_https(arguments[-1])  # the new address
        return super().redirect_request(*arguments)


def _require_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise DataError(f"{url}: only https addresses are fetched")
