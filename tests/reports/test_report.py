"""Reports: what stands in a table, what does not, and that they come out the same without the runs."""

import csv
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, TINY, Command
from matplotlib import pyplot as plt

RESULTS = REPOSITORY / "results"
SWEEP = ("+experiment=demo", "seed=0", *TINY)
NAME = "demo--shapes_small-train_size160-test_size40--demo-epochs2"


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def fake_result(folder: Path, error: float, *, row: str = "r8", seed: int = 0, recipe: str = "cifar100") -> Path:
    """A finished run of a row of Table 1(a), as `execute` leaves it."""
    from bam_exp import tables
    from bam_exp.runs import SCHEMA, run_of

    tables.register()
    [found] = [one for one in tables.load_table("table1a").rows if one.name == row]
    run = run_of(found, seed, [f"output_dir={folder}", f"recipe={recipe}"])
    run.folder.mkdir(parents=True)
    shared = {
        "fingerprint": run.fingerprint,
        "command": run.command,
        "start": "2026-01-01T00:00:00+00:00",
        "figures_from": run.figures_from,
    }
    (run.folder / "run.json").write_text(json.dumps(shared))
    result = {
        **shared,
        "schema": SCHEMA,
        "metrics": {
            "top1_error": error,
            "top5_error": 5.0,
            "best_top1_error": error,
            "best_epoch": 300,
            "test_images": 10_000,
        },
        "hardware": {"device": "TestGPU", "cpu": "TestCPU", "threads": 2, "precision": "float32"},
        "versions": {"torch": "2.15.0"},
        "params": 24_620_315,
        "commit": "0123456789ab",
        "dirty": False,
        "end": "2026-01-01T01:00:00+00:00",
    }
    (run.folder / "result.json").write_text(json.dumps(result))
    return run.folder


def test_a_report_sets_ours_beside_the_papers(bam_tables: Command, tmp_path: Path) -> None:
    for seed, error in enumerate((20.0, 20.5, 21.0)):
        fake_result(tmp_path, error, seed=seed)
    ended = bam_tables("report", "table1a")
    assert ended.code == 0
    row = rows(tmp_path / "results/table1a.csv")["r8"]
    assert row["top1_error"] == "20.50"
    assert row["std"] == "0.50"
    assert row["ci95"] == "1.24"  # 0.5 / sqrt(3) times Student's 4.303 for two degrees of freedom
    assert row["n"] == "3"
    assert row["paper_top1_error"] == "20.56"
    assert row["difference"] == "-0.06"
    assert rows(tmp_path / "results/table1a.csv")["r4"]["top1_error"] == ""
    markdown = (tmp_path / "results/table1a.md").read_text()
    for word in ("20.50 ± 1.24", "TestGPU", "0123456789ab", "Runs: 3", "cifar100", "23.71M"):
        assert word in markdown
    assert markdown in ended.out


def test_another_recipe_makes_a_table_of_its_own(bam_tables: Command, tmp_path: Path) -> None:
    fake_result(tmp_path, 30.0, recipe="cifar100_short")
    assert bam_tables("report", "table1a").code == 0
    assert rows(tmp_path / "results/table1a.csv")["r8"]["n"] == "0"
    assert "30.00" not in (tmp_path / "results/table1a.md").read_text()
    assert rows(tmp_path / "results/table1a--cifar100_short.csv")["r8"]["top1_error"] == "30.00"
    assert (
        "with recipe `cifar100_short`" in (tmp_path / "results/table1a--cifar100_short.md").read_text().splitlines()[0]
    )


def test_a_clone_without_runs_gives_the_same_bytes(bam_tables: Command, tmp_path: Path) -> None:
    fake_result(tmp_path, 20.0)
    fake_result(tmp_path, 30.0, recipe="cifar100_short")
    results = tmp_path / "results"
    assert bam_tables("report", "table1a").code == 0
    before = {path.relative_to(results): path.read_bytes() for path in results.rglob("table*")}
    pictures = [
        f"plots/table1a{variant}-seeds.{ending}" for variant in ("--cifar100_short", "") for ending in ("png", "svg")
    ]
    for name in [f"table1a{variant}" for variant in ("--cifar100_short", "")]:
        assert {f"{name}{ending}" for ending in (".csv", ".html", ".md", ".tex")} <= {str(path) for path in before}
    assert set(pictures) <= {str(path) for path in before}
    assert plt.imread(results / "plots/table1a-seeds.png").shape[1] > 500
    shutil.rmtree(tmp_path / "runs")
    for path in before:
        (results / path).unlink()
    assert bam_tables("report", "table1a").code == 0
    assert {path.relative_to(results): path.read_bytes() for path in results.rglob("table*")} == before


@pytest.mark.parametrize("name", ["cpu", "demo"])
def test_the_committed_tables_come_out_of_the_committed_store(bam_tables: Command, tmp_path: Path, name: str) -> None:
    """Also fails where a change of the code made the committed runs those of another fingerprint."""
    (tmp_path / "results/plots").mkdir(parents=True)
    shutil.copytree(RESULTS / "curves", tmp_path / "results/curves")
    shutil.copy(RESULTS / "runs.csv", tmp_path / "results")
    shutil.copy(RESULTS / "plots/demo-maps.png", tmp_path / "results/plots")
    assert bam_tables("report", name).code == 0
    assert (tmp_path / "results" / "runs.csv").read_bytes() == (RESULTS / "runs.csv").read_bytes()
    for kind in (".md", ".csv", ".tex"):
        assert (tmp_path / "results" / f"{name}{kind}").read_bytes() == (RESULTS / f"{name}{kind}").read_bytes()
    pages = [(folder / f"{name}.html").read_text() for folder in (tmp_path / "results", RESULTS)]
    ours, committed = (
        re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL) for page in pages
    )  # matplotlib's versions differ
    assert ours == committed
    assert all(int(row["n"]) for row in rows(RESULTS / f"{name}.csv").values())


def cells(path: Path) -> list[list[str]]:
    """The rows of all tables in a Markdown file, headings and rules too."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def test_readme_and_docs_say_what_the_store_holds() -> None:
    """README shows the committed tables; docs/results.md each row's errors and what the report says of them."""
    for name in ("demo", "cpu"):
        assert all(row in cells(REPOSITORY / "README.md") for row in cells(RESULTS / f"{name}.md"))

    from bam_exp.runs import Run, run_of
    from bam_exp.tables import load_table

    store = pd.read_csv(RESULTS / "runs.csv").set_index("fingerprint").top1_error

    def error(run: Run) -> float:
        [found] = [value for fingerprint, value in store.items() if run.schema_of(fingerprint)]
        return found

    table = load_table("cpu")
    errors = {row.label: [error(run_of(row, seed)) for seed in table.seeds] for row in table.rows}
    reported = {label: rest for label, *rest in cells(RESULTS / "cpu.md")}
    said = {label: rest for label, *rest in cells(REPOSITORY / "docs/results.md") if label in errors}
    assert list(said) == list(errors)
    for label, each in errors.items():
        _, mean, _, *gain = reported[label]
        assert said[label] == [", ".join(f"{error:.2f}" for error in each), mean, *gain]


def test_a_failed_run_is_named_and_not_in_the_table(bam_tables: Command, tmp_path: Path) -> None:
    folder = fake_result(tmp_path, 20.0, seed=1)
    (folder / "result.json").unlink()
    (folder / "error.json").write_text(json.dumps({"reason": "Diverged: the training loss is nan", "traceback": ""}))
    assert bam_tables("report", "table1a").code == 0
    assert rows(tmp_path / "results/table1a.csv")["r8"]["n"] == "0"
    assert (
        "FAILED: cifar100/resnet50/bam-reduction8/cifar100/seed1: Diverged"
        in (tmp_path / "results/table1a.md").read_text()
    )


def test_a_stale_run_is_named_and_not_in_the_table(bam_tables: Command, tmp_path: Path) -> None:
    folder = fake_result(tmp_path, 20.0)
    for name in ("run.json", "result.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "fingerprint": "0" * 16}))
    assert bam_tables("report", "table1a").code == 0
    assert rows(tmp_path / "results/table1a.csv")["r8"]["n"] == "0"
    assert "Stale" in (tmp_path / "results/table1a.md").read_text()


def older(folder: Path, precision: str) -> None:
    """Let a finished run be one of schema 1, computed in this precision."""
    from bam_exp.runs import run_of
    from bam_exp.tables import load_table

    for name in ("run.json", "result.json"):
        content = json.loads((folder / name).read_text())
        run = run_of(next(row for row in load_table("table1a").rows if row.name == "r8"), int(folder.name[4:]))
        content |= {"fingerprint": run._fingerprint(1), "figures_from": {**content["figures_from"], "schema": 1}}
        if name == "result.json":
            content |= {"schema": 1, "hardware": {**content["hardware"], "precision": precision}}
        (folder / name).write_text(json.dumps(content))


def test_figures_of_schema_1_stand_with_a_footnote_until_there_are_new_ones(
    bam_tables: Command, tmp_path: Path
) -> None:
    older(fake_result(tmp_path, 20.0, seed=0), "bfloat16")
    older(fake_result(tmp_path, 21.0, seed=1), "bfloat16")
    assert "tie at the top counted as an error" in bam_tables("report", "table1a").out
    assert rows(tmp_path / "results/table1a.csv")["r8"]["top1_error"] == "20.50"
    fake_result(tmp_path, 19.0, seed=2)
    assert "seed1 is of an earlier version" in bam_tables("report", "table1a").out
    assert rows(tmp_path / "results/table1a.csv")["r8"]["top1_error"] == "19.00"
    shutil.rmtree(tmp_path / "runs")
    fake_result(tmp_path, 18.0, seed=0)  # beside its own line of schema 1
    bam_tables("report", "table1a")
    row = rows(tmp_path / "results/table1a.csv")["r8"]
    assert (row["top1_error"], row["n"]) == ("18.50", "2")


def test_figures_of_schema_1_in_float32_are_what_they_were(bam_tables: Command, tmp_path: Path) -> None:
    older(fake_result(tmp_path, 20.0, seed=0), "float32")
    fake_result(tmp_path, 21.0, seed=1)
    assert "earlier version" not in bam_tables("report", "table1a").out
    assert rows(tmp_path / "results/table1a.csv")["r8"]["top1_error"] == "20.50"


@pytest.mark.parametrize(
    ("precision", "finished", "reason"),
    [
        ("float32", True, None),
        ("bfloat16", True, "schema 1, now 2): logits were bfloat16"),
        ("bfloat16", False, "schema 1, now 2): it is unfinished"),
        ("float32", False, "schema 1, now 2): it is unfinished"),
    ],
)
def test_a_folder_of_schema_1_is_done_or_refused_with_the_reason(
    tmp_path: Path, precision: str, finished: bool, reason: str | None
) -> None:
    from bam_exp.runs import result_of, run_of
    from bam_exp.tables import load_table

    folder = fake_result(tmp_path, 20.0)
    older(folder, precision)
    if not finished:
        (folder / "result.json").unlink()
    run = run_of(next(row for row in load_table("table1a").rows if row.name == "r8"), 0, [f"output_dir={tmp_path}"])
    if reason is None:
        assert result_of(run)["metrics"]["top1_error"] == 20.0
    else:
        with pytest.raises(ValueError, match=re.escape(reason)):
            result_of(run)


def test_a_spoilt_store_is_refused_and_kept(bam_tables: Command, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    store = tmp_path / "results/runs.csv"
    store.write_text("a,b\n1,2\n")
    ended = bam_tables("report", "table1a")
    assert ended.code == 2
    assert "runs.csv" in ended.err
    assert store.read_text() == "a,b\n1,2\n"


def test_a_sweep_over_a_table_ends_in_its_report(bam_train: Command, bam_tables: Command, tmp_path: Path) -> None:
    ended = bam_train(*SWEEP)
    assert ended.code == 0
    assert "3 runs: 0 done already, 3 to run" in ended.out
    assert "3 of 3 runs done" in ended.out
    assert (tmp_path / f"results/{NAME}.md").read_text() in ended.out
    assert "\n# Demo with data `shapes_small-train_size160-test_size40` and recipe `demo-epochs2`\n" in ended.out
    assert ended.out.count("\n# ") == 1  # the table itself, in which nothing has been run, is not printed
    assert len(rows(tmp_path / f"results/{NAME}.csv")) == 3
    assert bam_tables("report", "demo").code == 0
    assert all(float(row["top1_error"]) > 0 for row in rows(tmp_path / f"results/{NAME}.csv").values())
    assert all(row["n"] == "0" for row in rows(tmp_path / "results/demo.csv").values())
    again = bam_train(*SWEEP)
    assert again.code == 0
    assert "nothing left to run" in again.out
