"""Turn a checkpoint of torchvision, or of the authors, into weights of ours: a safetensors file for `evaluate=FILE`.

    python scripts/import_weights.py resnet50-0676ba61.pth resnet50.safetensors \\
        backbone=resnet50_imagenet backbone.stride_in=3x3 attention=none
    python scripts/import_weights.py RESNET50_IMAGENET_BAM_best.pth.tar resnet50_bam.safetensors \\
        backbone=resnet50_imagenet backbone.stride_in=3x3 attention=bam_released

The words after the two files choose the network, as for bam-train. Nothing in the checkpoint is executed.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from bam_exp.backbones.backbone import Backbone
from bam_exp.config.choices import choices as config
from bam_exp.runs import run
from bam_exp.weights import put_weights, read_checkpoint, renamed, save_weights


def main() -> None:
    """Import one file; what is wrong ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .pth or .pth.tar file")
    parser.add_argument("weights", type=Path, help="the .safetensors file to write")
    parser.add_argument("words", nargs="*", metavar="group=choice", help="the network, as bam-train takes it")
    chosen = parser.parse_args()
    try:
        convert(chosen.checkpoint, chosen.weights, chosen.words)
    except ValueError as error:
        print(f"import_weights: {config.one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def convert(checkpoint: Path, weights: Path, words: list[str]) -> None:
    """Write the weights of the network that these overrides describe, which they must fit. Raises ValueError."""
    if weights.suffix != ".safetensors":
        raise ValueError(f"{weights}: should end in .safetensors")
    _, network, _ = run.build(config.compose(["data=imagenet", "recipe=imagenet", *words]))
    assert isinstance(network, Backbone)
    named = renamed(read_checkpoint(checkpoint), network)
    put_weights(network, named, source=checkpoint)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    save_weights(named, weights, source=f"{checkpoint.name} sha256 {digest}")
    print(f"{weights}: {sum(one.numel() for one in named.values()):,} numbers of {checkpoint.name}")


if __name__ == "__main__":
    main()
