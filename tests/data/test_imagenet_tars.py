"""`bam-data imagenet`: from the official tars to the folders, however often it is interrupted."""

import errno
import os
import re
import tarfile
from collections.abc import Callable
from hashlib import md5
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from bam_exp.commands.data import main
from bam_exp.data import DataError, imagenet_tars


def tar_of(files: dict[str, bytes], path: Path, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two classes of two train photos, three val photos; the devkit also has a synset that is no class."""
    folder = tmp_path / "tars"
    folder.mkdir()
    train_tar = {}
    for wnid in ("n02", "n01"):
        inner = tar_of({f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() for i in (7, 3)}, folder / "inner.tar")
        train_tar[f"{wnid}.tar"] = inner.read_bytes()
        inner.unlink()
    tar_of(train_tar, folder / imagenet_tars.TRAIN)
    tar_of({f"ILSVRC2012_val_0000000{i}.JPEG": f"val {i}".encode() for i in (2, 3, 1)}, folder / imagenet_tars.VAL)
    synsets = np.array(
        [(1, "n02", "b", 0), (2, "n01", "a", 0), (3, "n00", "both", 2)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    meta = BytesIO()
    savemat(meta, {"synsets": synsets})
    tar_of(
        {imagenet_tars.META: meta.getvalue(), imagenet_tars.LABELS: b"2\n1\n1\n"}, folder / imagenet_tars.DEVKIT, "w:gz"
    )
    return folder


def run(tars: Path, **wrong: str) -> None:
    digests = {name: md5((tars / name).read_bytes()).hexdigest() for name in imagenet_tars.MD5} | wrong
    options = [
        f"--{kind}-md5={digests[name]}"
        for kind, name in zip(("train", "val", "devkit"), imagenet_tars.MD5, strict=True)
    ]
    main(["imagenet", str(tars), str(tars.parent), *options])


MADE = {
    "train/n01/n01_3.JPEG": b"n01 3", "train/n01/n01_7.JPEG": b"n01 7",
    "train/n02/n02_3.JPEG": b"n02 3", "train/n02/n02_7.JPEG": b"n02 7",
    "val/n01/ILSVRC2012_val_00000001.JPEG": b"val 1",
    "val/n02/ILSVRC2012_val_00000002.JPEG": b"val 2", "val/n02/ILSVRC2012_val_00000003.JPEG": b"val 3",
}  # fmt: skip


def files_in(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def refused(tars: Path, capsys: pytest.CaptureFixture[str], **wrong: str) -> str:
    """The line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        run(tars, **wrong)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("stop_after", [None, 0, 1, 2, 3, 5, 6])
def test_the_tars_become_folders_however_often_it_is_interrupted(
    tars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop_after: int | None
) -> None:
    if stop_after is not None:
        original, written = imagenet_tars.write, []

        def write(path: Path, content: Any) -> None:
            if len(written) == stop_after:
                path.with_name(f".{path.name}.part").write_bytes(b"half")
                raise KeyboardInterrupt
            written.append(path)
            original(path, content)

        with monkeypatch.context() as interrupted:
            interrupted.setattr(imagenet_tars, "write", write)
            with pytest.raises(SystemExit) as ended:
                run(tars)
        assert ended.value.code == 130
        assert capsys.readouterr().err.startswith(f"bam-data: interrupted; continue with: bam-data imagenet {tars} ")
    run(tars)
    whole = {name: content for name, content in files_in(tars.parent / "imagenet").items() if "/." not in f"/{name}"}
    assert whole == MADE


def test_the_tars_may_be_named_one_by_one(tars: Path, tmp_path: Path) -> None:
    digests = {name: md5((tars / name).read_bytes()).hexdigest() for name in imagenet_tars.MD5}
    imagenet_tars.unpack(sorted(tars.iterdir()), tmp_path / "elsewhere", digests)
    assert files_in(tmp_path / "elsewhere/imagenet/train").keys() == {
        name.removeprefix("train/") for name in MADE if name.startswith("train")
    }


def test_a_missing_tar_is_named(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = dict.fromkeys(imagenet_tars.MD5, "0" * 32)
    (tars / imagenet_tars.TRAIN).unlink()
    with pytest.raises(DataError, match=rf"{imagenet_tars.TRAIN}: there is no such file in {tars}"):
        imagenet_tars.unpack([tars], tars.parent, digests)


def test_a_tar_with_another_digest_is_refused(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(tars, capsys, **{imagenet_tars.VAL: "0123"})
    assert re.search(r"ILSVRC2012_img_val.tar: its md5 is \w+ and should be 0123", line)
    made = files_in(tars.parent / "imagenet")
    assert made == {name: content for name, content in MADE.items() if name.startswith("train")}


@pytest.mark.parametrize("name", ["../out.JPEG", "/tmp/out.JPEG", "a/b.JPEG", ".hidden"])
def test_a_tar_that_reaches_out_of_its_folder_is_refused(
    tars: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    inner = tar_of({name: b"gotcha"}, tars / "inner.tar")
    tar_of({"n01.tar": inner.read_bytes()}, tars / imagenet_tars.TRAIN)
    assert "not the plain name of a file" in refused(tars, capsys)
    assert not [path for path, content in files_in(tars.parent).items() if content == b"gotcha"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 1300 if path.suffix == ".tar" else 100])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def at_a_member(path: Path) -> None:
    """Cut off where a member begins, which a tar does not show."""
    path.write_bytes(path.read_bytes()[:2048])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    """The tar of a class is a link to a file of the user."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("n01.tar")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def without_synsets(path: Path) -> None:
    meta = BytesIO()
    savemat(meta, {"other": np.zeros(3)})
    tar_of({imagenet_tars.META: meta.getvalue(), imagenet_tars.LABELS: b"2\n1\n1\n"}, path, "w:gz")


def without_labels(path: Path) -> None:
    tar_of({imagenet_tars.META: b"not a mat file"}, path, "w:gz")


def not_a_mat_file(path: Path) -> None:
    tar_of({imagenet_tars.META: b"not a mat file", imagenet_tars.LABELS: b"2\n"}, path, "w:gz")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in imagenet_tars.MD5 for damage in (cut, garbage, empty)),
        (imagenet_tars.VAL, at_a_member),
        (imagenet_tars.TRAIN, link),
        *((imagenet_tars.DEVKIT, damage) for damage in (without_synsets, without_labels, not_a_mat_file)),
    ],
)
def test_a_damaged_tar_ends_in_one_line_that_names_it(
    tars: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    """Even where its digest is what the user says."""
    damage(tars / name)
    line = refused(tars, capsys)
    assert line.startswith("bam-data: ")
    assert name in line


def test_a_full_disk_is_named_and_the_same_command_continues(
    tars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(imagenet_tars.shutil, "copyfileobj", full)
        line = refused(tars, capsys)
    assert "train.part/n02.part/n02_7.JPEG: No space left on device; the same command again continues" in line
    run(tars)
    assert (tars.parent / "imagenet/val").is_dir()
