"""The tensor-core kernels of `gpuconv.kernels.cuda`: the tiles to choose from, and the compile-time options.

There are two kinds of tile. `tensor` goes tap by tap and computes every problem. `halo`, for forward and grad_input at
stride 1 with filters larger than 1 × 1, copies the window of the input that a block needs once for each block of
channels, margin included; `window_of` chooses its shape. Nothing here needs a GPU.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda.launch import ACTIVATIONS, TYPES, Instance, come_in_vectors, fresh_strides, strides_of
from gpuconv.backends.derived import packed, splits_of, splits_to_choose
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


def warps_of(tile: Tile) -> tuple[int, int]:
    """Warps along the rows and the columns of a tile.

    Where groups are packed every warp has all columns: so it is known at compile time which of its blocks are zero.
    """
    return (min(4, tile.rows // 16), 1) if tile.kernel.startswith("grouped") else WARPS[tile.rows, tile.columns]


def has_halo(tile: Tile) -> bool:
    """Whether the rows of the tile are a window of pixels, fetched with its margin."""
    return tile.kernel in ("halo", "grouped_halo")


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


# ---- windows ---------------------------------------------------------------------------------------------------------


def takes_halo(problem: ConvProblem, direction: Direction) -> bool:
    """Whether the halo kernel computes `direction`."""
    return refuses_halo(problem, direction) is None


def refuses_halo(problem: ConvProblem, direction: Direction) -> str | None:
    """Why the halo kernel cannot, or need not, compute what the tensor-core kernels can; None if it can."""
    if direction == "grad_weight":
        return "grad_weight sums over pixels, and has no window to share"
    if set(problem.stride) != {1}:
        return "a window is shared by all taps at stride 1 alone"
    return None if taps_of_window(problem) > 1 else "a plane of the filter has one tap, which shares a window with none"


def taps_of_window(problem: ConvProblem) -> int:
    """Taps that share a window: those of one plane of the filter. Taps at another depth need another window."""
    return math.prod(problem.filter_size[-2:])


def _grid(problem: ConvProblem, direction: Direction) -> tuple[int, int, int]:
    """Images (depth counted with them), height and width of the pixels that the rows of a product stand for."""
    size = problem.output_size if direction == "forward" else problem.input_size
    d, h, w = (1,) * (3 - len(size)) + tuple(size)
    return problem.batch * d, h, w


def _margin(problem: ConvProblem) -> tuple[int, int]:
    """The pixels by which the margin enlarges a window's height and width."""
    reach = [(r - 1) * d for r, d in zip(problem.filter_size, problem.dilation, strict=True)]
    return (reach[-2] if len(reach) > 1 else 0), reach[-1]


@functools.lru_cache(maxsize=4096)
def window_of(problem: ConvProblem, direction: Direction, rows: int) -> tuple[int, int]:
    """Height and width of the window for blocks of `rows` pixels: the fewest blocks, then the smallest halo.

    Both are powers of two. The width is at least 8, so that the eight rows of an ldmatrix are neighbours. Where the
    image is smaller than a block, a block takes windows of several images.
    """
    images, height, width = _grid(problem, direction)
    margin_h, margin_w = _margin(problem)

    def shapes() -> Iterator[tuple[int, int, int, int]]:
        for log_w in range(3, rows.bit_length()):
            for log_h in range(rows.bit_length() - log_w):
                h, w = 1 << log_h, 1 << log_w
                together = rows // (h * w)
                blocks = math.ceil(images / together) * math.ceil(height / h) * math.ceil(width / w)
                yield blocks, together * (h + margin_h) * (w + margin_w), h, w

    return min(shapes())[2:]


def halo_rows(problem: ConvProblem, direction: Direction, rows: int) -> int:
    """Pixels that a block of `rows` fetches: those of all its windows, margins included."""
    h, w = window_of(problem, direction, rows)
    margin_h, margin_w = _margin(problem)
    return rows // (h * w) * (h + margin_h) * (w + margin_w)


# ---- instances and launches ------------------------------------------------------------------------------------------


def row_blocks(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """Blocks of rows in one group: of forward, or of the largest phase of grad_input."""
    if has_halo(tile):
        images, height, width = _grid(problem, direction)
        h, w = window_of(problem, direction, tile.rows)
        return math.ceil(images / (tile.rows // (h * w))) * math.ceil(height / h) * math.ceil(width / w)
    if direction == "forward":
        return math.ceil(problem.output_pixels / tile.rows)
    phase = (math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
    return math.ceil(problem.batch * math.prod(phase) / tile.rows)


def programs(problem: ConvProblem, direction: Direction, tile: Tile, splits: int = 1) -> int:
    """Blocks of one launch."""
    view = problem.view(direction)
    columns = math.ceil(view.columns / tile.columns)
    if direction == "grad_weight":
        return splits * math.ceil(view.rows / tile.rows) * columns * problem.taps * problem.groups
    phases = 1 if direction == "forward" else math.prod(problem.stride)
    return row_blocks(problem, direction, tile) * columns * phases * problem.groups


def shared_memory(problem: ConvProblem, direction: Direction, tile: Tile, wide: bool) -> int:
    """Shared memory of one block, in bytes: tiles and the tables of their rows, or at the end sums on their way out."""
    size, offset = problem.dtype.itemsize, 8 if wide else 4
    longer = 32 * tile.depth if size == 4 else 0  # bytes more of a tile whose terms lie down its columns
    left, right = tile.rows * tile.depth * size, tile.columns * tile.depth * size
    if direction == "grad_weight":
        tiles = tile.stages * (left + right + 2 * longer)
        tables = 2 * tile.depth * 2 * offset
    else:
        source = halo_rows(problem, direction, tile.rows) if has_halo(tile) else tile.rows
        sources = 2 if has_halo(tile) else tile.stages
        tiles = sources * source * tile.depth * size
        tiles += tile.stages * (right + (longer if direction == "grad_input" else 0))
        tables = source * (24 if wide else 16)
    warps_m, warps_n = warps_of(tile)
    slabs = warps_m * warps_n * 16 * (tile.columns // warps_n + 8) * 4
    return max(tiles + tables, slabs + 2 * tile.rows * offset)


def vectorized(problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile) -> list[bool]:
    """Whether the left operand, the right operand and the result move in chunks of 16 bytes, given aligned pointers."""
    merged = packed(problem) if tile.kernel.startswith("grouped") else problem
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
    if direction == "grad_weight" and splits_of(problem, tile) > 1:
        vectors.append(group % unit == 0)  # partial sums, whose channels are neighbours
    else:
        vectors.append(come_in_vectors(fresh_strides(result[0], problem), result[1], unit))
    if operands.residual is not None:
        vectors[2] &= come_in_vectors(strides_of(y, operands.residual), k, unit)
    return vectors


def instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    wide: bool,
    aligned: bool = True,
    activation: Activation = IDENTITY,
) -> Instance:
    """The kernel that computes `direction` with this tile. `aligned`: all pointers are multiples of 16 bytes."""
    merged = packed(problem) if tile.kernel.startswith("grouped") else problem
    warps_m, warps_n = warps_of(tile)
    vectors = vectorized(problem, direction, operands, tile)
    macros = {
        "TYPE": TYPES[problem.dtype],
        "BM": tile.rows, "BN": tile.columns, "BK": tile.depth,
        "WARPS_M": warps_m, "WARPS_N": warps_n, "STAGES": tile.stages, "WIDE": int(wide),
        **{name: int(aligned and v) for name, v in zip(("A_VECTOR", "B_VECTOR", "Y_VECTOR"), vectors, strict=True)},
    }  # fmt: skip
    if direction != "grad_weight":
        macros["HALO"] = int(has_halo(tile))
    if merged.groups < problem.groups:
        macros["PACK"] = problem.groups // merged.groups
        macros |= {"GROUP_C": problem.group_channels, "GROUP_K": problem.group_filters}
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
    return Instance(
        file=f"tensor_{direction}.cu",
        function=f"tensor_{direction}",
        options=tuple(f"-D{name}={value}" for name, value in macros.items()),
        threads=32 * warps_m * warps_n,
        shared=shared_memory(merged, direction, tile, wide),
    )


# ---- which tiles there are -------------------------------------------------------------------------------------------

_GATHER = ((256, 128), (128, 128), (128, 64), (128, 32), (64, 64), (64, 16))
_GRAD_WEIGHT = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (64, 16))


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason.

    Steps are as deep as 128 bytes (64 in grad_weight), but no deeper than there are terms to sum. There are as many
    stages as fit, four at most.
    """
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    size = problem.dtype.itemsize
    rows, columns, terms, _ = problem.view(direction)
    deepest = (64 if direction == "grad_weight" else 128) // size
    chosen = []
    for height, width in _GRAD_WEIGHT if direction == "grad_weight" else _GATHER:
        if (width > 16 and width >= 2 * columns) or (direction == "grad_weight" and height > 64 and height >= 2 * rows):
            continue  # more than half of the tile would be idle
        warps = math.prod(WARPS[height, width])
        depth = deepest
        while depth * size > 32 and terms <= depth // 2:
            depth //= 2
        shape = Tile(height, width, depth, warps, 4, kernel="tensor")
        if takes_halo(problem, direction):
            window = dataclasses.replace(shape, kernel="halo", halo=halo_rows(problem, direction, height))
            window = dataclasses.replace(window, windows=row_blocks(problem, direction, window))
            chosen += _fitting(window, problem, direction, gpu)
        chosen += _fitting(shape, problem, direction, gpu)
    chosen = [_addressed(tile, problem, direction, operands) for tile in chosen]
    if direction != "grad_weight":
        return chosen
    return [
        dataclasses.replace(tile, splits=splits)
        for tile in chosen
        for splits in splits_to_choose(problem, tile, gpu, programs(problem, "grad_weight", tile))
    ]


def _addressed(tile: Tile, problem: ConvProblem, direction: Direction, operands: Operands) -> Tile:
    """The tile with its `addressed`: the elements of a step that do not come in vectors."""
    left, right, _ = vectorized(problem, direction, operands, tile)
    rows = math.ceil(tile.halo / taps_of_window(problem)) if tile.halo else tile.rows
    return dataclasses.replace(tile, addressed=tile.depth * (rows * (not left) + tile.columns * (not right)))


def most_stages(tile: Tile, problem: ConvProblem, gpu: Gpu) -> int:
    """The most stages that a tile may have.

    With a halo there are two windows: step i fetches the window that step i + STAGES − 1 begins, to where the window
    before the last was, all of whose taps must lie before step i. Before sm_80 copies are not asynchronous, and two
    stages do.
    """
    if gpu.capability < (8, 0):
        return 2
    return min(4, 1 + taps_of_window(problem)) if has_halo(tile) else 4


def _fitting(tile: Tile, problem: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tile with as many stages as fit; with shallower steps if fewer than three do; nothing if two do not."""
    most = most_stages(tile, problem, gpu)
    while True:
        for stages in range(most, min(most, 3) - 1, -1):
            deep = dataclasses.replace(tile, stages=stages)
            if shared_memory(problem, direction, deep, wide=True) <= gpu.shared_memory:
                return [deep]
        if tile.depth * problem.dtype.itemsize <= 32:
            return []
        tile = dataclasses.replace(tile, depth=tile.depth // 2)
