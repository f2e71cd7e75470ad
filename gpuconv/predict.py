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
_MULTIPLY_ADDS = 0.5  # what of the peak rate is left to them beside loads from shared memory and conversions: a guess
_NOT_HIDDEN = 0.1  # what of the shorter of two times does not pass while the longer does: a guess
_REUSE_OF_WINDOWS = 8.0  # as _REUSE_FOR_HALF_THE_RATE, where no thread loads, stores or addresses what is multiplied
_COPY_ENGINE = 1.25  # what it gets from L2 over what threads that fetch by themselves get; a guess
_DESCRIPTORS = 1e-6  # seconds for a program to make its own; a guess
_INSTRUCTIONS_AN_ELEMENT = (
    10  # to fetch one by itself, as counted in the loops of the gather kernels (`gpuconv inspect`)
)
_L1 = 64 * 1.5e9  # bytes a second of a multiprocessor
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


def depthwise(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of kernels that fetch a window of every channel once for all taps, and multiply without tensor cores.

    As long as the bytes take, those that neighbouring windows share counted again, or the multiply-adds, whichever is
    longer, and a part of the other; the last wave keeps only some multiprocessors busy; and a window's way takes time
    that others on the same multiprocessor hide.
    """
    backward, size = direction == "grad_input", problem.dtype.itemsize
    results = problem.input_size if backward else problem.output_size
    sources = problem.output_size if backward else problem.input_size
    window = (tile.rows // tile.width, tile.width)[-problem.ndim :]
    counts, fetched = [], 1.0  # windows of an axis; pixels that those of a channel fetch
    for h, p, w, r, u, d, (low, _) in zip(
        sources, results, window, problem.filter_size, problem.stride, problem.dilation, problem.padding, strict=True
    ):  # fmt: skip
        counts.append(math.ceil((p + low % u) / w) if backward else math.ceil(p / w))
        shared = (r - 1) * d // u if backward else max(0, (r - 1) * d + 1 - u)  # by two windows side by side
        fetched *= min(h, counts[-1] * (shared + (w // u if backward else w * u))) + (counts[-1] - 1) * shared
    members, blocks = problem.out_channels // problem.groups, math.ceil(problem.groups / tile.columns)
    steps = problem.batch * math.prod(counts)  # windows of a channel
    windows = steps * blocks * (1 if direction == "forward" else members)
    programs = members * blocks * tile.splits if direction == "grad_weight" else steps * blocks
    moved = problem.batch * problem.groups * fetched * (1 if direction == "forward" else members)
    moved += problem.batch * math.prod(results) * (problem.groups if backward else problem.out_channels)
    products = steps * blocks * members * tile.rows * tile.columns * problem.taps
    if backward:
        products /= math.prod(problem.stride)
    registers = 32 * tile.warps * 96
    held = tile.halo * tile.columns * max(size, 4)
    together = max(1, min(gpu.shared_memory // held, gpu.threads // (32 * tile.warps), 65536 // registers))
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    idle = math.ceil(programs / gpu.multiprocessors) * gpu.multiprocessors / programs
    rate = _MULTIPLY_ADDS * (gpu.rate_64 if size == 8 else gpu.rate_32)
    (shorter, _), (longer, bound) = sorted(
        [(moved * size / gpu.bandwidth, "memory bandwidth"), (2 * products / rate, "products")]
    )  # fmt: skip
    seconds = (longer + _NOT_HIDDEN * shorter) * idle + gpu.step_latency * windows / min(
        programs, gpu.multiprocessors * together
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + _ONE_MORE_LAUNCH
    return Prediction(
        seconds, bound, programs, windows / programs, together, waves, 2 * products / (moved * size)
    )  # fmt: skip


def depthwise_by_taps(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of kernels that load a window anew for each tap: the same, and no less than those loads from the L1 cache take,
    and their addresses where elements are loaded one by one."""
    whole = depthwise(problem, direction, tile, gpu, tf32)
    loaded = math.prod(problem.output_shape) * problem.taps / gpu.multiprocessors
    by_cache, by_address = loaded * problem.dtype.itemsize / _L1, loaded * _INSTRUCTIONS_AN_ELEMENT / _INSTRUCTIONS
    slowest, bound = max((by_cache, "L1 loads"), (by_address if tile.addressed else 0.0, "addresses"))
    return whole._replace(seconds=slowest, bound=bound) if slowest > whole.seconds else whole


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
    share = _COPY_ENGINE * _L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors
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
        seconds += 2 * 4 * tile.splits * result / gpu.bandwidth + _ONE_MORE_LAUNCH
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
