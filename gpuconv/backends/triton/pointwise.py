"""Family `pointwise` of the Triton kernels: 1×1 filters at stride 1 as a plain GEMM over all pixels of the batch.

It is the family `window` on one image of one row: pixels that are evenly spaced, from the first image's first to the
last image's last, follow each other whatever the image's shape, so no tile has pixels to waste. (At a stride, the
pixels that are read are not evenly spaced from row to row; `window` reads them through a strided view.)
"""

import dataclasses

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.family import Family
from gpuconv.backends.triton import window
from gpuconv.backends.triton.launch import Launch
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_PIXELS = 2**31 - 2**10  # counted in 32 bits, by blocks that may reach beyond the last


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot do it; None if they can."""
    if problem.taps != 1 or any(u != 1 for u in problem.stride) or any(low or high for low, high in problem.padding):
        return "the filter is not 1×1 at stride 1 without padding"
    reason = window.refuses_descriptors(problem, direction, gpu, operands)
    if reason is not None:
        return reason
    if problem.output_pixels > _MOST_PIXELS:
        return "it counts pixels in 32 bits, and here are more"
    if _flattened(problem, direction, operands) is None:
        return "its pixels are not evenly spaced"
    return None


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    return window.menu(_row(problem), direction, gpu, _of_row(problem, direction, operands), "pointwise", problem.batch)


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    row = _of_row(problem, direction, operands)
    return window.launches(_row(problem), direction, row, tile, activation, with_bias, problem.batch)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """How many programs share a sum of grad_weight: `tile.splits`, or fewer, so that each has a window."""
    return window.splits_of(_row(problem), tile)


def _row(problem: ConvProblem) -> ConvProblem:
    """The problem as one image of one row."""
    return dataclasses.replace(problem, batch=1, input_size=(1, problem.input_pixels))


def _of_row(problem: ConvProblem, direction: Direction, operands: Operands) -> Operands:
    """The operands of `_row`. Raises ValueError for those that `refuses` refuses."""
    row = _flattened(problem, direction, operands)
    if row is None:
        raise ValueError(f"operands must have evenly spaced pixels, but got strides {operands}")
    return row


def _flattened(problem: ConvProblem, direction: Direction, operands: Operands) -> Operands | None:
    """The operands as images of one row; None if the pixels of one are not evenly spaced. A residual's may be so within
    each image alone: then its first stride is that of images."""
    (first, second), (of_first, of_second) = problem.operand_shapes(direction), operands.strides
    a = _evenly(first, of_first)
    b = _evenly(second, of_second) if direction == "grad_weight" else of_second  # else it is the weight
    residual = operands.residual and _evenly((1, *problem.output_shape[1:]), operands.residual)
    if a is None or b is None or (operands.residual is not None and residual is None):
        return None
    if operands.residual is not None and residual is not None:
        residual = (operands.residual[0], *residual[1:])
    return operands._replace(strides=(a, b), residual=residual)


def _evenly(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides of [1, C, 1, pixels], if the pixels of the images [N, C, H, W] are evenly spaced."""
    n, c, h, w = strides
    spacing, pixels = 0, 1
    for size, stride in ((shape[3], w), (shape[2], h), (shape[0], n)):
        if size == 1:
            continue
        if spacing and stride != spacing * pixels:
            return None
        spacing, pixels = spacing or stride, pixels * size
    return (pixels * spacing, c, pixels * spacing, spacing)


FAMILY = Family(
    "pointwise", refuses, tiles, launches, window.predict, splits_of, turns=True, needs_alignment=True
)  # fmt: skip
