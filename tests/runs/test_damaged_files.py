"""Every file that is read, spoilt in every way: one line that names it, no traceback, no line of the store lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from bam_exp.errors import ConfigError
from bam_exp.runs.folder import failure_of, read_progress
from bam_exp.runs.store import collect

RUN = Path("runs/shapes_small/resnet20-widen0.5/bam-reduction8/demo/seed0")

SPOILERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "an empty mapping": lambda _: b"{}",
    "cut short": lambda content: content[: len(content) // 2],
    "NaN": lambda content: content.replace(b'"top1_error": 27', b'"top1_error": NaN, "x": 27'),
    "another type": lambda content: content.replace(b'"metrics": {', b'"metrics": null, "x": {'),
    "hardware null": lambda content: content.replace(b'"hardware": {', b'"hardware": null, "x": {'),
    "conflict markers": lambda content: b"<<<<<<< HEAD\n" + content + b"=======\n>>>>>>> other\n",
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "deeply nested": lambda _: b"[" * 100_000,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of the demo, as the command leaves it, and the store made from it."""
    from conftest import run_of

    from bam_exp.runs.folder import BEGUN, RESULT

    folder = tmp_path_factory.mktemp("finished")
    run = run_of("+row/demo=bam", "seed=0", f"output_dir={folder}")
    run.folder.mkdir(parents=True)
    begun = {
        "fingerprint": run.fingerprint,
        "command": run.command,
        "start": "2026-01-01",
        "figures_from": run.figures_from,
    }
    metrics = {
        "top1_error": 27.05, "top5_error": 5.0, "test_loss": 0.9, "train_loss": 0.8, "best_top1_error": 27.05, "best_epoch": 3,
        "test_images": 2000,
    }  # fmt: skip
    hardware = {"device": "CPU", "cpu": "a CPU", "threads": 2, "precision": "float32"}
    result = {
        **begun,
        "metrics": metrics,
        "params": 70000,
        "macs": 10,
        "hardware": hardware,
        "versions": {"torch": "2"},
    }
    (run.folder / BEGUN).write_text(json.dumps(begun))
    (run.folder / RESULT).write_text(json.dumps(result))
    (folder / "results").mkdir()
    collect(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def spoil(path: Path, how: str) -> bool:
    """Spoil a file; whether that changed it."""
    before = path.read_bytes()
    path.write_bytes(SPOILERS[how](before))
    return path.read_bytes() != before


@pytest.fixture
def programs(bam_tables: Command, bam_train: Command) -> dict[str, Command]:
    return {"bam-tables": bam_tables, "bam-train": bam_train}


COMMANDS = (
    ("bam-tables", "report", "demo"),
    ("bam-tables", "status", "demo"),
    ("bam-tables", "plan", "demo"),
    ("bam-train", "+row/demo=bam", "seed=0"),
)


@pytest.mark.parametrize("how", SPOILERS)
@pytest.mark.parametrize("name", ["result.json", "run.json"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_spoilt_file_of_a_run_is_named(
    programs: dict[str, Command], copy: Path, command: tuple[str, ...], name: str, how: str
) -> None:
    if not spoil(copy / RUN / name, how):
        pytest.skip("this way changes nothing in this file")
    if name == "run.json":
        (copy / RUN / "result.json").unlink()
    store = (copy / "results" / "runs.csv").read_text()
    program, *words = command
    ended = programs[program](*words)
    assert "Traceback" not in ended.err + ended.out
    assert ended.code == (2 if program == "bam-train" else 0)
    if program == "bam-train":
        assert name in ended.err
        assert len(ended.err.strip().splitlines()) == 1
    assert (copy / "results" / "runs.csv").read_text() == store  # a damaged run takes no line away


@pytest.mark.parametrize("how", [how for how in SPOILERS if how not in ("NaN", "another type", "hardware null")])
@pytest.mark.parametrize("words", [("report", "demo"), ("plan", "demo")], ids=" ".join)
def test_a_spoilt_store_is_named_and_kept(bam_tables: Command, copy: Path, words: tuple[str, ...], how: str) -> None:
    path = copy / "results" / "runs.csv"
    if not spoil(path, how):
        pytest.skip("this way changes nothing in this file")
    spoilt = path.read_bytes()
    ended = bam_tables(*words)
    assert "Traceback" not in ended.err + ended.out
    assert ended.code == 2
    assert "runs.csv" in ended.err
    assert path.read_bytes() == spoilt


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",0,27.05,", ",abc,27.05,", "seed=abc"),
        (",0,27.05,", ",0,nan,", "top1_error=nan"),
        (",0,27.05,", ",0,twenty,", "top1_error=twenty"),
        (",0,27.05,", ",0,", "has fewer cells"),
        (",0,27.05,", ",0,27.05,1,", "has more cells"),
    ],
)
def test_an_odd_cell_of_the_store_is_named_with_its_line(copy: Path, old: str, new: str, said: str) -> None:
    path = copy / "results" / "runs.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=f"line 2: {said}"):
        collect(copy)


def test_a_line_that_occurs_twice_is_named(copy: Path) -> None:
    path = copy / "results" / "runs.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match=r"line 3: .*seed0 occurs twice"):
        collect(copy)


@pytest.mark.parametrize("name", ["seed0.bak", "seed0 (copy)", "seedless", "seed"])
def test_a_copy_beside_a_run_is_no_run(bam_tables: Command, copy: Path, name: str) -> None:
    before = collect(copy)
    shutil.copytree(copy / RUN, (copy / RUN).with_name(name))
    assert collect(copy) == before
    for words in (("report", "demo"), ("plan", "demo"), ("status", "demo")):
        assert bam_tables(*words).code == 0


@pytest.mark.parametrize("how", SPOILERS)
def test_spoilt_notes_of_a_run_are_no_obstacle(copy: Path, how: str) -> None:
    (copy / RUN / "progress.json").write_text('{"epoch": 1, "epochs": 3, "seconds_to_go": 5, "time": 1}')
    (copy / RUN / "error.json").write_text('{"reason": "it failed"}')
    assert read_progress(copy / RUN) is not None
    assert failure_of(copy / RUN) == "it failed"
    for name in ("progress.json", "error.json"):
        if spoil(copy / RUN / name, how):
            assert read_progress(copy / RUN) is None or name == "error.json"
    assert failure_of(copy / RUN) is not None


def test_what_cannot_be_used_is_listed(copy: Path) -> None:
    (copy / RUN / "result.json").write_text("{}")
    store = collect(copy)
    assert len(store) == 1  # from runs.csv
    assert len(store.unusable) == 1
    assert "result.json" in store.unusable[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"top1_error": 27.05,', "", "metrics has none of top1_error"),
        ('"top1_error": 27.05', '"top1_error": "12"', "metrics.top1_error is wrong"),
        ('"top1_error": 27.05', '"top1_error": 1e308', "metrics.top1_error is wrong"),
        ('"params": 70000', '"params": "x"', "params is wrong"),
        (
            '"threads": 2',
            '"threads": 2, "precision": "float32", "seconds_per_epoch": "x"',
            "seconds_per_epoch=x: should be",
        ),
    ],
    ids=["no figure", "text", "too large", "params", "another column"],
)
def test_an_edited_result_takes_no_figure_from_the_store(
    copy: Path, bam_tables: Command, old: str, new: str, said: str
) -> None:
    result, store = copy / RUN / "result.json", copy / "results" / "runs.csv"
    before = store.read_bytes()
    text = result.read_text()
    assert text.count(old) == 1
    result.write_text(text.replace(old, new))
    ended = bam_tables("report", "demo")
    assert "Traceback" not in ended.err
    assert said in ended.out + ended.err
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda head: head.replace("top1_error", "seed", 1), "the column seed occurs twice"),
        (lambda head: head.replace("top1_error", "top_1_error", 1), "there is no column 'top_1_error'"),
    ],
    ids=["twice", "unknown"],
)
def test_a_store_with_another_head_is_refused(
    copy: Path, bam_tables: Command, spoil: Callable[[str], str], said: str
) -> None:
    store = copy / "results" / "runs.csv"
    head, newline, rest = store.read_text().partition("\n")
    store.write_text(spoil(head) + newline + rest)
    before = store.read_bytes()
    ended = bam_tables("report", "demo")
    assert ended.code == 2
    assert said in ended.err
    assert store.read_bytes() == before


def test_a_store_with_a_byte_order_mark_is_read(copy: Path, bam_tables: Command) -> None:
    store = copy / "results" / "runs.csv"
    store.write_bytes(b"\xef\xbb\xbf" + store.read_bytes())
    assert bam_tables("report", "demo").code == 0
