"""The command line of `bam-bench`."""

import argparse
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

from bam_exp.bench.table import COMMANDS
from bam_exp.commands.arguments import Parser, folder, whole_number
from bam_exp.config import choice_file, choice_names
from bam_exp.errors import BamError, ConfigError
from bam_exp.exits import one_line_errors


def _is_detector(backbone: str) -> bool:
    return str(choice_file("backbone", backbone).get("_target_")).startswith("bam_exp.detectors.")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bam-bench",
        description="How fast training is on this machine, beside what the machine could do (docs/performance.md).",
        epilog="""examples:
  bam-bench module
  bam-bench step --no-compile       three minutes
  bam-bench step --backbone preresnet110 --batch 128
  bam-bench step --backbone ssd_vgg16      a detector, on drawn boxes
  bam-bench input --photos DIR      photos of yours
  bam-bench epoch
  bam-bench store --against DIR     what the commands cost, beside those of another checkout
  bam-bench sweep --packed 1 2 4    where trainer.runs_per_gpu gains, and where it loses

The variants of a call take turns in one process, on the same random batch, after their outputs and gradients have been
compared with float64. The tables are printed and, with spreads, kept in results/bench/<device>.md and .csv, with a chart;
a call replaces what that sub-command wrote there before
(a detector's, what that detector's did). One that computes something wrong ends with exit code 1.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command, what in COMMANDS.items():
        one = commands.add_parser(command, help=what, description=f"{what[0].upper()}{what[1:]}.")
        option = partial(one.add_argument, type=whole_number(), metavar="N")
        if command == "store":
            option("--lines", default=10_000, help="lines of results/runs.csv (10000)")
            option("--folders", default=3_000, help="folders of runs, of 100 kB each (3000)")
            option("--seeds", default=500, help="jobs of a sweep that differ by seed (500)")
            one.add_argument("--against", type=folder, metavar="DIR", help="another checkout, measured beside this one")
            continue
        if command in ("step", "epoch", "sweep"):
            default = "resnet50" if command == "step" else None
            backbones = [name for name in choice_names("backbone") if command == "step" or not _is_detector(name)]
            listed = (
                "a network for CIFAR" + (", or a detector" if command == "step" else "") + ": a file of conf/backbone"
            )
            one.add_argument("--backbone", choices=backbones, default=default, metavar="NAME", help=listed)
        option("--batch", help="images a step (128, and on a CPU 16 in step and module)")
        option("--rounds", help="blocks timed of each variant (10)")
        option(
            "--threads", type=whole_number(1024), help="CPU threads (on a CPU one: the figures are then of one core)"
        )
        one.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
        )
        if command in ("step", "module"):
            one.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
        if command == "input":
            listed = "folder of class folders of photos, or of their train/ (without it, it draws its own)"
            one.add_argument("--photos", type=folder, metavar="DIR", help=listed)
        if command == "step":
            option("--agree", help="also compare the losses of N steps, compiled and eager")
            option("--size", help="pixels of a side, for a detector (300; ssd_resnet20 64, faster_rcnn_resnet101 600)")
        if command == "sweep":
            option("--packed", nargs="+", help="how many runs at once (1 2 4 8; on a CPU 1 and one for each core)")
        one.add_argument(
            "--output-dir", type=folder, default=".", metavar="DIR", help="folder that holds results/ (the current one)"
        )
    return parser


def main() -> None:
    """Run `bam-bench`. Wrong arguments end it with one line and exit code 2, a failed check with exit code 1."""
    with one_line_errors("bam-bench", sys.argv[1:]):
        _bench(_parser().parse_args())


def _bench(options: argparse.Namespace) -> None:
    if options.command == "store":
        from bam_exp.bench.store import measure

        measure(options)
        return
    started = time.perf_counter()
    from bam_exp.bench import table
    from bam_exp.bench.measure import Bench, say

    bench = Bench(options.device, options.threads, options.rounds)
    command, module = options.command, options.command
    if command == "step" and _is_detector(options.backbone):
        command, module = f"step --backbone {options.backbone}", "detectors"
    elif command == "step" and options.size:
        raise ConfigError(f"--size {options.size}: is for detectors, and {options.backbone} is a classifier of 32 px")
    rows = import_module(f"bam_exp.bench.{module}").rows(bench, options)
    if not bench.copy:
        bench.measure_ceilings()
    files = table.write(Path(options.output_dir) / "results" / "bench", command, rows, bench.context())
    table.show(rows, bench.context())
    say(f"\n{time.perf_counter() - started:.0f} s; {', '.join(str(file) for file in files)}")
    if failed := [row["variant"] for row in rows if row.get("check") == "FAILED"]:
        raise BamError(f"not what float64 gives: {', '.join(failed)}")
