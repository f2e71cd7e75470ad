"""Groups packed in tensor-core tiles: the kernels under the host check against the oracle, and under the sanitizers."""

import dataclasses
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from host_cuda import COMPILER, HostRuntime, Recorder, assert_right, compute, replay

from gpuconv import reference
from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.cuda import grouped, grouped_halo
from gpuconv.backends.cuda.launch import source
from gpuconv.backends.derived import packed
from gpuconv.checking.problems import LAYOUTS, tensors
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")
A100 = KNOWN["A100"]

# input, weight, settings; and how it is computed: dtype, layout.
_PROBLEMS = {
    "4-of-32": ((2, 128, 6, 7), (128, 4, 3, 3), {"padding": 1}, ("float16", "channels_last")),
    "4-of-32-tf32": ((2, 64, 6, 7), (64, 4, 3, 3), {"padding": 1}, ("float32", "channels_last")),
    "8-stride2": ((2, 64, 9, 8), (64, 8, 3, 3), {"padding": 1, "stride": 2}, ("bfloat16", "channels_last")),
    "16-contiguous": ((1, 128, 7, 9), (128, 16, 3, 3), {"padding": 1}, ("float16", "contiguous")),
    "32": ((1, 128, 5, 9), (128, 32, 3, 3), {"padding": 1}, ("float16", "channels_last")),
    "6-to-10": ((2, 36, 6, 7), (60, 6, 3, 2), {"padding": (1, 0), "dilation": (2, 1)}, ("float16", "sliced")),
    "5-to-3": ((2, 30, 8, 5), (18, 5, 1, 3), {"stride": (2, 1)}, ("float32", "expanded")),
    "1d": ((2, 32, 29), (32, 8, 4), {"padding": 2}, ("bfloat16", "contiguous")),
    "3d": ((1, 16, 4, 5, 3), (16, 4, 2, 2, 3), {"padding": 1, "stride": (1, 2, 1)}, ("float16", "channels_last")),
    "empty-batch": ((0, 64, 6, 7), (64, 4, 3, 3), {"padding": 1}, ("float16", "channels_last")),
}


def typed(problem: ConvProblem, dtype: torch.dtype, layout: str) -> ConvProblem:
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(problem.ndim)
    memory_format = last if last and layout == "channels_last" else torch.contiguous_format
    return dataclasses.replace(problem, dtype=dtype, memory_format=memory_format)


def problem_called(name: str) -> tuple[ConvProblem, str]:
    x, w, settings, (dtype, layout) = _PROBLEMS[name]
    return typed(ConvProblem.of(x, w, groups=x[1] // w[1], **settings), getattr(torch, dtype), layout), layout


def tiles_of(problem: ConvProblem, direction: Direction, splits: int = 1) -> list[Tile]:
    """The smallest tile of each kernel that an A100 is offered."""
    operands = contiguous_operands(problem, direction)._replace(tf32=problem.dtype is torch.float32)
    offered = [family.tiles(problem, direction, A100, operands) for family in (grouped_halo.FAMILY, grouped.FAMILY)]
    return [dataclasses.replace(tiles[-1], splits=splits) for tiles in offered if tiles]


# ---- right -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", _PROBLEMS)
def test_curated_problems_are_within_the_bound(name: str, direction: Direction) -> None:
    problem, layout = problem_called(name)
    assert packed(problem).groups < problem.groups
    for tile in tiles_of(problem, direction, 1 if "contiguous" in name else 3)[:1]:
        assert_right(problem, direction, tile, name, layout)


def random_problem(seed: int) -> tuple[ConvProblem, str]:
    """A problem and a layout. The first twenty take turns among four sets of compile-time options, others among 40."""
    kind = random.Random(4 + seed % 40 if seed >= 20 else seed % 4)
    c, k, together = kind.randint(2, 16), kind.randint(2, 16), kind.choice((2, 3, 4))
    filters = (kind.randint(1, 3), kind.randint(2, 4))
    dtype, layout = kind.choice((torch.float16, torch.bfloat16, torch.float32)), kind.choice(LAYOUTS)
    draw = random.Random(seed)
    stride = (1, 1) if kind.random() < 0.5 else (draw.randint(1, 2), draw.randint(2, 3))
    dilation = (draw.randint(1, 2), draw.randint(1, 2))
    padding = tuple((draw.randint(0, r), draw.randint(0, r)) for r in filters)
    size = tuple(d * (r - 1) + 1 + draw.randint(0, 9) for r, d in zip(filters, dilation, strict=True))
    x, w = (draw.randint(1, 3), together * c, *size), (together * k, c, *filters)
    return typed(ConvProblem.of(x, w, stride, padding, dilation, together), dtype, layout), layout


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
@pytest.mark.parametrize("taps", [(3, 1, 2), (4, 2, 1), (3, 1, 3)])
def test_windows_follow_each_other_however_few_taps_they_have(taps: tuple[int, ...], direction: Direction) -> None:
    problem = typed(ConvProblem.of((1, 64, 6, 5, 7), (64, 4, *taps), groups=16), torch.float16, "channels_last")
    (tile,) = [tile for tile in tiles_of(problem, direction) if tile.kernel == "grouped_halo"]
    assert_right(problem, direction, tile, f"few taps {taps}", "channels_last")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_random_problems_are_within_the_bound(random_seed: int, direction: Direction) -> None:
    problem, layout = random_problem(random_seed)
    for tile in tiles_of(problem, direction, 1 + random_seed % 3):
        assert_right(problem, direction, tile, f"random {random_seed}", layout)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_order_of_threads_and_packing_do_not_change_a_bit(direction: Direction) -> None:
    """Each pack is computed as if it were alone."""
    problem, layout = problem_called("4-of-32")
    given = tensors(problem, "bits", problem.dtype, "cpu", layout)
    half = dataclasses.replace(problem, in_channels=64, out_channels=64, groups=16)
    for tile in tiles_of(problem, direction, 2):
        first = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(0)))
        for order in (1, 2, 3):
            again = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(order)))
            assert all(map(torch.equal, first, again))
        latter = {name: t[64:] if name in ("weight", "bias") else t[:, 64:] for name, t in given.items()}
        alone = compute(half, direction, tile, latter)
        assert torch.equal(alone[0], first[0][64:] if direction == "grad_weight" else first[0][:, 64:])


@pytest.mark.parametrize(("direction", "poisoned"), [
    ("forward", "input"), ("forward", "weight"), ("grad_input", "grad_output"), ("grad_input", "weight"),
    ("grad_weight", "input"), ("grad_weight", "grad_output"),
])  # fmt: skip
def test_what_is_not_finite_is_never_lost(direction: Direction, poisoned: str) -> None:
    """It may spread within its pack, and not beyond."""
    problem, layout = problem_called("4-of-32")
    given = tensors(problem, "poison", problem.dtype, "cpu", layout)
    given[poisoned][(1, 3, 2, 4) if poisoned != "weight" else (3, 1, 0, 0)] = math.nan
    x, w, b, residual, gy = (reference.as_numpy(t) for t in given.values())
    exact = {
        "forward": lambda: reference.forward(problem, x, w, b, residual),
        "grad_input": lambda: reference.grad_input(problem, gy, w),
        "grad_weight": lambda: reference.grad_weight(problem, gy, x),
    }[direction]()
    for tile in tiles_of(problem, direction, 3):
        got = compute(problem, direction, tile, given)[0].float()
        assert not (torch.from_numpy(np.isnan(exact.value)) & ~got.isnan()).any()
        assert got.narrow(0 if direction == "grad_weight" else 1, 64, 64).isfinite().all()


# ---- under the sanitizers --------------------------------------------------------------------------------------------


def recorded(direction: Direction) -> Recorder:
    problem = typed(ConvProblem.of((1, 64, 4, 5), (64, 8, 3, 3), padding=1, groups=8), torch.float16, "channels_last")
    runtime = Recorder()
    for tile in tiles_of(problem, direction):
        given = tensors(problem, "run", torch.float16, "cpu", "channels_last")
        compute(problem, direction, tile, given, runtime=runtime)
    return runtime


@pytest.mark.parametrize(
    ("direction", "mode"),
    [*((direction, "thread") for direction in DIRECTIONS), ("forward", "address"), ("grad_weight", "address")],
)
def test_sanitizer_finds_nothing(direction: Direction, mode: str, tmp_path: Path) -> None:
    record = recorded(direction).records[0]
    result = replay(record, mode, 2, tmp_path)
    assert result.complaint == ""
    assert result.after == record.after


def test_zeros_that_are_written_without_a_barrier_are_a_race(tmp_path: Path) -> None:
    record = recorded("forward").records[0]
    text = source(record.launch.instance.file)
    zeros, barrier = "#if PACK > 1\n  for (int chunk", "  __syncthreads();\n\n  // ---- what a thread copies"
    assert zeros in text and barrier in text
    text = text.replace(barrier, "  //").replace(zeros, f"  __syncthreads();\n{zeros}")  # too early
    result = replay(record, "thread", 2, tmp_path, text)
    assert "data race" in result.complaint
