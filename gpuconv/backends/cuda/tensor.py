"""Family `tensor` of the CUDA C kernels: implicit GEMM on tensor cores, for any layout, stride and dilation.

The family `tensor` goes tap by tap and computes every problem. `halo`, for forward and grad_input at stride 1 with
filters larger than 1 × 1, copies the window of the input that a block needs once for each block of channels, margin
included. `grouped` and `grouped_halo` take several groups together as one. All are compiled from the same files, and
what they share is here. Nothing needs a GPU.
"""

import dataclasses
import math

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import constants
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import gemm, windows
from gpuconv.backends.cuda.launch import (
    ACTIVATIONS,
    TYPES,
    Instance,
    Launch,
    Strides,
    come_in_vectors,
    fresh_strides,
    needs_64_bits,
    strides_of,
    struct_of,
)
from gpuconv.backends.cuda.windows import MOST_TAPS, halo_rows, taps_of_window
from gpuconv.backends.derived import axes, programs_of_grad_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, fetched, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_PIXELS = 2**31 - 2**20  # which the kernels count in 32 bits
_FEWEST_CHANNELS = 4  # in a group, both in and out; with fewer, tensor cores would multiply little but zeros

# Warps along the rows and the columns, by the size of the tile.
WARPS = {
    (256, 128): (4, 2),
    (128, 128): (2, 2),
    (128, 64): (2, 2),
    (128, 32): (4, 1),
    (64, 128): (2, 2),
    (64, 64): (2, 2),
    (64, 32): (2, 2),
    (64, 16): (4, 1),
    (32, 64): (1, 4),
    (16, 64): (1, 4),
}


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why the tensor-core kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    if problem.dtype is torch.float64 or (problem.dtype is torch.float32 and not operands.tf32):
        return "tensor cores would round the operands"
    if gpu.capability < ((7, 5) if problem.dtype is torch.float16 else (8, 0)):
        return f"sm_{gpu.capability[0]}{gpu.capability[1]} has no tensor cores for {problem.dtype}"
    if max(problem.input_pixels, problem.output_pixels) > _MOST_PIXELS:
        return "pixels are counted in 32 bits"
    if min(problem.group_channels, problem.group_filters) < _FEWEST_CHANNELS:
        return f"groups with fewer than {_FEWEST_CHANNELS} channels leave tensor cores idle"
    return None


# ---- instances and launches ------------------------------------------------------------------------------------------


def warps_of(tile: Tile, packs: bool = False) -> tuple[int, int]:
    """Warps along the rows and the columns of a tile.

    Where groups are packed every warp has all columns: so it is known at compile time which of its blocks are zero.
    """
    return (tile.warps, 1) if packs else WARPS[tile.rows, tile.columns]


def taps_fit_a_word(problem: ConvProblem, tile: Tile) -> bool:
    """Whether a word of 32 bits has one for each tap of every axis that a row's copies depend on, and one to spare."""
    return tile.halo > 0 or sum(axes(problem.filter_size, 1)) <= MOST_TAPS


def shared_memory(problem: ConvProblem, direction: Direction, tile: Tile, wide: bool, packs: bool = False) -> int:
    """Shared memory of one block, in bytes: tiles and the tables of their rows, or at the end sums on their way out."""
    size, offset = problem.dtype.itemsize, 8 if wide else 4
    longer = 32 * tile.depth if size == 4 else 0  # bytes more of a tile whose terms lie down its columns
    left, right = tile.rows * tile.depth * size, tile.columns * tile.depth * size
    if direction == "grad_weight":
        tiles = tile.stages * (left + right + 2 * longer)
        tables = 0
    else:
        source = halo_rows(problem, direction, tile.rows) if tile.halo else tile.rows
        sources = 2 if tile.halo else tile.stages
        tiles = math.ceil(sources * source * tile.depth * size / 128) * 128
        tiles += tile.stages * (right + (longer if direction == "grad_input" else 0))
        tables = source * (2 if taps_fit_a_word(problem, tile) else 4 if not wide else 3) * offset
    warps_m, warps_n = warps_of(tile, packs)
    slabs = warps_m * warps_n * 16 * (tile.columns // warps_n + 8) * 4
    return max(tiles + tables, slabs + 2 * tile.rows * offset)


def vectorized(
    problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile, merged: ConvProblem
) -> list[bool]:
    """Whether the left operand, the right operand and the result move in chunks of 16 bytes, given aligned pointers."""
    k, c, group = merged.group_filters, merged.group_channels, problem.group_channels  # the weight has those of a group
    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    unit = problem.vector_unit
    left, right, result = {
        "forward": ((x, c), (w, group), (y, k)),
        "grad_input": ((y, k), (w, group), (x, c)),
        "grad_weight": ((y, k), (x, c), (w, group)),
    }[direction]
    a, b = (strides_of(shape, s) for (shape, _), s in zip((left, right), operands.strides, strict=True))
    vectors = [come_in_vectors(a, left[1], unit), come_in_vectors(b, right[1], unit)]
    if direction == "grad_weight" and gemm.adds_apart(problem, merged, tile):
        vectors.append(group % unit == 0)  # partial sums, whose channels are neighbours
    else:
        vectors.append(come_in_vectors(fresh_strides(result[0], problem), result[1], unit))
    if operands.residual is not None:
        vectors[2] &= come_in_vectors(strides_of(y, operands.residual), k, unit)
    return vectors


def pixels_together(problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile) -> int:
    """How many pixels of a channel of the result are stored as one, given aligned pointers, where channels are apart.

    Rows of a block are pixels in their order, with a window only along its width; those of a strided grad_input's phase
    are no neighbours. A residual is fetched in the same way.
    """
    if direction == "grad_input" and set(problem.stride) != {1}:
        return 1
    shape = problem.output_shape if direction == "forward" else problem.input_shape
    each = [fresh_strides(shape, problem)]
    if operands.residual is not None:
        each.append(strides_of(shape, operands.residual))
    depth, height, width = axes(shape[2:], 1)
    together = problem.vector_unit
    for first, channel, *pixel in each:
        if tile.halo:
            neighbours = pixel[2] == 1
            lines: tuple[int, ...] = (width, pixel[0], pixel[1])
        else:
            dense = zip((depth, height, width), pixel, (height * width, width, 1), strict=True)
            neighbours = all(size == 1 or stride == wanted for size, stride, wanted in dense)
            lines = (depth * height * width,)
        together = math.gcd(together, first, channel, *lines) if neighbours else 1
    return together


def instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    wide: bool,
    aligned: bool = True,
    activation: Activation = IDENTITY,
    merged: ConvProblem | None = None,
) -> Instance:
    """The kernel that computes `direction` with this tile.

    aligned: all pointers are multiples of 16 bytes. merged: the problem with the groups of a pack taken as one.
    """
    merged = merged or problem
    packs = merged.groups < problem.groups
    warps_m, warps_n = warps_of(tile, packs)
    vectors = vectorized(problem, direction, operands, tile, merged)
    macros = {
        "TYPE": TYPES[problem.dtype],
        "BM": tile.rows, "BN": tile.columns, "BK": tile.depth,
        "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": tile.stages, "WIDE": int(wide),
        **{name: int(aligned and v) for name, v in zip(("A_VECTOR", "B_VECTOR", "Y_VECTOR"), vectors, strict=True)},
    }  # fmt: skip
    if direction == "grad_weight":
        macros |= {"A_WHOLE": int(merged.group_filters % tile.rows == 0)}
        macros |= {"B_WHOLE": int(merged.group_channels % tile.columns == 0)}
    else:
        macros |= {"HALO": int(tile.halo > 0), "TAP_MASKS": int(taps_fit_a_word(problem, tile))}
        macros["Y_RUN"] = pixels_together(problem, direction, operands, tile) if aligned and not vectors[2] else 1
    if packs:
        macros["PACK"] = problem.groups // merged.groups
        macros |= {"GROUP_C": problem.group_channels, "GROUP_K": problem.group_filters}
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
    return Instance(
        file=f"tensor_{direction}.cu",
        function=f"tensor_{direction}",
        options=tuple(f"-D{name}={value}" for name, value in macros.items()),
        threads=32 * warps_m * warps_n,
        shared=shared_memory(problem, direction, tile, wide, packs),
    )


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    aligned: bool = True,
    merged: ConvProblem | None = None,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. Needs no GPU.

    with_bias: grad_weight gives grad-bias too. aligned: all tensors begin at multiples of 16 bytes. merged: the problem
    with the groups of a pack taken as one.
    """
    strides = Strides.of(problem, direction, operands)
    wide = needs_64_bits(problem, strides)
    kernel = instance(problem, direction, operands, tile, wide, aligned, activation, merged)
    params = struct_of(problem, direction, strides, activation)
    return gemm.launches(problem, direction, tile, kernel, params, with_bias, merged)


# ---- which tiles there are -------------------------------------------------------------------------------------------

_GATHER = ((256, 128), (128, 128), (128, 64), (128, 32), (64, 64), (64, 16))
_GRAD_WEIGHT = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (64, 16))


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    chosen = fitting(shapes(problem, direction, "tensor"), problem, direction, gpu, operands)
    if direction != "grad_weight":
        return chosen
    return [
        split for tile in chosen for split in with_splits(tile, problem, gpu, programs_of_grad_weight(problem, tile))
    ]


def shapes(problem: ConvProblem, direction: Direction, kernel: str) -> list[Tile]:
    """The tiles of the family called `kernel` that are not mostly idle, before it is known how many stages fit.

    Steps are as deep as 128 bytes (64 in grad_weight), but no deeper than there are terms to sum.
    """
    size = problem.dtype.itemsize
    rows, columns, terms, _ = problem.view(direction)
    depth = (64 if direction == "grad_weight" else 128) // size
    while depth * size > 32 and terms <= depth // 2:
        depth //= 2
    found = []
    for height, width in _GRAD_WEIGHT if direction == "grad_weight" else _GATHER:
        if (width > 16 and width >= 2 * columns) or (direction == "grad_weight" and height > 64 and height >= 2 * rows):
            continue  # more than half of the tile would be idle
        found.append(Tile(height, width, depth, math.prod(WARPS[height, width]), 4, kernel=kernel))
    return found


def fitting(tiles: list[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """Those of the tiles that fit, each with as many stages as do, and with its `addressed`: the elements of a step
    that do not come in vectors."""
    found = []
    for tile in tiles:
        for fits in _fitting(tile, problem, direction, gpu):
            left, right, _ = vectorized(problem, direction, operands, fits, problem)
            rows = fetched_rows(fits, problem)
            addressed = fits.depth * (rows * (not left) + fits.columns * (not right))
            found.append(dataclasses.replace(fits, addressed=addressed) if addressed else fits)
    return found


def fetched_rows(tile: Tile, problem: ConvProblem) -> int:
    """Rows that a step fetches: of a window, which serves several taps, its part."""
    return math.ceil(tile.halo / taps_of_window(problem)) if tile.halo else tile.rows


def most_stages(tile: Tile, problem: ConvProblem, gpu: Gpu) -> int:
    """The most stages that a tile may have.

    With a halo there are two windows: step i fetches the window that step i + STAGES − 1 begins, to where the window
    before the last was, all of whose taps must lie before step i. Before sm_80 copies are not asynchronous, and two
    stages do.
    """
    if gpu.capability < (8, 0):
        return 2
    return min(4, 1 + taps_of_window(problem)) if tile.halo else 4


def _fitting(tile: Tile, problem: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tile with as many stages as fit; with shallower steps if fewer than three do; nothing if two do not."""
    most = most_stages(tile, problem, gpu)
    while True:
        for stages in range(most, min(most, 3) - 1, -1):
            deep = tile if stages == tile.stages else dataclasses.replace(tile, stages=stages)
            if shared_memory(problem, direction, deep, wide=True) <= gpu.shared_memory:
                return [deep]
        if tile.depth * problem.dtype.itemsize <= 32:
            return []
        tile = dataclasses.replace(tile, depth=tile.depth // 2)


# ---- how long they take ----------------------------------------------------------------------------------------------


def rate_of(problem: ConvProblem, gpu: Gpu, tf32: bool) -> float:
    """Operations a second that mma.sync reaches on `gpu`."""
    return gpu.rate(problem.dtype, tf32) * constants.MMA_SYNC.get(gpu.capability, 1.0)


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM that mma.sync multiplies."""
    return implicit_gemm(
        problem, direction, tile, gpu, tf32,
        rate=rate_of(problem, gpu, tf32),
        left_rows=fetched_rows(tile, problem),
        held=shared_memory(problem, direction, tile, wide=True),
        elements=windows.fetched if tile.halo else fetched,
    )  # fmt: skip


FAMILY = Family("tensor", refuses, tiles, launches, predict)
