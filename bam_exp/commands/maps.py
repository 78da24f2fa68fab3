"""`bam-maps`: a picture of what the attentions of a finished run attend to, and how that relates to where the object is."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bam_exp.commands.arguments import Parser, folder, path, whole_number
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.files import write_output
from bam_exp.runs.folder import EVENTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = """examples:
  bam-maps shapes_small/resnet20-widen0.5/bam-reduction8/demo/seed0      a run by its name under runs/
  bam-maps runs/cifar100/resnet50/bam/cifar100/seed0 cat.jpg dog.jpg --data-root DIR
  bam-maps RUN --count 8 --output bam.png --tensorboard

Each row of the picture is an image, and each attention has five columns: the norm of the map F before it, the channel branch,
the spatial branch (both signed, before the sigmoid), M(F) averaged over the channels, and the norm of the map after it. The
last columns are Grad-CAM of the run, and of its baseline (attention `none`, all else equal) if that has been trained.
Attentions with maps are bam, bam_equations and bam_released. Where the data knows where its object is (shapes), a table says
how the maps relate to it, beside the same network before its training."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bam-maps",
        description="A picture of what the attentions of a finished run attend to.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or its name under runs/")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image files (without any: test images of different classes)"
    )
    parser.add_argument(
        "--count", type=whole_number(100), default=4, metavar="N", help="how many test images to show (4)"
    )
    parser.add_argument("--output", type=path, default="maps.png", metavar="FILE", help="the picture (maps.png)")
    parser.add_argument("--tensorboard", action="store_true", help="show the picture in the run's TensorBoard, too")
    parser.add_argument(
        "--data-root", type=folder, default="data", metavar="DIR", help="folder of the data sets on disk (data)"
    )
    parser.add_argument(
        "--output-dir",
        type=folder,
        default=".",
        metavar="DIR",
        help="folder that holds runs/ (the current one), for a run's name",
    )
    return parser


def maps(options: argparse.Namespace) -> None:
    """Draw the picture and print what it shows.

    Raises:
        ConfigError: if the run cannot be used.
        DataError: if an image or the data cannot be read, or the picture cannot be written.
    """
    output: Path = options.output
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise ConfigError(f"--output {output}: should be the name of a .png file in a folder that exists")
    from bam_exp.maps.look import as_text, figures_of, picture_of
    from bam_exp.maps.picture import draw, png
    from bam_exp.maps.trained import find_run, load_baseline, load_run

    run = load_run(find_run(options.run, options.output_dir), options.data_root)
    baseline = load_baseline(run)
    picture = picture_of(run, baseline, options.images, options.count)
    figure = draw(picture)
    write_output(output, png(figure))
    if options.tensorboard:
        _add_to_tensorboard(figure, run.folder)
    if (figures := figures_of(run, baseline)) is not None:
        print(as_text(figures))
    if baseline is None:
        print(f"There is no baseline beside it, because {run.baseline} is not a finished run.")
    if picture.left_out:
        print(f"The picture shows the last attention at each size of the map; it leaves out {picture.left_out} others.")
    print(f"{run.name}: maps of {', '.join(picture.maps)}  ({output})")


def _add_to_tensorboard(figure: "Figure", folder: Path) -> None:
    """Write the picture into an event file of its own in the run's folder, replacing that of an earlier call."""
    from torch.utils.tensorboard import SummaryWriter

    suffix = ".maps"
    for old in folder.glob(f"{EVENTS}{suffix}"):
        old.unlink()
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        writer.add_figure("attention/maps", figure)


def main() -> None:
    """`bam-maps`; wrong input ends in one line and exit code 2."""
    with one_line_errors("bam-maps", sys.argv[1:]):
        maps(_parser().parse_intermixed_args())
