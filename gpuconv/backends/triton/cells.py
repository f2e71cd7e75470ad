"""Family `cells` of the Triton kernels: results of few channels, for many neighbouring pixels together. These are
grad_input of few input channels and forward of few filters.

A launch before it writes the weight as filters of cells (`gpuconv.kernels.triton.cells`).
"""

import functools
import itertools
import math
from contextlib import suppress
from typing import NamedTuple

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import axes, overflows
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, copying, implicit_gemm
from gpuconv.backends.triton.launch import (
    BAND,
    Launch,
    Layout,
    arithmetic_of,
    dtypes_of_forward,
    epilogue_of,
    layouts,
    residual_layout,
)
from gpuconv.backends.triton.runs import Pack
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.cells import cells_product, pack_cells

_MOST_CHANNELS = 8
_PACK_BLOCK = 512
_UNEVEN = 1.15  # what cells that do not divide the image may at most save; a guess


class Axis(NamedTuple):
    """The cells of one axis."""

    pixels: int  # of a cell
    step: int  # from cell to cell, in pixels of what is gathered from
    first: int  # of those that a cell meets, counted from its own first one
    met: int  # how many
    cells: int
    fetched: int  # what all cells meet, but for pixels that there are not


@functools.lru_cache(4096)
def _axis(m: int, forward: bool, h: int, p: int, u: int, low: int, d: int, r: int) -> Axis:
    """Cells of m·u pixels of an input of h and an output of p; in forward of m pixels of that output."""
    if forward:
        pixels, step, size, there = m, m * u, p, h
        met = [a * u + tap * d - low for a in range(m) for tap in range(r)]
    else:
        pixels, step, size, there = m * u, m, h, p
        met = [(a + low - tap * d) // u for a in range(m * u) for tap in range(r) if (a + low - tap * d) % u == 0]
    first, count, cells = min(met), max(met) - min(met) + 1, math.ceil(size / pixels)
    fetched = sum(  # by the cells from the first to the last for which that pixel is there
        max(0, min(cells - 1, (there - 1 - v) // step) - max(0, math.ceil(-v / step)) + 1)
        for v in range(first, first + count)
    )
    return Axis(pixels, step, first, count, cells, fetched)


class Cells(NamedTuple):
    """How an image is divided into cells, on axes D, H, W."""

    axes: tuple[Axis, Axis, Axis]

    def product(self, name: str) -> int:
        """Of this value on all axes."""
        return math.prod(getattr(axis, name) for axis in self.axes)

    def each(self, name: str) -> tuple[int, ...]:
        """This value on each axis."""
        return tuple(getattr(axis, name) for axis in self.axes)


@functools.lru_cache(4096)
def cells_of(problem: ConvProblem, direction: Direction, columns: int) -> Cells:
    """Cells with at most so many elements, if they can be so small: those that meet the fewest pixels, and rather some
    that divide the image, whose results are stored in vectors."""
    forward = direction == "forward"
    of_axes = list(
        zip(
            axes(problem.input_size, 1), axes(problem.output_size, 1), axes(problem.stride, 1),
            axes(tuple(low for low, _ in problem.padding), 0), axes(problem.dilation, 1), axes(problem.filter_size, 1),
            strict=True,
        )
    )  # fmt: skip
    most = max(1, columns // (problem.view(direction).columns * (1 if forward else math.prod(problem.stride))))
    counts = (range(1, min(most, p if forward else math.ceil(h / u)) + 1) for h, p, u, *_ in of_axes)
    found = (
        Cells(tuple(_axis(m, forward, *axis) for m, axis in zip(cell, of_axes, strict=True)))  # type: ignore[arg-type]
        for cell in itertools.product(*counts)
        if math.prod(cell) <= most
    )

    def cost(cells: Cells) -> tuple[float, int]:
        sizes = (p if forward else h for h, p, *_ in of_axes)
        even = not any(size % pixels for size, pixels in zip(sizes, cells.each("pixels"), strict=True))
        return cells.product("cells") * cells.product("met") * (1 if even else _UNEVEN), cells.product("pixels")

    return min(found, key=cost)


def _elements(problem: ConvProblem, direction: Direction, cells: Cells) -> int:
    """Elements of a cell."""
    return problem.view(direction).columns * cells.product("pixels")


# ---- which problems, and what is launched ----------------------------------------------------------------------------


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, do it; None if they can."""
    if direction == "grad_weight":
        return "it is for forward and grad_input"
    which = "filters" if direction == "forward" else "input channels"
    _, channels, terms, _ = problem.view(direction)
    if problem.groups != 1 or not 1 <= channels <= _MOST_CHANNELS:
        return f"it is for 1 to {_MOST_CHANNELS} {which} in one group"
    if not problem.output_pixels or not problem.input_pixels or not terms:
        return "there is nothing to multiply"
    return None


def _vector(problem: ConvProblem, direction: Direction, x: Layout) -> int:
    """The VECTOR of what is gathered from (`gpuconv.kernels.triton.common`)."""
    unit = problem.vector_unit
    return unit if x.vectors(unit) and problem.view(direction).terms % unit == 0 else 1


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. Needs no GPU."""
    forward = direction == "forward"
    x, w = layouts(problem, direction, operands)
    residual = residual_layout(problem, operands)
    cells = cells_of(problem, direction, tile.columns)
    _, c, k, result = problem.view(direction)
    of_input, of_output = axes(problem.input_size, 1), axes(problem.output_size, 1)
    sizes, there = (of_output, of_input) if forward else (of_input, of_output)
    vector = _vector(problem, direction, x)
    e_d, e_h, e_w = cells.each("pixels")
    each = 1 if problem.memory_format is torch.contiguous_format else c
    size = _elements(problem, direction, cells) * cells.product("met") * k
    shape = {"E_D": e_d, "E_H": e_h, "RUN": e_w * each, "EACH": each}
    wide = overflows(x.extent, w.extent, residual.extent, size, math.prod(result))
    met = (*cells.each("first"), *cells.each("met"))

    w_k, w_c, *w_taps = w.strides
    pack = Pack(
        pack_cells,
        math.ceil(size / _PACK_BLOCK),
        (problem.dtype,) * 2,
        (
            k, *axes(problem.filter_size, 1), *axes(problem.stride, 1),
            *axes(tuple(low for low, _ in problem.padding), 0), *axes(problem.dilation, 1), *met,
            *((w_c, w_k) if forward else (w_k, w_c)), *w_taps, size, *shape.values(),
        ),
        {"BLOCK": _PACK_BLOCK, "FORWARD": forward, "WIDE": wide},
        Tile(0, 0, 0, warps=4, stages=2),
    )  # fmt: skip
    pack.rows, pack.filters = 0, size

    inside = "bits" if max(cells.each("met")) <= 10 else "compare"
    if cells.product("fetched") == cells.product("cells") * cells.product("met"):
        inside = "always"
    row = sizes[2] * each
    y_vector = math.gcd(problem.vector_unit, row, shape["RUN"])
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "BAND": BAND, **shape, "PLANES": c // each,
        "INSIDE": inside, "EVEN_K": vector > 1 and k % tile.depth == 0,
        "EVEN": not any(n % pixels for n, pixels in zip(sizes, (e_d, e_h, e_w), strict=True)),
        "X_ROWS_FAST": not x.channels_fast, "VECTOR": vector, "Y_VECTOR": y_vector, "WIDE": wide,
        **arithmetic_of(problem, operands),
        **epilogue_of(activation),
    }  # fmt: skip
    scalars = (
        problem.batch, k // vector, *sizes, *there, *met, *cells.each("step"), *cells.each("cells"),
        *x.divided(vector), row // y_vector, *residual.strides,
    )  # fmt: skip
    programs, _ = _programs_and_steps(problem, direction, tile)
    return pack, Launch(cells_product, programs, dtypes_of_forward(problem, operands), scalars, constants, tile)


# ---- which tiles there are, and how long they take -------------------------------------------------------------------

# rows, columns, warps
_TENSOR_CORES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (128, 32, 4), (128, 16, 4), (64, 16, 4))
_BY_ELEMENT = ((64, 64, 8), (64, 16, 4))  # each element loaded by itself, with an address of its own in registers
_FMA = ((64, 64, 8), (64, 16, 4))
_DOUBLE = ((64, 32, 4), (64, 16, 4))
_INTERPRETED = ((128, 64, 4), (64, 16, 4))


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    size, (x, _) = problem.dtype.itemsize, layouts(problem, direction, operands)
    vector = _vector(problem, direction, x)
    shapes: tuple[tuple[int, int, int], ...]
    if gpu.capability == (0, 0):
        shapes, depth = _INTERPRETED, 64
    elif size == 8:
        shapes, depth = _DOUBLE, 16
    elif size == 4 and not operands.tf32:
        shapes, depth = _FMA, 16
    elif vector > 1:
        shapes, depth = _TENSOR_CORES, 128 // size
    else:
        shapes, depth = _BY_ELEMENT, 64 // size
    while depth > 16 and problem.view(direction).terms <= depth // 2:
        depth //= 2
    chosen = []
    for rows, columns, warps in shapes:
        if columns > 16 and columns >= 2 * _elements(problem, direction, cells_of(problem, direction, columns)):
            continue  # more than half of it idle
        few = size == 8 or (size == 4 and not operands.tf32)
        stages = min(2 if few else 4, gpu.shared_memory // ((rows + columns) * depth * size))
        addressed = rows * depth if vector == 1 else 0
        chosen.append(Tile(rows, columns, depth, warps, stages, kernel="cells", addressed=addressed))
    return chosen


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM of cells, after the launch that writes their filters."""
    product = implicit_gemm(problem, direction, tile, gpu, tf32, count=_programs_and_steps, elements=_fetched)
    cells = cells_of(problem, direction, tile.columns)
    filters = _elements(problem, direction, cells) * cells.product("met") * problem.view(direction).terms
    filters *= problem.dtype.itemsize
    return product._replace(seconds=product.seconds + copying(filters, gpu))


def _programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    cells = cells_of(problem, direction, tile.columns)
    rows = math.ceil(problem.batch * cells.product("cells") / tile.rows)
    programs = rows * math.ceil(_elements(problem, direction, cells) / tile.columns)
    return programs, cells.product("met") * math.ceil(problem.view(direction).terms / tile.depth)


def _fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[float, float]:
    """Elements that all programs fetch of the image and of the filters, for rows and columns beyond the last too."""
    cells, k = cells_of(problem, direction, tile.columns), problem.view(direction).terms
    programs, _ = _programs_and_steps(problem, direction, tile)
    of_x = programs * tile.rows / cells.product("cells") * cells.product("fetched") * k
    return of_x, programs * tile.columns * cells.product("met") * k


FAMILY = Family("cells", refuses, tiles, launches, predict)
