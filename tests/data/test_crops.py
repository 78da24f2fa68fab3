"""Crops and pixels of photos are torchvision's, and evaluation is its own transform to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import RandomResizedCrop, functional

from bam_exp.data.photos import crops
from bam_exp.data.photos.crops import Crop, decoded, random_crop, random_square, random_squares, read

from .photos import data


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
