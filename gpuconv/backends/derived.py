"""What the Triton and the CUDA C kernels are both told of a problem, and how both split the sum of grad_weight."""

import dataclasses
import math

import torch

from gpuconv.backends.base import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem

WORKSPACE = 256 << 20  # bytes of partial sums at most
_FEWEST_STEPS = 8  # of a split


def axes(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    """The values of D, H and W, where a problem has one, two or three axes."""
    return (*(missing,) * (3 - len(values)), *values)


def phase_steps(problem: ConvProblem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each axis q = gcd(stride u, dilation d), and the inverse of d/q modulo u/q: what the output phases of a
    strided grad_input are told apart by."""
    common = tuple(math.gcd(u, d) for u, d in zip(problem.stride, problem.dilation, strict=True))
    inverse = tuple(
        0 if u == q else pow(d // q, -1, u // q)
        for u, d, q in zip(problem.stride, problem.dilation, common, strict=True)
    )
    return common, inverse


def packed(problem: ConvProblem) -> ConvProblem:
    """The problem with several groups taken together as one, whose weights then are blocks along a diagonal: as many
    as have 128 bytes of channels, and of filters, at most."""
    most = 128 // problem.dtype.itemsize * problem.groups // max(problem.in_channels, problem.out_channels)
    together = max((n for n in range(1, most + 1) if problem.groups % n == 0), default=1)
    return dataclasses.replace(problem, groups=problem.groups // together)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that products of numbers of `dtype` are summed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def all_aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes."""
    return not any(t.data_ptr() % 16 for t in tensors if t is not None)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """The splits that grad_weight makes of `tile.splits`: none of them empty."""
    steps = _steps(problem, tile)
    return math.ceil(steps / math.ceil(steps / tile.splits)) if steps else 1


def _steps(problem: ConvProblem, tile: Tile) -> int:
    """Of grad_weight without splits: windows, or pixels by `depth`."""
    return tile.windows or math.ceil(problem.batch * math.prod(problem.output_size) / tile.depth)


def splits_to_choose(problem: ConvProblem, tile: Tile, gpu: Gpu, programs: int) -> list[int]:
    """Numbers of splits worth considering where `programs` compute the whole: none, and enough to give each
    multiprocessor one, two or four."""
    partial = (math.prod(problem.weight_shape) + problem.out_channels) * accumulator(problem.dtype).itemsize
    most = max(1, min(_steps(problem, tile) // _FEWEST_STEPS, WORKSPACE // max(1, partial)))
    wanted = (math.ceil(each * gpu.multiprocessors / max(1, programs)) for each in (1, 2, 4))
    return sorted({1, *(min(most, splits) for splits in wanted)})


def programs_of_grad_weight(problem: ConvProblem, tile: Tile) -> int:
    """How many tiles of rows × columns all filters have, one for each tap and group."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    return math.ceil(k / tile.rows) * math.ceil(c / tile.columns) * problem.taps * problem.groups
