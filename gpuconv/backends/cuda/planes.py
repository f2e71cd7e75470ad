"""Family `planes` of the CUDA C kernels: 1×1 convolution of contiguous tensors, copied in vectors along pixels.

For forward and grad_input. Nothing here needs a GPU.
"""

import dataclasses
import math

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import tensor
from gpuconv.backends.cuda.launch import (
    ACTIVATIONS,
    TYPES,
    Instance,
    Launch,
    Strides,
    come_in_vectors,
    needs_64_bits,
    struct_of,
)
from gpuconv.backends.family import Family
from gpuconv.backends.planes import is_pointwise, vector_of_planes
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_BLOCKS = 2**31 - 1  # of a launch


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    if direction == "grad_weight":
        return "it is for forward and grad_input"
    if not is_pointwise(problem) or problem.memory_format is not torch.contiguous_format:
        return "it is for 1×1 filters, stride 1, without padding, and contiguous tensors"
    if not problem.input_pixels:
        return "there are no pixels"
    if _piece(problem, direction, operands) < 4:
        return "planes do not lie in multiples of four bytes"
    return tensor.refuses(problem, direction, gpu, operands)


def _piece(problem: ConvProblem, direction: Direction, operands: Operands) -> int:
    """Bytes of the pieces that planes consist of, given aligned pointers."""
    return vector_of_planes(problem, direction, operands) * problem.dtype.itemsize


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    aligned: bool = True,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. Needs no GPU.

    aligned: all tensors begin at multiples of 16 bytes.
    """
    strides = Strides.of(problem, direction, operands)
    columns = problem.view(direction).columns
    size = problem.dtype.itemsize
    warps_m, warps_n = tensor.WARPS[tile.columns, tile.rows]
    macros = {
        "TYPE": TYPES[problem.dtype],
        "BM": tile.columns, "BN": tile.rows, "BK": tile.depth,
        "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": tile.stages,
        "WIDE": int(needs_64_bits(problem, strides)),
        "A_VECTOR": int(aligned and come_in_vectors(strides.w, problem.group_channels, problem.vector_unit)),
        "PIECE": _piece(problem, direction, operands) if aligned else size,
    }  # fmt: skip
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    name = f"planes_{direction}"
    kernel = Instance(f"{name}.cu", name, options, 32 * tile.warps, shared_memory(problem, direction, tile))
    params = struct_of(problem, direction, strides, activation)
    return (Launch(kernel, tile.windows * math.ceil(columns / tile.columns) * problem.groups, params),)


def shared_memory(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """Shared memory of one block, in bytes: tiles, or at the end sums on their way out."""
    size = problem.dtype.itemsize
    longer = 32 * tile.depth if size == 4 else 0  # bytes more of a tile whose terms lie down its columns
    lengthened = 2 if direction == "grad_input" else 1
    tiles = tile.stages * ((tile.rows + tile.columns) * tile.depth * size + lengthened * longer)
    warps_m, warps_n = tensor.WARPS[tile.columns, tile.rows]
    slabs = warps_m * warps_n * 16 * (tile.rows // warps_n + 8) * 4
    return max(tiles, slabs + 8 * tile.columns)


# ---- which tiles there are -------------------------------------------------------------------------------------------

_SHAPES = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (64, 16))  # pixels × channels of the result


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    _, columns, terms, _ = problem.view(direction)
    size, plane = problem.dtype.itemsize, math.prod(problem.input_size)
    depth = 128 // size
    while depth * size > 32 and terms <= depth // 2:
        depth //= 2
    vectors = come_in_vectors(Strides.of(problem, direction, operands).w, problem.group_channels, problem.vector_unit)
    found = []
    for rows, width in _SHAPES:
        if width > 16 and width >= 2 * columns:
            continue  # more than half of the tile would be idle
        blocks = problem.batch * math.ceil(plane / rows)
        if blocks * problem.groups * math.ceil(columns / width) > _MOST_BLOCKS:
            continue
        tile = Tile(
            rows, width, depth, math.prod(tensor.WARPS[width, rows]), 4, kernel="planes", windows=blocks,
            addressed=0 if vectors else width * depth,
        )  # fmt: skip
        for stages in (2,) if gpu.capability < (8, 0) else (4, 3, 2):
            fits = dataclasses.replace(tile, stages=stages)
            if shared_memory(problem, direction, fits) <= gpu.shared_memory:
                found.append(fits)
                break
    return found


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM that mma.sync multiplies."""
    return implicit_gemm(
        problem, direction, tile, gpu, tf32,
        rate=tensor.rate_of(problem, gpu, tf32),
        held=shared_memory(problem, direction, tile),
        costs="planes in CUDA C",
    )  # fmt: skip


FAMILY = Family("planes", refuses, tiles, launches, predict)
