"""ConvProblem: sizes, counts, and errors."""

import dataclasses
import math

import pytest
import torch

from gpuconv.checking.problems import CURATED, random_problem
from gpuconv.problem import DIRECTIONS, ConvProblem, View, is_channels_last


@pytest.mark.parametrize("name", CURATED)
def test_output_size_is_pytorchs(name: str) -> None:
    p = CURATED[name]
    x = torch.empty(p.input_shape, device="meta")
    x = torch.nn.functional.pad(x, [side for pair in reversed(p.padding) for side in pair])
    conv = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[p.ndim]
    y = conv(x, torch.empty(p.weight_shape, device="meta"), None, p.stride, 0, p.dilation, p.groups)
    assert p.output_shape == tuple(y.shape)


@pytest.mark.parametrize("filter_size", [(1, 1), (2, 3), (4, 5), (6, 2)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_keeps_the_size_and_puts_the_odd_element_last(filter_size: tuple[int, int], dilation: int) -> None:
    p = ConvProblem.of((1, 1, 9, 8), (1, 1, *filter_size), padding="same", dilation=dilation)
    assert p.output_size == (9, 8)
    assert all(0 <= high - low <= 1 for low, high in p.padding)


def test_is_an_immutable_value_that_can_be_a_key() -> None:
    a, b = (ConvProblem.of((2, 3, 8, 8), (4, 3, 3, 3), padding=1) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a is not b
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.batch = 3  # type: ignore[misc]
    assert a != ConvProblem.of((2, 3, 8, 8), (4, 3, 3, 3), padding=1, dtype=torch.float16)


def test_counts_of_a_known_layer() -> None:
    p = ConvProblem.of((32, 64, 56, 56), (128, 64, 3, 3), stride=2, padding=1, dtype=torch.float16)
    assert p.output_shape == (32, 128, 28, 28)
    assert p.flops == 2 * 32 * 128 * 28 * 28 * 64 * 9
    assert p.products("forward") == 576
    assert p.products("grad_input") == 1152
    assert p.products("grad_weight") == 32 * 28 * 28
    everything = 2 * (32 * 64 * 56 * 56 + 128 * 64 * 9 + 32 * 128 * 28 * 28)
    assert all(p.least_bytes(d) == everything for d in ("forward", "grad_input", "grad_weight"))


def test_views_of_a_known_layer() -> None:
    p = ConvProblem.of((32, 64, 56, 56), (128, 16, 3, 3), stride=2, padding=1, groups=4, dtype=torch.float16)
    assert (p.group_channels, p.group_filters, p.vector_unit) == (16, 32, 8)
    assert (p.input_pixels, p.output_pixels) == (32 * 56 * 56, 32 * 28 * 28)
    assert p.view("forward") == View(32 * 28 * 28, 32, 16, (32, 128, 28, 28))
    assert p.view("grad_input") == View(32 * 56 * 56, 16, 32, (32, 64, 56, 56))
    assert p.view("grad_weight") == View(32, 16, 32 * 28 * 28, (128, 16, 3, 3))


@pytest.mark.parametrize("seed", range(20))
def test_views_agree_with_the_operations_and_the_results(seed: int) -> None:
    p = random_problem(seed)
    for direction in DIRECTIONS:
        rows, columns, terms, shape = p.view(direction)
        taps_of_result = p.taps if direction == "grad_weight" else 1
        assert math.prod(shape) == rows * columns * taps_of_result * p.groups
        assert p.products(direction) == terms * p.taps // taps_of_result
        if direction != "grad_input":  # at stride s only one tap in s^ndim meets a given input pixel
            assert p.flops == 2 * rows * columns * terms * p.taps * p.groups


def test_views_are_no_part_of_the_value() -> None:
    a, b = (ConvProblem.of((2, 3, 8, 8), (4, 3, 3, 3)) for _ in range(2))
    before = hash(a)
    assert a.view("forward").rows == a.output_pixels and a.input_pixels == 2 * 8 * 8
    assert a == b and hash(a) == before == hash(b)


def test_pixels_that_no_tap_reads_need_not_be_moved() -> None:
    p = ConvProblem.of((1, 1, 9, 8), (1, 1, 1, 2), stride=3)  # 3 rows of 9, and columns 0,1 3,4 6,7
    assert p.least_bytes("forward") == 4 * (3 * 6 + 2 + 3 * 3)
    assert p.least_bytes("grad_input") == 4 * (9 * 8 + 2 + 3 * 3)


def test_says_what_it_is() -> None:
    p = ConvProblem.of((2, 6, 7, 8), (4, 3, 3, 2), stride=(2, 1), padding=((1, 1), (0, 2)), groups=2, dilation=2)
    assert str(p) == "2×6×7×8, 4 filters 3×2, stride 2×1, padding 1×(0,2), dilation 2×2, groups 2, float32"


BAD = {
    "rank of input": (dict(input_shape=(3, 8)), "Expected 3D .* or 4D .* got input of size: .3, 8"),
    "rank of weight": (dict(weight_shape=(4, 3, 3)), "Expected"),
    "channels": (dict(input_shape=(2, 5, 8, 8)), "have 3 channels, but got 5 channels"),
    "groups do not divide": (dict(groups=3), "divisible by 3 at dimension 0, but got weight of size .4, 3, 3, 3"),
    "more groups than filters": (dict(groups=5), "at least 5 at dimension 0"),
    "no groups": (dict(groups=0), "non-positive groups .* groups=0"),
    "negative padding": (dict(padding=-1), "negative padding .* -1"),
    "negative high padding": (dict(padding=((0, 0), (1, -2))), "negative padding .* -2"),
    "stride 0": (dict(stride=(1, 0)), r"non-positive stride .* stride=\(1, 0\)"),
    "dilation 0": (dict(dilation=0), "dilation should be greater than zero"),
    "three strides": (dict(stride=(1, 1, 1)), "expected stride .* list of 2 values .* got stride=.1, 1, 1"),
    "filter too large": (dict(weight_shape=(4, 3, 9, 3)), r"size per channel: \(8 x 8\). Kernel size: \(9 x 3\)"),
    "dilated too large": (dict(dilation=4), r"Kernel size: \(9 x 9\)"),
    "empty filter": (dict(weight_shape=(4, 3, 0, 3)), "kernel size should be greater than zero"),
    "empty image": (dict(input_shape=(2, 3, 0, 8), padding=2), "Only zero batch or zero channel"),
    "same with stride": (dict(padding="same", stride=2), "padding='same' is not supported for strided"),
    "unknown padding": (dict(padding="full"), "Invalid padding string: 'full'; expected 'same' or 'valid'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_problems_are_refused_with_the_argument_named(name: str) -> None:
    changes, message = BAD[name]
    arguments = dict(input_shape=(2, 3, 8, 8), weight_shape=(4, 3, 3, 3)) | changes
    with pytest.raises(RuntimeError, match=message):
        ConvProblem.of(**arguments)


@pytest.mark.parametrize("stride", [1.5, (1, 2.0), "2", None], ids=repr)
def test_settings_must_be_integers(stride: object) -> None:
    with pytest.raises((TypeError, RuntimeError), match="stride"):
        ConvProblem.of((2, 3, 8, 8), (4, 3, 3, 3), stride=stride)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 1, 8, 8), (2, 4, 1, 1), (1, 4, 8, 8), (2, 4, 1, 8), (0, 4, 8, 8)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "transposed"])
def test_channels_last_is_read_as_pytorch_reads_it(shape: tuple[int, ...], layout: str) -> None:
    x = torch.empty(shape)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.empty(shape[0], 9, *shape[2:]).contiguous(memory_format=torch.channels_last)[:, : shape[1]]
    elif layout == "expanded":
        x = torch.empty(1, *shape[1:]).expand(shape)
    elif layout == "transposed":
        x = x.transpose(2, 3)
    expected = torch._prims_common.suggest_memory_format(x) is torch.channels_last
    assert is_channels_last(x.shape, x.stride()) == expected
