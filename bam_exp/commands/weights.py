"""`bam-weights`: import checkpoints from elsewhere, export trained networks, and show what a weights file says."""

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bam_exp.commands.arguments import Parser, path
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors

EXAMPLES = """examples:
  bam-weights show runs/shapes_small/resnet20-widen0.5/bam-reduction8/demo/seed0
  bam-weights export runs/shapes_small/resnet20-widen0.5/bam-reduction8/demo/seed0 bam.onnx
  bam-weights import resnet50-0676ba61.pth resnet50.safetensors \\
      backbone=resnet50_imagenet backbone.stride_in=3x3 attention=none
  bam-weights import RESNET50_IMAGENET_BAM_best.pth.tar resnet50_bam.safetensors \\
      backbone=resnet50_imagenet backbone.stride_in=3x3 attention=bam_released

then: bam-train ... evaluate=FILE tests the weights, bam-train ... weights=FILE trains on from them."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="bam-weights", description="Weights of trained networks.", epilog=EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}", epilog=EXAMPLES, formatter_class=raw
        )
        command.set_defaults(run=run)
        return command

    exporting = add("export", _export, "write a trained network as safetensors, ONNX or torch.export")
    exporting.add_argument("source", type=path, metavar="RUN", help="folder of a run, or a .safetensors file")
    exporting.add_argument(
        "target", type=path, metavar="OUT", help="ends in .safetensors, .onnx or .pt2 (torch.export)"
    )
    showing = add("show", _show, "say what a weights file contains")
    showing.add_argument("source", type=path, metavar="RUN", help="folder of a run, or a .safetensors file")
    showing.add_argument("--json", action="store_true", help="everything that the file says, as JSON")
    text = "convert a checkpoint of torchvision or of the BAM authors"
    importing = add("import", _import, text, "Nothing in it is executed.")
    importing.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a .pth or .pth.tar file")
    importing.add_argument("weights", type=path, metavar="FILE", help="the .safetensors file to write")
    importing.add_argument(
        "overrides", nargs="*", metavar="group=choice", help="the network, described as for bam-train"
    )
    return parser


def _export(options: argparse.Namespace) -> None:
    from bam_exp.weights.export import export

    export(options.source, options.target)
    print(f"{options.target}: {options.target.stat().st_size:,} bytes")


def _show(options: argparse.Namespace) -> None:
    from bam_exp.weights import read_metadata, read_weights, weights_file

    file = weights_file(options.source)
    weights, metadata = read_weights(file), read_metadata(file)
    if options.json:
        print("{}" if metadata is None else metadata.model_dump_json(indent=1))
        return
    print(f"{file}: {len(weights)} tensors, {sum(weight.numel() for weight in weights.values()):,} numbers")
    if metadata is None:
        print("it does not say of which network it is")
        return
    figures = ", ".join(f"{name} {value:g}" for name, value in metadata.figures.items())
    described = {
        "from": metadata.source + (f", epoch {metadata.epoch}" if metadata.epoch else ""),
        "network": " ".join(word for word in metadata.overrides if word.startswith(("backbone", "attention"))),
        "data and recipe": " ".join(word for word in metadata.overrides if word.startswith(("data", "recipe"))),
        "classes": f"{len(metadata.classes)}: {', '.join(metadata.classes[:4])}, …",
        "test figures": figures + (f" ({metadata.precision})" if metadata.precision else ""),
        "fingerprint": metadata.fingerprint or "",
        "versions": ", ".join(f"{name} {version}" for name, version in metadata.versions.items()),
    }
    for name, text in described.items():
        if text:
            print(f"  {name:15}  {text}")


def _import(options: argparse.Namespace) -> None:
    convert(options.checkpoint, options.weights, options.overrides)


def convert(checkpoint: Path, weights: Path, overrides: Sequence[str]) -> None:
    """Write the weights of the network that the overrides describe, all of which the checkpoint must hold.

    Raises ConfigError for a wrong override or file name, DataError for a checkpoint that does not fit.
    """
    from bam_exp.backbones.backbone import Backbone
    from bam_exp.build import build, describe
    from bam_exp.config import Chosen, compose
    from bam_exp.weights import put_weights, read_checkpoint, renamed, save_weights

    if weights.suffix != ".safetensors":
        raise ConfigError(f"{weights}: should end in .safetensors")
    overrides = ["data=imagenet", "recipe=imagenet", *overrides]
    chosen = Chosen.of(compose(overrides))
    data, network, _ = build(chosen)
    if not isinstance(network, Backbone):
        hint = "import the weights of the network inside it, which weights=FILE takes"
        raise ConfigError(f"backbone={chosen.backbone.name}: is a detector; {hint}")
    named = renamed(read_checkpoint(checkpoint), network)
    put_weights(network, named, source=checkpoint)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = describe(chosen, data, source=f"{checkpoint.name} sha256 {digest}", overrides=overrides)
    save_weights(named, weights, header=metadata.to_header())
    print(f"{weights}: {sum(weight.numel() for weight in named.values()):,} numbers of {checkpoint.name}")


def main(arguments: list[str] | None = None) -> None:
    """Run `bam-weights`. Bad input ends it with one line and exit code 2, Ctrl-C with one line and 130."""
    words = sys.argv[1:] if arguments is None else arguments
    with one_line_errors("bam-weights", words):
        options = _parser().parse_args(words)
        options.run(options)
