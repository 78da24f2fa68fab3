"""The pictures of a report: which there are, and what they show."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from bam_exp.bench.store import make_store
from bam_exp.reports import plots, write
from bam_exp.reports.answers import Answers
from bam_exp.reports.assemble import Sources, make_report
from bam_exp.reports.facts import row_facts
from bam_exp.reports.lines import StoreIndex
from bam_exp.reports.plots import pictures_of, png, svg
from bam_exp.reports.report import Report
from bam_exp.runs.store import collect
from bam_exp.tables import load_table

from .store import write_store

ERRORS = {"baseline": (21.4, 21.9), "d1": (20.9, 20.2), "d2": (20.5, 20.4), "d4": (20.1, 20.3), "r8": (20.3, 20.9)}


def report_of(folder: Path, table: str) -> Report:
    loaded = load_table(table)
    sources = Sources(StoreIndex(collect(folder)), Answers(folder))
    return make_report(loaded, [row_facts(row) for row in loaded.rows], {}, sources)


def test_pictures_show_seeds_costs_and_knobs_with_the_papers_points(tmp_path: Path) -> None:
    write_store(tmp_path, "table1a", ERRORS)
    report = report_of(tmp_path, "table1a")
    pictures = pictures_of(report, {})
    assert list(pictures) == ["seeds", "cost", "knobs"]

    dilation, reduction = pictures["knobs"].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in dilation.lines}
    assert lines["paper"] == [[1.0, 20.47], [2.0, 20.28], [4.0, 20.0]]  # as Table 1(a) prints them
    assert [x for x, _ in reduction.lines[0].get_xydata()] == [8.0, 16.0]  # d = 4 and r = 16 are one run

    points = [
        line for axes in (dilation, reduction) for line in axes.lines if line.get_marker() != "_"
    ]  # no ends of bars
    values = [y for line in points for y in line.get_ydata()]
    low, high = dilation.get_ylim()
    assert low < min(values) < max(values) < high
    assert high - low < 5 * (max(values) - min(values))  # two seeds of `d1` have an interval of 9 points

    [cost] = pictures["cost"].axes
    fills = {line.get_label(): line.get_fillstyle() for line in cost.lines}
    assert fills == {"ResNet50": "none"} | {
        f"+ BAM, {name}": "full" for name in ("d = 1", "d = 2", "d = 4", "r = 8", "r = 16")
    }
    assert len(cost.texts) == 5  # an arrow from the baseline to each other row

    again = pictures_of(report, {})
    for name, picture in pictures.items():
        assert svg(picture) == svg(again[name])
        assert png(picture) == png(again[name])


def test_training_curves_have_a_band_over_the_seeds(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table1a", ERRORS)
    for line in collect(tmp_path):
        if line["attention"] in ("none", "bam-reduction8"):
            names = (line["data"], line["backbone"], line["attention"], line["recipe"], f"seed{line['seed']}")
            folder = tmp_path.joinpath("runs", *names)
            folder.mkdir(parents=True)
            history = [{"test/top1_error": error - int(line["seed"])} for error in (60.0, 40.0, 22.0)]
            (folder / "result.json").write_text(json.dumps({"fingerprint": line["fingerprint"], "epochs": history}))
    curves = {"baseline": [[60.0, 40.0, 22.0], [59.0, 39.0, 21.0]], "r8": [[60.0, 40.0, 22.0]]}
    [axes] = pictures_of(report_of(tmp_path, "table1a"), curves)["curves"].axes
    assert axes.lines[0].get_ydata().tolist() == [59.5, 39.5, 21.5]
    assert len(axes.collections) == 1  # the band; one seed has none
    assert bam_tables("report", "table1a", "--format", "plots,html").code == 0
    assert "+ BAM, r = 8" in (tmp_path / "results/plots/table1a-curves.svg").read_text()
    page = (tmp_path / "results/table1a.html").read_text()
    assert "in a band from the lowest to the highest" in page
    shutil.rmtree(tmp_path / "runs")
    assert bam_tables("report", "table1a", "--format", "html").code == 0
    assert (tmp_path / "results/table1a.html").read_text() == page


def test_a_table_without_runs_has_no_pictures(tmp_path: Path) -> None:
    assert pictures_of(report_of(tmp_path, "table1b"), {}) == {}


def test_pictures_are_drawn_again_only_for_a_new_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, 0, 10)
    drawings = 0

    def counted(*given: Any) -> Any:
        nonlocal drawings
        drawings += 1
        return pictures_of(*given)

    monkeypatch.setattr(plots, "pictures_of", counted)
    for _ in range(3):
        assert write.main(["table1a"], str(tmp_path), formats=("plots",)) == 0
    assert drawings == 1
    picture = tmp_path / "results" / "plots" / "table1a-curves.svg"
    before = picture.read_bytes()
    [result, *_] = sorted(tmp_path.glob("runs/cifar100/resnet50/bam*/**/result.json"))
    result.write_text(result.read_text().replace('"test/top1_error": 9', '"test/top1_error": 7'))
    assert write.main(["table1a"], str(tmp_path), formats=("plots",)) == 0
    assert drawings == 2
    assert picture.read_bytes() != before
