"""Pictures in a terminal: half blocks, two pixels to a character, in 24-bit colours."""

import torch.nn.functional as F
from torch import Tensor

from gpuconv.see import rendering
from gpuconv.see.rendering import Pixels

_TILE, _ACROSS = 24, 3


def half_blocks(pixels: Pixels) -> str:
    """[H, W, 3] as lines of text: the upper pixel of two is the colour of ▀, the lower one its background."""
    lines = []
    for row in range(0, len(pixels), 2):
        line = ""
        for column in range(pixels.shape[1]):
            line += _colour(38, pixels[row, column])
            if row + 1 < len(pixels):
                line += _colour(48, pixels[row + 1, column])
            line += "▀"
        lines.append(line + "\033[0m")
    return "\n".join(lines)


def compact(image: Tensor, maps: Tensor, channels: list[int]) -> str:
    """An image [C, H, W], 0 … 1, and the first six of `channels` of its maps [K, P, Q], on one scale."""
    few = channels[: 2 * _ACROSS]
    limit = rendering.limit_of(maps[few])
    (pixels,) = rendering.image_tiles(_scaled(image, 2 * _TILE)[None])
    tiles = [rendering.colours(_scaled(maps[k][None], _TILE)[0], limit) for k in few]
    parts = [half_blocks(pixels)]
    for first in range(0, len(few), _ACROSS):
        names = few[first : first + _ACROSS]
        parts.append(" ".join(f"channel {k}".ljust(_TILE)[:_TILE] for k in names).rstrip())
        rows = zip(*(half_blocks(tile).split("\n") for tile in tiles[first : first + _ACROSS]), strict=True)
        parts += [" ".join(row) for row in rows]
    return "\n".join([*parts, f"blue −{limit:.3g}, white 0, orange +{limit:.3g}"])


def _scaled(image: Tensor, width: int) -> Tensor:
    """[C, H, W] made `width` pixels wide, in its proportions."""
    height = max(1, round(image.shape[1] * width / image.shape[2]))
    return F.interpolate(image[None].float(), (height, width), mode="nearest-exact")[0]


def _colour(which: int, pixel: Pixels) -> str:
    red, green, blue = (int(value) for value in pixel[:3])
    return f"\033[{which};2;{red};{green};{blue}m"
