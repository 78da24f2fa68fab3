"""A process of one examination: `python -m bam_exp.doctor.alone MODULE.FUNCTION FOLDER` prints its finding as JSON."""

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the function in the folder, and print what it has found in the last line."""
    module, _, function = sys.argv[1].partition(".")
    found = getattr(import_module(f"bam_exp.doctor.{module}"), function)(Path(sys.argv[2]))
    print(json.dumps(None if found is None else dataclasses.asdict(found)), flush=True)


if __name__ == "__main__":
    main()
