"""Which test images a run gets right: one bit for each, from its result or, without its folder, from results/predictions."""

import base64
import binascii
from pathlib import Path

from bam_exp.files import read_json, write_atomically
from bam_exp.runs.folder import RESULT
from bam_exp.runs.store import Line, name_of


class Answers:
    """The right and wrong answers of the runs of an output folder, kept in results/predictions once they have been read."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir

    def of(self, line: Line) -> bytes | None:
        """The bits of a run, packed as by numpy.packbits in the order of the test set; None where they were not recorded."""
        if not line["test_images"].isdecimal():
            return None
        kept = self.output_dir / "results" / "predictions" / f"{line['fingerprint']}.bin"
        expected = (int(line["test_images"]) + 7) // 8
        if kept.is_file() and len(bits := kept.read_bytes()) == expected:
            return bits
        result = read_json(self.output_dir / "runs" / name_of(line) / RESULT)
        if result.get("fingerprint") != line["fingerprint"]:
            return None
        try:
            bits = base64.b64decode(result.get("correct") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            return None
        if len(bits) != expected:
            return None
        kept.parent.mkdir(exist_ok=True)
        write_atomically(kept, bits)
        return bits
