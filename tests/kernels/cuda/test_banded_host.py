"""The banded kernels: their algebra in NumPy; the kernels under the host check against the oracle, and sanitizers."""

import dataclasses
import itertools
import math
import random
from pathlib import Path

import numpy as np
import planted_cuda
import pytest
import torch
from host_cuda import COMPILER, HostRuntime, Recorder, assert_right, compute, replay

from gpuconv import reference
from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.cuda import banded as cuda_banded
from gpuconv.checking.problems import LAYOUTS, tensors
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")
A100 = KNOWN["A100"]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}

# input, weight, settings; and how it is computed: dtype, layout, rows and columns of the tile.
_PROBLEMS = {
    "9x9": ((3, 2, 19, 24), (2, 1, 9, 9), {"padding": 4}, ("float16", "contiguous", 16, 16)),
    "9x9-many-small-images": ((7, 2, 5, 6), (2, 1, 9, 9), {"padding": 4}, ("tf32", "channels_last", 16, 16)),
    "13x11": ((1, 2, 21, 18), (4, 1, 13, 11), {"padding": (6, 5)}, ("tf32", "contiguous", 16, 16)),
    "31x31": ((1, 2, 33, 40), (2, 1, 31, 31), {"padding": 15}, ("bfloat16", "contiguous", 32, 32)),
    "31x31-tf32": ((1, 1, 34, 40), (1, 1, 31, 31), {"padding": 15}, ("tf32", "contiguous", 64, 32)),
    "32x32-unpadded": ((1, 1, 50, 52), (1, 1, 32, 32), {}, ("float16", "sliced", 16, 32)),
    "3x17": ((2, 1, 7, 40), (2, 1, 3, 17), {"padding": ((2, 0), (3, 20))}, ("float16", "channels_last", 16, 32)),
    "10x1": ((2, 3, 12, 5), (3, 1, 10, 1), {"padding": ((4, 5), (0, 0))}, ("bfloat16", "expanded", 16, 16)),
    "9x9-padding-of-filter-size": ((1, 1, 4, 6), (1, 1, 9, 9), {"padding": 9}, ("float16", "contiguous", 16, 16)),
    "9x9-empty-batch": ((0, 2, 11, 12), (2, 1, 9, 9), {"padding": 4}, ("float16", "contiguous", 16, 16)),
}  # fmt: skip


def typed(problem: ConvProblem, dtype: torch.dtype, layout: str) -> ConvProblem:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return dataclasses.replace(problem, dtype=dtype, memory_format=memory_format)


def problem_called(name: str) -> tuple[ConvProblem, str, tuple[int, int]]:
    x, w, settings, (dtype, layout, *shape) = _PROBLEMS[name]
    return typed(ConvProblem.of(x, w, groups=x[1], **settings), DTYPES[dtype], layout), layout, (shape[0], shape[1])


def tile_of(problem: ConvProblem, direction: Direction, rows: int, columns: int, splits: int = 1) -> Tile:
    """The tile of this shape that an A100 would be offered, if its image were large enough."""
    huge = dataclasses.replace(problem, input_size=tuple(size + 128 for size in problem.input_size))
    operands = contiguous_operands(huge, direction)._replace(tf32=problem.dtype is torch.float32)
    found = cuda_banded.tiles(huge, direction, A100, operands)
    tile = next(tile for tile in found if (tile.rows, tile.columns) == (rows, columns))
    height, width = problem.input_size if direction == "grad_input" else problem.output_size
    windows = problem.batch * math.ceil(height / rows) * math.ceil(width / columns)
    return dataclasses.replace(tile, splits=splits, windows=windows)


# ---- the algebra -----------------------------------------------------------------------------------------------------


def test_a_filter_row_is_a_banded_matrix() -> None:
    rng = np.random.default_rng(7)
    height, width, r, s = 11, 13, 5, 9
    x, w = rng.standard_normal((height + r - 1, width + s - 1)), rng.standard_normal((r, s))
    gy = rng.standard_normal((height, width))
    y, gw = np.zeros((height, width)), np.zeros((r, s))
    for i, j in itertools.product(range(r), range(s)):
        y += w[i, j] * x[i : i + height, j : j + width]
        gw[i, j] = np.sum(gy * x[i : i + height, j : j + width])
    banded, sums = np.zeros_like(y), np.zeros_like(gw)
    for i in range(r):
        row = np.pad(w[i], width)  # zeros on both sides
        band = np.array([[row[width + j - q] for q in range(width)] for j in range(width + s - 1)])
        banded += x[i : i + height] @ band
        product = x[i : i + height].T @ gy  # [j, q]
        sums[i] = [np.trace(product, offset=-j) for j in range(s)]
    np.testing.assert_allclose(banded, y, atol=1e-13)
    np.testing.assert_allclose(sums, gw, atol=1e-13)


# ---- right -----------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", _PROBLEMS)
def test_curated_problems_are_within_the_bound(name: str, direction: Direction) -> None:
    problem, layout, shape = problem_called(name)
    splits = 3 if direction == "grad_weight" and problem.batch > 1 else 1
    assert_right(problem, direction, tile_of(problem, direction, *shape, splits), name, layout)


def random_problem(seed: int) -> tuple[ConvProblem, str, tuple[int, int]]:
    """A problem, a layout and the shape of a tile. The first twenty take turns among five sets of compile-time options,
    others among forty."""
    kind = random.Random(5 + seed % 40 if seed >= 20 else seed % 5)
    filters = kind.choice(((9, 9), (10, 13), (5, 15), (16, 9), (21, 21), (31, 31))[: 4 if seed < 20 else 6])
    dtype, layout = kind.choice((*DTYPES.values(),)), kind.choice(LAYOUTS)
    shape = kind.choice(((16, 16), (16, 32), (32, 16)))
    low, unit = kind.randint(0, filters[1] - 1), kind.choice((1, 8))
    draw = random.Random(seed)
    rows, high = (draw.randint(0, filters[0]), draw.randint(0, filters[0])), draw.randint(0, 9)
    if unit > 1:  # as many columns out as in
        high = filters[1] - 1 - low
    pads = (rows, (low, high))
    height = max(1, filters[0] - sum(pads[0])) + draw.randint(0, 23)
    width = max(filters[1] - sum(pads[1]), 1) + draw.randint(0, 33)
    width += -width % unit
    channels, multiplier = draw.randint(1, 3), draw.choice((1, 1, 2))
    problem = ConvProblem.of(
        (draw.randint(1, 3), channels, height, width),
        (channels * multiplier, 1, *filters),
        padding=pads,
        groups=channels,
    )
    return typed(problem, dtype, layout), layout, shape


@needs_compiler
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_random_problems_are_within_the_bound(random_seed: int, direction: Direction) -> None:
    problem, layout, shape = random_problem(random_seed)
    splits = 1 + random_seed % 3 if direction == "grad_weight" else 1
    assert_right(problem, direction, tile_of(problem, direction, *shape, splits), f"random {random_seed}", layout)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_is_right(dtype: str, direction: Direction) -> None:
    problem = typed(ConvProblem.of((1, 1, 70, 72), (1, 1, 31, 31), padding=15), DTYPES[dtype], "contiguous")
    operands = contiguous_operands(problem, direction)._replace(tf32=True)
    for tile in dict.fromkeys(cuda_banded.tiles(problem, direction, A100, operands)):
        assert_right(problem, direction, tile, "tiles")


@needs_compiler
@pytest.mark.parametrize("activation", ["silu", "leaky_relu(0.2)"])
def test_activation_is_applied_before_the_one_rounding(activation: str) -> None:
    problem, layout, shape = problem_called("9x9")
    assert_right(problem, "forward", tile_of(problem, "forward", *shape), "9x9", layout, activation)


def moved_by_one(t: torch.Tensor) -> torch.Tensor:
    """The values of t with the same strides, one element further in memory than a multiple of 16 bytes."""
    memory = torch.full((t.numel() + 17,), float("nan"), dtype=t.dtype)
    first = -memory.data_ptr() // t.element_size() % 8 + 1
    return memory[first:].as_strided(t.shape, t.stride()).copy_(t)


@needs_compiler
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_order_of_threads_alignment_and_wide_offsets_do_not_change_a_bit(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, layout, shape = problem_called("9x9")
    tile = tile_of(problem, direction, *shape, 2 if direction == "grad_weight" else 1)
    given = tensors(problem, "bits", problem.dtype, "cpu", layout)
    first = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(0)))
    for order in (1, 2, 3):
        again = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(order)))
        assert all(map(torch.equal, first, again))
    shifted = {name: moved_by_one(t) for name, t in given.items()}
    assert all(map(torch.equal, first, compute(problem, direction, tile, shifted)))
    monkeypatch.setattr("gpuconv.backends.cuda.banded.needs_64_bits", lambda *_: True)
    assert all(map(torch.equal, first, compute(problem, direction, tile, given)))


@needs_compiler
@pytest.mark.parametrize(("direction", "poisoned"), [
    ("forward", "input"), ("forward", "weight"), ("grad_input", "grad_output"), ("grad_input", "weight"),
    ("grad_weight", "input"), ("grad_weight", "grad_output"),
])  # fmt: skip
def test_what_is_not_finite_is_never_lost(direction: Direction, poisoned: str) -> None:
    """It may spread, within its channel; what the oracle says is not finite is not finite."""
    problem, layout, shape = problem_called("9x9")
    for value in (math.nan, math.inf):
        given = tensors(problem, "poison", problem.dtype, "cpu", layout)
        given[poisoned][(1, 1, 18, 23) if poisoned != "weight" else (1, 0, 0, 0)] = value
        tile = tile_of(problem, direction, *shape, 3 if direction == "grad_weight" else 1)
        got = compute(problem, direction, tile, given)[0].float()
        x, w, b, residual, gy = (reference.as_numpy(t) for t in given.values())
        with np.errstate(invalid="ignore"):
            exact = {
                "forward": lambda: reference.forward(problem, x, w, b, residual),  # noqa: B023
                "grad_input": lambda: reference.grad_input(problem, gy, w),  # noqa: B023
                "grad_weight": lambda: reference.grad_weight(problem, gy, x),  # noqa: B023
            }[direction]()
        lost = ~torch.from_numpy(np.isfinite(exact.value)) & got.isfinite()
        assert not lost.any(), (value, lost.nonzero()[:5])
        channel = 0 if direction == "grad_weight" else 1
        assert got.select(channel, 0).isfinite().all()


# ---- under the sanitizers --------------------------------------------------------------------------------------------

SANITIZED = ConvProblem.of((3, 1, 17, 24), (2, 1, 9, 9), padding=4)


def recorded(direction: Direction, dtype: torch.dtype = torch.float16) -> Recorder:
    problem, runtime = dataclasses.replace(SANITIZED, dtype=dtype), Recorder()
    tile = tile_of(problem, direction, 16, 16, 2 if direction == "grad_weight" else 1)
    compute(problem, direction, tile, tensors(problem, "run", dtype), runtime=runtime, tf32=True)
    return runtime


@needs_compiler
@pytest.mark.parametrize(
    ("direction", "mode"), [*((direction, "thread") for direction in DIRECTIONS), ("grad_weight", "address")]
)
def test_sanitizer_finds_nothing(direction: Direction, mode: str, tmp_path: Path) -> None:
    for record in recorded(direction, torch.float32 if direction == "grad_input" else torch.float16).records:
        result = replay(record, mode, 2, tmp_path)
        assert result.complaint == ""
        assert result.after == record.after


@needs_compiler
@pytest.mark.parametrize("name", planted_cuda.of("banded"))
def test_planted_fault_is_reported(name: str, tmp_path: Path) -> None:
    fault = planted_cuda.FAULTS[name]
    record = recorded(fault.kind.split("-")[0]).records[0]
    text = fault.planted(record.launch.instance.file)
    assert fault.complaint in replay(record, fault.mode, 2, tmp_path, text).complaint
