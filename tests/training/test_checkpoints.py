"""Checkpoints: what was written is what is read, damage is found, an older generation stands in, a failed write loses nothing."""

import errno
import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command

from bam_exp.files import write_atomically
from bam_exp.training.checkpoints import CheckpointError, Checkpoints
from bam_exp.training.writing import CheckpointWriter


def content(step: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(step)
    return {"global_step": step, "state_dict": {"weight": torch.randn(64, 32, generator=generator)}}


def save(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save_checkpoint(content(step), folder)
    return checkpoints


def test_the_newest_of_two_generations_is_read_back(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, 10)
    assert len(list(tmp_path.iterdir())) == 2
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    read = checkpoints.load_checkpoint(newest)
    assert read["global_step"] == 10
    assert torch.equal(read["state_dict"]["weight"], content(10)["state_dict"]["weight"])  # type: ignore[index]


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_cut_file_is_passed_over_for_the_older(tmp_path: Path, share: float) -> None:
    checkpoints = save(tmp_path, 1, 2)
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    os.truncate(newest, int(newest.stat().st_size * share))
    said: list[str] = []
    older = checkpoints.newest(said.append)
    assert older is not None
    assert "-00000001-" in older.name
    assert len(said) == 1
    assert newest.name in said[0]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    newest = checkpoints.newest(pytest.fail)
    assert newest is not None
    good = newest.read_bytes()
    chance = random.Random(0)
    for _ in range(200):
        bit = chance.randrange(len(good) * 8)
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(bad)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.load_checkpoint(newest)
        older = checkpoints.newest(lambda _line: None)
        assert older is not None
        assert "-00000001-" in older.name


def test_nothing_is_left_when_no_generation_holds(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert checkpoints.newest(lambda _line: None) is None


def test_a_pickle_that_calls_something_is_not_loaded(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "called"),))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_checkpoint({"global_step": 1, "bad": Call()}, tmp_path)
    [path] = tmp_path.glob("checkpoint-*.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoints.load_checkpoint(path)
    said: list[str] = []
    assert checkpoints.newest(said.append) is None
    assert "cannot be read" in said[0]
    assert not (tmp_path / "called").exists()


def test_a_failed_write_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = save(tmp_path, 1)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device") as raised:
        checkpoints.save_checkpoint(content(2), tmp_path)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_single_failed_write_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one failed write torch.save goes on, and reports positions in its archive that do not fit."""

    class Failing(io.RawIOBase):
        writes = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == 1:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            return len(data)

    original = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _: original(content, io.BufferedWriter(Failing())))
    with pytest.raises(CheckpointError, match=os.strerror(errno.EDQUOT)):
        Checkpoints(tmp_path).save_checkpoint(content(1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_checkpoint_after_two_damaged_ones_is_kept(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20)
    for path in tmp_path.glob("checkpoint-*.pt"):
        flipped = bytearray(path.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
    checkpoints.save_checkpoint({"global_step": 3}, tmp_path)
    newest = checkpoints.newest(lambda _line: None)
    assert newest is not None
    assert newest.name.startswith("checkpoint-00000003-")


def test_it_says_what_it_continues_from(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20)
    paths = sorted(tmp_path.glob("checkpoint-*.pt"))
    said: list[str] = []
    paths[1].write_bytes(b"")
    assert checkpoints.newest(said.append) == paths[0]
    paths[0].write_bytes(b"")
    assert checkpoints.newest(said.append) is None
    assert said == [
        f"{paths[1].name} is damaged; continuing from {paths[0].name}",
        f"{paths[0].name} is damaged; no other is left, so the run starts anew",
    ]


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "a" * 16).save_checkpoint({"global_step": 5}, tmp_path)
    mine = Checkpoints(tmp_path, "b" * 16)
    mine.save_checkpoint({"global_step": 4}, tmp_path)
    said: list[str] = []
    newest = mine.newest(said.append)
    assert newest is not None
    assert newest.name.startswith("checkpoint-00000004-")
    assert "belongs to another run" in said[0]
    [foreign] = tmp_path.glob("*.unusable")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        mine.load_checkpoint(foreign.rename(foreign.with_suffix("")))


# In a thread


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that syncs no file before this event is set."""
    synced, fsync = threading.Event(), os.fsync

    def wait(descriptor: int) -> None:
        assert synced.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    yield synced
    synced.set()


def test_a_thread_writes_what_was_there_when_it_was_told_to(tmp_path: Path, slow_disk: threading.Event) -> None:
    weight = torch.arange(6.0).view(1, 2, 1, 3).to(memory_format=torch.channels_last)
    state: dict[str, Any] = {
        "weight": weight,
        "history": [{"loss": 1.0}],
        "by_parameter": {0: {"momentum": weight + 1}},
    }
    checkpoint = {"global_step": 7, **state}
    writer = CheckpointWriter(tmp_path, "a" * 16)
    writer.save_checkpoint(checkpoint, tmp_path)
    assert writer.is_writing
    writer.check()
    weight.add_(100)
    state["history"][0]["loss"] = 2.0
    state["history"].append({"loss": 3.0})
    state["by_parameter"][0]["momentum"].zero_()
    assert not list(tmp_path.glob("checkpoint-*"))
    slow_disk.set()
    writer.finish()
    newest = writer.newest(pytest.fail)
    assert newest is not None
    read = writer.load_checkpoint(newest)
    assert torch.equal(read["weight"], weight - 100)
    assert read["weight"].stride() == weight.stride()
    assert torch.equal(read["by_parameter"][0]["momentum"], weight - 99)
    assert (read["history"], read["global_step"]) == ([{"loss": 1.0}], 7)


def test_an_error_of_the_thread_is_raised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    writer.save_checkpoint(content(1), tmp_path)
    writer.teardown()  # raises nothing, since it may follow another error
    with pytest.raises(CheckpointError, match="No space left on device"):
        writer.check()
    writer.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_copy_of_a_gpu_is_that_of_its_step(tmp_path: Path) -> None:
    weight = torch.zeros(2**26, device="cuda")
    writer = CheckpointWriter(tmp_path)
    for step in range(1, 4):
        weight.add_(1)
        writer.save_checkpoint({"global_step": step, "weight": weight}, tmp_path)
        weight.add_(10)
        writer.finish()
        newest = writer.newest(pytest.fail)
        assert newest is not None
        assert writer.load_checkpoint(newest)["weight"].unique().tolist() == [11.0 * step - 10]


def test_a_run_saves_by_time(bam_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    save = Checkpoints.save_checkpoint

    def noted(self: Checkpoints, checkpoint: dict[str, Any], *rest: Any) -> None:
        steps.append(checkpoint["global_step"])
        save(self, checkpoint, *rest)

    monkeypatch.setattr(Checkpoints, "save_checkpoint", noted)
    assert bam_train(*TINY).code == 0  # two epochs of five steps, in a second
    assert steps == [10]
    steps.clear()
    monkeypatch.setattr(CheckpointWriter, "is_writing", False)
    assert bam_train(*TINY, "seed=1", "trainer.checkpoint_minutes=1.0e-9").code == 0
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_run_ends_at_the_batch_after_a_failed_write(bam_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def full(self: Checkpoints, checkpoint: dict[str, Any], *_: Any) -> None:
        tried.append(checkpoint["global_step"])
        raise CheckpointError("folder: cannot write a checkpoint (no space left on device)")

    monkeypatch.setattr(Checkpoints, "save_checkpoint", full)
    ended = bam_train(*TINY, "recipe.epochs=400", "trainer.checkpoint_minutes=1.0e-9")
    assert ended.code == 1
    assert len(tried) == 1
    [line] = [line for line in ended.err.splitlines() if "space left" in line]
    assert line.startswith("bam-train: ")
    assert "cannot write a checkpoint (no space left on device)" in line
    assert "Traceback" not in ended.err
