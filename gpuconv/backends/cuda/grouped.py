"""The family `grouped` of the CUDA C kernels: groups of few channels, several of them packed in a tensor-core tile.

The kernels are those of `tensor`, compiled with PACK groups taken as one (`gpuconv.backends.derived.packed`), whose
weights they fill with zeros beside the diagonal. A tile has all columns and all terms of a pack.
"""

import dataclasses
import functools
import math

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import gemm, tensor
from gpuconv.backends.derived import packed, splits_to_choose
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

launches = gemm.launches
FEWEST, MOST = 2, 32  # channels of a group, in and out


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    k, c = problem.group_filters, problem.group_channels
    if not FEWEST <= min(k, c) <= max(k, c) <= MOST:
        return f"packing is for groups of {FEWEST} to {MOST} channels and filters"
    merged = packed(problem)
    if merged.groups == problem.groups:
        return "no two groups fit a tile of 128 bytes of channels, or they cannot be divided evenly"
    return tensor.refuses(dataclasses.replace(merged, groups=1), direction, gpu, operands)


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    merged, size = packed(problem), problem.dtype.itemsize
    height, columns, terms, _ = merged.view(direction)
    addressed = functools.partial(_addressed, problem=problem, direction=direction, operands=operands)
    if direction == "grad_weight":
        tile = Tile(_width(height), _width(columns), 64 // size, min(4, _width(height) // 16), 4, kernel="grouped")
        programs = tensor.programs(merged, direction, tile)
        return [
            dataclasses.replace(fits, splits=splits)
            for fits in map(addressed, _fitting(tile, merged, direction, gpu))
            for splits in splits_to_choose(problem, fits, gpu, programs)
        ]
    chosen = []
    for rows in (128, 64):
        shape = Tile(rows, _width(columns), _width(terms), 4, 4, kernel="grouped")
        if tensor.takes_halo(problem, direction):
            halo = tensor.halo_rows(problem, direction, rows)
            window = dataclasses.replace(shape, kernel="grouped_halo", halo=halo)
            window = dataclasses.replace(window, windows=tensor.row_blocks(problem, direction, window))
            chosen += _fitting(window, merged, direction, gpu)
        chosen += _fitting(shape, merged, direction, gpu)
    return list(map(addressed, chosen))


def _addressed(tile: Tile, problem: ConvProblem, direction: Direction, operands: Operands) -> Tile:
    """The tile with its `addressed`: as in `tensor`, but without the zeros of the weight."""
    left, right, _ = tensor.vectorized(problem, direction, operands, tile)
    rows = math.ceil(tile.halo / tensor.taps_of_window(problem)) if tile.halo else tile.rows
    of_right = tile.columns * tile.depth
    if direction != "grad_weight":
        of_right //= problem.groups // packed(problem).groups
    return dataclasses.replace(tile, addressed=rows * tile.depth * (not left) + of_right * (not right))


def _width(channels: int) -> int:
    """Width of a tile that holds all these channels: a power of two, 16 at least."""
    return max(16, 1 << (channels - 1).bit_length())


def _fitting(tile: Tile, merged: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tile with as many stages as fit, if two do."""
    most = tensor.most_stages(tile, merged, gpu)
    found = [dataclasses.replace(tile, stages=stages) for stages in range(most, 1, -1)]
    return [t for t in found if tensor.shared_memory(merged, direction, t, wide=True) <= gpu.shared_memory][:1]
