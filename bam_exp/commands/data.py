"""Fetch data: `python -m bam_exp.data cifar100 DIR`."""

import argparse
import sys
from pathlib import Path

from bam_exp.data import cifar100
from bam_exp.errors import DataError


def main(arguments: list[str] | None = None) -> None:
    """Fetch a data set into a folder; exits with one line where that fails."""
    parser = argparse.ArgumentParser(prog="python -m bam_exp.data", description="Fetch data.")
    sets = parser.add_subparsers(required=True, metavar="data")
    one = sets.add_parser(
        "cifar100", help="CIFAR-100, 169 MB", description="Fetch CIFAR-100; continues where it ended."
    )
    one.add_argument("root", type=Path, metavar="DIR", help="the run's data_root")
    one.add_argument("--mirror", metavar="URL", help=f"https address of another folder that holds {cifar100.ARCHIVE}")
    chosen = parser.parse_args(arguments)
    try:
        cifar100.download(chosen.root, mirror=chosen.mirror)
    except DataError as error:
        sys.exit(f"error: {error}")
    print(f"CIFAR-100 is in {chosen.root / cifar100.FOLDER}")


if __name__ == "__main__":
    main()
