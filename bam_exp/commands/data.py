"""`bam-data`: download and unpack data sets."""

import argparse
import sys

from bam_exp.commands.arguments import Parser, folder, path
from bam_exp.exits import one_line_errors

EXAMPLES = """examples:
  bam-data cifar100 DIR          then: bam-train data=cifar100 data_root=DIR ...
  bam-data coco DIR              then: bam-train data=coco data_root=DIR ...
  bam-data voc DIR               then: bam-train data=voc data_root=DIR ...
  bam-data imagenet TARS DIR     then: bam-train data=imagenet data_root=DIR ...

Interrupted, the same command continues."""


def _parser() -> argparse.ArgumentParser:
    from bam_exp.data import cifar100, imagenet_tars

    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bam-data", description="Download and unpack data sets.", epilog=EXAMPLES, formatter_class=raw)
    data_sets = parser.add_subparsers(dest="data", required=True, metavar="data")

    cifar = data_sets.add_parser(
        "cifar100",
        help="download CIFAR-100, 169 MB",
        description=f"Download CIFAR-100 into DIR/{cifar100.FOLDER}. Interrupted, the same command continues.",
    )
    cifar.add_argument("root", type=folder, metavar="DIR", help="the run's data_root")
    cifar.add_argument("--mirror", metavar="URL", help=f"https address of another folder that holds {cifar100.ARCHIVE}")

    for name, what in (("coco", "COCO 2017, 19 GB"), ("voc", "PASCAL VOC 2007 and 2012, 3 GB")):
        boxed = data_sets.add_parser(
            name,
            help=f"download {what}",
            description=f"Download {what} into DIR/{name}. Interrupted, the same command continues.",
        )
        boxed.add_argument("root", type=folder, metavar="DIR", help="the run's data_root")
        boxed.add_argument("--mirror", metavar="URL", help="https address of another folder that holds the archives")

    imagenet = data_sets.add_parser(
        "imagenet",
        help="unpack the official tars of ImageNet-1K, 155 GB",
        description=f"""Unpack the official tars of ImageNet-1K into DIR/imagenet/train and DIR/imagenet/val, 155 GB.

The tars are {imagenet_tars.TRAIN}, {imagenet_tars.VAL}
and {imagenet_tars.DEVKIT} from image-net.org, where an account is needed.
The md5 of each is checked first, which takes 10 minutes on a fast disk. Interrupted, the same command continues.""",
        formatter_class=raw,
    )
    imagenet.add_argument(
        "tars", type=path, nargs="+", metavar="TARS", help="the three files, or folders that hold them"
    )
    imagenet.add_argument("root", type=folder, metavar="DIR", help="the run's data_root")
    for option, name in (("train", imagenet_tars.TRAIN), ("val", imagenet_tars.VAL), ("devkit", imagenet_tars.DEVKIT)):
        md5 = imagenet_tars.MD5[name]
        imagenet.add_argument(f"--{option}-md5", dest=name, default=md5, metavar="MD5", help=f"of {name} ({md5})")
    return parser


def _run(options: argparse.Namespace) -> None:
    from bam_exp.data import boxed_archives, cifar100, imagenet_tars

    if options.data == "cifar100":
        cifar100.download(options.root, mirror=options.mirror)
        print(f"CIFAR-100 is in {options.root / cifar100.FOLDER}")
    elif options.data in boxed_archives.ARCHIVES:
        print(f"{options.data} is in {boxed_archives.download(options.data, options.root, mirror=options.mirror)}")
    else:
        md5 = {name: getattr(options, name) for name in imagenet_tars.MD5}
        print(f"ImageNet is in {imagenet_tars.unpack(options.tars, options.root, md5)}")


def main(arguments: list[str] | None = None) -> None:
    """Run `bam-data`. Bad input, data and servers end it with one line and exit code 2, Ctrl-C with one line and 130."""
    words = sys.argv[1:] if arguments is None else arguments
    with one_line_errors("bam-data", words):
        _run(_parser().parse_args(words))
