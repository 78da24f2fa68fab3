"""Files that a data set needs: their digests, and fetching them over https."""

import hashlib
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bam_exp.errors import DataError


def md5_of(path: Path) -> str:
    """Hexadecimal md5 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(url: str, path: Path, *, md5: str, size: int) -> None:
    """Download `url` to `path`, unless it is there with the right digest, and show the progress on stderr.

    Only https, redirects included. The bytes go to `path`.part, which a later call continues where the server allows
    it, and which becomes `path` once its digest is right. size: bytes. Raises DataError.
    """
    if path.is_file() and md5_of(path) == md5:
        return
    _require_https(url)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _complete(part, url, size)
        received = part.stat().st_size
    except HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise DataError(f"{url}: {error}; the same command again continues {part}") from error
    if received < size:
        raise DataError(f"{url}: ended after {received:,} of {size:,} bytes; the same command again continues {part}")
    found = md5_of(part)
    if found != md5:
        part.unlink()
        raise DataError(f"{url}: what arrived has the md5 {found} and should have {md5}; it was deleted")
    part.replace(path)


def _complete(part: Path, url: str, size: int) -> None:
    """Append the missing bytes of `part`, or write all of them where the server does not send ranges."""
    start = part.stat().st_size if part.exists() else 0
    if start >= size:
        return
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with build_opener(_HttpsRedirects).open(request, timeout=60) as response:
        if response.status != 206:  # Partial Content
            start = 0
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, start, size, name=urlsplit(url).hostname or url)


def _copy(source: IO[bytes], file: IO[bytes], start: int, size: int, *, name: str) -> None:
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=size, completed=start)
        while start < size and (chunk := source.read(min(1 << 16, size - start))):
            file.write(chunk)
            start += len(chunk)
            progress.advance(bar, len(chunk))


class _HttpsRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> Request | None:
        _require_https(arguments[-1])  # the new address
        return super().redirect_request(*arguments)


def _require_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise DataError(f"{url}: only https addresses are fetched")
