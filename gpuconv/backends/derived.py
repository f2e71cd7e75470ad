"""What follows from a problem for the Triton and the CUDA C kernels alike: axes, phases, offsets, splits of a sum."""

import dataclasses
import math
from typing import NamedTuple

import torch

from gpuconv.backends.elementwise import Elementwise
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem

WORKSPACE = 256 << 20  # bytes of partial sums at most
_MOST_OFFSET = 2**31 - 2**20  # beyond it offsets are 64-bit; the slack is for tiles that reach beyond the last element
_FEWEST_STEPS = 8  # of a split
_ADDING = 8  # programs of act_backward that add up channels, for each multiprocessor


def axes(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    """The values of D, H and W, where a problem has one, two or three axes."""
    return (*(missing,) * (3 - len(values)), *values)


def phase_steps(problem: ConvProblem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each axis q = gcd(stride u, dilation d), and the inverse of d/q modulo u/q: from both a kernel finds the taps
    that meet an output phase of a strided grad_input."""
    common = tuple(math.gcd(u, d) for u, d in zip(problem.stride, problem.dilation, strict=True))
    inverse = tuple(
        0 if u == q else pow(d // q, -1, u // q)
        for u, d, q in zip(problem.stride, problem.dilation, common, strict=True)
    )
    return common, inverse


def phases_of(problem: ConvProblem) -> int:
    """How many phases of a strided grad_input have pixels."""
    return math.prod(min(u, h) for u, h in zip(problem.stride, problem.input_size, strict=True))


def packed(problem: ConvProblem) -> ConvProblem:
    """The problem with several groups taken together as one, whose weights then are blocks along a diagonal: as many
    as have 128 bytes of channels, and of filters, at most."""
    most = 128 // problem.dtype.itemsize * problem.groups // max(problem.in_channels, problem.out_channels)
    together = max((n for n in range(1, most + 1) if problem.groups % n == 0), default=1)
    return dataclasses.replace(problem, groups=problem.groups // together)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that products of numbers of `dtype` are summed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def overflows(*extents: int) -> bool:
    """Whether any of these offsets, or one beyond a tensor's last, needs 64 bits."""
    return max(extents) > _MOST_OFFSET


def all_aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes."""
    return not any(t.data_ptr() % 16 for t in tensors if t is not None)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """How many programs share a sum of grad_weight: `tile.splits`, or fewer, so that each has a step to do."""
    steps = _steps(problem, tile)
    return math.ceil(steps / math.ceil(steps / tile.splits)) if steps else 1


def _steps(problem: ConvProblem, tile: Tile) -> int:
    """Steps of a grad_weight that is not split: windows, or pixels by `depth`."""
    return tile.windows or math.ceil(problem.output_pixels / tile.depth)


def with_splits(
    tile: Tile,
    problem: ConvProblem,
    gpu: Gpu,
    programs: int,
    most: int | None = None,
    each: tuple[int, ...] = (1, 2, 4),
) -> list[Tile]:
    """The tile with the numbers of splits worth considering in grad_weight, where `programs` compute the whole: one,
    and those that give each multiprocessor about so many programs as `each` lists, at most or at least.

    most: splits at most, if that is not as many as have a few steps each.
    """
    partial = (math.prod(problem.weight_shape) + problem.out_channels) * accumulator(problem.dtype).itemsize
    most = _steps(problem, tile) // _FEWEST_STEPS if most is None else most
    most = max(1, min(most, WORKSPACE // max(1, partial)))
    exact = [n * gpu.multiprocessors / max(1, programs) for n in each]
    wanted = {1, *(max(1, min(most, splits)) for n in exact for splits in (math.floor(n), math.ceil(n)))}
    return [tile if n == tile.splits else dataclasses.replace(tile, splits=n) for n in sorted(wanted)]


def programs_of_grad_weight(problem: ConvProblem, tile: Tile) -> int:
    """How many programs compute a grad_weight that is not split: one for each tile, tap (or `tile.taps` of them below
    each other), and group."""
    rows = problem.filter_size[0]
    return tiles_of_weight(problem, tile) * math.ceil(rows / tile.taps) * (problem.taps // rows) * problem.groups


def tiles_of_weight(problem: ConvProblem, tile: Tile) -> int:
    """How many tiles of filters × channels one tap of one group has."""
    return math.ceil(problem.group_filters / tile.rows) * math.ceil(problem.group_channels / tile.columns)


# ---- act_backward ----------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """The elements of s and gz as rows × columns, the columns side by side in memory, and where gy has them."""

    rows: int
    columns: int
    sizes: tuple[int, int, int, int, int]  # row_1, row_2, row_3, column_2, column_3: what digits are counted in
    strides: tuple[int, int, int, int, int, int, int]  # gy's, of the four digits of a row and the three of a column
    sum: str  # what a channel is: "columns" or "rows"; "none" if nothing is summed
    dense: bool  # gy lies as s does
    extent: int  # one more than the largest offset


def matrix(e: Elementwise) -> Matrix:
    """The matrix that the kernels of act_backward walk (`gpuconv.kernels.triton.act_backward`)."""
    n, k, *size = e.shape
    count = math.prod(e.shape)
    like = torch.empty(e.shape, device="meta", memory_format=e.memory_format).stride()
    dense = all(a == b for a, b, h in zip(e.grad_strides, like, e.shape, strict=True) if h > 1)
    gy_n, gy_k, *gy_pixel = (0 if h == 1 else stride for h, stride in zip(e.shape, e.grad_strides, strict=True))
    extent = max(count, 1 + sum((h - 1) * s for h, s in zip(e.shape, (gy_n, gy_k, *gy_pixel), strict=True)))
    depth, height, width = axes(tuple(size), 1)
    z, p, q = axes(tuple(gy_pixel), 0)
    if dense and not e.with_bias:
        return Matrix(1, count, (1, 1, 1, 1, 1), (0,) * 7, "none", True, extent)
    if e.memory_format is torch.contiguous_format:
        rows, columns, sums = n * k, depth * height * width, "rows"
        sizes, strides = (1, 1, k, height, width), (gy_n, 0, 0, gy_k, z, p, q)
    else:
        rows, columns, sums = n * depth * height * width, k, "columns"
        sizes, strides = (depth, height, width, 1, k), (gy_n, z, p, q, 0, 0, gy_k)
    return Matrix(rows, columns, sizes, strides, sums if e.with_bias else "none", dense, extent)


def steps(m: Matrix, rows: int, columns: int, multiprocessors: int) -> tuple[int, int, int]:
    """How act_backward divides a matrix into tiles: the tiles across, the programs along, and the tiles of each."""
    down, right = math.ceil(m.rows / rows), math.ceil(m.columns / columns)
    across, along = (down, right) if m.sum == "rows" else (right, down)
    if m.sum == "none":
        return across, along, 1
    each = math.ceil(along / max(1, math.ceil(_ADDING * multiprocessors / max(1, across))))
    return across, math.ceil(along / max(1, each)), each
