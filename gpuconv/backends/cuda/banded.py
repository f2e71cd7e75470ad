"""Family `banded` of the CUDA C kernels: depthwise with large filters, as products with banded matrices.

A tile is a window of rows × columns of one channel of the output (in grad_input, of the input). In forward and
grad_input each warp of a block has one window; in grad_weight a block goes through its share of the `windows` of a
filter. Nothing here needs a GPU.
"""

import dataclasses
import math

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import constants
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import tensor
from gpuconv.backends.cuda.launch import (
    ACTIVATIONS,
    TYPES,
    Instance,
    Launch,
    Strides,
    needs_64_bits,
    struct_of,
    sum_partials,
)
from gpuconv.backends.derived import splits_of, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import SECTOR, Features, Prediction, Work, predicted, read_from_shared, results_of
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

LARGEST = 32  # taps on an axis of a filter: more would not fit the registers
SMALLEST = 9  # taps on the longer axis: smaller filters are bound by memory, not by arithmetic
_MOST_WINDOWS = 2**31 - 2**20  # blocks and windows are counted in 32 bits


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    if problem.ndim != 2 or problem.in_channels != problem.groups:
        return "banded products are for depthwise convolutions of two axes"
    if set(problem.stride) != {1} or set(problem.dilation) != {1}:
        return "banded products are for stride 1 and dilation 1"
    if not SMALLEST <= max(problem.filter_size) <= LARGEST:
        return f"banded products are for filters whose longer side has {SMALLEST} to {LARGEST} taps"
    if problem.dtype is torch.float64 or (problem.dtype is torch.float32 and not operands.tf32):
        return "tensor cores would round the operands"
    if gpu.capability < (8, 0):
        return "banded products need sm_80 or newer"
    if problem.out_channels * max(problem.input_pixels, problem.output_pixels) > _MOST_WINDOWS:
        return "windows are counted in 32 bits"
    return None


# ---- geometry, as in banded_product.cuh and banded_grad_weight.cu ----------------------------------------------------


def _piece(problem: ConvProblem, direction: Direction) -> int:
    """Columns of the input that one product takes: 32 bytes of them; in grad_weight 16, the rows of its result."""
    return 16 if direction == "grad_weight" else 32 // problem.dtype.itemsize


def _left(problem: ConvProblem, direction: Direction) -> int:
    """Columns between the start of a window's pieces and the first column that a tap meets."""
    (low, _), taps = problem.padding[1], problem.filter_size[1]
    return (low - (taps - 1) if direction == "grad_input" else -low) % _piece(problem, direction)


def _pieces(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """Pieces of columns under one window."""
    reach = _left(problem, direction) + tile.columns + problem.filter_size[1] - 1
    return math.ceil(reach / _piece(problem, direction))


def _size(problem: ConvProblem, direction: Direction) -> tuple[int, int]:
    """Height and width of the image that is divided into windows."""
    height, width = problem.input_size if direction == "grad_input" else problem.output_size
    return height, width


def shared_memory(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """Shared memory of one block, in bytes."""
    size, (height, width), left = problem.dtype.itemsize, problem.filter_size, _left(problem, direction)
    turns, pieces = math.ceil(height / 8), _pieces(problem, direction, tile)
    if direction == "grad_weight":
        pad = 16 if size == 2 else 32
        x = (tile.rows + 8 * turns + 8) * (pieces * 16 * size + pad)
        gy = tile.rows * (tile.columns * size + pad)
        deltas = (width + 6 + left) // 8 - left // 8 + 2
        return max(tile.stages * (x + gy), tile.warps * (deltas * 16 * 9 + 2) * 4)
    held = 16 * math.ceil((2 * (tile.rows // 16) + turns - 1) / 2) + 7
    window = max(held * 16 * (2 * pieces + 1), 16 * (tile.columns + 8) * 4)
    unit = problem.vector_unit
    fragments = (width + 6 + left) // unit - left // unit + 1
    line = math.ceil((unit * fragments + 8) / 8) * 8
    return tile.warps * window + height * (4 // size) * line * size


# ---- instances and launches ------------------------------------------------------------------------------------------


def _run(width: int, strides: tuple[int, ...], unit: int, aligned: bool) -> int:
    """Neighbours of a row that can move as one: at most `unit`, 16 bytes. `aligned`: so are the pointers."""
    *others, column = strides
    run = unit if aligned and column == 1 else 1
    while any(value % run for value in (width, *others)):
        run //= 2
    return run


def _runs(problem: ConvProblem, direction: Direction, operands: Operands, aligned: bool) -> tuple[int, int]:
    """The runs (see `_run`) of the tensor that windows are copied from, and of the result, or in grad_weight of gy."""
    strides, unit = Strides.of(problem, direction, operands), problem.vector_unit
    x = _run(problem.input_size[1], strides.x, unit, aligned)
    y = _run(problem.output_size[1], strides.y, unit, aligned)
    if operands.residual is not None:
        y = min(y, _run(problem.output_size[1], strides.residual, unit, aligned))
    return (y, x) if direction == "grad_input" else (x, y)


def instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    aligned: bool = True,
    activation: Activation = IDENTITY,
) -> Instance:
    """The kernel that computes `direction` with this tile. `aligned`: all pointers are multiples of 16 bytes."""
    x_run, y_run = _runs(problem, direction, operands, aligned)
    macros = {
        "TYPE": TYPES[problem.dtype], "WIDE": int(needs_64_bits(problem, Strides.of(problem, direction, operands))),
        "TH": tile.rows, "TW": tile.columns, "WARPS": tile.warps,
        "FILTER_H": problem.filter_size[0], "FILTER_W": problem.filter_size[1], "LEFT": _left(problem, direction),
        "X_RUN": x_run, "Y_RUN": y_run,
    }  # fmt: skip
    if direction == "grad_weight":
        macros["STAGES"] = tile.stages
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
    name = f"banded_{direction}"
    options = tuple(f"-D{key}={value}" for key, value in macros.items())
    return Instance(f"{name}.cu", name, options, 32 * tile.warps, shared_memory(problem, direction, tile))


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
    kernel = instance(problem, direction, operands, tile, aligned, activation)
    params = struct_of(problem, direction, Strides.of(problem, direction, operands), activation)
    filters = problem.out_channels
    if direction != "grad_weight":
        columns = filters if direction == "forward" else problem.in_channels
        return (Launch(kernel, columns * math.ceil(tile.windows / tile.warps), params),)
    splits = splits_of(problem, tile)
    params["splits"], params["per_split"] = splits, math.ceil(tile.windows / splits)
    if splits == 1:
        return (Launch(kernel, filters, params),)
    partial = params.copy()  # the workspace holds [K, taps] for each split, as a contiguous gradient does
    (_, width), taps = problem.filter_size, problem.taps
    partial["w"] = (taps, 0, 0, width, 1)
    partial["gw_split"], partial["gb_split"] = filters * taps, filters
    params["C"], params["filter"], params["w"] = taps, 1, (taps, 1, 0, 0, 0)  # sum_partials takes a tap for a channel
    return Launch(kernel, splits * filters, partial), sum_partials(kernel, filters * (taps + with_bias), params)


# ---- which tiles there are -------------------------------------------------------------------------------------------

_ROWS, _COLUMNS, _COLUMNS_GRAD_WEIGHT = (64, 32, 16), (32, 16), (64, 32, 16)


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason.

    As many warps, or in grad_weight stages, as leave room for two blocks on a multiprocessor, or for one.
    """
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    height, width = _size(problem, direction)
    of_weight = direction == "grad_weight"
    chosen = []
    for rows in _ROWS:
        for columns in _COLUMNS_GRAD_WEIGHT if of_weight else _COLUMNS:
            if (rows > 16 and rows >= 2 * height) or (columns > 16 and columns >= 2 * width):
                continue  # more than half of the tile would be idle
            windows = problem.batch * math.ceil(height / rows) * math.ceil(width / columns)
            warps = min(8, problem.filter_size[0]) if of_weight else 4
            tile = Tile(rows, columns, _piece(problem, direction), warps, 2, kernel="banded", windows=windows)
            for fits in _fitting(tile, problem, direction, gpu):
                chosen.append(_with_margin(fits, problem, direction, operands))
    if not of_weight:
        return chosen
    return [split for tile in chosen for split in with_splits(tile, problem, gpu, problem.out_channels)]


def _with_margin(tile: Tile, problem: ConvProblem, direction: Direction, operands: Operands) -> Tile:
    """The tile with its `halo`, the pixels fetched for a window, and `addressed`, the fetches of less than 16 bytes."""
    source = problem.output_size if direction == "grad_input" else problem.input_size
    pieces = min(_pieces(problem, direction, tile), math.ceil(source[1] / tile.depth))
    halo = (tile.rows + problem.filter_size[0] - 1) * pieces * tile.depth
    x, y = _runs(problem, direction, operands, aligned=True)
    runs, pixels = (x, y) if direction == "grad_weight" else (x,), (halo, tile.rows * tile.columns)
    short = sum(n // run for n, run in zip(pixels, runs, strict=False) if run * problem.dtype.itemsize < 16)
    return dataclasses.replace(tile, halo=halo, addressed=short * (1 if direction == "grad_weight" else tile.warps))


def _fitting(tile: Tile, problem: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tile with as many stages or warps as fit twice on a multiprocessor, or else once; nothing if none fit."""
    if direction == "grad_weight":
        choices = [dataclasses.replace(tile, stages=stages) for stages in (3, 2)]
    else:
        choices = [dataclasses.replace(tile, warps=warps) for warps in (4, 2, 1)]
    needed = [(shared_memory(problem, direction, choice), choice) for choice in choices]
    fit = [choice for least in (2, 1) for bytes_, choice in needed if least * bytes_ <= gpu.shared_memory]
    return fit[:1]


# ---- how long they take ----------------------------------------------------------------------------------------------


def band_width(taps: int, piece: int) -> int:
    """Columns that a banded product takes for a filter row: those that the taps of `piece` outputs reach, in whole
    pieces. In pieces of 16 the taps are 65 % of them for 31, 41 % for 13, 28 % for 9."""
    return piece * math.ceil((taps + piece - 1) / piece)


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of products with banded matrices.

    A program has a window of rows × columns outputs for each warp, or in grad_weight its share of a filter's windows
    one by one. A window is fetched with its margin; where columns are not neighbours in memory, 32 bytes a number.
    Columns of padding are neither fetched nor multiplied.
    """
    (height, width), size, of_weight = problem.filter_size, problem.dtype.itemsize, direction == "grad_weight"
    columns = min(band_width(width, tile.depth), tile.halo // (tile.rows + height - 1))
    if of_weight:
        programs, steps, at_once = problem.out_channels * tile.splits, math.ceil(tile.windows / tile.splits), 1
    else:
        channels = problem.out_channels if direction == "forward" else problem.in_channels
        programs, steps = channels * math.ceil(tile.windows / tile.warps), problem.out_channels // channels
        at_once = tile.warps  # windows of a program
    pixels = at_once * (tile.halo + (tile.rows * tile.columns if of_weight else 0))
    bytes_ = programs * steps * pixels * size
    spread = SECTOR / size if problem.memory_format is torch.channels_last else 1.0  # a sector for each number
    cost = constants.cost_of(tile.kernel, direction, "mma")
    operations = 2 * at_once * tile.rows * tile.columns * height * columns
    products = operations * size / (2 * 16 * 8 * 32) / tile.warps
    read, threads = height * read_from_shared(tile, size, "mma"), 32 * tile.warps
    copies = 0 if tile.addressed else pixels * size / 16 / threads
    per_step = Features(products, read / (512 * tile.warps), copies, 0, tile.addressed / threads)
    work = Work(
        programs,
        steps,
        operations,
        tensor.rate_of(problem, gpu, tf32),
        pixels * size + read,
        bytes_,
        bytes_ / SECTOR * spread,
        tile.rows * tile.columns * at_once * size,
        per_step.instructions(cost),
        cost.tile + cost.result * results_of(tile),
        168 if of_weight else 72 + tile.rows * tile.columns // 32,
        shared_memory(problem, direction, tile),
    )
    return predicted(problem, direction, tile, gpu, work)


FAMILY = Family("banded", refuses, tiles, launches, predict)
