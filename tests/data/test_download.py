"""`bam-data cifar100`: downloading, by https only, ends with the official files or with one clear line."""

import errno
import hashlib
import io
import os
import pty
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bam_exp.commands.data import main
from bam_exp.data import CIFAR100, DataError, cifar100
from bam_exp.data.download import fetch


class Server(ThreadingHTTPServer):
    """Serves one archive.

    ranges: honours Range. cut: bytes before an answer breaks off. to: where /moved leads. gate: opened to let an answer
    pass its first 1,000 bytes.
    """

    archive: bytes = b""
    ranges = True
    cut: int | None = None
    to: str | None = None
    gate: threading.Event | None = None

    def __init__(self) -> None:
        super().__init__(("localhost", 0), Answer)
        self.asked: list[str | None] = []  # the Range of each request


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        if self.server.to and self.path == f"/moved/{cifar100.ARCHIVE}":
            self.send_response(302)
            self.send_header("Location", self.server.to)
            self.end_headers()
            return
        if self.path != f"/mirror/{cifar100.ARCHIVE}":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0  # type: ignore[index]
        if start >= len(self.server.archive):
            self.send_error(416)
            return
        body = self.server.archive[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):  # the client may be gone
            self.wfile.write(body[:1000])
            if self.server.gate is not None:
                self.server.gate.wait(60)
            self.wfile.write(body[1000 : self.server.cut])

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.startswith("/mirror/") else 404)
        self.send_header("Content-Length", str(len(self.server.archive)))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for localhost, made here."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=DNS:localhost", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return files


@pytest.fixture
def server(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves a small archive, which takes the official one's place, and two members that nobody asked for."""
    random = np.random.default_rng(0)
    contents = {name: random.bytes(20_000) for name in cifar100.MD5}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ["../escaped", "other", *(f"{cifar100.FOLDER}/{name}" for name in contents)]:
            member = tarfile.TarInfo(name)
            content = contents.get(name.rpartition("/")[2], b"unwanted")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive = packed.getvalue()
    monkeypatch.setattr(cifar100, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in contents.items()})
    monkeypatch.setattr(cifar100, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar100, "ARCHIVE_SIZE", len(archive))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("no_proxy", "localhost")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with Server() as serving:
        serving.archive = archive
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def mirror(server: Server, folder: str = "mirror") -> str:
    return f"https://localhost:{server.server_port}/{folder}/"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


FETCHED = {cifar100.ARCHIVE, *(f"{cifar100.FOLDER}/{name}" for name in cifar100.MD5)}


def test_fetches_the_three_files_once(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    cifar100.download(root, mirror=mirror(server))
    CIFAR100(root).prepare()
    assert files_in(tmp_path) == {f"new/data/{name}" for name in FETCHED}
    cifar100.download(root, mirror=mirror(server))
    assert len(server.asked) == 1


def test_a_damaged_file_is_replaced_from_the_archive(server: Server, tmp_path: Path) -> None:
    cifar100.download(tmp_path, mirror=mirror(server))
    (tmp_path / cifar100.FOLDER / "train").write_bytes(b"damaged")
    cifar100.download(tmp_path, mirror=mirror(server))
    CIFAR100(tmp_path).prepare()
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_completed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.cut = ranges, 10_000
    with pytest.raises(DataError, match=r"ended after 10,000 of [\d,]+ bytes; the same command again continues"):
        cifar100.download(tmp_path, mirror=mirror(server))
    assert files_in(tmp_path) == {f"{cifar100.ARCHIVE}.part"}
    server.cut = None
    cifar100.download(tmp_path, mirror=mirror(server))
    CIFAR100(tmp_path).prepare()
    assert files_in(tmp_path) == FETCHED
    assert server.asked == [None, "bytes=10000-"]


def test_a_wrong_digest_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.archive = bytes(len(server.archive))
    with pytest.raises(DataError, match=f"should have {cifar100.ARCHIVE_MD5}; it was deleted"):
        cifar100.download(tmp_path, mirror=mirror(server))
    assert files_in(tmp_path) == set()


def test_an_archive_with_another_file_inside_replaces_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cifar100.MD5, "train", "0" * 32)
    with pytest.raises(DataError, match=f"{cifar100.FOLDER}/train is .* and should be 0000"):
        cifar100.download(tmp_path, mirror=mirror(server))
    assert files_in(tmp_path) == {cifar100.ARCHIVE}


def test_http_is_refused_even_as_a_redirect(server: Server, tmp_path: Path) -> None:
    plain = mirror(server).replace("https:", "http:")
    for address in (plain, "file:///etc", "localhost/mirror"):
        with pytest.raises(DataError, match="only https addresses are fetched"):
            cifar100.download(tmp_path, mirror=address)
    assert server.asked == []
    server.to = plain
    with pytest.raises(DataError, match=f"{plain}: only https addresses are fetched"):
        cifar100.download(tmp_path, mirror=mirror(server, "moved"))
    assert len(server.asked) == 1
    assert files_in(tmp_path) == set()


def test_follows_a_redirect_with_the_range(server: Server, tmp_path: Path) -> None:
    server.to = mirror(server) + cifar100.ARCHIVE
    (tmp_path / f"{cifar100.ARCHIVE}.part").write_bytes(server.archive[:100])
    cifar100.download(tmp_path, mirror=mirror(server, "moved"))
    CIFAR100(tmp_path).prepare()
    assert server.asked == ["bytes=100-"] * 2


def test_a_server_that_nobody_vouches_for_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(mirror(server) + cifar100.ARCHIVE, tmp_path / "file", md5="", size=1)


def test_the_command_ends_with_one_line(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["cifar100", str(tmp_path), "--mirror", mirror(server)])
    assert capsys.readouterr().out == f"CIFAR-100 is in {tmp_path / cifar100.FOLDER}\n"
    with pytest.raises(SystemExit) as ended:
        main(["cifar100", str(tmp_path / "other"), "--mirror", mirror(server) + "missing"])
    assert ended.value.code == 2
    assert re.fullmatch(r"bam-data: https://[^\n]*the server answers 404 Not Found\n", capsys.readouterr().err)


# --- faults ---


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_two_downloads_at_once_fetch_the_archive_once(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.gate = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        downloads = [threads.submit(cifar100.download, tmp_path, mirror=mirror(server)) for _ in range(2)]
        shown = ""

        def one_waits() -> bool:
            nonlocal shown
            shown += capfd.readouterr().err
            return "waiting for another process that has begun to download" in shown

        wait_until(one_waits)
        server.gate.set()
        for download in downloads:
            download.result()
    assert server.asked == [None]
    CIFAR100(tmp_path).prepare()
    assert files_in(tmp_path) == FETCHED


@pytest.mark.parametrize(
    ("size", "requests"), [(100, ["bytes=100-", None]), (70_000, [None]), (59_000, ["bytes=59000-", None])]
)
def test_a_damaged_part_is_downloaded_anew(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, requests: list[str | None]
) -> None:
    """Shorter than the archive, longer, and nearly complete."""
    (tmp_path / f"{cifar100.ARCHIVE}.part").write_bytes(b"x" * size)
    cifar100.download(tmp_path, mirror=mirror(server))
    CIFAR100(tmp_path).prepare()
    assert server.asked == requests
    assert "was damaged, so the download starts again" in capsys.readouterr().err


def test_a_part_beyond_the_servers_file_is_downloaded_anew(server: Server, tmp_path: Path) -> None:
    whole, server.archive = server.archive, server.archive[:500]
    (tmp_path / f"{cifar100.ARCHIVE}.part").write_bytes(whole[:600])
    with pytest.raises(DataError, match=r"ended after 500 of [\d,]+ bytes"):
        cifar100.download(tmp_path, mirror=mirror(server))
    assert server.asked == ["bytes=600-", None]


def test_a_damaged_archive_is_downloaded_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / cifar100.ARCHIVE).write_bytes(server.archive[:-1])
    cifar100.download(tmp_path, mirror=mirror(server))
    CIFAR100(tmp_path).prepare()


def test_too_small_a_disk_is_said_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=f"{tmp_path}: the disk has 10 bytes left, and the download needs"):
        cifar100.download(tmp_path, mirror=mirror(server))
    assert server.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{cifar100.ARCHIVE}.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"gz.part: cannot be written \(No space left on device\); the same command"):
        cifar100.download(tmp_path, mirror=mirror(server))


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=rf"^{tmp_path}/file[^\n]*$"):
            cifar100.download(root, mirror=mirror(server))


def test_a_full_disk_while_unpacking_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extract", full)
        with pytest.raises(DataError, match=rf"{tmp_path}/{cifar100.FOLDER}: No space left on device"):
            cifar100.download(tmp_path, mirror=mirror(server))
    cifar100.download(tmp_path, mirror=mirror(server))
    CIFAR100(tmp_path).prepare()
    assert files_in(tmp_path) == FETCHED


@pytest.mark.parametrize("damage", [lambda content: content[:-3000], lambda _: b"", lambda _: b"garbage" * 1000])
def test_an_archive_that_cannot_be_unpacked_is_named(
    server: Server, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(damage(server.archive))
    with pytest.raises(DataError, match=rf"^{archive}: cannot be unpacked[^\n]*$"):
        cifar100.unpack(archive, tmp_path / "folder")
    assert files_in(tmp_path / "folder") == set()


def test_a_home_folder_in_quotes_is_found(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    main(["cifar100", "~/data", "--mirror", mirror(server)])
    assert files_in(tmp_path / "home/data") == FETCHED
    assert not (tmp_path / "~").exists()
    with pytest.raises(SystemExit) as ended:
        main(["cifar100", "~nobody-of-this-name/data"])
    assert ended.value.code == 2
    assert "there is no such home folder" in capsys.readouterr().err


def test_ctrl_c_gives_the_cursor_back_and_the_same_command_continues(server: Server, tmp_path: Path) -> None:
    server.gate = threading.Event()
    command = ["cifar100", str(tmp_path / "my data"), "--mirror", mirror(server)]
    program = (
        "from bam_exp.data import cifar100; from bam_exp.commands.data import main;"
        f"cifar100.ARCHIVE_SIZE = {len(server.archive)}; main({command})"
    )
    terminal, its_end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=its_end, env={**os.environ, "TERM": "xterm"})
    os.close(its_end)
    part = tmp_path / "my data" / f"{cifar100.ARCHIVE}.part"
    shown = os.read(terminal, 4096)
    wait_until(lambda: server.asked and part.exists())
    while b"\x1b[?25l" not in shown:  # the bar hides the cursor
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    server.gate.set()
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    lines = shown.decode().splitlines()
    assert "Traceback" not in shown.decode()
    assert re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", lines[-1]) == (
        f"bam-data: interrupted; continue with: bam-data cifar100 '{tmp_path}/my data' --mirror {mirror(server)}"
    )
    cifar100.download(tmp_path / "my data", mirror=mirror(server))
    CIFAR100(tmp_path / "my data").prepare()


@pytest.mark.parametrize(
    "words", [[], ["cifar100"], ["mnist", "DIR"], ["imagenet", "DIR"], ["cifar100", "DIR", "--fast"]]
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "bam-data" in capsys.readouterr().err.splitlines()[-1]


def test_the_server_is_asked_for_a_length_that_is_not_known(server: Server, tmp_path: Path) -> None:
    url, path = f"{mirror(server)}{cifar100.ARCHIVE}", tmp_path / "archive"
    fetch(url, path, md5=hashlib.md5(server.archive).hexdigest())
    assert path.read_bytes() == server.archive
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(f"{mirror(server, 'nowhere')}x", tmp_path / "x", md5="")
