"""How long a kernel will take with a tile, from the problem and the properties of a GPU alone: a closed formula.

It is a model for choosing among tiles, and for explaining the choice. Its times are predictions, not measurements.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from gpuconv.backends.base import Tile
from gpuconv.backends.derived import packed
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_REUSE_FOR_HALF_THE_RATE = 16.0
_L2_SPEEDUP = 3.0  # over device memory
_ONE_MORE_LAUNCH = 3e-6  # seconds
_INSTRUCTIONS_AN_ELEMENT = (
    10  # to fetch one by itself, as counted in the loops of the gather kernels (`gpuconv inspect`)
)
_INSTRUCTIONS = 64 * 1.5e9  # integer ones a second of a multiprocessor
# What of the peak rate mma.sync reaches where newer instructions reach all of it: on Hopper 0.63 (Luo et al. 2024,
# 'Benchmarking and dissecting the Nvidia Hopper GPU architecture via microbenchmarking'); on sm_100 a guess.
_MMA_SYNC = {(9, 0): 0.63, (10, 0): 0.3}


class Prediction(NamedTuple):
    """What `predict` expects of a tile."""

    seconds: float
    bound: str  # what takes that long: "products", "addresses", "L2 fetches", "fetch latency" or "memory bandwidth"
    programs: int
    steps: float  # of the loop of a program, on average
    together: int  # programs on a multiprocessor at a time
    waves: int
    intensity: float  # operations for each byte that a step fetches


def programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    """How many programs a kernel runs with this tile, and the steps that the loop of each takes on average."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    pixels = problem.batch * math.prod(problem.output_size)
    if direction == "forward":
        row_blocks = tile.windows or math.ceil(pixels / tile.rows)
        programs = row_blocks * math.ceil(k / tile.columns) * problem.groups
        if tile.kernel == "stem":
            return programs, math.ceil(problem.taps * c / tile.depth)
        return programs, problem.taps * math.ceil(c / tile.depth)
    if direction == "grad_input":
        phases = math.prod(problem.stride)
        largest = problem.batch * math.prod(
            math.ceil(h / s) for h, s in zip(problem.input_size, problem.stride, strict=True)
        )
        row_blocks = tile.windows or math.ceil(largest / tile.rows)
        programs = phases * row_blocks * math.ceil(c / tile.columns) * problem.groups
        return programs, problem.taps / phases * math.ceil(k / tile.depth)
    if tile.kernel == "stem":
        columns = math.ceil(problem.taps * c / tile.columns)
    else:
        columns = problem.taps * math.ceil(c / tile.columns)
    programs = math.ceil(k / tile.rows) * columns * problem.groups * tile.splits
    return programs, math.ceil(math.ceil(pixels / tile.depth) / tile.splits)


def implicit_gemm(
    problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool, share: float = 1.0
) -> Prediction:
    """Of the families that are one. `share`: what of a tile's products, and of the weight, is no zero that is skipped.

    Programs run in waves of as many as fit on the multiprocessors at once. A step of a program takes as long as the
    slowest of: multiplying its tiles, computing addresses, fetching them from the L2 cache, and the latency of a fetch
    divided by the fetches under way. No less than the bytes that must cross the memory bus; a split sum also moves its
    partials.

    A window with a halo is fetched once for all the taps of a plane, so a step, which is one tap, fetches that part of
    it; two windows are held, one being multiplied while the next comes.
    """
    programs, steps = programs_and_steps(problem, direction, tile)
    size = problem.dtype.itemsize
    line = tile.depth * size  # bytes of a row or a column in a step
    right = tile.columns * (1.0 if direction == "grad_weight" else share)
    if tile.halo:
        fetched = (tile.halo / math.prod(problem.filter_size[-2:]) + right) * line
        held = (2 * tile.halo + max(1, tile.stages - 1) * tile.columns) * line
    else:
        fetched = (tile.rows + right) * line
        held = (tile.rows + tile.columns) * line * max(1, tile.stages - 1)
    registers = 32 * tile.warps * 64 + tile.rows * tile.columns * (2 if size == 8 else 1)
    together = min(gpu.shared_memory // max(1, held), gpu.threads // (32 * tile.warps), 65536 // registers)
    together = min(max(1, together), max(1, math.ceil(programs / gpu.multiprocessors)))
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    reuse = tile.rows * tile.columns / (tile.rows + tile.columns)  # products for each element read from shared memory
    if tile.kernel == "simt":  # no tensor cores: 16-bit numbers are widened first
        rate = gpu.rate(torch.float32 if size == 2 else problem.dtype, tf32=False)
    else:
        rate = gpu.rate(problem.dtype, tf32)
        if tile.kernel in ("tensor", "halo", "grouped", "grouped_halo"):
            rate *= _MMA_SYNC.get(gpu.capability, 1.0)
    rate *= reuse / (reuse + _REUSE_FOR_HALF_THE_RATE) / gpu.multiprocessors
    step, bound = max(
        (together * 2 * tile.rows * tile.columns * tile.depth * share / rate, "products"),
        (together * tile.addressed * _INSTRUCTIONS_AN_ELEMENT / _INSTRUCTIONS, "addresses"),
        (together * fetched / (_L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors), "L2 fetches"),
        (gpu.step_latency / max(1, tile.stages - 1), "fetch latency"),
    )
    seconds, bound = max(
        (waves * (steps + 2) * step, bound),
        (problem.least_bytes(direction) / gpu.bandwidth, "memory bandwidth"),
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + _ONE_MORE_LAUNCH
    intensity = 2 * tile.rows * tile.columns * tile.depth / fetched
    return Prediction(seconds, bound, programs, steps, together, waves, intensity)


def grouped(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of groups packed side by side: as implicit GEMM of the packed groups, whose products beside the diagonal are
    skipped, in blocks of 16 × 16."""
    view = packed(problem)
    wide = max(view.in_channels, view.out_channels) // view.groups
    share = min(1.0, max(16, wide * view.groups // problem.groups) / wide)
    return implicit_gemm(view, direction, tile, gpu, tf32, share)


def band_width(taps: int, piece: int) -> int:
    """Columns that a banded product takes for a filter row: what the taps of `piece` outputs reach, in whole pieces. In
    pieces of 16 the taps are 65 % of them for 31, 41 % for 13, 28 % for 9."""
    return piece * math.ceil((taps + piece - 1) / piece)


def banded(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of products with banded matrices, for large depthwise filters.

    A program has a window of rows × columns outputs for each warp, or in grad_weight its share of a filter's windows
    one by one. It is fetched with its margin; where columns are not neighbours in memory, 32 bytes a number. Columns of
    padding are neither fetched nor multiplied.
    """
    (height, width), size, backwards = problem.filter_size, problem.dtype.itemsize, direction == "grad_weight"
    columns = min(band_width(width, tile.depth), tile.halo // (tile.rows + height - 1))
    if backwards:
        programs, steps, at_once = problem.out_channels * tile.splits, math.ceil(tile.windows / tile.splits), 1
    else:
        channels = problem.out_channels if direction == "forward" else problem.in_channels
        programs, steps = channels * math.ceil(tile.windows / tile.warps), problem.out_channels // channels
        at_once = tile.warps  # windows of a program
    pixels = at_once * (tile.halo + (tile.rows * tile.columns if backwards else 0))
    fetched = pixels * (32 if problem.memory_format is torch.channels_last else size)
    operations = 2 * at_once * tile.rows * tile.columns * height * columns
    held = pixels * size * (tile.stages if backwards else 1)
    registers = 32 * tile.warps * (168 if backwards else 72 + tile.rows * tile.columns // 32)
    together = min(gpu.shared_memory // held, gpu.threads // (32 * tile.warps), 65536 // registers)
    together = min(max(1, together), max(1, math.ceil(programs / gpu.multiprocessors)))
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    reuse = tile.rows * tile.columns / (tile.rows + tile.columns)
    rate = gpu.rate(problem.dtype, tf32) * _MMA_SYNC.get(gpu.capability, 1.0)
    rate *= reuse / (reuse + _REUSE_FOR_HALF_THE_RATE) / gpu.multiprocessors
    step, bound = max(
        (together * operations / rate, "products"),
        (together * tile.addressed * _INSTRUCTIONS_AN_ELEMENT / _INSTRUCTIONS, "addresses"),
        (together * fetched / (_L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors), "L2 fetches"),
        (gpu.step_latency / (tile.stages - 1 if backwards else 1), "fetch latency"),
    )
    seconds, bound = max(
        (waves * (steps * step + 2 * gpu.step_latency), bound),
        (problem.least_bytes(direction) / gpu.bandwidth, "memory bandwidth"),
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + _ONE_MORE_LAUNCH
    return Prediction(seconds, bound, programs, steps, together, waves, operations / fetched)


# By family of kernels (`Tile.kernel`), where one is no implicit GEMM.
FORMULAS: dict[str, Callable[[ConvProblem, Direction, Tile, Gpu, bool], Prediction]] = {
    "grouped": grouped,
    "grouped_halo": grouped,
    "banded": banded,
}


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time that `direction` takes with this tile, and why: good for comparing tiles, not for telling the time."""
    return FORMULAS.get(tile.kernel, implicit_gemm)(problem, direction, tile, gpu, tf32)


def ranked(
    tiles: Iterable[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool
) -> list[tuple[Tile, Prediction]]:
    """The tiles, those that `predict` finds quickest first; among equals the smallest."""
    predicted = [(tile, predict(problem, direction, tile, gpu, tf32)) for tile in tiles]
    return sorted(
        predicted, key=lambda pair: (pair[1].seconds, pair[0].splits, pair[0].rows * pair[0].columns, pair[0].depth)
    )


def best_tile(tiles: Iterable[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool) -> Tile | None:
    """The first of `ranked`; None if there is none to choose."""
    return next((tile for tile, _ in ranked(tiles, problem, direction, gpu, tf32)), None)
