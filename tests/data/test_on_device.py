"""DeviceLoader: torchvision's pixels and distribution; batches are a function of (seed, epoch, index) alone."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from bam_exp.data import DeviceLoader

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def numbered(count: int = 50, height: int = 6, width: int = 7) -> tuple[Tensor, Tensor]:
    """Random images whose labels are their indices."""
    images = torch.randint(
        256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    return images, torch.arange(count)


def loader(images: Tensor, labels: Tensor, **changes: Any) -> DeviceLoader:
    settings: dict[str, Any] = {"batch_size": 8, "mean": MEAN, "std": STD, "seed": 5, "device": "cpu"}
    return DeviceLoader(images, labels, **{**settings, **changes})


def random(**changes: Any) -> DeviceLoader:
    return loader(*numbered(), **{"pad": 2, "flip": True, "shuffle": True, **changes})


def joined(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(a: Iterable[tuple[Tensor, Tensor]], b: Iterable[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def normalised(images: Tensor) -> Tensor:
    scaled = functional.to_dtype(images, torch.float32, scale=True)
    return torch.as_tensor(functional.normalize(scaled, list(MEAN), list(STD)))


def test_augmented_pixels_are_torchvisions_at_some_offset() -> None:
    images, labels = numbered()
    pad, (height, width) = 2, images.shape[2:]
    padded = functional.pad(images, [pad])
    crops = [functional.crop(padded, y, x, height, width) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    candidates = torch.stack([normalised(c) for crop in crops for c in (crop, functional.horizontal_flip(crop))])
    served, index = joined(loader(images, labels, pad=pad, flip=True, shuffle=True))
    matches = (candidates[:, index] == served).flatten(2).all(2).sum(0)
    assert matches.tolist() == [1] * len(images)


def test_plain_pixels_are_torchvisions_in_order() -> None:
    images, labels = numbered()
    served, index = joined(loader(images, labels))
    assert torch.equal(index, labels)
    assert torch.equal(served, normalised(images))


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    """162 equally likely outcomes, read off two pixels: chi-square below its 99.99 % point (238 at 161 degrees)."""
    count, pad = 162 * 100, 4
    images = torch.zeros(count, 3, 16, 18, dtype=torch.uint8)
    images[:, 0, 8, 8] = images[:, 1, 8, 9] = 255
    served, _ = joined(loader(images, torch.zeros(count), batch_size=900, pad=pad, flip=True, shuffle=True))
    red, green = (served[:, channel].flatten(1).argmax(1) for channel in (0, 1))
    flipped = green < red
    y, x = 8 + pad - red // 18, torch.where(flipped, 17 - red % 18, red % 18) - 8 + pad
    outcomes = torch.bincount((y * 9 + x) * 2 + flipped, minlength=162)
    assert len(outcomes) == 162
    assert ((outcomes - 100.0) ** 2 / 100).sum() < 238


def test_every_sample_once_an_epoch_and_no_batch_dropped() -> None:
    train = random()
    batches = list(train)
    assert [len(y) for _, y in batches] == [8] * 6 + [2]
    assert len(train) == 7
    assert sorted(joined(batches)[1].tolist()) == list(range(50))


def test_a_function_of_seed_and_epoch_only() -> None:
    torch.manual_seed(0)
    one = random()
    first = list(one)
    one.set_epoch(1)
    second = list(one)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    other = random()
    other.set_epoch(1)
    assert equal(other, second)
    other.set_epoch(0)
    assert equal(other, first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(joined(first)[1], joined(second)[1])
    assert not torch.equal(joined(first)[1], joined(random(seed=6))[1])


def test_an_images_crop_does_not_depend_on_the_order() -> None:
    shuffled, index = joined(random())
    ordered, _ = joined(random(shuffle=False))
    assert torch.equal(shuffled, ordered[index])


@pytest.mark.parametrize("handed_out", range(8))
def test_resumed_epoch_goes_on_bitwise(handed_out: int) -> None:
    train = random()
    train.set_epoch(3)
    batches = iter(train)
    for _ in range(handed_out):
        next(batches)
    state = train.state_dict()
    assert state == {"epoch": 3, "batch": handed_out}

    resumed = random()
    resumed.load_state_dict(state)
    resumed.set_epoch(3)  # as a trainer does at the start of every epoch
    assert resumed.state_dict() == state
    assert equal(batches, resumed)
    assert equal(train, resumed)  # the same epoch again is whole

    resumed.load_state_dict(state)
    train.set_epoch(4)
    resumed.set_epoch(4)  # another epoch starts at its first batch
    assert equal(train, resumed)


def test_epoch_may_be_announced_after_iter() -> None:
    train, other = random(), random()
    batches = iter(train)
    train.set_epoch(2)
    other.set_epoch(2)
    assert equal(batches, other)


def test_an_abandoned_iteration_does_not_shorten_the_next() -> None:
    train = random()
    next(iter(train))
    assert len(list(train)) == len(train)


def test_shares_in_order_are_the_single_process_batches() -> None:
    for batch_size, world_size in ((8, 2), (7, 1), (16, 2), (13, 3), (26, 8)):
        shares = [random(batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
        together = [joined(parts) for parts in zip(*shares, strict=True)]
        assert equal(together, random(batch_size=batch_size))


def test_a_process_without_samples_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size=7: a batch of 1 of the 50 images cannot be shared by 2 processes"
    ):
        random(batch_size=7, rank=0, world_size=2)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format(memory_format: torch.memory_format) -> None:
    for (images, labels), (other, _) in zip(random(memory_format=memory_format), random(), strict=True):
        assert images.is_contiguous(memory_format=memory_format)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(images, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_serves_the_cpus_batches_without_waiting() -> None:
    on_gpu = iter(random(device="cuda"))
    batches = [next(on_gpu)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        batches += on_gpu
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert equal([(images.cpu(), labels.cpu()) for images, labels in batches], random())
