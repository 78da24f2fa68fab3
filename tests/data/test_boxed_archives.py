"""The archives of COCO and VOC are fetched once, unpacked without what nobody asked for, and continue."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from bam_exp.data import boxed_archives
from bam_exp.errors import DataError


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return packed.getvalue()


def tarred(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("VOCdevkit/VOC2007/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return packed.getvalue()


SERVED = {
    "annotations_trainval2017.zip": zipped(
        "annotations/instances_val2017.json",
        "annotations/captions_val2017.json",
        "annotations/instances_/../../escaped",
    ),
    "val2017.zip": zipped("val2017/1.jpg", "other"),
    "train2017.zip": zipped("train2017/2.jpg"),
    "VOCtrainval_06-Nov-2007.tar": tarred("VOCdevkit/VOC2007/Annotations/1.xml", "../escaped", "other"),
    "VOCtest_06-Nov-2007.tar": tarred("VOCdevkit/VOC2007/Annotations/2.xml"),
    "VOCtrainval_11-May-2012.tar": tarred("VOCdevkit/VOC2012/Annotations/3.xml"),
}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    urls: list[str] = []

    def fetch(url: str, path: Path, *, md5: str) -> None:
        urls.append(url)
        path.write_bytes(SERVED[path.name])

    monkeypatch.setattr(boxed_archives, "fetch", fetch)
    return urls


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("coco", {"annotations/instances_val2017.json", "val2017/1.jpg", "train2017/2.jpg"}),
        ("voc", {f"VOCdevkit/VOC{year}/Annotations/{i}.xml" for year, i in ((2007, 1), (2007, 2), (2012, 3))}),
    ],
)
def test_the_official_layout_comes_out(name: str, files: set[str], fetched: list[str], tmp_path: Path) -> None:
    folder = boxed_archives.download(name, tmp_path)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    assert {path for path in found if not path.startswith(".")} == files
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(fetched) == 3
    assert all(url.startswith("https://") for url in fetched)
    boxed_archives.download(name, tmp_path)
    assert len(fetched) == 3


def test_an_archive_that_is_cut_short_is_named_and_the_rest_continues(
    fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVED, "val2017.zip", SERVED["val2017.zip"][:40])
    with pytest.raises(DataError, match=r"val2017\.zip: not a whole archive"):
        boxed_archives.download("coco", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(boxed_archives, "fetch", lambda url, path, md5: path.write_bytes(SERVED[path.name]))
    boxed_archives.download("coco", tmp_path, mirror="https://example.org/")
    assert (tmp_path / "coco/val2017/1.jpg").is_file()
