"""Tensors as pixels, figures and charts, with no words in them, so that they serve every language.

Signed values have one colour map: blue below 0, white at 0, orange above, equally far on both sides; lightness falls
evenly to both ends, and colour-blind readers can tell blue from orange. Maps that are compared share their limit.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Colour at −1 … 1 in equal steps.
DIVERGING = ("#053061", "#2166ac", "#4393c3", "#92c5de", "#f7f7f7", "#fdb863", "#e08214", "#b35806", "#7f3b08")
# Colours (after Okabe and Ito, visible on black and on white) and dashes of lines, in order of use.
LINES = (("#2b8cc4", "-"), ("#e69f00", "--"), ("#009e73", "-."), ("#cc79a7", ":"))
_STOPS = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in DIVERGING], dtype=np.float64)

Pixels = Any  # a NumPy array [H, W, 3] or [H, W, 4] uint8


def limit_of(*values: Tensor) -> float:
    """The end of a shared scale: the greatest absolute value of all, 1 where all are 0."""
    return max(float(value.detach().abs().max()) for value in values) or 1.0


def colours(values: Tensor, limit: float) -> Pixels:
    """Values [H, W] as pixels [H, W, 3] on the diverging map from −limit to limit."""
    at = (values.detach().cpu().double().numpy() / limit).clip(-1, 1)
    at = (at + 1) / 2 * (len(_STOPS) - 1)
    channels = [np.interp(at, np.arange(len(_STOPS)), _STOPS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def grey(image: Tensor, white: float = 1.0) -> Pixels:
    """An image [H, W] from 0 to `white` as grey pixels [H, W, 3]."""
    return rgb((image / white).expand(3, *image.shape))


def rgb(image: Tensor) -> Pixels:
    """An image [3, H, W] from 0 to 1 as pixels [H, W, 3]."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def image_tiles(images: Tensor) -> list[Pixels]:
    """Images [N, C, H, W] from 0 to 1 as pixels: three channels as colours, others as the grey of their mean."""
    return [rgb(image) if len(image) == 3 else grey(image.mean(0)) for image in images]


def filter_tiles(weight: Tensor, limit: float | None = None) -> list[Pixels]:
    """Filters [K, C, R, S] with one limit: three channels as colours around grey, others each on the diverging map."""
    limit = limit or limit_of(weight)
    if weight.shape[1] == 3:
        return [rgb(0.5 + filter / (2 * limit)) for filter in weight]
    return [colours(channel, limit) for filter in weight for channel in filter]


def mosaic(tiles: Sequence[Pixels], columns: int, zoom: int = 1, gap: int = 1) -> Pixels:
    """Tiles of one size in rows, [H, W, 4], each pixel zoom × zoom; what lies between them is transparent."""
    height, width = tiles[0].shape[:2]
    rows = math.ceil(len(tiles) / columns)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    whole = np.zeros((rows * step_y - gap, min(columns, len(tiles)) * step_x - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        large = tile.repeat(zoom, 0).repeat(zoom, 1)
        place = whole[row * step_y : row * step_y + height * zoom, column * step_x : column * step_x + width * zoom]
        place[..., :3], place[..., 3] = large[..., :3], 255
    return whole


def fitting_zoom(tile: Pixels, width: int) -> int:
    """The zoom with which the tile is about `width` pixels wide."""
    return max(1, round(width / tile.shape[1]))


def png(pixels: Pixels) -> bytes:
    """Pixels [H, W], [H, W, 3] or [H, W, 4] as a PNG file."""
    from PIL import Image

    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


# ---- matplotlib -----------------------------------------------------------------------------------------------------


def figure(tiles: Sequence[Any], columns: int | None = None, limits: Sequence[float] | None = None) -> Any:
    """A matplotlib figure of tensors [H, W], on one symmetric scale, or of pixels [H, W, 3].

    limits: the ends of each tensor's scale, where there is more than one.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure  # no pyplot: no state, no display

    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    made = Figure(figsize=(1.4 * columns + 0.6, 1.4 * rows), layout="constrained")
    panels = made.subplots(rows, columns, squeeze=False).flatten()
    signed = [tile for tile in tiles if isinstance(tile, Tensor)]
    limit = limit_of(*signed) if signed else 1.0
    colour_map = LinearSegmentedColormap.from_list("gpuconv", DIVERGING)
    shown = None
    for panel in panels:
        panel.set_axis_off()
    for i, (panel, tile) in enumerate(zip(panels, tiles, strict=False)):  # the last panels may stay empty
        if isinstance(tile, Tensor):
            own = limits[i] if limits else limit
            shown = panel.imshow(tile.detach().cpu().double().numpy(), cmap=colour_map, vmin=-own, vmax=own)
        else:
            panel.imshow(tile)
    if shown is not None and not limits:
        made.colorbar(shown, ax=list(panels), shrink=0.6)
    return made


def chart(
    lines: Sequence[tuple[Any, Any]],
    bands: Sequence[tuple[Any, Any, Any] | None] = (),
    log: tuple[bool, bool] = (False, False),
    dots: Sequence[int] = (),
    square: bool = False,
) -> bytes:
    """A PNG of lines (x, y), the i-th in the i-th colour and dash of LINES; bands (x, low, high) around them.

    Only numbers stand at its axes; it is transparent, in greys that can be read on black and on white. log: (x, y).
    dots: the lines that are drawn as dots. square: a small chart, to be shown beside others.
    """
    from matplotlib.figure import Figure

    made = Figure(figsize=(2.2, 2.2) if square else (5.4, 2.7), layout="constrained")
    panel = made.subplots()
    for i, (x, y) in enumerate(lines):
        colour, dash = LINES[i % len(LINES)]
        style: dict[str, Any] = {"marker": "o", "linestyle": "none"} if i in dots else {"linestyle": dash}
        panel.plot(x, y, color=colour, linewidth=2, markersize=5, **style)
    for i, band in enumerate(bands):
        if band is not None:
            panel.fill_between(*band, color=LINES[i % len(LINES)][0], alpha=0.25, linewidth=0)
    if log[0]:
        panel.set_xscale("log")
    if log[1]:
        panel.set_yscale("log")
    grey = "#7a7a7a"
    panel.tick_params(colors=grey, labelsize=12 if square else 10)
    if square:
        panel.locator_params(nbins=3)
    panel.grid(True, color=grey, alpha=0.25, linewidth=0.6)
    for spine in panel.spines.values():
        spine.set_color(grey)
    file = io.BytesIO()
    made.savefig(file, dpi=150, transparent=True)
    return file.getvalue()
