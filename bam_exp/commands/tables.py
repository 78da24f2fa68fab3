"""The paper's tables as files (conf/table/*.yaml), their rows as configs of Hydra, and `bam-tables`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.config_store import ConfigStore

from bam_exp.config import choices as config
from bam_exp.config.choices import ConfigError

if TYPE_CHECKING:
    from bam_exp.runs.run import Run

_KEYS = {"title", "task", "metric", "columns", "seeds", "base", "counting", "rows", "notes"}
_ROW_KEYS = {"paper", "set", "label", "counting"}
_COUNTING = {"classes": int, "bias": bool}
FIGURES = {
    "params": "Params",
    "gflops": "GFLOPs",
    "top1_error": "Top-1 error %",
    "top5_error": "Top-5 error %",
    "map": "mAP@[.5,.95]",
    "map50": "mAP@.5",
    "map75": "mAP@.75",
}
"""The columns a table can have, and how they are headed."""


@dataclass(frozen=True)
class Row:
    """One line of a table: what the paper prints, and what one would type."""

    table: str
    name: str
    label: str
    paper: Mapping[str, str]
    set: Mapping[str, Any]
    """`base` of the table and `set` of the row together."""
    counting: Mapping[str, Any]
    """How the print counts GFLOPs, where that is not the network's own count: with a head of other `classes`, with `bias`."""
    notes: Mapping[str, str]
    """Figure to the reason why ours is expected to differ from the print."""

    def config(self, extra: Sequence[str] = ()) -> Any:
        """The row's composed config; `extra` overrides win over the row."""
        return config.compose([f"+row/{self.table}={self.name}", *extra])

    def run(self, seed: int, extra: Sequence[str] = ()) -> "Run":
        """The run of this row with one seed."""
        from bam_exp.runs.run import Run

        cfg = self.config([*extra, f"seed={seed}"])
        return Run.of(cfg, cfg.hydra.runtime.choices)


@dataclass(frozen=True)
class Table:
    """A published table."""

    name: str
    title: str
    task: str
    """`classification`, or `detection`: declared, not trained by this version."""
    metric: str
    columns: Sequence[str]
    seeds: Sequence[int]
    rows: Sequence[Row]
    remarks: Sequence[str]
    """Notes on the table as a whole."""


def names() -> list[str]:
    """The tables that there are."""
    return config.choices("table")


def trained() -> list[str]:
    """The tables whose rows this version trains."""
    return [name for name in names() if load(name).task == "classification"]


def load(name: str) -> Table:
    """Read conf/table/<name>.yaml.

    Raises:
        ConfigError: if there is no such table, or naming the key of the file that is wrong.
    """
    path = config.config_dir() / "table" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{name}: there is no such table{config.nearest(name, names())} (there are {', '.join(names())})"
        )
    try:
        content = yaml.load(path.read_text(), config.YAML)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"{path}: {what}")

    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict):
        raise refuse("should be a mapping with title, metric, columns, seeds, base and rows")
    if unknown := set(content) - _KEYS:
        raise refuse(f"{min(unknown)}: no such key{config.nearest(min(unknown), _KEYS)}")
    columns = list(content["columns"])
    if wrong := [column for column in columns if column not in FIGURES]:
        raise refuse(f"columns: {wrong[0]} is none of {', '.join(FIGURES)}")
    notes: dict[str, Any] = content.get("notes") or {}
    task = content.get("task", "classification")
    if task not in ("classification", "detection"):
        raise refuse(f"task: {task} is neither classification nor detection")
    rows = []
    for row_name, row in content["rows"].items():
        if unknown := set(row) - _ROW_KEYS:
            raise refuse(f"rows.{row_name}.{min(unknown)}: no such key{config.nearest(min(unknown), _ROW_KEYS)}")
        counting = {**(content.get("counting") or {}), **(row.get("counting") or {})}
        for key, value in counting.items():
            if type(value) is not _COUNTING.get(key):
                raise refuse(f"counting.{key}={value}: should be classes (a number) or bias (true)")
        paper = row.get("paper") or {}
        for figure, printed in paper.items():
            if figure not in columns or not isinstance(printed, str):
                raise refuse(
                    f"rows.{row_name}.paper.{figure}={printed}: should be one of the columns, its print in quotes"
                )
        reasons = notes.get(row_name) or {}
        if wrong := [figure for figure in reasons if figure not in paper]:
            raise refuse(f"notes.{row_name}.{wrong[0]}: the row prints no such figure")
        chosen = {**(content.get("base") or {}), **(row.get("set") or {})}
        label = str(row.get("label", row_name))
        rows.append(Row(name, str(row_name), label, paper, chosen, counting, reasons))
    if wrong := [key for key in notes if key != "table" and key not in content["rows"]]:
        raise refuse(f"notes.{wrong[0]}: there is no such row")
    remarks = list(notes.get("table") or [])
    return Table(name, content["title"], task, content["metric"], columns, list(content["seeds"]), rows, remarks)


def register(words: Sequence[str] = ()) -> None:
    """Put every row (`+row/<table>=<row>`) and every table (`+experiment=<table>`) into Hydra's ConfigStore.

    An experiment sweeps over the rows and the seeds of its table; a `seed=` among the words of the command line stands in
    for the table's.
    """
    store = ConfigStore.instance()
    own_seed = any(word.startswith("seed=") for word in words)
    # Only the tables that the words name, if they name any: Hydra copies the whole store whenever it composes a config.
    for name in [name for name in names() if any(name in word for word in words)] or names():
        table = load(name)
        if table.task != "classification":
            if any(word.startswith((f"+experiment={name}", f"+row/{name}=")) for word in words):
                raise ConfigError(f"{name}: a table of detectors, which this version declares but does not train")
            continue
        for row in table.rows:
            store.store(group=f"row/{name}", name=row.name, node=_node(row), package="_global_")
        params = {f"+row/{name}": ",".join(row.name for row in table.rows)}
        if not own_seed:
            params["seed"] = ",".join(str(seed) for seed in table.seeds)
        node = {"hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
        store.store(group="experiment", name=name, node=node, package="_global_")


def _node(row: Row) -> dict[str, Any]:
    """The row as a config: groups become overrides of the defaults list, dotted keys become values."""
    node: dict[str, Any] = {"defaults": []}
    for key, value in row.set.items():
        group, _, rest = key.partition(".")
        if not rest and group in config.GROUPS:
            node["defaults"].append({f"override /{group}": value})
        elif rest:
            node.setdefault(group, {})[rest] = value
        else:
            node[group] = value
    node["defaults"].append("_self_")
    return node


def _run_command(arguments: argparse.Namespace, chosen: Sequence[str], overrides: Sequence[str]) -> int:
    if arguments.command in ("params", "report") and overrides:
        raise ConfigError(f"{overrides[0]}: {arguments.command} takes the names of tables only")
    if arguments.command == "params":
        from bam_exp.reports.params import params

        return params(chosen, arguments.format)
    if arguments.command == "report":
        from bam_exp.reports import report

        return report.main(chosen, arguments.output_dir)
    from bam_exp.reports import plan

    if arguments.command == "plan":
        budget = plan.seconds_of(arguments.budget) if arguments.budget else None
        return plan.plan(chosen, overrides, arguments.output_dir, budget)
    return plan.status(chosen, overrides, arguments.output_dir, arguments.watch)


def main() -> None:
    """`bam-tables`; what was typed wrong ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="bam-tables",
        description="The tables of the BAM paper: what their networks cost, and what our runs measured beside the print.",
        epilog="""examples:
  bam-tables params                       every table: parameters and GMACs beside the paper's (no GPU, no data)
  bam-tables params table1a --format csv
  bam-tables report demo                  print the table made from finished runs; writes results/demo.md and .csv
  bam-tables report table1a --output-dir /scratch/me
  bam-tables plan table1a seed=0 --budget 25m     what would run, its cost, and what fits into 25 minutes
  bam-tables status demo --watch          rows by seeds: done, running with the time to go, failed with the reason

Runs are made by bam-train (bam-train --help). Figures of finished runs are kept in results/runs.csv, from which a table
comes out the same in a clone without runs/.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    listed = f"names of tables ({', '.join(names())}); none: all"
    counting = commands.add_parser("params", help="parameters and multiply-accumulates beside the paper's")
    counting.add_argument("tables", nargs="*", metavar="table", help=listed)
    counting.add_argument("--format", choices=("text", "csv"), default="text")
    reporting = commands.add_parser("report", help="tables from finished runs")
    reporting.add_argument("tables", nargs="*", metavar="table", help=listed)
    reporting.add_argument(
        "--output-dir", default=".", metavar="DIR", help="folder that holds runs/ and results/ (the current one)"
    )
    for command, what in (
        ("plan", "what would run, what is done, and the cost"),
        ("status", "rows by seeds: how each run stands"),
    ):
        one = commands.add_parser(command, help=what)
        one.add_argument(
            "tables", nargs="*", metavar="table | override", help=f"{listed}; overrides as bam-train takes them"
        )
        one.add_argument(
            "--output-dir", default=".", metavar="DIR", help="folder that holds runs/ and results/ (the current one)"
        )
        if command == "plan":
            one.add_argument(
                "--budget", metavar="25m", help="pick the runs that fit into this time, most informative first"
            )
        else:
            one.add_argument("--watch", action="store_true", help="refresh every two seconds until Ctrl-C")
    arguments = parser.parse_args()
    overrides = [word for word in arguments.tables if "=" in word]
    chosen = [word for word in arguments.tables if "=" not in word]
    try:
        for name in chosen:
            load(name)
        register(chosen)
        raise SystemExit(_run_command(arguments, chosen or names(), overrides))
    except (ConfigError, OSError) as error:
        print(f"bam-tables: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
