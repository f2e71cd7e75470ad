"""How long a kernel will take with a tile, from the problem and the properties of a GPU alone: a closed formula.

It is a model for choosing among tiles, and for explaining the choice. Its times are predictions, not measurements.
"""

import math
from collections.abc import Callable, Iterable

import torch

from gpuconv.backends.base import Tile
from gpuconv.backends.derived import packed
from gpuconv.backends.roofline import (
    INSTRUCTIONS,
    INSTRUCTIONS_AN_ELEMENT,
    L2_SPEEDUP,
    MMA_SYNC,
    ONE_MORE_LAUNCH,
    REUSE_FOR_HALF_THE_RATE,
    Prediction,
)
from gpuconv.gpu import Gpu
from gpuconv.planning.predict_depthwise import banded, depthwise, depthwise_by_taps
from gpuconv.problem import ConvProblem, Direction

_REUSE_OF_WINDOWS = 8.0  # as REUSE_FOR_HALF_THE_RATE, where no thread loads, stores or addresses what is multiplied
_COPY_ENGINE = 1.25  # what it gets from L2 over what threads that fetch by themselves get; a guess
_DESCRIPTORS = 1e-6  # seconds for a program to make its own; a guess


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
            rate *= MMA_SYNC.get(gpu.capability, 1.0)
    rate *= reuse / (reuse + REUSE_FOR_HALF_THE_RATE) / gpu.multiprocessors
    step, bound = max(
        (together * 2 * tile.rows * tile.columns * tile.depth * share / rate, "products"),
        (together * tile.addressed * INSTRUCTIONS_AN_ELEMENT / INSTRUCTIONS, "addresses"),
        (together * fetched / (L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors), "L2 fetches"),
        (gpu.step_latency / max(1, tile.stages - 1), "fetch latency"),
    )
    seconds, bound = max(
        (waves * (steps + 2) * step, bound),
        (problem.least_bytes(direction) / gpu.bandwidth, "memory bandwidth"),
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + ONE_MORE_LAUNCH
    intensity = 2 * tile.rows * tile.columns * tile.depth / fetched
    return Prediction(seconds, bound, programs, steps, together, waves, intensity)


def grouped(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of groups packed side by side: as implicit GEMM of the packed groups, whose products beside the diagonal are
    skipped, in blocks of 16 × 16."""
    view = packed(problem)
    wide = max(view.in_channels, view.out_channels) // view.groups
    share = min(1.0, max(16, wide * view.groups // problem.groups) / wide)
    return implicit_gemm(view, direction, tile, gpu, tf32, share)


def windows(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of the families whose tiles the copy engine fetches, and whose products are read from shared memory.

    Tiles are what is counted in waves, whoever takes them. A tile's steps begin when its first fetch has come, and end
    with a store that nothing of its own program overlaps: two programs on a multiprocessor hide half of either.
    """
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    size, phases = problem.dtype.itemsize, math.prod(problem.stride) if direction == "grad_input" else 1
    if direction == "grad_weight":
        tiles = math.ceil(k / tile.rows) * math.ceil(c / tile.columns) * problem.taps * problem.groups
        steps, result = float(tile.windows), math.prod(problem.weight_shape)
    else:
        summed, columns = (c, k) if direction == "forward" else (k, c)
        tiles = phases * tile.windows * math.ceil(columns / tile.columns) * problem.groups
        steps = problem.taps / phases * math.ceil(summed / tile.depth)
        result = math.prod(problem.output_shape if direction == "forward" else problem.input_shape)
    tiles, steps = tiles * tile.splits, steps / tile.splits
    programs = min(tiles, tile.persistent * phases) if tile.persistent else tiles
    fetched = (tile.rows + tile.columns) * tile.depth * size
    stored = tile.rows * tile.columns * (4 if tile.splits > 1 else size)
    held = fetched * tile.stages + (0 if direction == "grad_weight" else stored)
    registers = 32 * tile.warps * 64 + tile.rows * tile.columns
    together = min(gpu.shared_memory // max(1, held), gpu.threads // (32 * tile.warps), 65536 // registers)
    together = min(max(1, together), max(1, math.ceil(tiles / gpu.multiprocessors)))
    waves = math.ceil(tiles / (gpu.multiprocessors * together))
    reuse = tile.rows * tile.columns / (tile.rows + tile.columns)
    rate = gpu.rate(problem.dtype, tf32) * reuse / (reuse + _REUSE_OF_WINDOWS) / gpu.multiprocessors
    share = _COPY_ENGINE * L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors
    step, bound = max(
        (together * 2 * tile.rows * tile.columns * tile.depth / rate, "products"),
        (together * fetched / share, "L2 fetches"),
        (gpu.step_latency / max(1, tile.stages - 1), "fetch latency"),
    )
    around = gpu.step_latency / together + stored / share
    seconds, bound = max(
        (_DESCRIPTORS + waves * (steps * step + around), bound),
        (problem.least_bytes(direction) / gpu.bandwidth, "memory bandwidth"),
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * result / gpu.bandwidth + ONE_MORE_LAUNCH
    intensity = 2 * tile.rows * tile.columns * tile.depth / fetched
    return Prediction(seconds, bound, programs, steps, together, waves, intensity)


# By family of kernels (`Tile.kernel`), where one is no implicit GEMM.
FORMULAS: dict[str, Callable[[ConvProblem, Direction, Tile, Gpu, bool], Prediction]] = {
    "grouped": grouped,
    "grouped_halo": grouped,
    "banded": banded,
    "depthwise": depthwise,
    "taps": depthwise_by_taps,
    "pointwise": windows,
    "window": windows,
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
