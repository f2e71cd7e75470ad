"""How long a kernel takes with a tile: the roofline of an implicit GEMM, and what the formulas of all families share.

Closed formulas of the problem and of the properties of a GPU. They are there to choose among tiles and to explain the
choice: their times are predictions, not measurements. A family that is no implicit GEMM has its formula in its file.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from gpuconv.backends.derived import programs_of_grad_weight
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_REUSE_FOR_HALF_THE_RATE = 16.0
L2_SPEEDUP = 3.0  # over device memory
INSTRUCTIONS_AN_ELEMENT = 10  # to fetch one by itself, as counted in the loops of the gather kernels
INSTRUCTIONS = 64 * 1.5e9  # integer ones a second of a multiprocessor
_ONE_MORE_LAUNCH = 3e-6  # seconds
_REGISTERS = 65536  # of a multiprocessor


class Prediction(NamedTuple):
    """The predicted time of a kernel with one tile, and what it comes from."""

    seconds: float
    bound: str  # what takes that long: "products", "addresses", "L2 fetches", "fetch latency", "memory bandwidth", …
    programs: int
    steps: float  # of the loop of a program, on average
    together: int  # programs on a multiprocessor at a time
    waves: int
    intensity: float  # operations for each byte that a step fetches


def programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    """How many programs an implicit GEMM runs, and how many steps the loop of each takes on average."""
    view = problem.view(direction)
    if direction == "grad_weight":
        programs = programs_of_grad_weight(problem, tile) * tile.splits
        return programs, math.ceil(math.ceil(view.terms / tile.depth) / tile.splits)
    phases, pixels = 1, view.rows
    taps: float = problem.taps
    if direction == "grad_input":  # one product for each output phase, of the taps that meet it
        phases = math.prod(problem.stride)
        largest = (math.ceil(h / s) for h, s in zip(problem.input_size, problem.stride, strict=True))
        pixels, taps = problem.batch * math.prod(largest), problem.taps / phases
    row_blocks = tile.windows or math.ceil(pixels / tile.rows)
    programs = phases * row_blocks * math.ceil(view.columns / tile.columns) * problem.groups
    return programs, taps * math.ceil(view.terms / tile.depth)


def implicit_gemm(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    gpu: Gpu,
    tf32: bool,
    *,
    rate: float | None = None,
    share: float = 1.0,
    count: Callable[[ConvProblem, Direction, Tile], tuple[int, float]] = programs_and_steps,
) -> Prediction:
    """The roofline of an implicit GEMM.

    rate: operations a second that the GPU is capable of; its peak for the number type where it is not given. share:
    which part of a tile's products, and of the weight, is not zeros that are skipped. count: its programs and steps.

    Programs run in waves of as many as fit on the multiprocessors at once. A step of a program takes as long as the
    slowest of: multiplying its tiles, computing addresses, fetching them from the L2 cache, and the latency of a fetch
    divided by the fetches under way. The whole takes no less than the bytes that must cross the memory bus; a split
    sum also moves its partial sums.

    A window with a halo is fetched once for all the taps of a plane, so a step, which is one tap, fetches that part of
    it; two windows are held, one being multiplied while the next comes.
    """
    programs, steps = count(problem, direction, tile)
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
    together, waves = in_waves(programs, resident(tile, gpu, held, registers), gpu)
    rate = gpu.rate(problem.dtype, tf32) if rate is None else rate
    rate *= share_of_rate(tile) / gpu.multiprocessors
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
    seconds += adding_splits(tile, math.prod(problem.weight_shape), gpu)
    intensity = 2 * tile.rows * tile.columns * tile.depth / fetched
    return Prediction(seconds, bound, programs, steps, together, waves, intensity)


# ---- what formulas share ---------------------------------------------------------------------------------------------


def resident(tile: Tile, gpu: Gpu, held: int, registers: int) -> int:
    """How many programs a multiprocessor has room for: each holds so many bytes of shared memory and registers."""
    return max(1, min(gpu.shared_memory // max(1, held), gpu.threads // (32 * tile.warps), _REGISTERS // registers))


def in_waves(programs: int, room: int, gpu: Gpu) -> tuple[int, int]:
    """How many programs share a multiprocessor, which has room for `room`, and in how many waves all of them run."""
    together = min(room, max(1, math.ceil(programs / gpu.multiprocessors)))
    return together, math.ceil(programs / (gpu.multiprocessors * together))


def reuse_of(tile: Tile) -> float:
    """Products for each element that is read from shared memory."""
    return tile.rows * tile.columns / (tile.rows + tile.columns)


def share_of_rate(tile: Tile) -> float:
    """Which part of the peak rate a tile reaches: the more, the more often it uses what it has read."""
    return reuse_of(tile) / (reuse_of(tile) + _REUSE_FOR_HALF_THE_RATE)


def copying(size: int, gpu: Gpu) -> float:
    """Seconds to copy so many bytes by a launch of its own. What it writes stays in the L2 cache as far as half of that
    has room, and is read there by the launch that follows."""
    kept = min(size, gpu.l2 / 2)
    return (2 * size - kept) / gpu.bandwidth + kept / (L2_SPEEDUP * gpu.bandwidth) + _ONE_MORE_LAUNCH


def adding_splits(tile: Tile, results: int, gpu: Gpu) -> float:
    """Seconds to write, read and add the partial sums of so many results; 0 where sums are not split."""
    return 2 * 4 * tile.splits * results / gpu.bandwidth + _ONE_MORE_LAUNCH if tile.splits > 1 else 0.0
