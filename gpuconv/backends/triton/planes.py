"""Family `planes` of the Triton kernels: 1×1 convolution of contiguous tensors, fetched in vectors along pixels."""

import dataclasses
import math
from contextlib import suppress

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import overflows, splits_of, tiles_of_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.planes import is_pointwise, planes, vector_of_planes
from gpuconv.backends.triton.launch import (
    Launch,
    adds_apart,
    arithmetic_of,
    dtypes_of_forward,
    epilogue_of,
    grad_weight_launches,
    layouts,
    residual_layout,
    result_strides,
    vectors_of_sums,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.planes import planes_grad_weight, planes_product


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, do it; None if they can."""
    if not is_pointwise(problem) or problem.memory_format is not torch.contiguous_format:
        return "it is for 1×1 filters, stride 1, without padding, and contiguous tensors"
    if not math.prod(problem.input_size):
        return "there are no pixels"
    if vector_of_planes(problem, direction, operands) * problem.dtype.itemsize < 4:
        return "planes do not lie in multiples of four bytes"
    if direction != "grad_weight" and problem.batch * problem.groups > _MOST_PROGRAMS:
        return "there are more images and groups than a launch has programs"
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
    if direction == "grad_weight":
        return _grad_weight(problem, operands, tile, with_bias)
    return (_product(problem, direction, operands, tile, activation),)


def _product(
    problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile, activation: Activation
) -> Launch:
    k, c = problem.group_filters, problem.group_channels
    forward = direction == "forward"
    _, columns, _, result = problem.view(direction)
    x, w = layouts(problem, direction, operands)
    pixels, vector = math.prod(problem.input_size), vector_of_planes(problem, direction, operands)
    (x_n, x_c), (residual_n, residual_k) = (*(planes(problem, direction, operands) or ()), (0, 0))[:2]
    y_n, y_k, _ = result_strides(result, problem)
    w_k, w_c, *_ = w.strides
    unit = problem.vector_unit
    w_vector = unit if w_c == 1 and not c % unit and not w_k % unit else 1
    residual = residual_layout(problem, operands)
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth,
        "W_COLUMNS_FAST": not forward, "VECTOR": vector, "W_VECTOR": w_vector,
        "WIDE": overflows(x.extent, w.extent, residual.extent, math.prod(result)),
        **arithmetic_of(problem, operands),
        **epilogue_of(activation),
    }  # fmt: skip
    of_w = (w_k // w_vector, w_c) if forward else (w_c, w_k // w_vector)
    counts = (k, c // w_vector) if forward else (c // w_vector, k)
    scalars = (
        pixels // vector, *counts, problem.groups, x_n // vector, x_c // vector, *of_w, y_n // vector, y_k // vector,
        residual_n // vector, residual_k // vector,
    )  # fmt: skip
    dtypes = dtypes_of_forward(problem, operands)
    programs = problem.groups * tile.windows * math.ceil(columns / tile.columns)
    return Launch(planes_product, programs, dtypes, scalars, constants, tile)


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    k, c = problem.group_filters, problem.group_channels
    gy, x = layouts(problem, "grad_weight", operands)
    pixels, vector = math.prod(problem.input_size), vector_of_planes(problem, "grad_weight", operands)
    size = math.prod(problem.weight_shape)
    steps, splits = problem.batch * math.ceil(pixels / tile.depth), splits_of(problem, tile)
    tiles = problem.groups * tiles_of_weight(problem, tile)
    gw_vector, (gw_split, gw_k, gw_c, _, gb_split) = vectors_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "VECTOR": vector, "GW_VECTOR": gw_vector,
        "WIDE": overflows(gy.extent, x.extent, size, problem.batch * pixels),
        **arithmetic_of(problem, operands),
    }  # fmt: skip
    strides = (stride // vector for stride in (*gy.strides[:2], *x.strides[:2]))
    scalars = (
        pixels // vector, k, c, problem.groups, *strides, gw_split, gw_k, gw_c, gb_split, steps, splits,
    )  # fmt: skip
    return grad_weight_launches(planes_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias)


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, depth, warps, stages
_TENSOR_CORES = {2: ((128, 128, 64, 8, 3), (64, 64, 64, 4, 3)), 4: ((128, 64, 32, 4, 3), (64, 64, 32, 4, 3))}
_FMA = ((64, 64, 16, 8, 2),)
_DOUBLE = ((64, 32, 16, 4, 2),)
_INTERPRETED = ((64, 64, 64, 4, 2),)
_MOST_PROGRAMS = 2**31 - 1  # of a launch: many small images in many groups have more, and are left to other families


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    size = problem.dtype.itemsize
    shapes: tuple[tuple[int, int, int, int, int], ...]
    if gpu.capability == (0, 0):
        shapes = _INTERPRETED
    elif size == 8:
        shapes = _DOUBLE
    elif size == 4 and not operands.tf32:
        shapes = _FMA
    else:
        shapes = _TENSOR_CORES[size]
    chosen = []
    columns = problem.view(direction).columns
    for rows, width, depth, warps, stages in shapes:
        if (width >= 2 * columns and width > 64) or stages * (rows + width) * depth * size > gpu.shared_memory:
            continue
        tile = Tile(rows, width, depth, warps, stages, kernel="planes")
        if direction == "grad_weight":
            chosen += with_splits(tile, problem, gpu, problem.groups * tiles_of_weight(problem, tile))
        else:
            blocks = problem.batch * math.ceil(math.prod(problem.input_size) / rows)
            if blocks * problem.groups * math.ceil(columns / width) <= _MOST_PROGRAMS:
                chosen.append(dataclasses.replace(tile, windows=blocks))
    return chosen


FAMILY = Family("planes", refuses, tiles, launches)
