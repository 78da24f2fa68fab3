"""What every format of a report shows."""

import base64
import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from .store import write_store

THREE = {"baseline": (21.4, 21.9, 21.5), "d1": (20.9, 20.2, 20.6), "d2": (20.5, 20.4, 20.1), "r8": (20.3, 20.9, 20.4)}


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def table_lines(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(("table", "figures"), [("table5", ("Params", "GFLOPs")), ("table1b", ())])
def test_counted_columns_stand_in_a_table_before_anything_is_trained(
    bam_tables: Command, tmp_path: Path, table: str, figures: tuple[str, ...]
) -> None:
    assert bam_tables("report", table, "--format", "md,csv").code == 0
    head = table_lines((tmp_path / f"results/{table}.md").read_text())[0]
    assert [f"{figure}, paper" for figure in figures] == [name for name in head if name[:2] in ("Pa", "GF")]
    if table == "table5":
        row = rows(tmp_path / "results/table5.csv")["resnet50_bam"]
        assert (row["params"], row["paper_gflops"], row["n"]) == ("24070487", "1.25", "0")
        assert float(row["gflops"]) == pytest.approx(1.25, abs=0.005)


def test_every_declared_column_of_table_3b_is_shown(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table3b", {"resnet18": (29.7,), "resnet18_bam": (29.0,)})
    assert bam_tables("report", "table3b", "--format", "md,csv").code == 0
    head, _, baseline, bam, *_ = table_lines((tmp_path / "results/table3b.md").read_text())
    assert head[1:] == [
        "Params, paper", "ours", "GFLOPs, paper", "ours", "Top-1 error %, paper", "ours", "n", "difference",
        "Top-5 error %, paper", "ours", "difference", "Gain",
    ]  # fmt: skip
    assert baseline[5:] == ["29.60", "29.70", "1", "+0.10", "10.55", "7.42", "-3.13", "—"]
    assert bam[5:] == ["28.88", "29.00", "1", "+0.12", "10.01", "7.25", "-2.76", "+0.70"]
    assert "n = 1: a single run has no interval" in (tmp_path / "results/table3b.md").read_text()


def test_gains_have_intervals_and_corrected_p_values(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table1a", THREE)
    assert bam_tables("report", "table1a", "--format", "md,csv").code == 0
    found = rows(tmp_path / "results/table1a.csv")
    assert found["baseline"]["gain"] == ""
    p_values = sorted(float(found[row]["p"]) for row in ("d1", "d2", "r8"))
    corrected = sorted(float(found[row]["p_holm"]) for row in ("d1", "d2", "r8"))
    assert corrected[0] == pytest.approx(3 * p_values[0], abs=2e-4)
    assert found["d2"]["gain"] == "+1.27"
    assert float(found["d2"]["gain_low"]) < 1.27 < float(found["d2"]["gain_high"])
    assert "corrected by Holm for the 3 gains" in (tmp_path / "results/table1a.md").read_text()


def test_a_cell_of_mixed_precision_says_so(bam_tables: Command, tmp_path: Path) -> None:
    def change(row: str, seed: int) -> dict[str, str]:
        return {"precision": "bfloat16"} if (row, seed) == ("d1", 2) or row == "d2" else {}

    write_store(tmp_path, "table1a", THREE, change)
    assert bam_tables("report", "table1a").code == 0
    cells = {row[0]: row for row in table_lines((tmp_path / "results/table1a.md").read_text())}
    assert cells["+ BAM, r = 8"][5] == "3"
    assert [cells[label][5] for label in ("+ BAM, d = 1", "+ BAM, d = 2")] == ["3²", "3³"]
    for ending in (".md", ".tex", ".html"):
        text = (tmp_path / f"results/table1a{ending}").read_text()
        assert "1 in bfloat16, 2 in float32" in text
        assert "computed in bfloat16, its baseline in float32" in text


def with_answers(folder: Path, right: dict[str, np.ndarray]) -> None:
    """Finished runs in folders whose results record which images they got right."""
    with (folder / "results/runs.csv").open() as file:
        for line in csv.DictReader(file):
            run = folder / "runs" / "/".join(line[key] for key in ("data", "backbone", "attention", "recipe"))
            run = run / f"seed{line['seed']}"
            run.mkdir(parents=True)
            bits = base64.b64encode(np.packbits(right[line["attention"]]).tobytes()).decode()
            (run / "result.json").write_text(json.dumps({"fingerprint": line["fingerprint"], "correct": bits}))


def test_single_runs_are_compared_image_by_image_also_in_a_clone(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table1a", {"baseline": (21.4,), "r8": (21.0,)})
    answers = {"none": np.ones(10_000, np.uint8), "bam-reduction8": np.ones(10_000, np.uint8)}
    answers["none"][:40], answers["bam-reduction8"][30:45] = 0, 0
    with_answers(tmp_path, answers)
    assert bam_tables("report", "table1a").code == 0
    text = (tmp_path / "results/table1a.md").read_text()
    assert "These two networks of seed 0: + BAM, r = 8 is right on 30 test images" in text
    assert "wrong on 5 that it gets right (McNemar's exact test: p < 0.001)" in text
    shutil.rmtree(tmp_path / "runs")
    assert bam_tables("report", "table1a").code == 0
    assert (tmp_path / "results/table1a.md").read_text() == text


def test_a_run_whose_recipe_no_config_has_any_more_stands_in_a_table_of_its_own(
    bam_tables: Command, tmp_path: Path
) -> None:
    def change(row: str, seed: int) -> dict[str, str]:
        return {
            "recipe": "gone",
            "command": f"bam-train data=cifar100 recipe=gone seed={seed}",
            "fingerprint": "0" * 16,
        }

    write_store(tmp_path, "table1a", {"r8": (30.0, 31.0)}, change)
    assert bam_tables("report", "table1a", "--format", "md,csv").code == 0
    assert rows(tmp_path / "results/table1a.csv")["r8"]["n"] == "0"
    assert rows(tmp_path / "results/table1a--gone.csv")["r8"]["top1_error"] == "30.50"
    assert "recipe=gone: there is no such recipe" in (tmp_path / "results/table1a--gone.md").read_text()


def test_a_row_with_data_of_its_own_is_no_variant(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table3b", {"mobilenet": (31.0,), "mobilenet_192": (33.0,)})
    assert bam_tables("report", "table3b", "--format", "csv").code == 0
    assert sorted(path.name for path in (tmp_path / "results").glob("*.csv")) == ["runs.csv", "table3b.csv"]


class Outline(HTMLParser):
    """The elements of a page that refer to something, and its open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_needs_no_other_file_and_escapes_labels(
    bam_tables: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path, "table1a", THREE)
    assert bam_tables("report", "table1a").code == 0
    page = (tmp_path / "results/table1a.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)
    assert "<script" not in page
    assert outline.count["svg"] == 3
    assert "fill: #ffffff" not in page
    assert "#000000" not in page


def test_latex_has_the_papers_heads_and_no_bare_special_character(bam_tables: Command, tmp_path: Path) -> None:
    write_store(tmp_path, "table2", {"resnet50": (21.4, 21.9), "resnet50_bam": (20.1, 20.5)})
    assert bam_tables("report", "table2", "--format", "tex").code == 0
    text = (tmp_path / "results/table2.tex").read_text()
    assert r"\multicolumn{4}{c}{Top-1 error \%}" in text
    assert r"\cmidrule(lr){4-7}" in text
    columns = text.partition(r"\begin{tabular}{@{}l")[2].partition("@{}")[0]
    lines = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert all(line.count(" & ") == len(columns) for line in lines if "addlinespace" not in line)
    assert r"\quad + BAM-C & 28.98 & 1.37" in text
    assert not re.search(r"(?<!\\)[%#_]", text.partition("\n")[2])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
@pytest.mark.parametrize(("table", "mixed"), [("cpu", False), ("table2", False), ("table3a", True), ("table3b", True)])
def test_latex_compiles_within_the_width_of_a_line(
    bam_tables: Command, tmp_path: Path, table: str, mixed: bool
) -> None:
    """Also where rows have different numbers of seeds, which takes a column, and intervals of two digits."""
    from bam_exp.tables import load_table

    errors = {row.name: (29.76, 27.11, 28.52) for row in load_table(table).rows}
    if mixed:
        errors |= {row.name: (28.11, 33.64) for row in load_table(table).rows[::3]}
    write_store(tmp_path, table, errors)
    assert bam_tables("report", table, "--format", "tex").code == 0
    for columns in ("onecolumn", "twocolumn"):
        (tmp_path / "one.tex").write_text(
            rf"\documentclass[{columns}]{{article}}\usepackage{{booktabs,graphicx}}"
            rf"\begin{{document}}\input{{results/{table}}}\end{{document}}"
        )
        ended = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "one.tex"], capture_output=True, cwd=tmp_path, check=False
        )
        assert ended.returncode == 0, ended.stdout
        assert b"Overfull" not in ended.stdout


def test_an_unknown_format_is_refused(bam_tables: Command) -> None:
    ended = bam_tables("report", "table1a", "--format", "pdf")
    assert ended.code == 2
    assert "pdf" in ended.err
    assert "html" in ended.err
