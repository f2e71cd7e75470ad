"""Results of few channels in cells under Triton's interpreter; `test_kernels_in_interpreter.py` runs it."""

import dataclasses
import itertools
import random

import pytest
import torch
from interpreter import check, few

from gpuconv.backends.base import Tile
from gpuconv.checking.problems import random_problem
from gpuconv.problem import ConvProblem, Direction

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")


ACTIVATIONS = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")


def problem_of(seed: int, direction: Direction) -> ConvProblem:
    """A random problem whose result has one to eight channels; a large image or a large filter now and then."""
    draw = random.Random(seed)
    problem = random_problem(seed + 7000)
    size = tuple(n + draw.choice((0, 0, 9)) for n in problem.input_size)
    filter_size = tuple(
        min(r + draw.choice((0, 0, 0, 9)), (n + sum(pads) - 1) // d + 1)
        for r, n, d, pads in zip(problem.filter_size, size, problem.dilation, problem.padding, strict=True)
    )
    c, k = draw.randint(1, 8), draw.choice((3, 16, 24))
    if direction == "forward":
        c, k = k, c
    return ConvProblem.of(
        (max(1, problem.batch), c, *size), (k, c, *filter_size), problem.stride, problem.padding, problem.dilation
    )


@pytest.mark.parametrize("seed", few(range(400), 8))
def test_random_problems(seed: int) -> None:
    direction: Direction = ("grad_input", "forward")[seed % 2]
    dtype, layout = tuple(itertools.product(NUMBERS, LAYOUTS))[seed // 2 % 16]
    problem = dataclasses.replace(problem_of(seed, direction), dtype=dtype)
    tile = Tile(64, (16, 64)[seed // 2 % 2], 16, warps=4, stages=2, kernel="cells")
    check(problem, f"cells {seed}", layout, tile, ACTIVATIONS[seed % 7], directions=(direction,))
