"""The picture of attention maps: a row for each image, and for each attention the maps before, inside and after it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from bam_exp.maps.capture import Maps

_CELL = 1.05  # inches
_DPI = 100
_STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "svg.hashsalt": "bam", "image.interpolation": "nearest"}


@dataclass(frozen=True)
class Cam:
    """Grad-CAM of one network, as a column of the picture."""

    title: str
    cam: Tensor
    """N x H x W."""
    captions: Sequence[str]
    """Written below each map."""


@dataclass(frozen=True)
class Picture:
    """The content of a picture."""

    title: str
    pixels: Tensor
    """Images in 0 ... 1, N x H x W x 3."""
    labels: Sequence[str]
    """The caption of each image."""
    masks: Tensor | None
    """The masks of the objects, drawn as outlines on the images: bool N x H x W."""
    maps: Mapping[str, Maps]
    """The maps of each attention for these images."""
    cams: Sequence[Cam]
    left_out: int = 0
    """The number of attentions for which the picture has no room."""


def draw(picture: Picture) -> Figure:
    """Draw a picture.

    Each column of maps has one colour scale over all images, and the maps before and after an attention share theirs.
    """
    maps, cams, rows = picture.maps, picture.cams, len(picture.pixels)
    widths = [3 + (one.channel is not None) + (one.spatial is not None) for one in maps.values()]
    columns = 1 + sum(widths) + len(cams)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_CELL * columns + 0.3, _CELL * 1.16 * rows + 0.95), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(picture.title, fontsize=9)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
        _draw_images(grid[:, 0], picture)
        first = 1
        for (name, one), width in zip(maps.items(), widths, strict=True):
            _draw_maps(grid[:, first : first + width], name, one)
            first += width
        for axes, cam in zip(grid[:, first:].T, cams, strict=True):
            _draw_cam(axes, cam, picture.pixels)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a PNG file; its bytes depend on the version of matplotlib."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_images(axes: Any, picture: Picture) -> None:
    axes[0].set_title("image")
    for row, place in enumerate(axes):
        place.imshow(picture.pixels[row].numpy())
        place.set_xlabel(picture.labels[row], fontsize=7)
        if picture.masks is not None:
            for colour, width in (("black", 1.6), ("white", 0.8)):
                place.contour(picture.masks[row].numpy(), levels=[0.5], colors=colour, linewidths=width)


def _draw_maps(axes: Any, name: str, maps: Maps) -> None:
    """The columns of one attention: the map before, the branches that it has, M(F) and the map after."""
    columns = iter(axes.T)
    refined = Normalize(0, max(maps.before.max().item(), maps.after.max().item()))
    _draw_column(next(columns), "norm of F", maps.before, refined, "viridis")
    if maps.channel is not None:
        _draw_channel(next(columns), maps.channel)
    if maps.spatial is not None:
        limit = maps.spatial.abs().max().item()
        _draw_column(next(columns), "spatial", maps.spatial, Normalize(-limit, limit), "RdBu_r")
    attention = Normalize(maps.attention.min().item(), maps.attention.max().item())
    _draw_column(next(columns), "M(F)", maps.attention, attention, "magma")
    _draw_column(next(columns), "norm of F′", maps.after, refined, "viridis")
    middle = axes[0, axes.shape[1] // 2]
    middle.annotate(name, (0.5, 1.42), xycoords="axes fraction", ha="center", va="bottom", weight="bold")


def _draw_column(axes: Sequence[Axes], head: str, values: Tensor, scale: Normalize, colours: str) -> None:
    axes[0].set_title(f"{head}\n{_range(scale.vmin, scale.vmax)}")
    for row, place in enumerate(axes):
        place.imshow(values[row].numpy(), norm=scale, cmap=colours)


def _draw_channel(axes: Sequence[Axes], channel: Tensor) -> None:
    """The values of the channels as bars from zero."""
    limit = channel.abs().max().item()
    axes[0].set_title(f"channel\n{_range(-limit, limit)}")
    for row, place in enumerate(axes):
        place.stairs(channel[row].numpy(), fill=True, color="#0072B2")
        place.axhline(0, color="grey", linewidth=0.5)
        place.set_xlim(0, channel.shape[1])
        place.set_ylim(-1.05 * limit, 1.05 * limit)
        place.set_box_aspect(1)


def _range(low: float | None, high: float | None) -> str:
    return f"{low:.3g} … {high:.3g}".replace("-", "−")


def _draw_cam(axes: Sequence[Axes], cam: Cam, pixels: Tensor) -> None:
    """Grad-CAM over the image in grey, each map scaled by itself, because its height has no unit."""
    axes[0].set_title(cam.title)
    height, width = pixels.shape[1:3]
    for row, place in enumerate(axes):
        place.imshow(pixels[row].mean(2).numpy(), cmap="gray", vmin=0, vmax=1)
        place.imshow(cam.cam[row].numpy(), cmap="inferno", alpha=0.6, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        place.set_xlabel(cam.captions[row], fontsize=7)
