"""Family `simt` of the CUDA C kernels: implicit GEMM on multiply-adds, for whatever tensor cores cannot do."""

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import gemm, tensor
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
from gpuconv.backends.derived import accumulator, programs_of_grad_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels should not compute `direction` on `gpu`; None if they should."""
    return "tensor cores do it" if tensor.refuses(problem, direction, gpu, operands) is None else None


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

    with_bias: grad_weight gives grad-bias too. aligned: all tensors begin at multiples of 16 bytes.
    """
    strides = Strides.of(problem, direction, operands)
    kernel = instance(problem, direction, operands, strides, tile, activation, aligned)
    params = struct_of(problem, direction, strides, activation)
    return gemm.launches(problem, direction, tile, kernel, params, with_bias)


def instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    strides: Strides,
    tile: Tile,
    activation: Activation,
    aligned: bool,
) -> Instance:
    """The kernel of multiply-adds with this tile."""
    k, c, unit, dtype = problem.group_filters, problem.group_channels, problem.vector_unit, problem.dtype
    threads = 32 * tile.warps
    rows, columns = _owned(tile)
    row_vector, column_vector = {
        "forward": (come_in_vectors(strides.x, c, unit), come_in_vectors(strides.w, c, unit)),
        "grad_input": (come_in_vectors(strides.y, k, unit), False),
        "grad_weight": (come_in_vectors(strides.y, k, unit), come_in_vectors(strides.x, c, unit)),
    }[direction]
    macros = {
        "TYPE": TYPES[dtype], "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "TM": rows, "TN": columns,
        "ROW_VECTOR": int(aligned and row_vector), "COLUMN_VECTOR": int(aligned and column_vector),
        "WIDE": int(needs_64_bits(problem, strides)),
    }  # fmt: skip
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
        macros["BIAS"], macros["RESIDUAL"] = int(operands.bias), int(operands.residual is not None)
    name = f"simt_{direction}"
    return Instance(
        f"{name}.cu", name, tuple(f"-D{key}={value}" for key, value in macros.items()), threads, _shared(problem, tile)
    )


def _size(problem: ConvProblem) -> int:
    """Bytes of a number in shared memory."""
    return accumulator(problem.dtype).itemsize


def _shared(problem: ConvProblem, tile: Tile) -> int:
    """Shared memory of one block, in bytes."""
    return 2 * tile.depth * ((tile.rows + tile.columns) * _size(problem) + 32)  # each row has 16 bytes more


def _owned(tile: Tile) -> tuple[int, int]:
    """Rows × columns of a thread."""
    return {64: (8, 8), 32: (8, 4), 16: (4, 4)}[tile.rows * tile.columns // (32 * tile.warps)]


# ---- which tiles there are -------------------------------------------------------------------------------------------

# (rows, columns, depth, warps) by the size of an element: the sums of a thread stay in registers, and tiles fit 48 KiB.
# In grad_weight the registers have no room, beside the sums, for what a thread fetches of the widest 16-bit tile.
_SIMT = {
    2: ((128, 128, 16, 8), (128, 64, 16, 4), (64, 16, 16, 2)),
    4: ((128, 128, 8, 8), (128, 64, 8, 4), (64, 16, 16, 2)),
    8: ((64, 64, 8, 4), (64, 16, 8, 2)),
}


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    return [] if refuses(problem, direction, gpu, operands) else menu(problem, direction, gpu)


def menu(problem: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tiles of these kernels, whether or not tensor cores could do it."""
    columns = problem.view(direction).columns
    chosen = []
    for rows, width, depth, warps in _SIMT[problem.dtype.itemsize]:
        if width > 16 and width >= 2 * columns:
            continue  # more than half of the tile would be idle
        if direction == "grad_weight" and problem.dtype.itemsize == 2 and width == 128:
            continue
        tile = Tile(rows, width, depth, warps, stages=2, kernel="simt")
        if direction == "grad_weight":
            chosen += with_splits(tile, problem, gpu, programs_of_grad_weight(problem, tile))
        else:
            chosen.append(tile)
    return chosen


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM without tensor cores. 16-bit numbers are widened to float32."""
    rate = gpu.rate(torch.float32 if problem.dtype.itemsize == 2 else problem.dtype, tf32=False)
    # Threads read 16 bytes at once: that takes as long as if no two of a warp read the same.
    read = 32 * tile.warps * sum(_owned(tile)) + tile.rows + tile.columns
    moved = tile.depth * read * _size(problem)
    return implicit_gemm(
        problem, direction, tile, gpu, tf32, rate=rate, held=_shared(problem, tile), shared=moved
    )  # fmt: skip


FAMILY = Family("simt", refuses, tiles, launches, predict)
