"""Which problems and tiles the families `window` and `pointwise` take, and what descriptors need: on the host alone."""

import contextvars
import dataclasses
import math
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import triton
from triton.runtime import _allocation

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.triton import (
    backend,
    launch as triton_launch,
    pointwise as triton_pointwise,
    window as triton_window,
    window_launch,
    window_shape,
)
from gpuconv.bench import suites
from gpuconv.gpu import INTERPRETER, KNOWN
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

H100 = KNOWN["H100"]
NEWER = [gpu for gpu in KNOWN.values() if gpu.capability >= (9, 0)]
LAYER = ConvProblem.of(
    (32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=torch.float16, memory_format=torch.channels_last
)
ONE_BY_ONE = dataclasses.replace(LAYER, filter_size=(1, 1), padding=((0, 0), (0, 0)))


def strides(problem: ConvProblem, direction: Direction = "forward") -> Operands:
    return plan.contiguous_operands(problem, direction, problem.memory_format)


@pytest.mark.parametrize("pixels", [128, 256])
@pytest.mark.parametrize(("size", "most"), [(112, 0), (56, 0), (28, 0), (14, 0), (7, 1 / 8), (32, 0), (1, 0)])
def test_windows_fit_the_images_of_networks(size: int, most: float, pixels: int) -> None:
    """Idle pixels among all that are computed, for a batch that is a multiple of none but the smaller windows'."""
    problem = dataclasses.replace(LAYER, input_size=(size, size), batch=256 if size == 1 else 64)
    for direction in DIRECTIONS:
        window = triton_window.window_of(problem, direction, pixels)
        assert window.images * window.rows * window.columns == pixels
        assert 1 - problem.batch * size * size / (window.number * pixels) <= most


def test_all_pixels_of_a_batch_are_one_row_where_filters_are_1x1() -> None:
    for direction in DIRECTIONS:
        tiles = triton_pointwise.tiles(ONE_BY_ONE, direction, H100, strides(ONE_BY_ONE, direction))
        (launch, *_) = triton_pointwise.launches(ONE_BY_ONE, direction, strides(ONE_BY_ONE, direction), tiles[0])
        pixels = tiles[0].depth if direction == "grad_weight" else tiles[0].rows
        assert [launch.constants[name] for name in ("TN", "TH", "TW")] == [1, 1, pixels]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "16-bit numbers and TF32"),
        ({"memory_format": torch.contiguous_format}, "channels last"),
        ({"batch": 0}, "nothing to multiply"),
        ({"in_channels": 60}, "rows of 60 channels in of 2 bytes do not begin at multiples of 16 bytes"),
        ({"out_channels": 4}, "rows of 4 channels out"),
        ({"groups": 4}, "groups of 16 channels in and 16 out do not fill its tiles"),
    ],
    ids=str,
)
def test_it_says_why_it_refuses(change: dict[str, object], reason: str) -> None:
    problem = dataclasses.replace(LAYER, **change)
    assert reason in (triton_window.refuses(problem, "forward", H100, strides(problem)) or "")
    assert triton_window.tiles(problem, "forward", H100, strides(problem)) == []


def test_it_says_why_it_refuses_a_gpu_or_tensors() -> None:
    def refusal(x: tuple[int, ...], w: tuple[int, ...]) -> str:
        return triton_window.refuses(LAYER, "forward", H100, Operands((x, w))) or ""

    x, w = strides(LAYER).strides
    for gpu in (KNOWN["A100"], INTERPRETER):
        assert "copy engine" in (triton_window.refuses(LAYER, "forward", gpu, strides(LAYER)) or "")
    assert refusal(x, w) == ""
    assert "model.to(memory_format=torch.channels_last)" in refusal(x, (576, 9, 3, 1))
    assert "weight has taps that are not evenly spaced" in refusal(x, (1024, 1, 256, 64))
    assert "input has strides" in refusal((x[0], 1, x[2], 68), w)
    assert "overlap" in refusal((x[0], 1, 64, 8), w)
    assert refusal((2 * x[0], 1, 2 * x[2], 2 * x[3]), w) == ""  # a slice of a tensor with twice the channels
    sliced = Operands(((2 * x[0], 1, x[2], x[3]), strides(ONE_BY_ONE).strides[1]))
    assert "evenly spaced" in (triton_pointwise.refuses(ONE_BY_ONE, "forward", H100, sliced) or "")
    assert "not 1×1" in (triton_pointwise.refuses(LAYER, "forward", H100, strides(LAYER)) or "")


def test_a_result_that_is_contiguous_is_stored_by_threads_in_whole_sectors() -> None:
    """Of 32 bytes: windows have long rows where that wastes no pixels, or where products are few."""
    plain = dataclasses.replace(LAYER, memory_format=torch.contiguous_format)
    large = {"input_size": (112, 112), "filter_size": (1, 1), "padding": ((0, 0), (0, 0))}
    for change, shape, vector in (
        ({}, (2, 8, 8), 8),
        (large, (1, 8, 16), 8),
        ({"input_size": (14, 14)}, (4, 2, 16), 2),
    ):
        for direction in ("forward", "grad_input"):
            problem = dataclasses.replace(plain, **change)
            operands = plan.contiguous_operands(problem, direction, torch.channels_last)
            tile = next(t for t in triton_window.tiles(problem, direction, H100, operands) if t.rows == 128)
            (launch, *_) = triton_window.launches(problem, direction, operands, tile)
            assert tuple(launch.constants[name] for name in ("TN", "TH", "TW")) == shape
            assert {launch.constants.get(name) for name in ("Y_VECTOR", "GX_VECTOR")} == {vector, None}


def test_every_layer_of_every_suite_has_a_tile_or_a_reason() -> None:
    ours = {"window": triton_window, "pointwise": triton_pointwise}
    taken = dict.fromkeys(ours, 0)
    for name in suites.names():
        problem = suites.layer(name, None, torch.bfloat16, torch.channels_last)
        for direction in DIRECTIONS:
            operands = plan.contiguous_operands(problem, direction, problem.memory_format)
            for gpu in NEWER:
                for kernel, family in ours.items():
                    tiles = family.tiles(problem, direction, gpu, operands)
                    assert bool(tiles) != bool(family.refuses(problem, direction, gpu, operands)), (name, gpu.name)
                    assert all(2 <= tile.stages <= 5 and tile.kernel == kernel for tile in tiles)
                    taken[kernel] += bool(tiles)
            found, refused = ranking.candidates(problem, direction, H100, operands)
            assert found and {"triton window", "triton pointwise"} & {
                *refused,
                *(f"triton {c.tile.kernel}" for c in found),
            }
    assert all(taken.values())


# ---- memory for descriptors ------------------------------------------------------------------------------------------


def test_only_launches_that_make_descriptors_lend_triton_memory_and_on_every_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def launch(kernel: str, problem: ConvProblem) -> contextvars.Context:
        tiles = backend.TritonBackend().tiles(problem, "grad_input", H100, strides(problem, "grad_input"))
        tile = next(t for t in tiles if t.kernel == kernel and t.splits == 1)
        (launch,) = backend.launches(problem, "grad_input", strides(problem, "grad_input"), tile)
        monkeypatch.setattr(launch, "_encoded", lambda pointers, tensors: pointers)
        launch._short = (lambda *arguments: None, None, None, None)  # compiled, as it were
        context = contextvars.Context()  # what a new thread begins with
        context.run(launch, 0, *(torch.empty(8) for _ in launch.dtypes))
        return context

    monkeypatch.setattr(triton_launch, "_hooked", lambda: False)
    strided = dataclasses.replace(LAYER, stride=(2, 2))
    assert _allocation._allocator not in launch("gather", LAYER)
    assert _allocation._allocator not in launch("window", LAYER)  # the host makes them all
    assert launch("window", strided)[_allocation._allocator] is triton_launch._scratch


def test_grad_weight_makes_no_descriptor_where_the_stride_divides_the_sizes() -> None:
    """Made in the kernel, by each program, they took longer on an H100 than all the rest of most layers."""
    for stride, size, made in ((1, 7, False), (2, 8, False), (2, 7, True)):
        problem = ConvProblem.of((4, 64, size, size), (64, 64, 3, 3), padding=1, stride=stride, dtype=torch.bfloat16)
        problem = dataclasses.replace(problem, memory_format=torch.channels_last)
        operands = strides(problem, "grad_weight")
        for tile in triton_window.tiles(problem, "grad_weight", H100, operands):
            launch, *_ = triton_window.launches(problem, "grad_weight", operands, tile)
            assert launch.descriptors == made and sorted(launch.described) == ([0] if made else [0, 1]), tile


def test_a_descriptor_is_encoded_once_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it becomes is kept, of so many tensors."""
    encoded, given = [], []

    def encode(descriptor: Any, box: None, unused: None = None) -> list[Any]:
        encoded.append(descriptor.base.data_ptr())
        return ["map", *descriptor.shape, *descriptor.strides]

    operands = strides(LAYER)
    tile = triton_window.tiles(LAYER, "forward", H100, operands)[0]
    (launch,) = triton_window.launches(LAYER, "forward", operands, tile)
    assert sorted(launch.described) == [0, 1, 4] and not launch.descriptors
    launch._short = (lambda *arguments: given.append(arguments), None, None, None)  # compiled, as it were
    launch._boxes = dict.fromkeys(launch.described)
    monkeypatch.setattr(triton_launch.nvidia, "make_tensordesc_arg", encode)
    monkeypatch.setattr(triton_launch, "_hooked", lambda: False)
    monkeypatch.setattr(triton_launch, "_MOST_MAPS", 4)
    x, w, y, other = (torch.empty(64, dtype=torch.float16) for _ in range(4))
    for last in (y, y, other, y):
        launch(0, x, w, None, None, last)
    assert encoded == [t.data_ptr() for t in (x, w, y, other)]
    assert given[0] == given[1] and given[0].count("map") == 3
    launch(0, y, w, None, None, x)
    assert len(launch._maps) <= 4 and len(encoded) >= 6


def test_an_allocator_that_is_set_already_stays() -> None:
    def other(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        raise AssertionError("nothing is launched")

    context = contextvars.copy_context()
    context.run(triton.set_allocator, other)
    context.run(triton_launch._lend_scratch)
    assert context[_allocation._allocator] is other


HUGE = {
    "strided": ConvProblem.of((10**6, 64, 33, 33), (64, 64, 3, 3), padding=1, stride=2),
    "patches": ConvProblem.of((10**5, 64, 224, 224), (64, 64, 16, 16), stride=16),
    "1x1": ConvProblem.of((10**5, 64, 112, 112), (512, 64, 1, 1)),
    "stride-beyond-the-image": ConvProblem.of((10**6, 64, 5, 5), (64, 64, 1, 1), stride=10**5),
    "taps-and-groups": ConvProblem.of((8, 4096, 56, 56), (4096, 128, 7, 7), padding=3, groups=32),
    "weight-of-2^33": ConvProblem.of((1, 2**15, 15, 15), (2**15, 2**15, 3, 3)),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_descriptors_take_64_mib_at_most_whatever_the_size(direction: Direction, name: str) -> None:
    problem = dataclasses.replace(HUGE[name], dtype=torch.float16, memory_format=torch.channels_last)
    found = 0
    for gpu in NEWER:
        for family in (triton_window, triton_pointwise):
            for tile in family.tiles(problem, direction, gpu, strides(problem, direction)):
                launch, *_ = family.launches(problem, direction, strides(problem, direction), tile, with_bias=True)
                assert launch.descriptors or launch.described, tile
                assert launch.programs * window_launch.SCRATCH <= 64 << 20, tile
                found += 1
    refusal = triton_window.refuses(problem, direction, H100, strides(problem, direction))
    assert found or "more tiles than descriptors" in (refusal or "")


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("batch", [1, 8, 16, 32, 100])
def test_windows_of_a_weight_are_fetched_by_row_where_that_wastes_little(batch: int, taps: int) -> None:
    tile = Tile(128, 64, 64 * min(2, taps), 4, 3, kernel="window", taps=taps)
    for size in (112, 56, 28):
        problem = dataclasses.replace(LAYER, input_size=(size, size), batch=batch)
        window = window_shape.weight_window(problem, tile)
        assert window.by_row and tile.depth == window.images * window.rows * window.columns
        assert window.number * tile.depth <= 1.31 * batch * size * size, window


def test_a_weight_is_split_among_as_many_programs_as_fill_the_gpu_once_and_no_more() -> None:
    """And among the next larger number, which may need two waves of half as long."""
    problem = dataclasses.replace(LAYER, in_channels=256, out_channels=256, input_size=(28, 28))
    tiles = triton_window.tiles(problem, "grad_weight", H100, strides(problem, "grad_weight"))
    (shape,) = {(t.rows, t.columns, t.taps) for t in tiles if t.taps == 3 and t.rows == 128}
    splits = [t.splits for t in tiles if (t.rows, t.columns, t.taps) == shape]
    assert {5, 6} <= {*splits}  # 2·4 tiles and 3 columns of taps are 24 programs: 120 and 144 for 132 multiprocessors


def test_old_triton_multiplies_no_16_bit_window_through_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6, sm_90: gyᵀ of the next step is loaded into registers that a product under way still reads."""
    problem = dataclasses.replace(LAYER, input_size=(7, 7), batch=33)
    tile = Tile(128, 128, 64, 8, 3, kernel="window")
    monkeypatch.setattr(window_shape, "_THROUGH_REGISTERS", 1.2)
    assert not window_shape.weight_window(problem, tile).by_row
    monkeypatch.setattr(window_shape, "_THROUGH_REGISTERS", math.inf)
    assert window_shape.weight_window(problem, tile).by_row
    assert not window_shape.weight_window(dataclasses.replace(problem, dtype=torch.float32), tile).by_row
