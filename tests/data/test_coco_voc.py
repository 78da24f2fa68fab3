"""COCO's and VOC's files are read as their definitions say, and what is wrong in one is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import coco as pycocotools

from bam_exp.data import COCO, VOC
from bam_exp.data.coco import IDS
from bam_exp.data.voc import CLASSES, _check_official
from bam_exp.errors import DataError

Content = dict[str, Any]


def test_tiny_coco_is_read_as_pycocotools_reads_it(tiny_coco: Path) -> None:
    data = COCO(tiny_coco, official=False)
    data.prepare()
    annotations = data.annotations("test")
    theirs = pycocotools.COCO(str(tiny_coco / "annotations/instances_val2017.json"))
    assert annotations.ids.tolist() == sorted(theirs.imgs)
    assert sorted(theirs.cats) == IDS
    assert data.class_names() == [theirs.cats[i]["name"] for i in IDS]
    for i, image in enumerate(annotations.ids.tolist()):
        own, rows = annotations.objects(i), theirs.imgToAnns[image]
        assert [IDS[label - 1] for label in annotations.labels[own]] == [row["category_id"] for row in rows]
        sides = annotations.boxes[own, 2:] - annotations.boxes[own, :2]
        assert sides.ravel().tolist() == pytest.approx([side for row in rows for side in row["bbox"][2:]])
        assert annotations.areas[own].tolist() == [row["area"] for row in rows]
        assert annotations.crowd[own].tolist() == [bool(row["iscrowd"]) for row in rows]
    assert annotations.crowd.sum() == 5
    assert (torch.from_numpy(annotations.first).diff() == 0).sum() == 2  # images without an object


def test_crowds_are_not_trained_on(tiny_coco: Path) -> None:
    annotations = COCO(tiny_coco, official=False).annotations("train")
    counted = sum(len(annotations.to_train_on(i, difficult=False)[0]) for i in range(len(annotations)))
    assert counted == len(annotations.boxes) - 5


def test_digests_tell_data_apart_and_official_data_need_not_be_there(tiny_coco: Path, tmp_path: Path) -> None:
    assert COCO(tmp_path).digest == COCO(tiny_coco).digest
    assert COCO(tmp_path).train_size == 118_287
    assert VOC(tmp_path).train_size == 16_551
    assert VOC(tmp_path).test_size == 4_952
    own = COCO(tiny_coco, official=False).digest
    assert own != COCO(tmp_path, official=False).digest
    shutil.copytree(tiny_coco / "annotations", tmp_path / "annotations")
    assert COCO(tmp_path, official=False).digest == own
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"iscrowd": 1', '"iscrowd": 0', 1))
    assert COCO(tmp_path, official=False).digest != own


def test_other_data_is_never_taken_for_the_official(tiny_coco: Path, voc_mini: Path) -> None:
    with pytest.raises(DataError, match=r"has 50 images with 470 objects and train2017 has 118,287 with 859,999; data"):
        COCO(tiny_coco).prepare()
    with pytest.raises(DataError, match=r"lists 137 images and VOC2007/trainval has 5,011; data.official=false"):
        VOC(voc_mini).prepare()


def test_the_official_lists_of_2007_are_told_by_their_digests(voc_official_bits: Path, tmp_path: Path) -> None:
    lists = voc_official_bits / "VOCdevkit/VOC2007/ImageSets/Main"
    for name in ("trainval", "test"):
        path = lists / f"{name}.txt"
        ids = path.read_text().split()
        _check_official(path, f"VOC2007/{name}", ids)
        ids[7] = ids[8]
        with pytest.raises(DataError, match=rf"{name}\.txt: lists other images than VOC2007/{name}"):
            _check_official(path, f"VOC2007/{name}", ids)


def test_the_flat_boxes_of_train2017_are_left_out(tiny_coco: Path, tmp_path: Path) -> None:
    """Two of the official annotations are 0 pixels high, for example [296.65, 388.33, 1.03, 0.0] of image 200365."""
    shutil.copytree(tiny_coco, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    before = len(COCO(tmp_path, official=False).annotations("train").boxes)
    image = content["annotations"][0]["image_id"]
    flat = {**content["annotations"][0], "id": 918, "image_id": 200365, "bbox": [296.65, 388.33, 1.03, 0.0]}
    for row in content["annotations"]:
        row["image_id"] = 200365 if row["image_id"] == image else row["image_id"]
    for one in content["images"]:
        one["id"] = 200365 if one["id"] == image else one["id"]
    content["annotations"].append(flat)
    path.write_text(json.dumps(content))
    data = COCO(tmp_path, official=False)
    data.prepare()
    assert len(data.annotations("train").boxes) == before


def change(content: Content, what: str) -> None:
    rows = content["annotations"]
    if what == "category":
        rows[3]["category_id"] = 12
    elif what == "image":
        rows[3]["image_id"] = 5
    elif what == "negative":
        rows[3]["bbox"][2] = -4.0
    elif what == "empty":
        rows[3]["bbox"][3] = 0
    elif what == "outside":
        rows[3]["bbox"][2] = 5000.0
    elif what == "nan":
        rows[3]["bbox"][2] = float("nan")
    elif what == "key":
        del rows[3]["bbox"]
    elif what == "file":
        content["images"][4]["file_name"] = "nowhere.jpg"
    elif what == "folder":
        content["images"][4]["file_name"] = "../x.jpg"
    else:
        last = content["categories"].pop()["id"]
        content["annotations"] = [row for row in rows if row["category_id"] != last]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("category", r"annotation \d+: is of category 12, which the file does not list"),
        ("image", r"annotation \d+: is of image 5, which the file does not list"),
        ("negative", r"annotation \d+: its box is -4 wide and [\d.]+ high; both should be above 0"),
        ("empty", r"annotation \d+: its box is [\d.]+ wide and 0 high"),
        ("nan", r"annotation \d+: its box is nan wide"),
        ("outside", r"image \d+: the box \(.*\) should have x1 < x2 and y1 < y2, inside its image of \d+ x \d+"),
        ("key", r"not annotations in the form of COCO's instances \(no 'bbox'\)"),
        ("file", r"nowhere\.jpg: no such file, though .*instances_train2017\.json: image \d+ describes it"),
        ("folder", r"should be the name of a file, without a folder"),
        ("categories", r"lists 79 categories and data\.classes=80; data\.classes=79 would fit"),
    ],
)
def test_what_is_wrong_in_a_file_of_coco_is_named(tiny_coco: Path, tmp_path: Path, what: str, said: str) -> None:
    root = tmp_path / "coco"
    shutil.copytree(tiny_coco, root)
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content, what)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        COCO(tmp_path, official=False).prepare()


@pytest.mark.parametrize("cut", [0, 1, 1000])
def test_a_json_that_is_cut_short_is_named(tiny_coco: Path, tmp_path: Path, cut: int) -> None:
    shutil.copytree(tiny_coco, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"instances_val2017\.json: not a whole JSON file"):
        COCO(tmp_path, official=False).prepare()


XML = """<annotation><size><width>100</width><height>80</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name>{difficult}<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin><ymin>{y1}</ymin><ymax>{y2}</ymax>
</bndbox></object>"""


def object_of(name: str = "dog", box: tuple[float, ...] = (11, 21, 30, 60), difficult: str = "0") -> str:
    x1, y1, x2, y2 = box
    return OBJECT.format(name=name, x1=x1, y1=y1, x2=x2, y2=y2, difficult=f"<difficult>{difficult}</difficult>")


@pytest.fixture
def voc_of(tmp_path: Path) -> Callable[..., VOC]:
    """Data in VOC's form with one image in `a` and one in `b`."""

    def make(content: str, **knobs: Any) -> VOC:
        year = tmp_path / "VOCdevkit/VOC2007"
        for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (year / folder).mkdir(parents=True, exist_ok=True)
        for name, text in (("a", content), ("b", XML.format(objects=object_of()))):
            (year / f"ImageSets/Main/{name}.txt").write_text(f"{name}1\n")
            (year / f"Annotations/{name}1.xml").write_text(text)
            (year / f"JPEGImages/{name}1.jpg").write_bytes(b"")
        return VOC(tmp_path, official=False, train=["VOC2007/a"], test=["VOC2007/b"], **knobs)

    return make


def test_boxes_of_voc_become_half_open(voc_of: Callable[..., VOC]) -> None:
    data = voc_of(XML.format(objects=object_of(box=(1, 1, 100, 80)) + object_of("cat", (48, 240 / 6, 48, 41))))
    data.prepare()
    annotations = data.annotations("train")
    assert annotations.boxes.tolist() == [[0, 0, 100, 80], [47, 39, 48, 41]]
    assert annotations.areas.tolist() == [8000, 2]
    assert [CLASSES[label - 1] for label in annotations.labels] == ["dog", "cat"]


def test_difficult_objects_are_trained_on_only_if_wanted(voc_of: Callable[..., VOC]) -> None:
    data = voc_of(XML.format(objects=object_of(difficult="1") + object_of("cat")))
    annotations = data.annotations("train")
    assert annotations.to_train_on(0, difficult=False)[1].tolist() == [CLASSES.index("cat") + 1]
    assert len(annotations.to_train_on(0, difficult=True)[1]) == 2


BOMB = '<!DOCTYPE a [<!ENTITY x "aaaaaaaaaa"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;">]>' + XML.format(
    objects=object_of(name="&y;")
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (XML.format(objects=object_of("unicorn")), r"a1\.xml: object unicorn: is none of the 20 classes"),
        (
            XML.format(objects=object_of(box=(30, 20, 10, 60))),
            r"a1\.xml: object dog: its box \(30, 20, 10, 60\) has no area",
        ),
        (XML.format(objects=object_of(box=(1, 1, 200, 60))), r"a1\.xml: the box .* inside its image of 100 x 80"),
        (XML.format(objects=object_of())[:200], r"a1\.xml: not a whole XML file"),
        ("", r"a1\.xml: not a whole XML file"),
        (BOMB, r"a1\.xml: not a whole XML file \(it declares the entity x, which no annotation needs\)"),
        (XML.format(objects="<object><name>dog</name></object>"), r"a1\.xml: not an annotation .* has no bndbox/xmin"),
        (XML.format(objects=object_of(box=(1, 1, float("nan"), 60))), r"a1\.xml: object dog: its box"),
    ],
)
def test_what_is_wrong_in_a_file_of_voc_is_named(voc_of: Callable[..., VOC], content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        voc_of(content).prepare()


def test_a_list_of_one_class_and_a_missing_image_are_named(
    voc_mini: Path, voc_of: Callable[..., VOC], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"train_test\.txt: .*should be the id of an image; the lists of a single class"
    ):
        VOC(voc_mini, official=False, train=["VOC2007/train_test"]).prepare()
    data = voc_of(XML.format(objects=object_of()))
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/a1.jpg").unlink()
    with pytest.raises(DataError, match=r"a1\.jpg: no such file, though .*a1\.xml describes it"):
        data.prepare()


def test_the_official_lists_and_image_are_read(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import tarfile

    folder = tmp_path_factory.mktemp("voc")
    with tarfile.open(shared / "data/voc2007-official-bits.tar.xz") as content:
        content.extractall(folder, filter="data")
    root = folder / "voc2007-official-bits"
    data = VOC(root)
    assert data.test_size == 4_952
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    (lists / "one.txt").write_text("000001\n")
    one = VOC(root, official=False, train=["VOC2007/one"], test=["VOC2007/one"])
    one.prepare()
    annotations = one.annotations("train")
    assert [CLASSES[label - 1] for label in annotations.labels] == ["dog", "person"]
    assert annotations.boxes.tolist() == [[47, 239, 195, 371], [7, 11, 352, 498]]
    images, _ = next(iter(one.loader("train", batch_size=1, seed=0, device="cpu", workers=0)))
    assert images.shape == (1, 3, 300, 300)
