"""`bam-bench` measures what it says: the counter counts, the released form is the paper's formula and breaks the layout,
variants take turns, a wrong result is found out before it is timed, and files keep what other sub-commands measured.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Command, _command
from PIL import Image
from torch import Tensor

from bam_exp.attention import BAM
from bam_exp.bench import detectors, epoch, forms, input, measure, module, table
from bam_exp.bench.forms import LiteralBAM, network_of
from bam_exp.bench.measure import Bench, Counter, Saved
from bam_exp.bench.step import Step, ladder
from bam_exp.commands.bench import main
from bam_exp.complexity import complexity
from bam_exp.data.photos.crops import Crop


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bam_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`bam-bench` in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return _command(main, "bam-bench", monkeypatch, capfd)


MAP = 2 * 3 * 4 * 5 * 4  # bytes of the tensors below

COUNTED: dict[str, tuple[Callable[[Tensor, Tensor], object], int, int]] = {
    "two read, one written": (lambda a, b: a + b, 1, 3 * MAP),
    "the same twice is read once": (lambda a, b: a * a, 1, 2 * MAP),
    "in place": (lambda a, b: a.mul_(b), 1, 3 * MAP),
    "a given output": (lambda a, b: torch.add(a, a, out=b), 1, 2 * MAP),
    "views": (lambda a, b: a.permute(0, 2, 3, 1).flatten(1, 2)[1:].detach(), 0, 0),
    "memory alone": (lambda a, b: torch.empty_like(a), 0, 0),
    "an expanded dimension": (lambda a, b: a + b[:, :1, :1, :1].expand_as(a), 1, 2 * MAP + 8),
    "many at once": (lambda a, b: torch._foreach_add_([a, b], 1), 1, 4 * MAP),
}


@pytest.mark.parametrize("case", COUNTED)
def test_the_counter_counts_what_computes_and_its_bytes(case: str) -> None:
    call, kernels, moved = COUNTED[case]
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    with Counter() as counter:
        call(a, b)
    assert (counter.kernels, counter.bytes) == (kernels, moved)


def test_saved_bytes_count_each_storage_once_and_no_given_tensor() -> None:
    x, weight = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    saved = Saved([weight])
    with saved:
        product = x * weight  # keeps both
        (product.exp() * x).sum()  # keeps exp's result, twice, and x again
    assert saved.bytes == 2 * 40


@pytest.mark.parametrize("knobs", [{}, forms.RELEASED])
def test_the_released_form_computes_the_same_and_breaks_the_layout(knobs: dict[str, str]) -> None:
    torch.manual_seed(0)
    ours = BAM(32, **knobs).double()
    literal = LiteralBAM(32, **knobs).double()
    literal.load_state_dict(ours.state_dict())
    x = torch.randn(4, 32, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    first, second = ours(x), literal(x)
    torch.testing.assert_close(first, second)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert not second.is_contiguous(memory_format=torch.channels_last)


def test_variants_take_turns_there_and_back() -> None:
    called: list[str] = []
    calls = {name: lambda name=name: called.append(name) for name in "ABC"}
    times = Bench("cpu", None, 4).interleave(calls, count=2, warm_up=1)
    assert "".join(called) == "ABC" + "AABBCC" + "CCBBAA" + "AABBCC" + "CCBBAA"
    assert [len(times[name].seconds) for name in "ABC"] == [4, 4, 4]


def test_overhead_is_of_pairs_of_a_round() -> None:
    times, baseline = measure.Times([1.1, 2.2, 30.0]), measure.Times([1.0, 2.0, 10.0])
    assert measure.overhead(times, baseline)["overhead %"] == pytest.approx(10)


@pytest.mark.parametrize("cuda", [False, True])
def test_the_ladder_goes_from_the_peer_to_ours_with_a_baseline_for_each_overhead(cuda: bool) -> None:
    variants = {variant.name: variant for variant in ladder(cuda, compiled=True)}
    assert next(iter(variants)) == "typical peer step"
    for variant in variants.values():
        if variant.baseline:
            other = variants[variant.baseline]
            assert other.attention == "none"
            assert variant.attention != "none"
            for key in ("channels_last", "precision", "compile", "sgd", "syncs"):
                assert getattr(other, key) == getattr(variant, key)
    eager = {variant.counted_as for variant in variants.values() if variant.compile == "off"}
    assert {variant.counted_as for variant in variants.values()} <= eager
    assert ("+ CUDA graphs" in variants) == cuda


def test_every_variant_of_a_network_starts_from_the_same_weights() -> None:
    plain, ours, literal = (network_of("resnet20", attention).state_dict() for attention in ("none", "bam", "released"))
    for name, weight in plain.items():
        assert torch.equal(weight, ours[name])
        assert torch.equal(weight, literal[name])
    again = network_of("resnet20", "bam", literal=True).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in ours.items())


def test_a_step_learns_what_it_is_shown() -> None:
    variant = ladder(False, compiled=False)[-2]
    assert variant.attention == "bam"
    step = Step(variant, network_of("resnet20", "bam"), torch.randn(8, 3, 32, 32), torch.arange(8))
    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0]


SMALL = ("--no-compile", "--batch", "4", "--rounds", "2", "--device", "cpu", "--threads", "1")


def test_module_prints_its_table_and_keeps_it(
    bam_bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAPS", ((256, 32), (32, 8)))
    ended = bam_bench("module", *SMALL)
    assert ended.code == 0
    assert "4 x 256 x 32 x 32" in ended.out
    [table] = (tmp_path / "results/bench").glob("*.csv")
    with table.open(newline="") as file:
        rows = {(row["of"], row["variant"]): row for row in csv.DictReader(file)}
    assert len({of for of, _ in rows}) == 2
    for (_, variant), row in rows.items():
        assert float(row["ms"]) > 0
        assert float(row["% of byte ceiling"]) > 0
        assert row["check"] == ("" if "copy" in variant else "ok")
        literal = variant in ("released BAM", "our BAM in the released form")
        assert row["keeps layout"] == ("" if "copy" in variant else "NO" if literal else "yes")
    assert float(rows["4 x 256 x 32 x 32", "our BAM"]["of the released"]) <= 0.2
    assert table.with_suffix(".png").stat().st_size > 10_000
    assert "| our BAM |" in table.with_suffix(".md").read_text()


def test_step_compares_every_variant_with_float64_first(bam_bench: Command, tmp_path: Path) -> None:
    ended = bam_bench("step", "--backbone", "resnet20", *SMALL, "--agree", "2")
    assert ended.code == 0
    [table] = (tmp_path / "results/bench").glob("*.csv")
    with table.open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    steps = [row for row in rows.values() if row["of"] == "resnet20, batch 4"]
    assert [row["variant"] for row in steps] == [variant.name for variant in ladder(False, compiled=False)]
    assert {row["check"] for row in steps} == {"ok"}
    macs = []
    for attention in ("none", "bam"):
        with torch.device("meta"):
            network = network_of("resnet20", attention)
        macs.append(complexity(network, 32).macs)
    assert float(rows["+ our BAM"]["FLOPs overhead %"]) == pytest.approx(100 * (macs[1] / macs[0] - 1), rel=0.1)
    assert float(rows["eager"]["largest difference"]) == 0


def test_a_wrong_attention_is_found_out(bam_bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(BAM):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y + 1e-3 * x.detach()

    monkeypatch.setattr(module, "MAPS", ((32, 8),))
    monkeypatch.setattr(module, "BAM", Wrong)
    ended = bam_bench("module", *SMALL)
    assert ended.code == 1
    assert "our BAM" in ended.err.splitlines()[-1]


def test_a_sub_command_replaces_its_own_rows_only(tmp_path: Path) -> None:
    context = Bench("cpu", 1, 1).context()
    row = {"of": "x", "variant": "v", "ms": 1.23456, "ms low": 1.0, "ms high": 2.0}
    table.write(tmp_path, "step", [row, {**row, "variant": "w"}], context)
    table.write(tmp_path, "input", [{"of": "y", "variant": "u", "images/s": 12345.6}], context)
    csv_file, text, _ = table.write(tmp_path, "step", [{**row, "check": "ok"}], context)
    with csv_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(one["command"], one["variant"]) for one in rows] == [("step", "v"), ("input", "u")]
    assert "| v | 1.235 (1 to 2) | ok |" in text.read_text()
    assert "| u | 12346 |" in text.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("step", "--backbone", "resnet51"),
        ("module", "--rounds", "0"),
        ("nothing",),
        ("step", "--device", "cuda"),
        ("step", "--batch", "9" * 26),
        ("module", "--threads", "100000"),
    ],
)
def test_what_is_typed_wrong_is_refused(bam_bench: Command, words: tuple[str, ...]) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ended = bam_bench(*words)
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_a_run_that_fails_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match="there is no such backbone"):
        epoch.bam_train(["backbone=resnet51", "output_dir=nowhere"])


def test_another_input_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options, one = argparse.Namespace(batch=64, photos=None), Bench("cpu", 1, 1)
    monkeypatch.setattr(input, "peer_loader", lambda *_, **__: [(torch.zeros(64, 3, 32, 32), torch.zeros(64))])
    monkeypatch.setattr(input, "random_crop", lambda *_: Crop(0, 0, 300, 300, False))  # the reference's
    monkeypatch.setattr(input, "_drawn", partial(input._drawn, count=8))
    checked = [row["check"] for row in input.rows(one, options) if "check" in row]
    assert checked[:2] == ["FAILED", "FAILED"]  # the third is of photos with boxes


def test_photos_of_a_folder_are_loaded_with_the_same_crops(bam_bench: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        for number in range(2):
            pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7), (250, 300), mode="bilinear")[0]
            photo = Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy())
            photo.save(tmp_path / "photos/train" / name / f"{number}.JPEG")
    ended = bam_bench("input", "--rounds", "1", "--batch", "4", "--device", "cpu", "--photos", "photos")
    assert ended.code == 0
    [kept] = (tmp_path / "results/bench").glob("*.csv")
    with kept.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["of"].startswith("4 photos")]
    assert [row["check"] for row in rows] == ["", "ok"]
    assert float(rows[1]["x PIL"]) > 0
    assert bam_bench("input", "--photos", "photos/train/a").code == 2


def test_steps_of_a_detector_are_measured_and_kept_beside_those_of_a_classifier(
    bam_bench: Command, tmp_path: Path
) -> None:
    context = {"device": Bench("cpu", None, 1).name, **dict.fromkeys(table.CONTEXT[1:], "")}
    table.write(tmp_path / "results/bench", "step", [{"of": "resnet50", "variant": "kept", "ms": 1.0}], context)
    ended = bam_bench("step", "--backbone", "ssd_resnet20", "--rounds", "2", "--batch", "2", "--device", "cpu")
    assert ended.code == 0
    [kept] = (tmp_path / "results/bench").glob("*.csv")
    with kept.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["command"], row["variant"]) for row in rows] == [
        ("step", "kept"),
        ("step --backbone ssd_resnet20", "no attention"),
        ("step --backbone ssd_resnet20", "+ BAM at classifier"),
    ]
    for row in rows[1:]:
        assert row["check"] == "ok"
        assert sum(float(row[f"{part} %"]) for part in detectors.PARTS) == pytest.approx(100, abs=15)
    assert float(rows[2]["kernels"]) > float(rows[1]["kernels"])


@pytest.mark.parametrize("words", [["--backbone", "ssd_resnet20", "--agree", "3"], ["--size", "64"]])
def test_a_word_that_is_not_for_this_network_is_refused(bam_bench: Command, words: list[str]) -> None:
    ended = bam_bench("step", *words)
    assert ended.code == 2
    assert words[-2] in ended.err
    assert ended.err.count("\n") == 1


def test_help_is_for_a_person(bam_bench: Command) -> None:
    ended = bam_bench("--help")
    assert ended.code == 0
    for name, what in table.COMMANDS.items():
        assert f"    {name} " in ended.out
        assert "minute" in what  # how long one will wait
