"""The gather kernels under Triton's interpreter; `test_kernels_in_interpreter.py` runs them.

Small tiles make small problems take several programs, steps and splits; buffers have NaN around them. A few of each
kind: what is compiled runs on the emulator (tests/emulator/test_sweep.py). All of them with --full.
"""

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch
from interpreter import SMALL, check, few, guarded  # noqa: F401 (a fixture)
from lanes import check_integer_overflow

from gpuconv import ops, reference
from gpuconv.activations import LIPSCHITZ, Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import backend, planes as triton_planes
from gpuconv.checking import self_test
from gpuconv.checking.problems import CURATED, laid_out, random_problem, tensors
from gpuconv.gpu import INTERPRETER, KNOWN
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle, worst_violation
from gpuconv.settings import Settings


@pytest.fixture
def checked() -> object:
    """No integer may overflow."""
    check_integer_overflow(True)
    yield
    check_integer_overflow(False)


@pytest.mark.parametrize(
    ("kernel", "x", "w", "layout", "splits"),
    [
        ("gather", (3, 4, 9, 13), (70, 2, 1, 3), "channels_last", 2),
        ("gather", (2, 16, 5, 5), (40, 16, 3, 3), "channels_last", 1),
        ("planes", (3, 4, 9, 12), (70, 2, 1, 1), "contiguous", 3),
        ("stem", (3, 2, 9, 13), (35, 2, 2, 2), "contiguous", 4),
        ("window", (5, 64, 7, 8), (96, 32, 1, 3), "channels_last", 3),
        ("window", (1, 8, 3, 3), (8, 8, 3, 3), "channels_last", 1),
    ],
    ids=str,
)
def test_grad_bias_is_the_exact_sum_whatever_the_filters_groups_pixels_and_splits(
    kernel: str, x: tuple[int, ...], w: tuple[int, ...], layout: str, splits: int
) -> None:
    """More filters than a program sums, and fewer; several steps, and one; not finite where gy is not."""
    groups = x[1] // w[1]
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    problem = ConvProblem.of(x, w, groups=groups, memory_format=memory_format)
    draw = torch.Generator().manual_seed(5)
    gy = torch.randint(-99, 99, problem.output_shape, generator=draw).float()
    gy[-1, -1, -1, -1], gy[0, 1, 0, 0] = math.nan, math.inf
    gy, x_ = (t.contiguous(memory_format=memory_format) for t in (gy, torch.zeros(x)))
    tile = Tile(16, 16, 16, warps=4, stages=2, splits=splits, kernel=kernel)
    operands = plan.contiguous_operands(problem, "grad_weight", memory_format)
    run = backend.TritonBackend().bind(problem, "grad_weight", torch.device("cpu"), Activation("none"), operands, tile)
    _, gb = run(gy, x_, True)
    torch.testing.assert_close(gb, gy.sum((0, 2, 3)), rtol=0, atol=0, equal_nan=True)
    assert gb[-1].isnan() and gb[1] == math.inf and gb.isfinite().sum() == gb.numel() - 2


@pytest.mark.parametrize(
    ("name", "splits"),
    few(
        [
            ("3x3-asymmetric-stride2", 1),
            ("1d-dilation3", 2),
            ("3x3-empty-batch", 3),
            ("1x2-stride3-untouched-pixels", 4),
            ("1x1", 1),
            ("3x3-one-image", 2),
            ("3x3-stride3-dilation2", 3),
            ("3x3-groups2-stride2", 2),
        ],
        4,
    ),
)
@pytest.mark.usefixtures("checked")
def test_small_tiles(name: str, splits: int) -> None:
    layout = ("contiguous", "channels_last")[splits % 2]
    check(CURATED[name], name, layout, dataclasses.replace(SMALL, splits=splits))


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float32, torch.float16, torch.float64], 2), ids=str)
@pytest.mark.parametrize(
    "settings",
    few([{"padding": 1, "stride": 2, "groups": 2}, {}], 1),
    ids=str,
)
def test_vectors(settings: dict[str, object], dtype: torch.dtype) -> None:
    problem = ConvProblem.of((2, 48, 4, 5), (32, 48 // settings.get("groups", 1), 2, 2), **settings, dtype=dtype)
    operands = plan.contiguous_operands(problem, "forward", torch.channels_last)
    channels_last = dataclasses.replace(problem, memory_format=torch.channels_last)
    launch = backend.launches(channels_last, "forward", operands, SMALL)[0]
    assert launch.constants["VECTOR"] == 16 // dtype.itemsize
    check(problem, f"vectors {settings}", "channels_last", dataclasses.replace(SMALL, splits=2))


def test_vectors_are_not_claimed_where_they_are_not() -> None:
    problem = ConvProblem.of((2, 16, 5, 6), (16, 16, 3, 3), memory_format=torch.channels_last)
    aligned = plan.contiguous_operands(problem, "forward", torch.channels_last)

    def vector(problem: ConvProblem, strides: tuple[int, ...]) -> int:
        operands = aligned._replace(strides=(strides, aligned.strides[1]))
        return backend.launches(problem, "forward", operands, SMALL)[0].constants["VECTOR"]

    assert vector(problem, (480, 1, 96, 16)) == 4
    assert vector(problem, (600, 1, 120, 20)) == 4  # a slice of a tensor with 20 channels
    assert vector(problem, (510, 1, 102, 17)) == 1
    assert vector(problem, (960, 2, 192, 32)) == 1  # every other channel
    assert vector(problem, (480, 30, 6, 1)) == 1


@pytest.mark.parametrize("name", ["2x2-stride2", "1d-dilation3"])
def test_64_bit_offsets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuconv.backends.derived._MOST_OFFSET", 0)
    problem = CURATED[name]
    operands = plan.contiguous_operands(problem, "forward")
    assert all(launch.constants["WIDE"] for launch in backend.launches(problem, "forward", operands, SMALL))
    check(problem, name, "sliced", dataclasses.replace(SMALL, splits=2))


def test_64_bit_offsets_are_chosen_by_size() -> None:
    def is_wide(batch: int) -> bool:
        problem = ConvProblem.of((batch, 64, 1024, 1024), (1, 64, 1, 1))
        return backend.launches(problem, "forward", plan.contiguous_operands(problem, "forward"), SMALL)[0].constants[
            "WIDE"
        ]

    assert not is_wide(31) and is_wide(32)  # 2³¹ elements


def test_filters_of_more_than_ten_taps_compare_coordinates() -> None:
    problem = ConvProblem.of((2, 3, 13, 4), (4, 3, 11, 1), padding=((5, 4), (1, 0)), stride=(2, 1))
    operands = plan.contiguous_operands(problem, "forward")
    assert backend.launches(problem, "forward", operands, SMALL)[0].constants["INSIDE"] == "compare"
    check(problem, "long filter", "sliced", Tile(64, 16, 16, 4, 2))


@pytest.mark.parametrize("image", [(3, 5), (1, 16), (1, 40)], ids=str)
def test_pixels_are_counted_on_over_every_kind_of_image(image: tuple[int, int]) -> None:
    """Images smaller, as large and larger than a step of grad_weight, in one and more dimensions."""
    tile = dataclasses.replace(SMALL, splits=2)
    check(ConvProblem.of((5, 2, *image), (3, 2, 1, 1)), f"images {image}", "contiguous", tile)
    check(ConvProblem.of((3, 2, 2, *image), (3, 2, 2, 1, 1)), f"volumes {image}", "contiguous", Tile(64, 16, 16, 4, 2))


@pytest.mark.parametrize("seed", few(range(0, 16, 3), 2))
def test_random_problems_in_several_types_layouts_and_activations(seed: int) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    layouts = ("contiguous", "channels_last", "sliced", "expanded")
    dtype, layout = tuple(itertools.product(dtypes, layouts))[seed % 16]
    activation = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")[seed % 7]
    problem = dataclasses.replace(random_problem(seed + 1000), dtype=dtype)
    check(problem, f"tiles {seed}", layout, dataclasses.replace(SMALL, splits=1 + seed % 4), activation)


STEM = Tile(16, 16, 16, warps=4, stages=2, kernel="stem")
STEM_DIRECTIONS = ("forward", "grad_weight")


def stem_problem(seed: int) -> ConvProblem:
    """A random problem with one to four channels in one group, a large filter now and then."""
    draw = random.Random(seed)
    problem = random_problem(seed + 2000)
    size = tuple(n + draw.choice((0, 0, 9)) for n in problem.input_size)
    filter_size = tuple(
        min(r + draw.choice((0, 0, 4)), (n + sum(pads) - 1) // d + 1)
        for r, n, d, pads in zip(problem.filter_size, size, problem.dilation, problem.padding, strict=True)
    )
    c, k = draw.randint(1, 4), draw.randint(1, 24)
    return ConvProblem.of(
        (problem.batch, c, *size), (k, c, *filter_size), problem.stride, problem.padding, problem.dilation
    )


def check_stem(seed: int) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    layouts = ("contiguous", "channels_last", "sliced", "expanded")
    dtype, layout = tuple(itertools.product(dtypes, layouts))[seed % 16]
    activation = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")[seed % 7]
    tile = dataclasses.replace(STEM, splits=1 + seed % 4)
    check(
        dataclasses.replace(stem_problem(seed), dtype=dtype), f"stem {seed}", layout, tile, activation, STEM_DIRECTIONS
    )


@pytest.mark.parametrize(
    "name", few(["1d", "3x3-empty-batch", "3x3-stride2-dilation3", "1x1", "7x7-stride2-stem", "3d"], 3)
)
@pytest.mark.usefixtures("checked")
def test_stem_small_tiles(name: str) -> None:
    problem = CURATED[name]
    if problem.in_channels > 4:
        problem = ConvProblem.of(
            (problem.batch, 4, *problem.input_size), (problem.out_channels, 4, *problem.filter_size), problem.stride
        )
    layout, splits = ("contiguous", "channels_last")[len(name) % 2], 1 + len(name) % 3
    check(problem, name, layout, dataclasses.replace(STEM, splits=splits), directions=STEM_DIRECTIONS)


@pytest.mark.parametrize("seed", few(range(300), 2))
def test_stem_random_problems(seed: int) -> None:
    check_stem(seed)


def check_planes(seed: int) -> None:
    draw = random.Random(seed)
    dtype = (torch.float16, torch.bfloat16, torch.float32, torch.float64)[seed % 4]
    activation = ("none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish")[seed % 7]
    groups, c, k, n = draw.choice((1, 1, 2, 3)), draw.randint(1, 24), draw.randint(1, 24), draw.randint(1, 4)
    size = draw.choice(((4, 5), (2, 9), (6,), (10, 7), (3, 2, 8), (1, 16), (14, 4)))
    problem = ConvProblem.of((n, groups * c, *size), (groups * k, c, *(1,) * len(size)), groups=groups, dtype=dtype)
    tile = Tile(32, 16, 16, warps=4, stages=2, splits=1 + seed % 3, kernel="planes")
    tile = dataclasses.replace(tile, windows=n * math.ceil(math.prod(size) / tile.rows))
    check(problem, f"planes {seed}", "contiguous", tile, activation)


@pytest.mark.parametrize("seed", few(range(300), 2))
def test_planes_random_problems(seed: int) -> None:
    check_planes(seed)


def test_planes_are_taken_where_pixels_follow_each_other_and_only_there() -> None:
    def tiles(x_strides: tuple[int, ...], **settings: object) -> list[Tile]:
        problem = ConvProblem.of((2, 16, 6, 8), (24, 16, 1, 1), dtype=torch.float16, **settings)
        operands = plan.contiguous_operands(problem, "forward")
        operands = operands._replace(strides=(x_strides, operands.strides[1]))
        return triton_planes.tiles(problem, "forward", KNOWN["A100"], operands)

    assert tiles((768, 48, 8, 1))
    assert tiles((1536, 96, 8, 1))  # every other channel
    assert not tiles((784, 49, 8, 1))  # planes at odd addresses
    assert not tiles((1536, 96, 16, 2)) and not tiles((768, 1, 128, 16))
    assert not tiles((768, 48, 8, 1), stride=2) and not tiles((768, 48, 8, 1), padding=1)


def test_splits_are_added_in_order_and_give_the_same_bits_every_time() -> None:
    problem = ConvProblem.of((3, 5, 9, 8), (7, 5, 3, 3), padding=1)
    t = tensors(problem, "bits", torch.float32)
    operands = plan.contiguous_operands(problem, "grad_weight")
    tile = dataclasses.replace(SMALL, splits=4)
    run = backend.TritonBackend().bind(problem, "grad_weight", torch.device("cpu"), Activation("none"), operands, tile)
    results = [run(t["grad_output"], t["input"], True) for _ in range(3)]
    assert all(torch.equal(gw, results[0][0]) and torch.equal(gb, results[0][1]) for gw, gb in results)


def test_a_weight_that_is_not_finite_reaches_all_it_should_and_no_pixel_of_another_channel() -> None:
    problem = ConvProblem.of((1, 3, 7, 6), (2, 3, 3, 3), padding=1)
    t = tensors(problem, "infinite", torch.float32)
    t["weight"][1, 2, 0, 0] = math.inf
    key = Settings(problem.stride, problem.padding, problem.dilation, 1, "none", "triton").encode()
    gx = ops.grad_input(t["grad_output"], t["weight"], problem.input_shape, key)
    exact = reference.grad_input(problem, as_numpy(t["grad_output"]), as_numpy(t["weight"]))
    assert not (gx.isfinite() & ~torch.from_numpy(exact.value).isfinite()).any()
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at the border the tap meets a padded zero
    assert worst_violation(gx[inner], reference.Exact(exact.value[inner], exact.magnitude[inner], exact.terms))[0] <= 1
    finite = (slice(None), slice(0, 2))
    assert (
        worst_violation(gx[finite], reference.Exact(exact.value[finite], exact.magnitude[finite], exact.terms))[0] <= 1
    )


@pytest.mark.parametrize("activation", [*LIPSCHITZ][1:])
def test_activations_keep_nan_and_do_not_overflow(activation: str) -> None:
    problem = ConvProblem.of((1, 1, 1, 6), (1, 1, 1, 1))
    x = torch.tensor([math.nan, math.inf, -1e4, -100.0, 100.0, 1e4]).reshape(1, 1, 1, 6)
    key = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1, activation, "triton").encode()
    y = ops.forward(x, torch.ones(1, 1, 1, 1), None, None, key)
    exact = reference.forward(problem, as_numpy(x), np.ones((1, 1, 1, 1)), activation=Activation.parse(activation))
    assert_close_to_oracle(y, exact, activation)


def test_bfloat16_is_rounded_to_nearest_even_in_the_interpreter() -> None:
    bits = torch.tensor([0x3F7F8000, 0x3F808000, 0x3F818000, 0x7F7E8000, 0x00018000, 0x00008001]).to(torch.int32)
    x = bits.view(torch.float32).reshape(1, 1, 1, 6)
    halves = torch.stack((x.bfloat16(), (x - x.bfloat16().float()).bfloat16()), 1).reshape(1, 2, 1, 6)
    key = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1, "none", "triton").encode()
    y = ops.forward(halves, torch.ones(1, 2, 1, 1, dtype=torch.bfloat16), None, None, key)  # their sum is x again
    assert torch.equal(y, x.bfloat16())


def test_strides_of_a_sum_s_gradient() -> None:
    """y.sum().backward() gives an expanded scalar: strides of 0 everywhere."""
    problem = ConvProblem.of((2, 3, 5, 6), (4, 3, 3, 3), padding=1)
    t = tensors(problem, "sum", torch.float32)
    gy = torch.ones(()).expand(problem.output_shape)
    key = Settings(problem.stride, problem.padding, problem.dilation, 1, "none", "triton").encode()
    gx = ops.grad_input(gy, t["weight"], problem.input_shape, key)
    assert_close_to_oracle(gx, reference.grad_input(problem, as_numpy(gy), as_numpy(t["weight"])))
    gw, gb = ops.grad_weight(gy, t["input"], problem.weight_shape, True, key)
    assert_close_to_oracle(gw, reference.grad_weight(problem, as_numpy(gy), as_numpy(t["input"])))
    assert torch.equal(gb, torch.full((4,), 60.0))


def test_transposed_weights() -> None:
    """Strides that no memory format has."""
    problem = ConvProblem.of((2, 6, 5, 6), (4, 6, 3, 3), padding=1)
    t = tensors(problem, "transposed", torch.float32)
    w = t["weight"].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    x = laid_out(t["input"], "channels_last").transpose(2, 3).contiguous().transpose(2, 3)
    key = Settings(problem.stride, problem.padding, problem.dilation, 1, "none", "triton").encode()
    y = ops.forward(x, w, None, None, key)
    assert_close_to_oracle(y, reference.forward(problem, as_numpy(x), as_numpy(w)))


def test_the_self_test_passes_families_that_are_right() -> None:
    """One trial for each family and direction; `gpuconv doctor --self-test --backend triton` has them all."""
    todo = self_test.trials("triton", INTERPRETER, torch.device("cpu"))
    few = {trial.kernels[1:3]: trial for trial in todo if trial.kernels.numbers == "float32"}
    assert {"gather", "planes", "stem", "taps", "act_backward"} <= {family for family, _ in few}
    for trial in few.values():
        assert self_test.attempt(trial, torch.device("cpu")).status == "ok", trial
