"""What the direct depthwise families of both backends share: which problems they take, and how long a window takes.

A `Tile` of theirs has as rows the pixels of its results, `width` of them side by side, as columns its channels, and as
`halo` the pixels that it reads of each channel.
"""

import math

import torch

from gpuconv.backends import constants
from gpuconv.backends.roofline import SECTOR, Features, Prediction, added_apart, longest, results_of, together_with
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_MEMBERS = 8  # filters for each channel that the kernels are made for


def refuses(problem: ConvProblem, most_taps: int) -> str | None:
    """Why direct depthwise kernels cannot, or should not, do a problem; None if they can. most_taps: on an axis."""
    if problem.in_channels != problem.groups:
        return "filters of several channels are for other kernels"
    if problem.out_channels > _MOST_MEMBERS * problem.groups:
        return f"more than {_MOST_MEMBERS} filters for each channel are for other kernels"
    if problem.ndim > 2:
        return "it has one or two axes"
    if max(problem.stride) > 2:
        return "it has strides 1 and 2"
    if max(problem.filter_size) > most_taps:
        return f"it has filters up to {most_taps} taps on an axis"
    if not math.prod(problem.output_shape) or not math.prod(problem.input_shape):
        return "there is nothing to compute"
    return None


def predict(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    gpu: Gpu,
    tf32: bool,
    *,
    held: int = 0,
    reloads: bool = False,
) -> Prediction:
    """The time of kernels that fetch a window of every channel once for all taps, and multiply without tensor cores.

    held: bytes of shared memory of a program. reloads: a window is loaded anew for every tap, mostly from the L1 cache.

    As long as bytes and instructions take one after the other, or, where windows are reloaded, together; bytes that
    neighbouring windows share count again; the last wave keeps only some multiprocessors busy; and a window's way takes
    time that others on the same multiprocessor hide.
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
    members, blocks = problem.group_filters, math.ceil(problem.groups / tile.columns)
    steps = problem.batch * math.prod(counts)  # windows of a channel
    windows = steps * blocks * (1 if direction == "forward" else members)
    programs = members * blocks * tile.splits if direction == "grad_weight" else steps * blocks
    of_windows = problem.batch * problem.groups * fetched * (1 if direction == "forward" else members)
    of_results = problem.batch * math.prod(results) * (problem.groups if backward else problem.out_channels)
    products = steps * blocks * members * tile.rows * tile.columns * problem.taps
    if backward:
        products /= math.prod(problem.stride)
    of_taps = problem.meetings * problem.out_channels  # what meets
    bytes_ = size * ((of_taps if reloads else of_windows) + of_results * (direction == "grad_weight"))
    planes = " of planes" if problem.memory_format is torch.contiguous_format else ""  # other kernels, or other loads
    cost = constants.cost_of(tile.kernel + planes, direction, "fma")
    threads = 32 * tile.warps
    copies = 0 if tile.addressed else tile.halo * tile.columns * size / 16
    of_window = Features(products / max(1, windows) / threads, 0, copies / threads, 0, tile.addressed / threads)
    of_step = of_window.instructions(cost)
    around = cost.tile + cost.result * results_of(tile)
    instructions = tile.warps * (windows * of_step + programs * around)
    registers = min(255, math.ceil(cost.registers + constants.REGISTERS_A_TAP * reloads * problem.taps))
    room = max(1, gpu.resident(threads, registers, held))
    waves = math.ceil(programs / (gpu.multiprocessors * room))
    idle = math.ceil(programs / gpu.multiprocessors) * gpu.multiprocessors / programs
    rate = constants.DEPTHWISE_RATE * (gpu.rate_64 if size == 8 else gpu.rate_32)
    of_all = gpu.multiprocessors * gpu.clock
    parts = (
        ("products", 2 * products / rate),
        ("L1 loads", of_taps * size / (constants.L1_BYTES * of_all) if reloads else 0.0),
        ("instructions", instructions / (constants.SCHEDULERS * of_all)),
        ("memory bandwidth", (of_windows + of_results) * size / (constants.MEMORY * gpu.bandwidth)),
    )
    way = constants.FIRST_FETCH * gpu.step_latency * windows / min(programs, gpu.multiprocessors * room)
    # What fetches a window whole works on it only then, and mostly all programs at once.
    kinds = dict(parts)
    apart = kinds["memory bandwidth"] + max(kinds["products"], kinds["instructions"])
    work = together_with(parts) if reloads else apart
    seconds = constants.LAUNCH + work * idle + way
    if direction == "grad_weight" and tile.splits > 1:
        seconds += added_apart(tile.splits, math.prod(problem.weight_shape), gpu)
    return Prediction(
        seconds, longest(parts), programs, windows / programs, room, waves, 2 * products / max(1.0, bytes_), bytes_,
        bytes_ / SECTOR, instructions, (*parts, ("start and end", way)),
    )  # fmt: skip
