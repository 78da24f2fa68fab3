"""`bam-weights`: turn checkpoints of torchvision and of the BAM authors into weights files of this package."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bam_exp import __version__
from bam_exp.commands.arguments import path
from bam_exp.errors import BamError, ConfigError

EXAMPLES = """examples:
  bam-weights import resnet50-0676ba61.pth resnet50.safetensors \\
      backbone=resnet50_imagenet backbone.stride_in=3x3 attention=none
  bam-weights import RESNET50_IMAGENET_BAM_best.pth.tar resnet50_bam.safetensors \\
      backbone=resnet50_imagenet backbone.stride_in=3x3 attention=bam_released

then: bam-train ... evaluate=FILE tests the weights, bam-train ... weights=FILE trains on from them."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="bam-weights", description="Weights from elsewhere.", epilog=EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"bam-weights {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    importing = commands.add_parser(
        "import",
        help="convert a checkpoint of torchvision or of the BAM authors",
        description="Convert a checkpoint of torchvision or of the BAM authors to safetensors. Nothing in it is executed.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    importing.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a .pth or .pth.tar file")
    importing.add_argument("weights", type=path, metavar="FILE", help="the .safetensors file to write")
    importing.add_argument(
        "overrides", nargs="*", metavar="group=choice", help="the network, described as for bam-train"
    )
    return parser


def convert(checkpoint: Path, weights: Path, overrides: Sequence[str]) -> None:
    """Write the weights of the network that the overrides describe, all of which the checkpoint must hold.

    Raises ConfigError for a wrong override or file name, ValueError for a checkpoint that does not fit.
    """
    from bam_exp.backbones.backbone import Backbone
    from bam_exp.build import build
    from bam_exp.config import Chosen, compose
    from bam_exp.weights import put_weights, read_checkpoint, renamed, save_weights

    if weights.suffix != ".safetensors":
        raise ConfigError(f"{weights}: should end in .safetensors")
    network = build(Chosen.of(compose(["data=imagenet", "recipe=imagenet", *overrides]))).network
    assert isinstance(network, Backbone)
    named = renamed(read_checkpoint(checkpoint), network)
    put_weights(network, named, source=checkpoint)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    save_weights(named, weights, source=f"{checkpoint.name} sha256 {digest}")
    print(f"{weights}: {sum(weight.numel() for weight in named.values()):,} numbers of {checkpoint.name}")


def main(arguments: list[str] | None = None) -> None:
    """Run `bam-weights`. Bad input ends it with one line and exit code 2, Ctrl-C with one line and 130."""
    try:
        options = _parser().parse_args(arguments)
        convert(options.checkpoint, options.weights, options.overrides)
    except (BamError, ValueError) as error:
        print(f"bam-weights: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("bam-weights: interrupted; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
