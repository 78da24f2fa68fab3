"""`bam-doctor`: what is wrong with this machine, with what to do about it, as text for a bug report."""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bam_exp import __version__
from bam_exp.commands.arguments import Parser, path
from bam_exp.doctor import datasets, gpu, machine
from bam_exp.doctor.finding import Check, Report
from bam_exp.exits import one_line_errors

_EXAMPLES = """examples:
  bam-doctor                                    a few seconds; paste its lines into a bug report
  bam-doctor --data-root DIR --output-dir DIR   the folders of your runs: digests of the data, disk and locks
  bam-doctor --gpu                              ten minutes: whether training on this GPU holds what it should

Exit code 0 if nothing is wrong, else 1."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bam-doctor",
        description="What this machine has, what is wrong with it, and what to do about it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", action="store_true", help="also examine training on the GPU, for ten minutes")
    for option, what in (
        ("--data-root", "folder of the data sets (data)"),
        ("--output-dir", "folder of runs/ and results/ (the current one)"),
    ):
        default = Path("data" if option == "--data-root" else ".")
        parser.add_argument(option, type=path, default=default, metavar="DIR", help=what)
    return parser


def _checks(options: argparse.Namespace) -> Iterator[Check]:
    yield from machine.checks(options.output_dir)
    yield from gpu.checks()
    yield from datasets.checks(options.data_root)
    if options.gpu:
        yield from gpu.examinations()


def main() -> None:
    """Run `bam-doctor`; exit code 1 if something is wrong, 2 for a wrong argument."""
    with one_line_errors("bam-doctor", sys.argv[1:]):
        _report(_parser().parse_args())


def _report(options: argparse.Namespace) -> None:
    """Print the lines of the report as they come.

    Raises:
        SystemExit: 1 if something is wrong.
    """
    print(f"bam-doctor {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", flush=True)
    report = None
    for line in Report.of(_checks(options)):
        if isinstance(line, Report):
            report = line
        print(line, flush=True)
    if report is not None and report.counts["wrong"]:
        raise SystemExit(1)
