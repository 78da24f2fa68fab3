"""Tables as files: their rows are configs, their printed figures are proven, and a wrong file is refused by name."""

import csv
import io
from pathlib import Path

import pytest
import yaml
from conftest import Command

from bam_exp import config, tables
from bam_exp.errors import ConfigError
from bam_exp.reports.counts import agrees
from bam_exp.reports.params import params


@pytest.mark.parametrize(
    ("printed", "ours", "equal"),
    [
        ("24.07M", 24_070_495, True),
        ("24.07M", 24_065_000, True),
        ("24.07M", 24_064_999, False),
        ("1.22", 1_222_500_000, True),
        ("1.22", 1_225_000_000, False),
        ("0.245", 244_500_000, True),
        ("1.726M", 1_726_388, True),
        ("0.8M", 849_999, True),
    ],
)
def test_a_print_is_met_exactly_to_its_last_digit(printed: str, ours: int, equal: bool) -> None:
    assert agrees(printed, ours) is equal


def test_params_in_csv_has_exact_integers(bam_tables: Command) -> None:
    ended = bam_tables("params", "table1a", "--format", "csv")
    assert ended.code == 0
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert list(rows[0]) == ["table", "row", "params", "macs", "paper_params", "paper_gflops", "agrees"]
    counted = {row["row"]: (int(row["params"]), row["agrees"]) for row in rows}
    # paper.md: 23,705,252 without, and 26.3005/24.6203/24.0705/23.8682 M with the form that the print demands
    assert counted["baseline"] == (23_705_252, "noted")
    assert [round(counted[row][0] / 1e6, 4) for row in ("r4", "r8", "r16", "r32")] == [
        26.3005,
        24.6203,
        24.0705,
        23.8682,
    ]
    assert all(verdict == "yes" for row, (_, verdict) in counted.items() if row != "baseline")


def test_params_for_a_person_counts_and_explains(bam_tables: Command) -> None:
    ended = bam_tables("params", "table1a")
    assert ended.code == 0
    assert "23.71M" in ended.out
    assert "9 printed figures: 8 equal" in ended.out.splitlines()[-1]


@pytest.fixture
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs like the project's, with a table of its own to spoil."""
    folder = tmp_path / "conf"
    folder.mkdir()
    for path in config.config_dir().iterdir():
        if path.name != "table":
            (folder / path.name).symlink_to(path)
    (folder / "table").mkdir()
    monkeypatch.setattr("bam_exp.config.choices.config_dir", lambda: folder)
    monkeypatch.setattr("bam_exp.config.composition.config_dir", lambda: folder)
    return folder / "table"


def table(**changes: object) -> str:
    content: dict[str, object] = {
        "title": "T", "metric": "top1_error", "columns": ["params", "top1_error"], "seeds": [0], "base": {},
        "rows": {"a": {"paper": {"params": "23.71M"}, "set": {"backbone": "resnet50", "attention": "none", "data": "cifar100"}}},
    }  # fmt: skip
    return yaml.safe_dump({**content, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"titel": "T"}, "titel"),
        ({"columns": ["flops"]}, "flops"),
        ({"rows": {"a": {"paper": {"params": 23.71}}}}, "23.71"),
        ({"rows": {"a": {"sett": {}}}}, "rows.a.sett"),
        ({"notes": {"b": {"params": "why"}}}, "notes.b"),
        ({"notes": {"a": {"top1_error": "why"}}}, "notes.a.top1_error"),
        ({"rows": []}, "rows"),
        ({"rows": {"a": None}}, "rows.a=None: should be a mapping"),
        ({"rows": {"": {}}}, "rows.'': the name of a row"),
        ({"rows": {"a b/c": {}}}, "rows.a b/c: the name of a row"),
        ({"rows": {"../x": {}}}, "rows.../x: the name of a row"),
        ({"rows": {"é": {}}}, "rows.é: the name of a row"),
        *(
            ({"rows": {name: {}}}, f"rows.{name}: on a command line this is no name")
            for name in ("1", "1e3", "true", "null")
        ),
        (
            {"rows": {"a": {"paper": {"top1_error": "1,5"}}}},
            "rows.a.paper.top1_error=1,5: should be the figure as printed",
        ),
        (
            {"rows": {"a": {"paper": {"params": "x"}}}},
            'rows.a.paper.params=x: should be the figure as printed, as in "24.07M"',
        ),
        ({"metric": "params"}, "metric: params is counted, not measured"),
        ({"task": "foo"}, "task: foo is none of classification, detection"),
        ({"seeds": [2**31]}, "seeds.0=2147483648: input should be less than"),
    ],
)
def test_a_wrong_file_is_refused_by_name(own_tables: Path, changes: dict[str, object], named: str) -> None:
    (own_tables / "mine.yaml").write_text(table(**changes))
    with pytest.raises(ConfigError, match=r"mine\.yaml") as raised:
        tables.load_table("mine")
    assert named in str(raised.value)


def test_a_noted_figure_that_agrees_after_all_fails(own_tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_tables / "mine.yaml").write_text(table(notes={"a": {"params": "we thought so"}}))
    tables.register()
    assert params(["mine"], "text") == 1
    assert "EQUAL (noted)" in capsys.readouterr().out


def test_a_figure_that_differs_without_a_note_fails(own_tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_tables / "mine.yaml").write_text(table().replace("23.71M", "23.72M"))
    tables.register()
    assert params(["mine"], "csv") == 1
    assert capsys.readouterr().out.splitlines()[1].endswith(",no")
