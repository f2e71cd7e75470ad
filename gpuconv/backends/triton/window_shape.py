"""The windows of the families `window` and `pointwise` of the Triton kernels.

Which pixels a tile has, where their results are, and what the copy engine can fetch. Nothing here is launched.
"""

import math
from typing import NamedTuple

import torch

from gpuconv.backends.base import Tile
from gpuconv.backends.derived import overflows, phases_of
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.problem import ConvProblem, Direction

# TH, TW of a window; as many images as fill it up. Squares share most of their rows from one tap to the next; long ones
# fill sectors of 32 bytes where threads store the result along its rows.
_SHAPES = ((8, 8), (4, 4), (2, 2), (1, 8), (1, 1))
_LONG = ((8, 16), (4, 32), (4, 16), (2, 32), (2, 16), (1, 64), (1, 32), (1, 16), (4, 8), (2, 8), (2, 4))
_COLUMNS = 128  # of a tile, about
_SHORTEST_RUN = 32  # bytes of pixels that a product of a grad_weight sums at least
_FEWEST_TERMS = 8 if RELEASE >= (3, 8) else 16  # of a product of 32-bit numbers: Triton compiles none of fewer
# Times as long as a step whose left operand is read from shared memory; a guess. On sm_90 Triton before 3.8 overwrites
# registers that products still read.
_THROUGH_REGISTERS = 1.2 if RELEASE >= (3, 8) else math.inf
_MANY_ROWS = 128  # the square of so many rows doubles a step's time, each waiting for the product before; a guess


class Window(NamedTuple):
    """The pixels of a tile, images × rows × columns, and how many windows the batch has along each of the three."""

    images: int
    rows: int
    columns: int
    blocks: tuple[int, int, int]
    by_row: bool = False  # each row of it is fetched by itself (`gpuconv.kernels.triton.window_grad_weight`)

    @property
    def number(self) -> int:
        return math.prod(self.blocks)


def phase_size(problem: ConvProblem, direction: Direction) -> tuple[int, int]:
    """Rows and columns of the pixels that windows cover: outputs, or the largest phase of grad_input."""
    if direction == "grad_input":
        h, w = (math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
        return h, w
    return problem.output_size[0], problem.output_size[1]


def window_of(problem: ConvProblem, direction: Direction, pixels: int, phases: int = 1) -> Window:
    """The window of `pixels` pixels that wastes least, and among equals the one of the fewest images.

    Where threads store the result along its rows, it is the one that moves the fewest bytes: of operands to the
    product, and of sectors that are stored. phases: how many windows of as many phases are stored together.
    """
    size = phase_size(problem, direction)

    def blocks(rows: int, columns: int) -> Window:
        images = pixels // (rows * columns)
        counts = (math.ceil(n / of) for n, of in zip((problem.batch, *size), (images, rows, columns), strict=True))
        return Window(images, rows, columns, tuple(counts))  # type: ignore[arg-type]  # three of them

    shapes = [(1, pixels), *_SHAPES] if size[0] == 1 else [*_SHAPES, (1, pixels)]
    if direction == "grad_weight" or placed(problem, direction, phases=phases).vector == 0:
        return min((blocks(*s) for s in shapes if math.prod(s) <= pixels), key=lambda window: window.number)
    strided = direction == "grad_input"
    apart = problem.dtype.itemsize * (problem.stride[1] // phases if strided else 1)
    fetched = 2 * problem.products(direction) * problem.dtype.itemsize // (phases_of(problem) if strided else 1)
    return min(
        (blocks(*s) for s in (*shapes, *_LONG) if math.prod(s) <= pixels),
        key=lambda window: window.number * (fetched + _COLUMNS * max(apart, 32 // (window.columns * phases))),
    )


class Placed(NamedTuple):
    """Where the pixels of a result, or of a residual, are."""

    strides: tuple[int, int, int, int]  # of images, channels, rows, pixels; divided by `vector`, if that is not 0
    vector: int  # pixels that a thread loads or stores at once; 0: the copy engine does
    wide: bool = False  # offsets need 64 bits

    @property
    def pixels(self) -> tuple[int, int, int]:
        """The strides without that of channels."""
        n, _, h, w = self.strides
        return n, h, w


def placed(
    problem: ConvProblem,
    direction: Direction,
    images: int = 1,
    strides: tuple[int, ...] | None = None,
    split: bool = False,
    phases: int = 1,
) -> Placed:
    """Where the result of forward or grad_input is (or its partial sums, if `split`), or a residual with these strides.

    images: how many lie in the one row of a problem of `pointwise`. Then strides are those of images, channels, any,
    and pixels. phases: neighbours in a row that are stored together, as in `Tile`.
    """
    _, c, height, width = problem.view(direction).shape
    n, k, h, w = fresh_strides(problem, direction, images) if strides is None else strides
    pixels, unit = width // images, 4 if split else problem.vector_unit
    if images > 1 and pixels == 1:
        w = n
    row = (1, c, 1, width) if images > 1 else problem.view(direction).shape
    if (images == 1 or n == pixels * w) and not_described("", row, (n, k, h, w), unit) is None:
        n, h, w = descriptor_strides(row, (n, k, h, w), unit)
        return Placed((n, 1, h, w), 0)
    n, h = (n if max(images, problem.batch) > 1 else 0), (h if height > 1 and images == 1 else 0)
    k, w = (k if c > 1 else 0), (w if width > 1 else 0)
    alone = direction == "grad_input" and problem.stride != (1, 1) and phases == 1
    vector = math.gcd(unit, n, k, h, pixels) if w == 1 and not alone else 1
    extent = images * problem.batch * n + c * k + height * h + width * w
    return Placed((n // vector, k // vector, h // vector, w), vector, overflows(extent))


def fresh_strides(problem: ConvProblem, direction: Direction, images: int = 1) -> tuple[int, ...]:
    """Strides of the result of forward or grad_input."""
    n, c, h, w = problem.view(direction).shape
    return torch.empty((n * images, c, h, w // images), device="meta", memory_format=problem.memory_format).stride()


def not_described(name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> str | None:
    """Why a descriptor cannot describe a tensor, None if it can. The taps of a weight must be evenly spaced."""
    n, c, h, w = strides
    of_one = [size == 1 for size in shape]
    if c != 1 and not of_one[1]:
        return f"{name} is not channels last (of a model, model.to(memory_format=torch.channels_last))"
    others = [stride for stride, one in zip((n, h, w), (of_one[0], *of_one[2:]), strict=True) if not one]
    if any(stride % unit or stride <= 0 for stride in others):
        return f"{name} has strides {strides}, not multiples of 16 bytes"
    if not of_one[3] and w < shape[1]:
        return f"{name} has pixels that overlap"
    if name == "weight" and not of_one[2] and not of_one[3] and h != shape[3] * w:
        return f"{name} has taps that are not evenly spaced"
    return None


def weight_window(problem: ConvProblem, tile: Tile) -> Window:
    """The window of `tile.depth` pixels with which a grad_weight takes least time, by what its steps fetch.

    Best are those of one image or one column, row by row; unless they waste too much.
    """
    sizes = (problem.batch, *problem.output_size)
    whole = window_of(problem, "grad_weight", tile.depth)
    through = _THROUGH_REGISTERS if problem.dtype.itemsize == 2 else 1.0  # TF32's go through them in any case
    found = [(through * whole.number * step_bytes(problem, tile, whole), whole)]
    rows, shortest = 1, max(_SHORTEST_RUN // problem.dtype.itemsize, _FEWEST_TERMS)
    while (run := tile.depth // rows) >= shortest:
        for images, columns in ((run, 1), (1, run)):
            counts = (math.ceil(n / of) for n, of in zip(sizes, (images, rows, columns), strict=True))
            window = Window(images, rows, columns, tuple(counts), True)  # type: ignore[arg-type]  # three of them
            slower = 1 + rows**2 / _MANY_ROWS
            found.append((slower * window.number * step_bytes(problem, tile, window), window))
        rows *= 2
    return min(found, key=lambda each: each[0])[1]


def step_bytes(problem: ConvProblem, tile: Tile, window: Window) -> int:
    """Bytes that a step of a grad_weight fetches: of gy a window, of x one for each tap, or all their rows once."""
    row, by_row = tile.depth // window.rows, window.by_row
    of_x = row * (window.rows + tile.taps - 1) if by_row else tile.depth * tile.taps
    return (tile.rows * tile.depth + tile.columns * of_x) * problem.dtype.itemsize


def folds(problem: ConvProblem, tile: Tile) -> bool:
    """Whether one view of the input has the pixels of all remainders (`gpuconv.kernels.triton.window_common`), and no
    block of channels reaches into the next pixel."""
    return problem.stride == (1, 1) or (divides(problem) and problem.group_channels % tile.depth == 0)


def divides(problem: ConvProblem) -> bool:
    """Whether the strides divide the sizes of the input."""
    return not any(h % u for h, u in zip(problem.input_size, problem.stride, strict=True))


def descriptor_strides(shape: tuple[int, ...], strides: tuple[int, ...] | None, unit: int) -> tuple[int, int, int]:
    """Strides of images, rows and pixels; for an axis of size 1, any stride that a descriptor takes."""
    n, _, h, w = (
        unit if size == 1 else stride for size, stride in zip(shape, strides or (unit,) * 4, strict=True)
    )  # fmt: skip
    return n, h, w
