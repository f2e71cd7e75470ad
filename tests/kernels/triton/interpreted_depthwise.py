"""The depthwise kernels under Triton's interpreter; `test_kernels_in_interpreter.py` runs them."""

import dataclasses
import itertools
import random

import pytest
import torch
from interpreter import check, few, guarded  # noqa: F401 (a fixture)

from gpuconv.backends.base import Tile
from gpuconv.backends.triton import depthwise as triton_depthwise
from gpuconv.checking.problems import CURATED, random_depthwise
from gpuconv.gpu import KNOWN
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import ConvProblem

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
ACTIVATIONS = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")


def small(height: int, width: int, channels: int, splits: int = 1) -> Tile:
    return Tile(height * width, channels, 1, 4, 1, splits, kernel="taps", width=width)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("name", ["3x3-depthwise-multiplier", "1d-causal"])
def test_curated_problems(name: str, layout: str) -> None:
    check(CURATED[name], name, layout, small(4, 8, 4, splits=2))


def test_vectors() -> None:
    problem = ConvProblem.of((2, 16, 9, 7), (16, 1, 3, 3), padding=1, groups=16, dtype=torch.bfloat16)
    operands = contiguous_operands(problem, "forward", torch.channels_last)
    channels_last = dataclasses.replace(problem, memory_format=torch.channels_last)
    launch = triton_depthwise.launches(channels_last, "forward", operands, small(4, 4, 16))[0]
    assert launch.constants["VECTOR"] == 8 and launch.constants["LAST"]
    check(problem, "vectors", "channels_last", small(4, 4, 16, splits=3))


@pytest.mark.parametrize("seed", few(range(300), 3))
def test_random_problems_in_all_directions(seed: int) -> None:
    draw = random.Random(seed)
    seeds = itertools.count(1000 * (seed + 1))
    taken = (random_depthwise(n) for n in seeds)
    problem = next(p for p in taken if triton_depthwise.refuses(p, "forward", KNOWN["A100"], None) is None)
    problem = dataclasses.replace(problem, dtype=draw.choice(DTYPES))
    tile = small(draw.choice((4, 8)), draw.choice((8, 16)), draw.choice((8, 16)), draw.choice((1, 2, 3)))
    check(problem, f"taps {seed}", draw.choice(LAYOUTS), tile, draw.choice(ACTIVATIONS))
