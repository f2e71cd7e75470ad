"""Family `stem` of the Triton kernels: few input channels, so the sum runs over taps and channels flattened together.

It has forward and grad_weight: in grad_input, which sums over the filters, few input channels cost nothing.
"""

import dataclasses
import math
from contextlib import suppress

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import overflows, splits_of, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.backends.triton.launch import (
    BAND,
    Launch,
    adds_apart,
    arithmetic_of,
    axis_scalars,
    dtypes_of_forward,
    epilogue_of,
    grad_weight_launches,
    layouts,
    residual_layout,
    result_strides,
    strides_of_sums,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.stem import stem_forward, stem_grad_weight

_MOST_CHANNELS = 4


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, do it; None if they can."""
    if direction == "grad_input":
        return "grad_input sums over the filters: few input channels cost it nothing"
    if problem.groups != 1 or not 1 <= problem.in_channels <= _MOST_CHANNELS:
        return f"it is for 1 to {_MOST_CHANNELS} input channels in one group"
    return None


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    if direction == "forward":
        return (_forward(problem, activation, operands, tile),)
    return _grad_weight(problem, operands, tile, with_bias)


def _forward(problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile) -> Launch:
    k, c = problem.out_channels, problem.in_channels
    x, w = layouts(problem, "forward", operands)
    residual = residual_layout(problem, operands)
    pixels = problem.output_pixels
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BJ": tile.depth, "BAND": BAND, "VOLUME": problem.ndim == 3,
        "X_ROWS_FAST": not x.channels_fast,
        "Y_ROWS_FAST": problem.memory_format is torch.contiguous_format,
        "RESIDUAL_ROWS_FAST": not residual.channels_fast,
        "WIDE": overflows(x.extent, w.extent, residual.extent, math.prod(problem.output_shape)),
        **arithmetic_of(problem, operands),
        **epilogue_of(activation),
    }  # fmt: skip
    scalars = (
        pixels, k, c, *axis_scalars(problem), *x.strides, *w.strides, *result_strides(problem.output_shape, problem),
        *residual.strides,
    )  # fmt: skip
    dtypes = dtypes_of_forward(problem, operands)
    programs = math.ceil(pixels / tile.rows) * math.ceil(k / tile.columns)
    return Launch(stem_forward, programs, dtypes, scalars, constants, tile)


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    k, c = problem.out_channels, problem.in_channels
    gy, x = layouts(problem, "grad_weight", operands)
    size = math.prod(problem.weight_shape)
    pixels = problem.output_pixels
    splits, tiles = splits_of(problem, tile), _tiles_of_result(problem, tile)
    gw = strides_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    constants = {
        "BM": tile.rows, "BJ": tile.columns, "BC": tile.depth, "VOLUME": problem.ndim == 3,
        "GY_PIXELS_FAST": not gy.channels_fast, "X_PIXELS_FAST": not x.channels_fast,
        "WIDE": overflows(gy.extent, x.extent, size, pixels),
        **arithmetic_of(problem, operands),
    }  # fmt: skip
    scalars = (pixels, k, c, *axis_scalars(problem), *gy.strides, *x.strides, *gw, splits)
    return grad_weight_launches(stem_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias)


def _tiles_of_result(problem: ConvProblem, tile: Tile) -> int:
    """How many tiles of filters × terms grad_weight has."""
    return math.ceil(problem.out_channels / tile.rows) * math.ceil(_terms(problem) / tile.columns)


def _terms(problem: ConvProblem) -> int:
    """Taps and channels, flattened together."""
    return problem.taps * problem.in_channels


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, depth, warps. Each element has an address of its own, in registers.
_TENSOR_CORES = {"forward": ((64, 64, 32, 4), (64, 16, 32, 4)), "grad_weight": ((64, 64, 32, 4),)}
_TF32 = _TENSOR_CORES | {"grad_weight": ((64, 64, 16, 8),)}
_FMA = {"forward": ((64, 64, 16, 8), (64, 16, 16, 4)), "grad_weight": ((64, 64, 16, 8),)}
_DOUBLE = {"forward": ((32, 32, 16, 4),), "grad_weight": ((32, 32, 16, 4),)}
_INTERPRETED = {"forward": ((1024, 64, 64, 4), (128, 16, 64, 4)), "grad_weight": ((64, 64, 1024, 4), (64, 64, 128, 4))}


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    size = problem.dtype.itemsize
    shapes: tuple[tuple[int, int, int, int], ...]
    if gpu.capability == (0, 0):
        shapes = _INTERPRETED[direction]
    elif size == 8:
        shapes = _DOUBLE[direction]
    elif size == 4 and not operands.tf32:
        shapes = _FMA[direction]
    else:
        shapes = (_TENSOR_CORES if size == 2 else _TF32)[direction]
    terms = _terms(problem)
    chosen = []
    for rows, columns, depth, warps in shapes:
        tile = Tile(rows, columns, depth, warps, 2, kernel="stem")
        filters = columns if direction == "forward" else rows
        if filters > 16 and filters >= 2 * problem.out_channels and len(shapes) > 1:
            continue  # more than half of it idle
        while direction == "forward" and tile.depth > 16 and terms <= tile.depth // 2:
            tile = dataclasses.replace(tile, depth=tile.depth // 2)
        tile = dataclasses.replace(tile, addressed=(rows + columns) * tile.depth)
        if direction == "grad_weight":
            chosen += with_splits(tile, problem, gpu, _tiles_of_result(problem, tile))
        else:
            chosen.append(tile)
    return chosen


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM over flattened terms."""
    return implicit_gemm(problem, direction, tile, gpu, tf32, count=_programs_and_steps, elements=_fetched)


def _programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    pixels = problem.output_pixels
    if direction == "forward":
        programs = math.ceil(pixels / tile.rows) * math.ceil(problem.out_channels / tile.columns)
        return programs, math.ceil(_terms(problem) / tile.depth)
    steps = math.ceil(pixels / tile.depth)
    return _tiles_of_result(problem, tile) * tile.splits, math.ceil(steps / tile.splits)


def _fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, int]:
    """Elements that all programs fetch of the left operand and of the right one."""
    k, of_x = problem.out_channels, problem.meetings * problem.in_channels
    if direction == "forward":
        blocks = math.ceil(problem.output_pixels / tile.rows)
        return of_x * math.ceil(k / tile.columns), blocks * _terms(problem) * k
    of_y = problem.output_pixels * k * math.ceil(_terms(problem) / tile.columns)
    return of_y, of_x * math.ceil(k / tile.rows)


FAMILY = Family("stem", refuses, tiles, launches, predict)
