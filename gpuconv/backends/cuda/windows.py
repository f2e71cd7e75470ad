"""The windows of the families `halo` and `grouped_halo`: what a block fetches once for all taps of a filter's plane.

Nothing here needs a GPU.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

from gpuconv.backends.base import Tile
from gpuconv.problem import CHANNELS_LAST, ConvProblem, Direction

MOST_TAPS = 31  # whose bits the kernels keep in a word, beside one more


def refuses(problem: ConvProblem, direction: Direction) -> str | None:
    """Why a window cannot, or need not, be shared by the taps of `direction`; None if it can."""
    if direction == "grad_weight":
        return "grad_weight sums over pixels, and has no window to share"
    if set(problem.stride) != {1}:
        return "a window is shared by all taps at stride 1 alone"
    if len(problem.filter_size) == 3 and problem.filter_size[0] > MOST_TAPS:
        return f"filters deeper than {MOST_TAPS} taps have more planes than a word has bits"
    return None if taps_of_window(problem) > 1 else "a plane of the filter has one tap, which shares a window with none"


def taps_of_window(problem: ConvProblem) -> int:
    """Taps that share a window: those of one plane of the filter. Taps at another depth need another window."""
    return math.prod(problem.filter_size[-2:])


def _grid(problem: ConvProblem, direction: Direction) -> tuple[int, int, int]:
    """Images (depth counted with them), height and width of the pixels that the rows of a product stand for."""
    size = problem.output_size if direction == "forward" else problem.input_size
    d, h, w = (1,) * (3 - len(size)) + tuple(size)
    return problem.batch * d, h, w


def _margin(problem: ConvProblem) -> tuple[int, int]:
    """The pixels by which the margin enlarges a window's height and width."""
    reach = [(r - 1) * d for r, d in zip(problem.filter_size, problem.dilation, strict=True)]
    return (reach[-2] if len(reach) > 1 else 0), reach[-1]


@functools.lru_cache(maxsize=4096)
def window_of(problem: ConvProblem, direction: Direction, rows: int) -> tuple[int, int]:
    """Height and width of the window for blocks of `rows` pixels.

    The fewest blocks come first, then whole sectors of a contiguous result, then the smallest halo. Both are powers of
    two. The width is at least 8, so that the eight rows of an ldmatrix are neighbours. Where the image is smaller than
    a block, a block takes windows of several images.
    """
    images, height, width = _grid(problem, direction)
    margin_h, margin_w = _margin(problem)
    last = problem.memory_format in CHANNELS_LAST.values()
    sector = 0 if last else 32 // problem.dtype.itemsize  # pixels of a channel

    def shapes() -> Iterator[tuple[int, bool, int, int, int]]:
        for log_w in range(3, rows.bit_length()):
            for log_h in range(rows.bit_length() - log_w):
                h, w = 1 << log_h, 1 << log_w
                together = rows // (h * w)
                blocks = math.ceil(images / together) * math.ceil(height / h) * math.ceil(width / w)
                yield blocks, w < sector, together * (h + margin_h) * (w + margin_w), h, w

    return min(shapes())[3:]


def halo_rows(problem: ConvProblem, direction: Direction, rows: int) -> int:
    """Pixels that a block of `rows` fetches: those of all its windows, margins included."""
    h, w = window_of(problem, direction, rows)
    margin_h, margin_w = _margin(problem)
    return rows // (h * w) * (h + margin_h) * (w + margin_w)


def blocks_of(problem: ConvProblem, direction: Direction, rows: int) -> int:
    """Blocks of `rows` pixels that cover all pixels of a group."""
    images, height, width = _grid(problem, direction)
    h, w = window_of(problem, direction, rows)
    return math.ceil(images / (rows // (h * w))) * math.ceil(height / h) * math.ceil(width / w)


@functools.lru_cache(maxsize=4096)
def _pixels_fetched(problem: ConvProblem, direction: Direction, rows: int) -> int:
    """Pixels of the source, of those of each window with its margin, that are inside the image; of all windows."""
    window, margins = window_of(problem, direction, rows), _margin(problem)
    sources = (1, *(problem.input_size if direction == "forward" else problem.output_size))[-2:]
    results = (1, *(problem.output_size if direction == "forward" else problem.input_size))[-2:]
    lows = (0, *(low for low, _ in problem.padding))[-2:]
    count = 1
    for size, n, side, margin, low in zip(sources, results, window, margins, lows, strict=True):
        first = -low if direction == "forward" else low - margin
        count *= sum(max(0, min(size, i + first + side + margin) - max(0, i + first)) for i in range(0, n, side))
    images, _, _ = _grid(problem, direction)
    return count * images


def fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, int]:
    """Elements that all blocks fetch of the left operand and of the right one."""
    view, planes = problem.view(direction), problem.taps // taps_of_window(problem)
    columns = math.ceil(view.columns / tile.columns)
    left = _pixels_fetched(problem, direction, tile.rows) * planes * view.terms * problem.groups * columns
    return left, tile.windows * problem.taps * view.terms * view.columns * problem.groups


def windowed(tile: Tile, problem: ConvProblem, direction: Direction) -> Tile:
    """The tile with a window as its rows."""
    halo, windows = (count(problem, direction, tile.rows) for count in (halo_rows, blocks_of))
    return dataclasses.replace(tile, halo=halo, windows=windows)
