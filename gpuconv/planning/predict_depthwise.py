"""How long the kernels of depthwise layers take: closed formulas, as in `gpuconv.planning.predict`."""

import math

import torch

from gpuconv.backends.base import Tile
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
from gpuconv.problem import ConvProblem, Direction

_MULTIPLY_ADDS = 0.5  # what of the peak rate is left to them beside loads from shared memory and conversions: a guess
_NOT_HIDDEN = 0.1  # what of the shorter of two times does not pass while the longer does: a guess
_L1 = 64 * 1.5e9  # bytes a second of a multiprocessor


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
    rate = gpu.rate(problem.dtype, tf32) * MMA_SYNC.get(gpu.capability, 1.0)
    rate *= reuse / (reuse + REUSE_FOR_HALF_THE_RATE) / gpu.multiprocessors
    step, bound = max(
        (together * operations / rate, "products"),
        (together * tile.addressed * INSTRUCTIONS_AN_ELEMENT / INSTRUCTIONS, "addresses"),
        (together * fetched / (L2_SPEEDUP * gpu.bandwidth / gpu.multiprocessors), "L2 fetches"),
        (gpu.step_latency / (tile.stages - 1 if backwards else 1), "fetch latency"),
    )
    seconds, bound = max(
        (waves * (steps * step + 2 * gpu.step_latency), bound),
        (problem.least_bytes(direction) / gpu.bandwidth, "memory bandwidth"),
    )
    if tile.splits > 1:
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + ONE_MORE_LAUNCH
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
        seconds += 2 * 4 * tile.splits * math.prod(problem.weight_shape) / gpu.bandwidth + ONE_MORE_LAUNCH
    return Prediction(
        seconds, bound, programs, windows / programs, together, waves, 2 * products / (moved * size)
    )  # fmt: skip


def depthwise_by_taps(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of kernels that load a window anew for each tap: the same, and no less than those loads from the L1 cache take,
    and their addresses where elements are loaded one by one."""
    whole = depthwise(problem, direction, tile, gpu, tf32)
    loaded = math.prod(problem.output_shape) * problem.taps / gpu.multiprocessors
    by_cache, by_address = loaded * problem.dtype.itemsize / _L1, loaded * INSTRUCTIONS_AN_ELEMENT / INSTRUCTIONS
    slowest, bound = max((by_cache, "L1 loads"), (by_address if tile.addressed else 0.0, "addresses"))
    return whole._replace(seconds=slowest, bound=bound) if slowest > whole.seconds else whole
