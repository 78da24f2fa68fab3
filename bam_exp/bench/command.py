"""The command line of `bam-bench`."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bam_exp import config
from bam_exp.bench import epoch, input, module, step, sweep, table
from bam_exp.bench.measure import Bench, Row, say

COMMANDS: dict[str, Callable[[Bench, argparse.Namespace], list[Row]]] = {
    "step": step.rows,
    "module": module.rows,
    "input": input.rows,
    "epoch": epoch.rows,
    "sweep": sweep.rows,
}


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "whole number above 0"  # argparse: "invalid whole number above 0 value: '0'"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bam-bench",
        description="How fast training is on this machine, beside what the machine could do (docs/performance.md).",
        epilog="""examples:
  bam-bench module                  BAM alone: time, passes over the map, memory; one or two minutes
  bam-bench step                    a training step of ResNet-50, from the typical peer's to ours; ten minutes on a CPU
  bam-bench step --no-compile       the same without torch.compile; three minutes
  bam-bench step --backbone preresnet110 --batch 128
  bam-bench input                   augmented batches: PIL and its workers beside ours
  bam-bench epoch                   what Lightning adds to a step; whole epochs through bam-train
  bam-bench sweep --packed 1 2 4    several runs at once: where trainer.runs_per_gpu gains, and where it loses

The variants of a call take turns in one process, on the same random batch, after their outputs and gradients have been
compared with float64. The tables are printed and, with spreads, kept in results/bench/<device>.md and .csv, with a chart;
a call replaces what that sub-command wrote there before. One that computes something wrong ends with exit code 1.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, function in COMMANDS.items():
        what = (function.__doc__ or "").strip().rstrip(".")
        one = commands.add_parser(name, help=what[0].lower() + what[1:], description=f"{what}.")
        option = partial(one.add_argument, type=_positive, metavar="N")
        if name in ("step", "epoch", "sweep"):
            default = "resnet50" if name == "step" else None
            backbones = config.choices("backbone")
            listed = "a network for CIFAR: a file of conf/backbone"
            one.add_argument("--backbone", choices=backbones, default=default, metavar="NAME", help=listed)
        option("--batch", help="images a step (128, and on a CPU 16 in step and module)")
        option("--rounds", help="blocks timed of each variant (10)")
        option("--threads", help="CPU threads (on a CPU one: the figures are then of one core)")
        one.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
        )
        if name in ("step", "module"):
            one.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
        if name == "input":
            listed = "folder of class folders of photos, or of their train/ (without it, it draws its own)"
            one.add_argument("--photos", metavar="DIR", help=listed)
        if name == "step":
            option("--agree", help="also compare the losses of N steps, compiled and eager")
        if name == "sweep":
            option("--packed", nargs="+", help="how many runs at once (1 2 4 8; on a CPU 1 and one for each core)")
        one.add_argument(
            "--output-dir", default=".", metavar="DIR", help="folder that holds results/ (the current one)"
        )
    return parser


def main() -> None:
    """`bam-bench`; what was typed wrong ends in one line and exit code 2, a failed check in exit code 1."""
    options = _parser().parse_args()
    started = time.perf_counter()
    try:
        bench = Bench(options.device, options.threads, options.rounds)
        rows = COMMANDS[options.command](bench, options)
        if not bench.copy:
            bench.measure_ceilings()
        files = table.write(Path(options.output_dir) / "results" / "bench", options.command, rows, bench.context())
    except (ValueError, OSError) as error:
        print(f"bam-bench: {config.one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    table.show(rows, bench.context())
    say(f"\n{time.perf_counter() - started:.0f} s; {', '.join(str(file) for file in files)}")
    if failed := [row["variant"] for row in rows if row.get("check") == "FAILED"]:
        print(f"bam-bench: not what float64 gives: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)
