"""The kernels of few channels in runs under Triton's interpreter; `test_kernels_in_interpreter.py` runs them."""

import dataclasses
import itertools
import random

import pytest
import torch
from interpreter import check, few

from gpuconv.backends.base import Tile
from gpuconv.checking.problems import random_problem
from gpuconv.problem import ConvProblem, Direction

PACKED = Tile(32, 16, 16, warps=4, stages=2, kernel="packed_runs")
PATCHES = dataclasses.replace(PACKED, kernel="patches")
DIRECTIONS: tuple[Direction, ...] = ("forward", "grad_weight")
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
ACTIVATIONS = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")


def packed_problem(seed: int) -> ConvProblem:
    """A random problem with one to four channels in one group, a large filter now and then, no dilated row."""
    draw = random.Random(seed)
    problem = random_problem(seed + 5000)
    size = tuple(n + draw.choice((0, 0, 9)) for n in problem.input_size)
    dilation = (*problem.dilation[:-1], 1)
    filter_size = tuple(
        min(r + draw.choice((0, 0, 4)), (n + sum(pads) - 1) // d + 1)
        for r, n, d, pads in zip(problem.filter_size, size, dilation, problem.padding, strict=True)
    )
    c, k, n = draw.randint(1, 4), draw.randint(1, 24), max(1, problem.batch)
    return ConvProblem.of((n, c, *size), (k, c, *filter_size), problem.stride, problem.padding, dilation)


def patches_problem(seed: int) -> ConvProblem:
    """Patches of 4, 8 or 16 pixels, as large as the stride or overlapping, and pixels that no patch meets."""
    draw = random.Random(seed)
    r, s = draw.choice((2, 4, 5)), draw.choice((4, 8, 16))
    u_h, u_w = draw.randint(1, r + 1), draw.choice((4, 8, 16))
    c, k, n = draw.choice((3, 4)), draw.randint(1, 24), draw.randint(1, 3)
    p, q = draw.randint(1, 4), draw.randint(2, 4)
    size = ((p - 1) * u_h + r + draw.randint(0, u_h - 1), (q - 1) * u_w + s)
    return ConvProblem.of((n, c, size[0], (size[1] + 15) // 16 * 16), (k, c, r, s), stride=(u_h, u_w))


def drawn(
    seed: int, problem: ConvProblem, tile: Tile, numbers: tuple[torch.dtype, ...], layouts: tuple[str, ...]
) -> None:
    dtype, layout = tuple(itertools.product(numbers, layouts))[seed % (len(numbers) * len(layouts))]
    tile = dataclasses.replace(tile, splits=1 + seed % 4)
    problem = dataclasses.replace(problem, dtype=dtype)
    check(problem, f"{tile.kernel} {seed}", layout, tile, ACTIVATIONS[seed % 7], DIRECTIONS)


@pytest.mark.parametrize("seed", few(range(200), 3))
def test_packed_random_problems(seed: int) -> None:
    drawn(seed, packed_problem(seed), PACKED, NUMBERS, LAYOUTS)


@pytest.mark.parametrize("seed", few(range(60), 2))
def test_patches_random_problems(seed: int) -> None:
    drawn(seed, patches_problem(seed), PATCHES, NUMBERS[:3], LAYOUTS[:2])
