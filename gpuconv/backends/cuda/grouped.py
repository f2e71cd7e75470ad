"""Family `grouped` of the CUDA C kernels: groups of few channels, several of them packed in a tensor-core tile.

The kernels are those of `tensor`, compiled with PACK groups taken as one (`gpuconv.backends.derived.packed`), whose
weights they fill with zeros beside the diagonal. A tile has all columns and all terms of a pack. `grouped_halo` shares
what is here.
"""

import dataclasses

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import tensor, windows
from gpuconv.backends.cuda.launch import Launch
from gpuconv.backends.derived import packed, programs_of_grad_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, fetched, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

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
    return tensor.launches(problem, direction, operands, tile, activation, with_bias, aligned, packed(problem))


# ---- which tiles there are -------------------------------------------------------------------------------------------


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    merged, size = packed(problem), problem.dtype.itemsize
    if direction != "grad_weight":
        return fitting(shapes(merged, direction, "grouped"), problem, direction, gpu, operands)
    height, columns, _, _ = merged.view(direction)
    tile = Tile(_width(height), _width(columns), 64 // size, min(4, _width(height) // 16), 4, kernel="grouped")
    programs = programs_of_grad_weight(merged, tile)
    found = fitting([tile], problem, direction, gpu, operands)
    return [split for fits in found for split in with_splits(fits, problem, gpu, programs)]


def shapes(merged: ConvProblem, direction: Direction, kernel: str) -> list[Tile]:
    """The tiles of forward and grad_input for the family called `kernel`, before it is known how many stages fit."""
    _, columns, terms, _ = merged.view(direction)
    return [Tile(rows, _width(columns), _width(terms), 4, 4, kernel=kernel) for rows in (128, 64)]


def fitting(tiles: list[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """Those of the tiles of which two stages fit, with as many as do, and with `addressed`: the elements of a step that
    do not come in vectors, zeros of the weight aside."""
    merged, found = packed(problem), []
    for tile in tiles:
        for stages in range(tensor.most_stages(tile, problem, gpu), 1, -1):
            fits = dataclasses.replace(tile, stages=stages)
            if tensor.shared_memory(problem, direction, fits, wide=True, packs=True) <= gpu.shared_memory:
                left, right, _ = tensor.vectorized(problem, direction, operands, fits, merged)
                pack = 1 if direction == "grad_weight" else problem.groups // merged.groups
                of_left = tensor.fetched_rows(fits, problem) * fits.depth
                addressed = of_left * (not left) + fits.columns * fits.depth // pack * (not right)
                found.append(dataclasses.replace(fits, addressed=addressed))
                break
    return found


def _width(channels: int) -> int:
    """Width of a tile that holds all these channels: a power of two, 16 at least."""
    return max(16, 1 << (channels - 1).bit_length())


# ---- how long they take ----------------------------------------------------------------------------------------------


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM of the packs, whose products beside the diagonal are skipped, in blocks of
    16 × 16."""
    merged = packed(problem)
    wide = max(merged.group_channels, merged.group_filters)
    share = min(1.0, max(16, wide * merged.groups // problem.groups) / wide)
    return implicit_gemm(
        merged, direction, tile, gpu, tf32,
        rate=tensor.rate_of(problem, gpu, tf32),
        share=share,
        left_rows=tensor.fetched_rows(tile, problem),
        held=tensor.shared_memory(problem, direction, tile, wide=True, packs=True),
        elements=windows.fetched if tile.halo else fetched,
    )  # fmt: skip


FAMILY = Family("grouped", refuses, tiles, launches, predict)
