"""How long a kernel will take with a tile, from the problem and the properties of a GPU alone: a closed formula.

It is a model for choosing among tiles, and for explaining the choice. Its times are predictions, not measurements.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from gpuconv.backends.base import Tile
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


def implicit_gemm(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Of the families that are one.

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
    if tile.halo:
        fetched = (tile.halo / math.prod(problem.filter_size[-2:]) + tile.columns) * line
        held = (2 * tile.halo + max(1, tile.stages - 1) * tile.columns) * line
    else:
        fetched = (tile.rows + tile.columns) * line
        held = fetched * max(1, tile.stages - 1)
    registers = 32 * tile.warps * 64 + tile.rows * tile.columns * (2 if size == 8 else 1)
    together = min(gpu.shared_memory // max(1, held), gpu.threads // (32 * tile.warps), 65536 // registers)
    together = min(max(1, together), max(1, math.ceil(programs / gpu.multiprocessors)))
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    reuse = tile.rows * tile.columns / (tile.rows + tile.columns)  # products for each element read from shared memory
    if tile.kernel == "simt":  # no tensor cores: 16-bit numbers are widened first
        rate = gpu.rate(torch.float32 if size == 2 else problem.dtype, tf32=False)
    else:
        rate = gpu.rate(problem.dtype, tf32)
        if tile.kernel in ("tensor", "halo"):
            rate *= _MMA_SYNC.get(gpu.capability, 1.0)
    rate *= reuse / (reuse + _REUSE_FOR_HALF_THE_RATE) / gpu.multiprocessors
    step, bound = max(
        (together * 2 * tile.rows * tile.columns * tile.depth / rate, "products"),
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


# By family of kernels (`Tile.kernel`), where one is no implicit GEMM.
FORMULAS: dict[str, Callable[[ConvProblem, Direction, Tile, Gpu, bool], Prediction]] = {}


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
