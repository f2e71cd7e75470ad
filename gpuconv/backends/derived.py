"""What the Triton and the CUDA C kernels are both told of a problem, and how both split the sum of grad_weight."""

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


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that products of numbers of `dtype` are summed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def all_aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes."""
    return not any(t.data_ptr() % 16 for t in tensors if t is not None)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """The splits that grad_weight makes of `tile.splits`: none of them empty."""
    steps = math.ceil(problem.batch * math.prod(problem.output_size) / tile.depth)
    return math.ceil(steps / math.ceil(steps / tile.splits)) if steps else 1


def splits_to_choose(problem: ConvProblem, tile: Tile, gpu: Gpu, programs: int) -> list[int]:
    """Numbers of splits worth considering where `programs` compute the whole: none, and enough to give each
    multiprocessor one, two or four."""
    pixels = problem.batch * math.prod(problem.output_size)
    partial = (math.prod(problem.weight_shape) + problem.out_channels) * accumulator(problem.dtype).itemsize
    most = max(1, min(math.ceil(pixels / tile.depth) // _FEWEST_STEPS, WORKSPACE // max(1, partial)))
    wanted = (math.ceil(each * gpu.multiprocessors / max(1, programs)) for each in (1, 2, 4))
    return sorted({1, *(min(most, splits) for splits in wanted)})


def programs_of_grad_weight(problem: ConvProblem, tile: Tile) -> int:
    """How many tiles of rows × columns all filters have, one for each tap and group."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    return math.ceil(k / tile.rows) * math.ceil(c / tile.columns) * problem.taps * problem.groups
