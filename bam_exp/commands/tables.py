"""`bam-tables`: what the networks of the paper's tables cost, and what our runs measured beside the paper's figures."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bam_exp.commands import arguments
from bam_exp.commands.environment import use_environment, value_of
from bam_exp.config import parse_overrides
from bam_exp.durations import seconds_of
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.reports import FORMATS
from bam_exp.tables import load_table, register, table_names

_EXAMPLES = """examples:
  bam-tables params                       every table: parameters and GMACs beside the paper's (no GPU, no data)
  bam-tables params table1a --format csv
  bam-tables report demo                  print the table made from finished runs; writes results/demo.md, .csv, .tex, .html
  bam-tables report --all                 every table that has finished runs, and results/README.md
  bam-tables report table1a --output-dir /scratch/me
  bam-tables plan table1a seed=0 --budget 25m     what would run, its cost, and what fits into 25 minutes
  bam-tables status demo --watch          rows by seeds: done, running with the time to go, failed with the reason

Runs are made by bam-train (bam-train --help). Figures of finished runs are kept in results/runs.csv, from which a table
comes out the same in a clone without runs/."""


def _params(names: Sequence[str], _overrides: Sequence[str], options: argparse.Namespace) -> int:
    from bam_exp.reports.params import params

    return params(names or table_names(), options.format)


def _report(names: Sequence[str], _overrides: Sequence[str], options: argparse.Namespace) -> int:
    from bam_exp.reports import write
    from bam_exp.reports.tensorboard import link_tables

    code = write.main(names, options.output_dir, formats=options.format, every=options.all)
    link_tables(names, options.output_dir)
    return code


def _plan(names: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> int:
    from bam_exp.reports.plan import plan

    budget = None if options.budget is None else seconds_of(options.budget)
    return plan(names or table_names(), overrides, options.output_dir, budget, measured=options.measure)


def _status(names: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> int:
    from bam_exp.reports.status import status

    return status(names or table_names(), overrides, options.output_dir, options.watch)


def _formats(text: str) -> Sequence[str]:
    formats = text.split(",")
    if wrong := [name for name in formats if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]}: should be some of {', '.join(FORMATS)}, separated by commas")
    return formats


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="bam-tables",
        description="The tables of the BAM paper: what their networks cost, and what our runs measured beside its figures.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder of your own choices and tables (or BAM_EXP_CONF)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    listed = f"names of tables ({', '.join(table_names())}); none: all"

    def add(
        name: str, run: Callable[..., int], help_line: str, *, overrides: bool, folder: bool
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_line)
        words = ("table | override", f"{listed}; overrides as bam-train takes them") if overrides else ("table", listed)
        command.add_argument("words", nargs="*", metavar=words[0], help=words[1])
        if folder:
            command.add_argument(
                "--output-dir",
                type=arguments.folder,
                default=".",
                metavar="DIR",
                help="folder that holds runs/ and results/ (the current one)",
            )
        command.set_defaults(run=run, takes_overrides=overrides)
        return command

    params = add(
        "params", _params, "parameters and multiply-accumulates beside the paper's", overrides=False, folder=False
    )
    params.add_argument("--format", choices=("text", "csv"), default="text")
    report = add("report", _report, "tables from finished runs", overrides=False, folder=True)
    report.add_argument(
        "--format",
        type=_formats,
        default=FORMATS,
        metavar="md,csv",
        help=f"some of {', '.join(FORMATS)}; all if left out",
    )
    report.add_argument("--all", action="store_true", help="write results/README.md, the state of every table, too")
    plan = add("plan", _plan, "what would run, what is done, and the cost", overrides=True, folder=True)
    plan.add_argument("--budget", metavar="25m", help="pick the runs that fit into this time, most informative first")
    plan.add_argument(
        "--measure", action="store_true", help="time twenty training steps of each network that is missing"
    )
    status = add("status", _status, "rows by seeds: the state of each run", overrides=True, folder=True)
    status.add_argument("--watch", action="store_true", help="refresh every two seconds until Ctrl-C")
    return parser


def _parse(typed: Sequence[str]) -> argparse.Namespace:
    """The options, with words also behind them, which argparse takes for superfluous in a sub-command."""
    parser = _parser()
    options, rest = parser.parse_known_args(typed)
    if flags := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    options.words += rest
    return options


def main() -> None:
    """`bam-tables`; wrong input ends in one line and exit code 2."""
    with one_line_errors("bam-tables", sys.argv[1:]):
        use_environment(value_of(sys.argv[1:], "--config-dir"))
        options = _parse(sys.argv[1:])
        overrides = [word for word in options.words if "=" in word or word.startswith("~")]
        names = [word for word in options.words if word not in overrides]
        if folder := [word for word in overrides if word.lstrip("+").startswith("output_dir=")]:
            raise ConfigError(f"{folder[0]}: bam-tables takes --output-dir DIR")
        if overrides and not options.takes_overrides:
            raise ConfigError(f"{overrides[0]}: {options.command} takes the names of tables only")
        for name in names:
            load_table(name)
        if overrides:
            register(parse_overrides(overrides), names)
        options.output_dir = str(Path(getattr(options, "output_dir", ".")).expanduser())
        code = options.run(names, overrides, options)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
