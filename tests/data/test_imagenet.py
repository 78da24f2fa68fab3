"""ImageNet: torchvision's crops and pixels, the same batches on any workers and ranks, and every bad input by its name."""

import importlib.util
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable
from hashlib import md5
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Command
from PIL import Image
from scipy.io import savemat
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import RandomResizedCrop, functional

from bam_exp.data import Batches, DataError, ImageNet, crops, imagenet, photo_loader, photos
from bam_exp.data.photos.crops import Crop, decoded, random_crop, random_square, random_squares, read
from bam_exp.data.photos.loader import Part, PhotoLoader, Workshop
from bam_exp.data.photos.folder import Photos, photos_in
from bam_exp.data.synsets import SYNSETS


def unpacked(tar: Path, folder: Path) -> Path:
    with tarfile.open(tar) as content:
        content.extractall(folder, filter="data")
    return folder / tar.stem


@pytest.fixture(scope="session")
def imagenette(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, 150 train and 40 val photos each."""
    return unpacked(shared / "data/imagenette2-mini.tar", tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def mini(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of each of the 1,000 classes, in val."""
    return unpacked(shared / "data/imagenet-1k-mini.tar", tmp_path_factory.mktemp("photos"))


@pytest.fixture
def small(imagenette: Path, tmp_path: Path) -> Path:
    """Copies of four classes: 7 train and 2 val photos each."""
    for split, count in (("train", 7), ("val", 2)):
        for folder in sorted((imagenette / split).iterdir())[:4]:
            copy = tmp_path / "small" / split / folder.name
            copy.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, copy)
    return tmp_path / "small"


def data(root: Path, **knobs: Any) -> ImageNet:
    return ImageNet(root, **{"size": 32, "classes": 4, **knobs})


def train(root: Path, knobs: dict[str, Any] | None = None, **changes: Any) -> PhotoLoader:
    return data(root, **(knobs or {})).loader(
        "train", **{"batch_size": 8, "seed": 5, "device": "cpu", "workers": 0, **changes}
    )


def first_photo(root: Path, split: str = "train") -> Path:
    return min(file for file in (root / split).rglob("*.JPEG"))


def equal(a: Iterable[tuple[Tensor, Tensor]], b: Iterable[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (256, 256), (60, 500), (500, 60), (5, 7), (200, 260)]
)
def test_crops_have_the_distribution_of_torchvisions(height: int, width: int) -> None:
    """Two-sample Kolmogorov-Smirnov on size, place and area; the extreme shapes fall back to a central crop."""
    count = 1500
    torch.manual_seed(1)
    transform, image = RandomResizedCrop(224), torch.empty(3, height, width)
    theirs = np.array([list(transform.make_params([image]).values()) for _ in range(count)])
    drawn = [random_crop(3, epoch % 5, epoch // 5, height, width) for epoch in range(count)]
    ours = np.array([crop[:4] for crop in drawn])
    for a, b in zip((*ours.T, ours[:, 2] * ours[:, 3]), (*theirs.T, theirs[:, 2] * theirs[:, 3]), strict=True):
        assert ks_2samp(a, b).pvalue > 1e-4
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    mirrored = np.array([crop.mirrored for crop in drawn])
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / count**0.5
    assert ks_2samp(ours[mirrored, 3], ours[~mirrored, 3]).pvalue > 1e-4


def test_a_crop_is_a_function_of_seed_epoch_and_index() -> None:
    drawn = [random_crop(*key, 375, 500) for key in np.ndindex(5, 5, 5)]
    assert drawn == [random_crop(*key, 375, 500) for key in np.ndindex(5, 5, 5)]
    assert len(set(drawn)) == 125


def test_training_pixels_are_torchvisions_of_a_tensor_to_the_bit_and_of_pil_nearly(imagenette: Path) -> None:
    for index, file in enumerate(sorted((imagenette / "train").rglob("*.JPEG"))[::150]):
        photo = decoded(read(file), file)
        pil = Image.open(file).convert("RGB")
        assert torch.equal(photo, functional.pil_to_tensor(pil))
        crop = random_crop(0, 0, index, *photo.shape[1:])
        square = random_square(photo, crop, 64)
        *rectangle, mirrored = crop
        theirs = [functional.resized_crop(one, *rectangle, [64, 64]) for one in (photo, pil)]
        tensor, from_pil = (functional.horizontal_flip(one) if mirrored else one for one in theirs)
        assert torch.equal(square, tensor)
        assert (square.int() - functional.pil_to_tensor(from_pil).int()).abs().max() <= 2


def test_many_crops_at_once_are_those_one_by_one(imagenette: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's form, on the CPU: against ours of one photo and against PyTorch's interpolation in floating point."""
    files = sorted((imagenette / "train").rglob("*.JPEG"))[::60]
    loaded = [decoded(read(file), file) for file in files] + [
        torch.randint(256, (3, 40, 700), dtype=torch.uint8), torch.randint(256, (3, 1, 1), dtype=torch.uint8)
    ]  # fmt: skip
    chosen = [random_crop(0, 0, index, *photo.shape[1:]) for index, photo in enumerate(loaded)]
    many = random_squares(loaded, chosen, 48)
    assert many.is_contiguous(memory_format=torch.channels_last)
    exact = torch.stack([in_floats(photo, crop, 48) for photo, crop in zip(loaded, chosen, strict=True)])
    assert (many - exact).abs().max() < 0.501  # rounded to whole numbers, and right before that
    one_by_one = torch.stack([random_square(photo, crop, 48) for photo, crop in zip(loaded, chosen, strict=True)])
    assert (many.int() - one_by_one.int()).abs().max() <= 1
    monkeypatch.setattr(crops, "_PIXELS_AT_ONCE", 20_000)
    assert (random_squares(loaded, chosen, 48).int() - many.int()).abs().max() <= 1


def in_floats(photo: Tensor, crop: Crop, size: int) -> Tensor:
    top, left, height, width, mirrored = crop
    part = photo[None, :, top : top + height, left : left + width].double()
    square = nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
    return square.flip(2) if mirrored else square


@pytest.mark.parametrize("size", [224, 96])
def test_evaluation_is_torchvisions_own_transform(mini: Path, size: int) -> None:
    """Pixels to the bit, logits with them: against torchvision's ImageClassification, on photos opened by PIL."""
    loader = data(mini, classes=1000, size=size).loader("test", batch_size=40, seed=0, device="cpu", workers=0)
    images, labels = next(iter(loader))
    theirs = ImageClassification(
        crop_size=size, resize_size=round(size * 256 / 224), interpolation=InterpolationMode.BILINEAR
    )
    files = sorted((mini / "val").rglob("*.JPEG"))[:40]
    expected = torch.stack([theirs(Image.open(file).convert("RGB")) for file in files])
    assert labels.tolist() == list(range(40))
    assert torch.equal(images, expected)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 7, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(network(images), network(expected), rtol=0, atol=1e-4)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_photo_once_an_epoch_in_another_order_and_crop(small: Path) -> None:
    loader = train(small)
    first = list(loader)
    assert [len(labels) for _, labels in first] == [8, 8, 8, 4]
    assert len(loader) == 4
    assert torch.bincount(torch.cat([labels for _, labels in first])).tolist() == [7, 7, 7, 7]
    images, labels = first[0]
    assert (images.dtype, labels.dtype, images.shape) == (torch.float32, torch.int64, (8, 3, 32, 32))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert equal(loader, first)
    loader.sampler.set_epoch(1)
    assert not any(torch.equal(x, u) for (x, _), (u, _) in zip(loader, first, strict=True))
    assert not equal(train(small, seed=6), first)


def test_the_same_batches_on_any_workers_and_ranks(small: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(train(small))
    assert equal(train(small, workers=2), alone)
    assert equal(train(small, workers=1), alone)
    for world_size in (2, 3):
        shares = [train(small, rank=rank, world_size=world_size, workers=rank) for rank in range(world_size)]
        together = [[torch.cat(parts) for parts in zip(*batch, strict=True)] for batch in zip(*shares, strict=True)]
        assert equal(together, alone)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("handed_out", "workers"), [(0, 0), (1, 0), (2, 2), (3, 0), (4, 1)])
def test_an_interrupted_epoch_goes_on_bitwise(small: Path, handed_out: int, workers: int) -> None:
    loader = train(small, workers=workers)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(handed_out):
        next(batches)
    resumed = train(small)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert resumed.state_dict() == {"epoch": 2, "batch": handed_out}
    assert equal(batches, resumed)
    assert equal(loader, resumed)  # the same epoch again is whole


def test_a_run_trains_on_photos_and_hears_of_every_epoch(
    bam_train: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = []
    original = Batches.set_epoch
    monkeypatch.setattr(Batches, "set_epoch", lambda self, epoch: (announced.append(epoch), original(self, epoch)))
    words = (
        f"data_root={small}", "data=imagenet", "data.classes=4", "data.size=32", "backbone=resnet18_imagenet",
        "backbone.widen=0.125", "attention.reduction=4", "recipe=imagenet", "recipe.batch_size=8", "recipe.epochs=2",
        "trainer.device=cpu", "trainer.threads=1",
    )  # fmt: skip
    assert bam_train(*words).code == 0
    [result] = [json.loads(file.read_text()) for file in tmp_path.glob("runs/imagenet*/**/result.json")]
    assert set(announced) == {0, 1}
    assert result["figures_from"]["data_digest"] == data(small).digest
    assert result["metrics"]["top1_error"] in [100 * wrong / 8 for wrong in range(9)]


@pytest.mark.parametrize(
    ("cuda", "variables", "world_size", "expected"),
    [
        (True, {}, 1, 16),
        (True, {}, 8, 2),
        (True, {"LOCAL_WORLD_SIZE": "4"}, 8, 4),
        (True, {"SLURM_CPUS_PER_TASK": "16"}, 8, 16),
        (True, {}, 64, 1),
        (False, {}, 1, 2),
    ],
)
def test_workers_share_the_cores(
    cuda: bool, variables: dict[str, str], world_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert photo_loader.default_workers(torch.device("cuda" if cuda else "cpu"), world_size) == expected


# --- odd and broken photos -------------------------------------------------------------------------------------------


def disguised(root: Path) -> list[Path]:
    """The first five photos of the first class become a greyscale and a CMYK JPEG and three PNGs, all named JPEG."""
    files = sorted(first_photo(root).parent.iterdir())[:5]
    for file, mode in zip(files, ("L", "CMYK", "RGB", "P", "LA"), strict=True):
        photo = Image.open(file).convert("RGB").convert(mode)
        photo.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    return files


def test_odd_photos_are_those_that_pil_sees(small: Path) -> None:
    files = disguised(small)
    data(small).prepare()
    for file in files:
        seen = functional.pil_to_tensor(Image.open(file).convert("RGB"))
        assert torch.equal(decoded(read(file), file), seen)
    assert [len(labels) for _, labels in train(small)] == [8, 8, 8, 4]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def headless(path: Path) -> None:
    """Damage that the ends of the file do not show."""
    content = bytearray(path.read_bytes())
    content[3:600] = bytes(597)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut, "truncated"), (empty, "the file is empty"), (text, "cannot identify image file"), (headless, "")],
)
def test_a_broken_photo_is_refused_by_name_or_skipped_and_counted(
    small: Path, damage: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = first_photo(small)
    damage(path)
    if damage is not headless:
        with pytest.raises(DataError, match=rf"{path.name}: not a photo .*{reason}.*data.broken=skip"):
            data(small).prepare()
    for workers in (0, 2):
        with pytest.raises(DataError) as refused:
            list(train(small, workers=workers))
        assert path.name in str(refused.value)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
    loader = train(small, {"broken": "skip"}, workers=2)
    data(small, broken="skip").prepare()
    capfd.readouterr()
    for _ in range(2):  # epochs
        assert sum(len(labels) for _, labels in loader) == 27
    assert list(loader.skipped) == [line for line in loader.skipped if path.name in line]
    assert len(loader.skipped) == 1
    shown = capfd.readouterr().err
    assert shown.count(path.name) == 1
    assert "skipped (1 so far): " in shown
    assert "Traceback" not in shown


def test_photos_without_the_broken_one_stay_as_they_were(small: Path) -> None:
    whole = {tuple(image.flatten().tolist()) for images, _ in train(small) for image in images}
    cut(first_photo(small))
    rest = {tuple(image.flatten().tolist()) for images, _ in train(small, {"broken": "skip"}) for image in images}
    assert rest < whole
    assert len(whole - rest) == 1


def test_evaluation_leaves_a_broken_photo_out_and_keeps_the_labels_right(small: Path) -> None:
    cut(first_photo(small, "val"))
    loader = data(small, broken="skip").loader("test", batch_size=8, seed=0, device="cpu", workers=0)
    [(_, labels)] = loader
    assert labels.tolist() == [0, 1, 1, 2, 2, 3, 3]
    in_pairs = data(small, broken="skip").loader("test", batch_size=2, seed=0, device="cpu")
    assert [len(labels) for _, labels in in_pairs] == [1, 2, 2, 2]


def test_a_batch_of_nothing_but_broken_photos_is_refused(small: Path) -> None:
    for file in (small / "train").rglob("*.JPEG"):
        empty(file)
    with pytest.raises(DataError, match="too few photos of a batch of 8"):
        list(train(small, {"broken": "skip"}))


def test_a_photo_that_vanishes_is_named(small: Path) -> None:
    loader = train(small)
    first_photo(small).unlink()
    with pytest.raises(DataError, match=rf"{first_photo(small).parent.name}.*No such file"):
        list(loader)


def test_prepare_names_the_first_of_several_broken_photos(small: Path) -> None:
    for file in sorted((small / "train").rglob("*.JPEG"))[:3]:
        cut(file)
    with pytest.raises(DataError, match="and 2 more such files"):
        data(small).prepare()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_the_classes_are_the_official_ones(shared: Path) -> None:
    with tarfile.open(shared / "data/imagenet-1k-mini.tar") as tar:
        content = tar.extractfile("imagenet-1k-mini/synsets.txt")
        assert content is not None
        lines = [line.split("\t") for line in content.read().decode().splitlines()]
    assert list(SYNSETS.items()) == [(wnid, words) for wnid, words in lines]
    assert list(SYNSETS) == sorted(SYNSETS)
    assert ImageNet(Path("nowhere")).class_names()[0] == "tench, Tinca tinca"


def test_root_is_the_folder_or_the_one_around_it(small: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    small.rename(tmp_path / "around/imagenet")
    around, itself = data(tmp_path / "around"), data(tmp_path / "around/imagenet")
    assert around.digest == itself.digest
    assert (around.train_size, around.test_size) == (28, 8)
    names = [
        "tench, Tinca tinca",
        "English springer, English springer spaniel",
        "cassette player",
        "chain saw, chainsaw",
    ]
    assert around.class_names() == names


def rename_a_class(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "n01440764").rename(root / split / "n99999999")


BAD_FOLDERS: dict[str, tuple[Any, str]] = {
    "no val": (lambda root: shutil.rmtree(root / "val"), r"val: no such folder; data_root must be"),
    "no train": (lambda root: shutil.rmtree(root / "train"), r"train: no such folder"),
    "nothing": (shutil.rmtree, r"imagenet/train: no such folder"),
    "an empty class": (
        lambda root: [file.unlink() for file in (root / "train/n01440764").iterdir()],
        r"train/n01440764: holds no photos",
    ),
    "a class in train only": (
        lambda root: (root / "val/n02979186").rename(root / "val/n02979187"), r"class n02979186 .cassette player. is in train only"
    ),
    "too few classes": (
        lambda root: shutil.rmtree(root / "train/n01440764"),
        r"train: has 3 class folders for data.classes=4; data.classes=3 would fit",
    ),
    "files, not folders": (
        lambda root: (shutil.rmtree(root / "val"), (root / "val").mkdir(), (root / "val/1.JPEG").touch()),
        r"val: holds files but no class folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(small: Path, name: str) -> None:
    spoil, message = BAD_FOLDERS[name]
    spoil(small)
    with pytest.raises(DataError, match=message) as refused:
        data(small).prepare()
    assert "\n" not in str(refused.value)


def test_one_class_of_a_thousand_missing_or_misspelt_is_named(mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini / "val", tmp_path / "train", copy_function=os.link)
    shutil.copytree(mini / "val", tmp_path / "val", copy_function=os.link)
    ImageNet(tmp_path).prepare()
    (tmp_path / "train/n01440764").rename(tmp_path / "train/n01440765")
    with pytest.raises(
        DataError, match=r"train: n01440765 is no class of ImageNet-1K, and n01440764 \(tench\) is missing"
    ):
        ImageNet(tmp_path).prepare()
    shutil.rmtree(tmp_path / "train/n01440765")
    with pytest.raises(DataError, match=r"has 999 class folders for data.classes=1000, n01440764 \(tench\) is missing"):
        ImageNet(tmp_path).prepare()


def test_a_run_on_bad_folders_ends_in_one_line(bam_train: Command, small: Path) -> None:
    ended = bam_train(f"data_root={small}", "data=imagenet", "recipe=imagenet", "backbone=resnet18_imagenet")
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert "has 4 class folders for data.classes=1000" in line


def test_the_digest_is_of_names_and_sizes(small: Path) -> None:
    before = data(small).digest
    assert before.startswith("photos 28 ")
    path = first_photo(small)
    path.rename(path.with_name("other.JPEG"))
    renamed = data(small).digest
    path.with_name("other.JPEG").rename(path)
    assert renamed != before == data(small).digest
    shutil.copy(path, path.with_name("twice.JPEG"))
    assert data(small).train_size == 29
    (path.parent / ".hidden.JPEG").touch()
    (path.parent / "list.txt").touch()
    assert data(small).train_size == 29


def test_the_official_photos_and_no_photos_have_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of finished runs is made where the photos are not; photos made smaller are others."""
    absent = ImageNet(tmp_path)
    assert (absent.train_size, absent.test_size) == (1_281_167, 50_000)

    def made_up(share: float) -> dict[str, Photos]:
        found = {}
        for split, count in imagenet.COUNTS.items():
            labels = np.arange(count) % 1000
            sizes = np.full(count, int(imagenet.TARS[split] * share / count))
            folder = imagenet.FOLDERS[split]  # type: ignore[index]
            found[folder] = Photos(tmp_path, tuple(SYNSETS), np.zeros(count, dtype="S1"), labels, sizes)
        return found

    official, smaller = made_up(0.9935), made_up(0.4)
    digest = absent.digest
    monkeypatch.setattr(imagenet, "photos_in", lambda folder: official[folder.name])
    assert ImageNet(tmp_path).digest == digest
    monkeypatch.setattr(imagenet, "photos_in", lambda folder: smaller[folder.name])
    assert ImageNet(tmp_path).digest != digest
    assert ImageNet(tmp_path / "a", classes=10).digest != digest


def test_a_large_listing_is_kept_until_a_folder_changes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(photos, "KEPT_FROM", 1)
    for folder in small.rglob("n0*"):
        os.utime(folder, (1, 1))
    before = data(small).digest
    [kept, _] = sorted((tmp_path / "cache/bam_exp").iterdir())
    for spoil in (lambda: None, lambda: kept.write_bytes(b"PK"), kept.unlink):
        spoil()
        photos._remembered.cache_clear()
        assert data(small).digest == before
    photos._remembered.cache_clear()
    with monkeypatch.context() as without:  # served from the file: the classes' folders are not read
        without.setattr(photos.os, "fsencode", pytest.fail)
        assert data(small).digest == before
    data(small).prepare()
    first_photo(small).write_bytes(bytes(first_photo(small).stat().st_size))
    data(small).prepare()  # what has passed is not looked at again
    (first_photo(small).parent / "more.JPEG").touch()
    assert data(small).digest != before


# --- nvJPEG's way ----------------------------------------------------------------------------------------------------


def test_the_way_of_nvjpeg_gives_the_same_batch(small: Path) -> None:
    """On the CPU, with libjpeg in nvJPEG's place: files in, the same photos, labels and crops out, broken ones named."""
    disguised(small)
    cut(sorted((small / "train/n02102040").iterdir())[0])
    empty(sorted((small / "train/n02102040").iterdir())[1])
    found = photos_in(small / "train")
    assert found is not None
    part = Part(3, np.random.default_rng(0).permutation(28))
    made = Workshop(found, 32, 5, train=True, encoded=False)[part]
    encoded = Workshop(found, 32, 5, train=True, encoded=True)[part]
    assert len(encoded.decoded) == 4  # CMYK and three PNGs
    ours = photo_loader._made(encoded, found, 32, torch.device("cpu"))
    assert torch.equal(ours.labels, made.labels)
    assert len(made.labels) == 26
    assert (ours.pixels.int() - made.pixels.int()).abs().max() <= 1
    assert sorted(ours.broken) == sorted(made.broken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_serves_nearly_the_cpus_batches(small: Path) -> None:
    disguised(small)
    on_gpu = train(small, device="cuda", workers=2)
    assert on_gpu.nvjpeg
    batches = list(on_gpu)
    for (images, labels), (other, same) in zip(batches, train(small), strict=True):
        assert images.is_cuda
        assert torch.equal(labels.cpu(), same)
        assert (images.cpu() - other).abs().mean() < 0.02  # a level is 0.017
    assert equal(on_gpu, batches)


# --- from the official tars ------------------------------------------------------------------------------------------


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imagenet_folders", REPOSITORY / "scripts/imagenet_folders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar_of(files: dict[str, bytes], path: Path, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


@pytest.fixture
def tars(tmp_path: Path, script: ModuleType) -> Path:
    """Two classes of two train photos, three val photos; the devkit also has a synset that is no class."""
    folder = tmp_path / "tars"
    folder.mkdir()
    train_tar = {}
    for wnid in ("n02", "n01"):
        inner = tar_of({f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() for i in (7, 3)}, folder / "inner.tar")
        train_tar[f"{wnid}.tar"] = inner.read_bytes()
        inner.unlink()
    tar_of(train_tar, folder / script.TRAIN)
    tar_of({f"ILSVRC2012_val_0000000{i}.JPEG": f"val {i}".encode() for i in (2, 3, 1)}, folder / script.VAL)
    synsets = np.array(
        [(1, "n02", "b", 0), (2, "n01", "a", 0), (3, "n00", "both", 2)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    meta = BytesIO()
    savemat(meta, {"synsets": synsets})
    tar_of({script.META: meta.getvalue(), script.LABELS: b"2\n1\n1\n"}, folder / script.DEVKIT, "w:gz")
    return folder


def run_script(script: ModuleType, tars: Path, monkeypatch: pytest.MonkeyPatch, **wrong: str) -> None:
    digests = {name: md5((tars / name).read_bytes()).hexdigest() for name in script.MD5} | wrong
    options = [
        f"--{kind}-md5={digests[name]}" for kind, name in zip(("train", "val", "devkit"), script.MD5, strict=True)
    ]
    monkeypatch.setattr(sys, "argv", ["imagenet_folders", str(tars), str(tars.parent), *options])
    script.main()


MADE = {
    "train/n01/n01_3.JPEG": b"n01 3", "train/n01/n01_7.JPEG": b"n01 7",
    "train/n02/n02_3.JPEG": b"n02 3", "train/n02/n02_7.JPEG": b"n02 7",
    "val/n01/ILSVRC2012_val_00000001.JPEG": b"val 1",
    "val/n02/ILSVRC2012_val_00000002.JPEG": b"val 2", "val/n02/ILSVRC2012_val_00000003.JPEG": b"val 3",
}  # fmt: skip


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("stop_after", [None, 0, 1, 2, 3, 5, 6])
def test_the_tars_become_folders_however_often_it_is_stopped(
    script: ModuleType, tars: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None
) -> None:
    if stop_after is not None:
        original, written = script.write, []

        def write(path: Path, content: Any) -> None:
            if len(written) == stop_after:
                path.with_name(f".{path.name}.part").write_bytes(b"half")
                raise KeyboardInterrupt
            written.append(path)
            original(path, content)

        with monkeypatch.context() as stopped:
            stopped.setattr(script, "write", write)
            with pytest.raises(KeyboardInterrupt):
                run_script(script, tars, monkeypatch)
    run_script(script, tars, monkeypatch)
    whole = {name: content for name, content in files_in(tars.parent / "imagenet").items() if "/." not in name}
    assert whole == MADE


def test_a_tar_with_another_digest_is_refused(script: ModuleType, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"ILSVRC2012_img_val.tar: its md5 is \w+ and should be 0123"):
        run_script(script, tars, monkeypatch, **{script.VAL: "0123"})
    made = files_in(tars.parent / "imagenet")
    assert made == {name: content for name, content in MADE.items() if name.startswith("train")}


@pytest.mark.parametrize("name", ["../out.JPEG", "/tmp/out.JPEG", "a/b.JPEG", ".hidden"])
def test_a_tar_that_reaches_out_of_its_folder_is_refused(
    script: ModuleType, tars: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inner = tar_of({name: b"gotcha"}, tars / "inner.tar")
    tar_of({"n01.tar": inner.read_bytes()}, tars / script.TRAIN)
    with pytest.raises(SystemExit, match="not the plain name of a file"):
        run_script(script, tars, monkeypatch)
    assert not [path for path, content in files_in(tars.parent).items() if content == b"gotcha"]
