"""CIFAR100 reads the official files and no others; fetching, by https only, ends with them or with one clear line."""

import hashlib
import inspect
import io
import pickle
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
import yaml
from torchvision.transforms.v2.functional import pil_to_tensor

from bam_exp.data import CIFAR100, DataError, cifar100
from bam_exp.data.__main__ import main
from bam_exp.data.download import fetch

REPOSITORY = Path(__file__).resolve().parent.parent


# --- The real files


@pytest.fixture(scope="session")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_root with the whole of CIFAR-100."""
    root = tmp_path_factory.mktemp("cifar100")
    subprocess.run(
        [sys.executable, shared / "data" / "cifar100" / "unpack.py", root], check=True, stdout=subprocess.DEVNULL
    )
    return root


def test_real_files_are_complete_and_balanced(real: Path) -> None:
    data = CIFAR100(real)
    data.prepare()
    splits: list[tuple[Literal["train", "test"], int]] = [("train", data.train_size), ("test", data.test_size)]
    for split, count in splits:
        images, labels = data.load(split)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (count, 3, data.size, data.size)
        assert labels.bincount().tolist() == [count // 100] * data.num_classes


def test_mean_and_std_are_the_train_sets(real: Path) -> None:
    images, _ = CIFAR100(real).load("train")
    pixel = torch.arange(256) / 255
    for channel in range(3):
        frequency = images[:, channel].flatten().bincount(minlength=256) / images[:, channel].numel()
        mean = (frequency * pixel).sum()
        assert CIFAR100.mean[channel] == pytest.approx(mean.item(), abs=6e-5)
        assert CIFAR100.std[channel] == pytest.approx((frequency * (pixel - mean) ** 2).sum().sqrt().item(), abs=6e-5)


def test_real_images_and_names_are_torchvisions(real: Path) -> None:
    images, labels = CIFAR100(real).load("test")
    theirs = torchvision.datasets.CIFAR100(real, train=False)
    assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
    assert labels.tolist() == theirs.targets
    assert CIFAR100(real).class_names() == theirs.classes
    first, _ = CIFAR100(real).load("train")
    image, _ = torchvision.datasets.CIFAR100(real, train=True)[0]
    assert torch.equal(first[0], pil_to_tensor(image))


@pytest.mark.parametrize("name", ["test", "meta"])
def test_an_altered_file_is_named_with_both_digests(real: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(real / cifar100.FOLDER, tmp_path / cifar100.FOLDER)
    path = tmp_path / cifar100.FOLDER / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-1], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            CIFAR100(tmp_path).prepare()
        message = str(error.value)
        assert "\n" not in message
        for part in (
            str(path),
            hashlib.md5(damaged).hexdigest(),
            cifar100.MD5[name],
            f"bam_exp.data cifar100 {tmp_path}",
        ):
            assert part in message


# --- Without the files


def test_missing_data_says_what_to_type(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    data = CIFAR100(root)
    for use in (data.prepare, data.class_names, lambda: data.load("train")):
        with pytest.raises(DataError, match=r"data_root must be") as error:
            use()
        assert f"`python -m bam_exp.data cifar100 '{root}'`" in str(error.value)
        assert "\n" not in str(error.value)


def test_config_is_the_signature() -> None:
    config = yaml.safe_load((REPOSITORY / "conf" / "data" / "cifar100.yaml").read_text())
    assert config.pop("_target_") == "bam_exp.data.CIFAR100"
    parameters = inspect.signature(CIFAR100).parameters.values()
    assert config == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    with pytest.raises(ValueError, match="pad"):
        CIFAR100(Path(), pad=-1)


class Malicious:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("function", [eval, print, Path.touch, torch.load, np.load, getattr])
def test_a_pickle_that_calls_anything_is_refused(function: object) -> None:
    content = pickle.dumps({"data": Malicious(function, "1")}, protocol=2)
    with pytest.raises(DataError, match=r"^refused a pickle that names [^\n]*$"):
        cifar100.unpickle(content)


# --- Fetching, from a server on this machine


class Server(ThreadingHTTPServer):
    """Serves one archive. ranges: honours Range. cut: bytes before an answer breaks off. to: where /moved leads."""

    archive: bytes = b""
    ranges = True
    cut: int | None = None
    to: str | None = None

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
        body = self.server.archive[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for localhost, made here."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "certificate.pem", folder / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-out",
        str(files[0]),
        "-keyout",
        str(files[1]),
    ]
    subprocess.run(made, check=True, capture_output=True)
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
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


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
    with pytest.raises(SystemExit, match=r"^error: https://[^\n]*the server answers 404 Not Found$"):
        main(["cifar100", str(tmp_path / "other"), "--mirror", mirror(server) + "missing"])
