"""What the direct depthwise families of both backends share: which problems they take, and how long a window takes.

A `Tile` of theirs has as rows the pixels of its results, `width` of them side by side, as columns its channels, and as
`halo` the pixels that it reads of each channel.
"""

import math

from gpuconv.backends.roofline import Prediction, adding_splits, resident
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_MEMBERS = 8  # filters for each channel that the kernels are made for
_MULTIPLY_ADDS = 0.5  # what of the peak rate is left to them beside loads from shared memory and conversions: a guess
_NOT_HIDDEN = 0.1  # what of the shorter of two times does not pass while the longer does: a guess


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


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of kernels that fetch a window of every channel once for all taps, and multiply without tensor cores.

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
    members, blocks = problem.group_filters, math.ceil(problem.groups / tile.columns)
    steps = problem.batch * math.prod(counts)  # windows of a channel
    windows = steps * blocks * (1 if direction == "forward" else members)
    programs = members * blocks * tile.splits if direction == "grad_weight" else steps * blocks
    moved = problem.batch * problem.groups * fetched * (1 if direction == "forward" else members)
    moved += problem.batch * math.prod(results) * (problem.groups if backward else problem.out_channels)
    products = steps * blocks * members * tile.rows * tile.columns * problem.taps
    if backward:
        products /= math.prod(problem.stride)
    together = resident(tile, gpu, tile.halo * tile.columns * max(size, 4), registers=32 * tile.warps * 96)
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    idle = math.ceil(programs / gpu.multiprocessors) * gpu.multiprocessors / programs
    rate = _MULTIPLY_ADDS * (gpu.rate_64 if size == 8 else gpu.rate_32)
    (shorter, _), (longer, bound) = sorted(
        [(moved * size / gpu.bandwidth, "memory bandwidth"), (2 * products / rate, "products")]
    )  # fmt: skip
    seconds = (longer + _NOT_HIDDEN * shorter) * idle + gpu.step_latency * windows / min(
        programs, gpu.multiprocessors * together
    )
    seconds += adding_splits(tile, math.prod(problem.weight_shape), gpu)
    return Prediction(
        seconds, bound, programs, windows / programs, together, waves, 2 * products / (moved * size)
    )  # fmt: skip
