"""The window and pointwise kernels under Triton's interpreter; `test_kernels_in_interpreter.py` runs them.

The planner does not choose them there (gather does all), so tiles are bound as they are: small ones, so that small
problems take several windows, steps, splits and turns of persistent programs.
"""

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from interpreter import check, few, guarded  # noqa: F401 (a fixture)

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import backend, window_launch, window_shape
from gpuconv.checking.problems import random_problem, tensors
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle

CPU = torch.device("cpu")

SMALL = Tile(32, 16, 16, warps=4, stages=2, kernel="window")
POINTWISE = dataclasses.replace(SMALL, rows=16, kernel="pointwise")
# input, weight, settings; channels in multiples of 16 bytes, all else odd. The first few have several of everything.
CURATED = {
    "3x3": ((3, 20, 4, 5), (24, 20, 3, 3), {"padding": "same"}),
    "3x3-stride2-odd": ((2, 20, 7, 5), (24, 20, 3, 3), {"stride": 2, "padding": 1}),
    "3x3-stride2-even": ((2, 32, 6, 8), (24, 32, 3, 3), {"stride": 2, "padding": 1}),
    "3x3-asymmetric": ((2, 16, 4, 5), (8, 16, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "3x3-dilation2": ((1, 16, 7, 8), (8, 16, 3, 3), {"dilation": 2, "padding": 2}),
    "3x3-stride2-dilation3": ((1, 16, 9, 8), (8, 16, 3, 3), {"stride": 2, "dilation": 3, "padding": 3}),
    "3x3-stride2-dilation2": ((1, 16, 7, 9), (8, 16, 3, 3), {"stride": 2, "dilation": 2, "padding": 1}),
    "3x3-stride3x1": ((2, 16, 7, 3), (8, 16, 3, 3), {"stride": (3, 1), "padding": (0, 2)}),
    "2x2-patches": ((2, 16, 8, 6), (24, 16, 2, 2), {"stride": 2}),
    "1x2-stride3-untouched-pixels": ((2, 16, 6, 8), (8, 16, 1, 2), {"stride": 3}),
    "1x1-stride2": ((2, 16, 7, 6), (24, 16, 1, 1), {"stride": 2}),
    "stride-beyond-the-image": ((3, 16, 1, 5), (8, 16, 1, 1), {"stride": (3, 2)}),
    "2x3": ((2, 8, 5, 4), (8, 8, 2, 3), {"padding": (2, 1)}),
    "groups2": ((2, 32, 3, 4), (32, 16, 3, 3), {"groups": 2, "padding": 1}),
    "groups2-stride2": ((1, 64, 4, 4), (32, 32, 3, 3), {"groups": 2, "padding": 1, "stride": 2}),
    "output-is-one-pixel": ((3, 16, 3, 3), (8, 16, 3, 3), {}),
    "one-row": ((2, 16, 1, 37), (8, 16, 1, 3), {"padding": (0, 1)}),
}  # fmt: skip
ONE_BY_ONE = {
    "1x1": ((3, 20, 3, 7), (24, 20, 1, 1), {}),
    "1x1-groups2": ((2, 32, 3, 5), (64, 16, 1, 1), {"groups": 2}),
    "1x1-images-of-one-row": ((9, 40, 1, 2), (8, 40, 1, 1), {}),
}  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")


def made(sizes: tuple, at: int) -> ConvProblem:
    x, w, settings = sizes
    dtype = torch.float32 if x[1] % 8 else DTYPES[at % 3]
    return ConvProblem.of(x, w, **settings, dtype=dtype)


def with_taps(problem: ConvProblem, tile: Tile, taps: int) -> Tile:
    """The tile with so many taps for each program of grad_weight, where neighbouring taps meet neighbouring pixels."""
    return dataclasses.replace(tile, taps=taps if problem.stride[0] == problem.dilation[0] == 1 else 1)


@pytest.mark.parametrize("name", few(CURATED, 3))
def test_windows(name: str) -> None:
    at = list(CURATED).index(name)
    tile = dataclasses.replace(SMALL, splits=1 + at % 2, persistent=3 if at % 4 == 0 else 0)
    problem = made(CURATED[name], at)
    check(problem, name, "channels_last", with_taps(problem, tile, 1 + at % 3), ACTIVATIONS[at % 7])


WINDOWS = {  # input; the window, by row or whole
    "of an image": ((1, 16, 5, 15), (1, 2, 16), True),
    "across images": ((15, 16, 4, 3), (16, 4, 1), True),
    "whole": ((6, 16, 4, 3), (2, 4, 4), False),
}


@pytest.mark.parametrize("name", few(WINDOWS, 3))
def test_taps_that_one_program_sums(name: str) -> None:
    """Two of three at once: a fourth is beyond the last."""
    sizes, window, by_row = WINDOWS[name]
    pixels, dtype = math.prod(window), torch.float16 if by_row else torch.float32
    problem = ConvProblem.of(sizes, (24, 16, 3, 2), padding=((1, 0), (0, 2)), dtype=dtype)
    tile = Tile(32, 16, pixels, 4, 2, splits=2, kernel="window", taps=2)
    found = window_shape.weight_window(problem, tile)
    assert (found[:3], found.by_row) == (window, by_row)
    check(problem, name, "channels_last", tile, directions=("grad_weight",))


@pytest.mark.parametrize("name", few(["3x3-stride2-odd", "3x3", "1x2-stride3-untouched-pixels"], 1))
def test_few_programs_take_many_tiles_in_turn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that descriptors need little memory: of each phase, and of each split, one."""
    monkeypatch.setattr(window_launch, "MOST_PROGRAMS", 2)
    problem = dataclasses.replace(made(CURATED[name], 1), memory_format=torch.channels_last)
    tile = dataclasses.replace(SMALL, splits=2)
    for direction, phases in (("forward", 1), ("grad_input", math.prod(problem.stride))):
        operands = plan.contiguous_operands(problem, direction, torch.channels_last)
        launch, _ = backend.launches(problem, direction, operands, tile)
        assert launch.programs == 2 * phases
    check(problem, name, "channels_last", tile, directions=("forward", "grad_input"))


@pytest.mark.parametrize("name", few(ONE_BY_ONE, 2))
def test_pointwise(name: str) -> None:
    at = list(ONE_BY_ONE).index(name)
    tile = dataclasses.replace(POINTWISE, splits=1 + at % 2, persistent=2 if at == 2 else 0)
    check(made(ONE_BY_ONE[name], at), name, "channels_last", tile, ACTIVATIONS[at])


LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


@pytest.mark.parametrize(
    ("name", "of_residual"),
    [
        pytest.param(name, layout, marks=() if name in ("3x3", "1x1") and layout == "contiguous" else pytest.mark.full)
        for name in [*CURATED, *ONE_BY_ONE]
        for layout in LAYOUTS
    ],
)
def test_results_are_contiguous_where_operands_are_channels_last(name: str, of_residual: str) -> None:
    sizes = CURATED | ONE_BY_ONE
    at = list(sizes).index(name) + list(LAYOUTS).index(of_residual)
    tile = dataclasses.replace(POINTWISE if name in ONE_BY_ONE else SMALL, splits=1 + at % 2, persistent=at % 3)
    if of_residual == "channels-last":
        tile = dataclasses.replace(tile, splits=1)  # what adds them up reads a residual that lies as the result does
    check(
        made(sizes[name], at), name, "channels_last", tile, ACTIVATIONS[at % 7],
        ("forward", "grad_input"), torch.contiguous_format, LAYOUTS[of_residual],
    )  # fmt: skip


@pytest.mark.parametrize("name", few([name for name in CURATED if "stride2" in name], 1))
def test_a_program_computes_both_phases_of_a_row(name: str) -> None:
    problem = made(CURATED[name], list(CURATED).index(name))
    tile = dataclasses.replace(SMALL, phases=2)
    check(problem, name, "channels_last", tile, directions=("grad_input",), results=torch.contiguous_format)


@pytest.mark.parametrize("name", few(["3x3", "1x1", "3x3-stride2-odd"], 1))
def test_a_residual_may_be_contiguous_where_the_result_is_channels_last(name: str) -> None:
    sizes, tile = CURATED | ONE_BY_ONE, POINTWISE if name in ONE_BY_ONE else SMALL
    check(
        made(sizes[name], 1), name, "channels_last", tile, "relu", ("forward",), of_residual=torch.contiguous_format
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["window", "pointwise"])
def test_split_sums_give_the_same_bits_every_time(kernel: str) -> None:
    r = 3 if kernel == "window" else 1
    problem = ConvProblem.of((1, 32, 3, 4), (16, 32, r, r), padding=r // 2, memory_format=torch.channels_last)
    t = tensors(problem, "bits", torch.float32, "cpu", "channels_last")
    tile = dataclasses.replace(SMALL, kernel=kernel, splits=2)
    pairs = {"forward": ("input", "weight", None, None), "grad_input": ("grad_output", "weight")}
    for direction, names in pairs.items():
        operands = plan.contiguous_operands(problem, direction, torch.channels_last)
        run = backend.TritonBackend().bind(problem, direction, CPU, Activation("none"), operands, tile)
        first, again = (run(*(name and t[name] for name in names)) for _ in range(2))
        assert len(backend.launches(problem, direction, operands, tile)) == 2
        assert torch.equal(first, again)


def test_tensors_that_are_not_aligned_are_copied_and_residuals_left_to_gather() -> None:
    """Sliced off by an element: no stride says so."""
    problem = ConvProblem.of((1, 8, 4, 5), (8, 8, 3, 3), padding=1, memory_format=torch.channels_last)
    t = tensors(problem, "unaligned", torch.float32, "cpu", "channels_last")

    def moved(name: str) -> torch.Tensor:
        return torch.empty(t[name].numel() + 1)[1:].as_strided(t[name].shape, t[name].stride()).copy_(t[name])

    x, w, residual = moved("input"), t["weight"], moved("residual")
    assert x.data_ptr() % 16 and residual.data_ptr() % 16
    plain = plan.contiguous_operands(problem, "forward", torch.channels_last)
    tile = dataclasses.replace(SMALL, windows=window_shape.window_of(problem, "forward", SMALL.rows).number)
    for added in (None, residual):
        operands = plain._replace(residual=None if added is None else added.stride())
        run = backend.TritonBackend().bind(problem, "forward", CPU, Activation("none"), operands, tile)
        exact = reference.forward(problem, as_numpy(x), as_numpy(w), None, None if added is None else as_numpy(added))
        assert_close_to_oracle(run(x, w, None, added), exact)


def sparse(shape: tuple[int, ...], strides: tuple[int, ...], path: Path) -> torch.Tensor:
    """float16 zeros of this shape and these strides, in a file that takes no space where nothing is written."""
    extent = 8 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return torch.from_file(str(path), shared=True, size=extent, dtype=torch.float16).as_strided(shape, strides)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_images_2_to_the_31_elements_apart(direction: Direction, tmp_path: Path) -> None:
    """What is read through descriptors, and what is written: the strides of the result are then replaced too."""
    problem = ConvProblem.of(
        (3, 16, 4, 5), (16, 16, 3, 3), padding=1, stride=(1, 2), dtype=torch.float16, memory_format=torch.channels_last
    )
    t = tensors(problem, "far apart", torch.float16, "cpu", "channels_last")
    far, results = 2**31 + 64, {"forward": problem.output_shape, "grad_input": problem.input_shape}

    def apart(like: torch.Tensor, name: str) -> torch.Tensor:
        return sparse(like.shape, (far, *like.stride()[1:]), tmp_path / name).copy_(like)

    names = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight")}.get(
        direction, ("grad_output", "input")
    )
    a, b = (t[name] if name == "weight" else apart(t[name], name) for name in names)
    (launch,) = backend.launches(problem, direction, plan.Operands((a.stride(), b.stride())), SMALL)
    if direction == "grad_weight":
        got = torch.full_like(t["weight"], math.nan)
        launch(None, a, b, got, *(None,) * (len(launch.dtypes) - 3))
    else:
        place = len(launch.dtypes) - 1  # the result's
        if place in launch.described:
            of = launch.described[place]
            launch.described[place] = of._replace(strides=(far, *of.strides[1:]))
        scalars = [name for name in launch.kernel.arg_names if not name.startswith("p_")]
        rest = list(launch.rest)
        rest[scalars.index("y_n" if direction == "forward" else "gx_n")] = far
        launch.rest = tuple(rest)
        shape = results[direction]
        dense = torch.empty(shape, memory_format=torch.channels_last).stride()
        got = sparse(shape, (far, *dense[1:]), tmp_path / "result").fill_(math.nan)
        launch(None, a, b, *(None,) * (len(launch.dtypes) - 3), got)
    exact = getattr(reference, direction)(problem, as_numpy(a.contiguous()), as_numpy(b.contiguous()))
    assert_close_to_oracle(got.contiguous(), exact)


def fitting(problem: ConvProblem, seed: int) -> ConvProblem:
    """The problem in two axes, with channels that descriptors can tell of, and of a size for the interpreter."""
    draw = random.Random(seed)
    two = [tuple(values)[:2] + tuple(values)[:1] * (2 - len(values[:2])) for values in (
        problem.input_size, problem.filter_size, problem.stride, problem.padding, problem.dilation,
    )]  # fmt: skip
    size, filter_size, stride, padding, dilation = two
    groups, c, k = (2, 16, 16) if seed % 5 == 0 else (1, 8 * draw.randint(1, 3), 8 * draw.randint(1, 3))
    x = (draw.randint(1, 3), groups * c, *(min(h, 7) + 1 for h in size))
    w = (groups * k, c, *(min(r, h) for r, h in zip(filter_size, (3, 3), strict=True)))
    need = [d * (r - 1) + 1 - low - high for r, d, (low, high) in zip(w[2:], dilation, padding, strict=True)]
    x = (*x[:2], *(max(h, n) for h, n in zip(x[2:], need, strict=True)))
    return ConvProblem.of(x, w, stride, padding, dilation, groups, dtype=DTYPES[seed % 3])


@pytest.mark.parametrize("seed", few(range(300), 1))
@pytest.mark.parametrize("kernel", ["window", "pointwise"])
def test_random_problems(kernel: str, seed: int) -> None:
    problem = fitting(random_problem(seed), seed)
    if kernel == "pointwise":
        w = (*problem.weight_shape[:2], 1, 1)
        problem = ConvProblem.of(problem.input_shape, w, groups=problem.groups, dtype=problem.dtype)
    tile = Tile(32, 16, (16, 32)[seed % 2], 4, 2, 1 + seed % 3 % 2, kernel, persistent=(0, 2)[seed % 4 == 1])
    if problem.out_channels // problem.groups > 16 and problem.groups == 1 and seed % 2:
        tile = dataclasses.replace(tile, columns=32)
    if problem.groups > 1:
        tile = dataclasses.replace(tile, depth=16)
    check(problem, f"{kernel} {seed}", "channels_last", with_taps(problem, tile, 1 + seed % 3), ACTIVATIONS[seed % 7])
