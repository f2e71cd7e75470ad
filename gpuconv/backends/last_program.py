"""A split sum that the last of its programs adds: when that pays, and the counters by which a program knows that it is.

`kernels/triton/last_program.py` and `kernels/cuda/last_block.cuh` say how. All counters are 0 before a launch and after
it, so that no launch has to zero them; launches on one stream take turns, and each stream has its own.
"""

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch

from gpuconv.backends.derived import WORKSPACE, accumulator
from gpuconv.backends.tile import Tile
from gpuconv.problem import ConvProblem

# Bytes of partial sums that the last program of a tile reads, at most: about what one multiprocessor gets from the L2
# cache in the time that a launch more would take.
_MOST_READ = 128 << 10
_MANY_SECTORS = 1 << 19  # elements whose sectors take longer to write than a launch takes: a guess
_MOST_SUMS = 64  # of a thread, of one tap: with more there would be no registers to add them in
_COUNTERS = 4096  # of a launch, at most
_FOR_GRAPHS = 1 << 18  # of all launches in CUDA graphs
_PER_THREAD = 2  # the handle of another stream in each thread


def apart(problem: ConvProblem, tile: Tile, splits: int, tiles: int) -> bool:
    """Whether a grad_weight's product leaves its sums in a workspace, and a launch of its own adds them all: where they
    are split and the last programs do not add, and where the result is large and no two channels of it are neighbours,
    since each element would be a sector that is written."""
    if splits == 1:
        scattered = problem.memory_format is torch.contiguous_format and problem.taps > 1 and problem.group_channels > 1
        return scattered and math.prod(problem.weight_shape) >= _MANY_SECTORS
    return not adds(tile, splits, tiles, accumulator(problem.dtype).itemsize)


def adds(tile: Tile, splits: int, tiles: int, itemsize: int = 4) -> bool:
    """Whether the last program to come adds the partial sums, numbers of `itemsize` bytes, of its tile; else a launch
    of its own adds them all. tiles: that the result has, counters to be."""
    sums = tile.rows * tile.columns * tile.taps
    few = sums <= _MOST_SUMS * tile.taps * 32 * tile.warps and splits * sums * itemsize <= _MOST_READ
    return splits > 1 and few and tiles <= _COUNTERS and splits * tiles * sums * itemsize <= WORKSPACE // 2


class Workspace(NamedTuple):
    """What a launch whose last programs add is given: room for so many partial sums, and so many counters."""

    partials: int = 0
    counters: int = 0


class _OfDevice:
    """The counters on one GPU."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        self.of_streams: dict[int, torch.Tensor] = {}
        self.for_graphs: torch.Tensor | None = None
        self.taken = 0  # of those for graphs


_devices: dict[int, _OfDevice] = {}
_lock = threading.Lock()


def counters_on(device: torch.device) -> Callable[[int], torch.Tensor]:
    """A function that gives so many counters, all 0, for one launch on the current stream of `device`.

    On the CPU, where launches are emulated or interpreted, they are made for each: one that failed leaves nothing.
    """
    if device.type != "cuda":
        return lambda count: torch.zeros(count, dtype=torch.int32)
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        here = _devices.setdefault(index, _OfDevice(index))
    of_streams = here.of_streams
    current_stream, capturing = torch._C._cuda_getCurrentRawStream, torch.cuda.is_current_stream_capturing

    def counters(count: int) -> torch.Tensor:
        stream = current_stream(index)
        found = of_streams.get(stream)
        # What is captured may run on any stream, at any time: it has counters to itself, for good.
        if found is None or capturing():
            return _new(here, stream, count, capturing())
        return found

    return counters


def _new(here: _OfDevice, stream: int, count: int, captured: bool) -> torch.Tensor:
    """Counters for one captured launch, or for all launches on a stream.

    PyTorch's allocator, too, knows a stream by its handle: where one is destroyed before its work is done and another
    gets its handle, memory of the first is given to the second.
    """
    with _lock:
        if captured:
            first, last = here.taken, here.taken + -(-count // 4) * 4  # each begins at a multiple of 16 bytes
            if here.for_graphs is None or last > _FOR_GRAPHS:
                return torch.zeros(count, dtype=torch.int32, device=here.device)  # a node of the graph zeroes them
            here.taken = last
            return here.for_graphs[first : first + count]
        made = here.of_streams.get(stream)
        if made is not None:  # another thread was quicker
            return made
        if here.for_graphs is None:
            here.for_graphs = torch.zeros(_FOR_GRAPHS, dtype=torch.int32, device=here.device)
        made = torch.zeros(_COUNTERS, dtype=torch.int32, device=here.device)
        if stream != _PER_THREAD:
            here.of_streams[stream] = made
        return made
