"""The tensor-core kernels under the host check: every path and tile against the oracle; and under the sanitizers."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import planted_cuda
import pytest
import torch
from host_cuda import COMPILER, HostChecked, HostRuntime, Recorder, replay

from gpuconv import backends, reference
from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.backends.cuda import halo as cuda_halo, tensor as cuda_tensor, windows
from gpuconv.checking.problems import CURATED, tensors
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.planning.ranking import best_tile
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import assert_close_to_oracle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")

KINDS = ("forward-tensor", "forward-halo", "grad_input-tensor", "grad_input-halo", "grad_weight-tensor")
A100 = KNOWN["A100"]

# Channels in chunks of 16 bytes (but for the last), partial tiles everywhere. input, weight, settings.
_PROBLEMS = {
    "3x3": ((2, 32, 9, 7), (24, 32, 3, 3), {"padding": 1}),
    "3x3-two-blocks-of-channels": ((1, 72, 6, 10), (40, 72, 3, 3), {"padding": 1}),
    "3x3-dilation2x3": ((2, 16, 11, 12), (24, 16, 3, 3), {"padding": (2, 3), "dilation": (2, 3)}),
    "3x3-asymmetric": ((2, 16, 6, 7), (8, 16, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "3x3-groups2": ((2, 32, 7, 8), (48, 16, 3, 3), {"padding": 1, "groups": 2}),
    "3x3-stride2": ((2, 40, 11, 10), (72, 40, 3, 3), {"padding": 1, "stride": 2}),
    "3x3-stride2-dilation2": ((2, 16, 11, 12), (24, 16, 3, 3), {"padding": 1, "stride": 2, "dilation": 2}),
    "3x3-stride3x1": ((2, 16, 10, 7), (24, 16, 3, 3), {"padding": (0, 2), "stride": (3, 1)}),
    "3x3-many-small-images": ((19, 16, 3, 2), (24, 16, 3, 3), {"padding": 1}),
    "3x3-empty-batch": ((0, 16, 9, 7), (8, 16, 3, 3), {"padding": 1}),
    "5x3-wide-image": ((1, 16, 5, 70), (8, 16, 5, 3), {"padding": (2, 1)}),
    "2x2-same": ((2, 16, 5, 6), (16, 16, 2, 2), {"padding": "same"}),
    "1x1": ((3, 64, 5, 6), (40, 64, 1, 1), {}),
    "1x1-stride2": ((3, 24, 5, 6), (40, 24, 1, 1), {"stride": 2}),
    "1x2-stride3-untouched-pixels": ((2, 16, 9, 8), (8, 16, 1, 2), {"stride": 3}),
    "1d": ((2, 24, 37), (16, 24, 5), {"padding": 2}),
    "1d-stride2": ((2, 24, 37), (16, 24, 5), {"padding": 1, "stride": 2}),
    "1d-more-taps-than-a-word-has-bits": ((2, 16, 50), (24, 16, 37), {"padding": 18}),
    "3d": ((1, 16, 4, 6, 5), (24, 16, 3, 3, 3), {"padding": 1}),
    "3d-deep-filter": ((2, 16, 6, 3, 4), (8, 16, 3, 1, 1), {"padding": (1, 0, 0), "dilation": (2, 1, 1)}),
    "3d-strided": ((1, 16, 5, 6, 7), (16, 8, 2, 3, 3), {"stride": (2, 1, 2), "groups": 2, "padding": 1}),
    "twelve-channels": ((2, 12, 6, 7), (20, 12, 3, 3), {"padding": 1}),
    "odd-channels": ((2, 17, 6, 7), (19, 17, 3, 3), {"padding": 1}),
    "three-channels": ((1, 3, 17, 15), (6, 3, 7, 7), {"padding": 3, "stride": 2}),
}
PROBLEMS = {name: ConvProblem.of(x, w, **settings) for name, (x, w, settings) in _PROBLEMS.items()}
SMALL = {
    "forward": Tile(64, 32, 32, 4, 3, kernel="tensor"),
    "grad_input": Tile(64, 32, 32, 4, 3, kernel="tensor"),
    "grad_weight": Tile(64, 32, 32, 4, 3, splits=3, kernel="tensor"),
}


@functools.cache
def backend() -> HostChecked:
    return HostChecked()


def small(direction: Direction, kernel: str, dtype: torch.dtype) -> Tile:
    """A small tile for `direction`, its steps 64 bytes deep."""
    halo = 100 if kernel == "halo" else 0  # as of a window of 8 × 8 pixels and a filter of 3 × 3
    return dataclasses.replace(SMALL[direction], kernel=kernel, depth=64 // dtype.itemsize, halo=halo)


def typed(problem: ConvProblem, dtype: torch.dtype, layout: str) -> ConvProblem:
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(problem.ndim)
    memory_format = last if last and layout == "channels_last" else torch.contiguous_format
    return dataclasses.replace(problem, dtype=dtype, memory_format=memory_format)


def compute(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    given: dict[str, torch.Tensor],
    activation: Activation = IDENTITY,
    runtime: HostRuntime | None = None,
) -> tuple[torch.Tensor, ...]:
    """The result that the kernel computes; for grad_weight with the bias's gradient."""
    host = backend()
    if runtime is not None:
        host = HostChecked()
        host.runtimes["cpu"] = runtime
    tf32 = problem.dtype is torch.float32
    x, w, gy, residual = (given[name] for name in ("input", "weight", "grad_output", "residual"))
    first, second = {"forward": (x, w), "grad_input": (gy, w), "grad_weight": (gy, x)}[direction]
    extra = residual.stride() if direction == "forward" else None
    operands = Operands((first.stride(), second.stride()), extra, direction == "forward", tf32)
    run = host.bind(problem, direction, torch.device("cpu"), activation, operands, tile)
    if direction == "forward":
        return (run(x, w, given["bias"], residual),)
    return (run(gy, w),) if direction == "grad_input" else run(gy, x, True)


def assert_right(
    problem: ConvProblem, direction: Direction, tile: Tile, name: str, layout: str, activation: str = "none"
) -> None:
    given = tensors(problem, name, problem.dtype, "cpu", layout)
    if layout == "channels_last":  # of the operands; the residual lies as the result
        given["residual"] = given["residual"].contiguous(memory_format=problem.memory_format)
    act = Activation.parse(activation)
    got = compute(problem, direction, tile, given, act)
    x, w, bias, residual, gy = (
        reference.as_numpy(given[name]) for name in ("input", "weight", "bias", "residual", "grad_output")
    )
    exact = {
        "forward": lambda: (reference.forward(problem, x, w, bias, residual, act),),
        "grad_input": lambda: (reference.grad_input(problem, gy, w),),
        "grad_weight": lambda: (reference.grad_weight(problem, gy, x), reference.grad_bias(problem, gy)),
    }[direction]()
    for i, (result, wanted) in enumerate(zip(got, exact, strict=True)):
        tf32 = problem.dtype is torch.float32 and i == 0  # the bias's gradient is a sum without products
        assert_close_to_oracle(result, wanted, f"{name}, {layout}, {direction}, {tile}", tf32=tf32)


def kernels(names: Iterable[str]) -> list[tuple[str, str]]:
    """(kind, name) for every problem among `names` that the kind of kernel takes."""
    both = itertools.product(KINDS, names)
    return [(k, n) for k, n in both if "halo" not in k or windows.refuses(PROBLEMS[n], k.split("-")[0]) is None]


FEW = ("3x3-groups2", "3x3-stride2", "1x1", "1d", "3d-strided", "twelve-channels")


# ---- right ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), kernels(PROBLEMS), ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "tf32"])
def test_channels_last_is_within_the_bound(kind: str, name: str, dtype: torch.dtype) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS[name], dtype, "channels_last")
    assert_right(problem, direction, small(direction, kernel, dtype), name, "channels_last")


@pytest.mark.parametrize(("kind", "name"), kernels(FEW), ids=str)
def test_bfloat16_is_within_the_bound(kind: str, name: str) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS[name], torch.bfloat16, "channels_last")
    assert_right(problem, direction, small(direction, kernel, torch.bfloat16), name, "channels_last")


@pytest.mark.parametrize(("kind", "name"), kernels(FEW), ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "expanded"])
def test_other_layouts_are_within_the_bound(kind: str, name: str, layout: str) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS[name], torch.float16, layout)
    assert_right(problem, direction, small(direction, kernel, torch.float16), name, layout)


# By how many pixels of a channel are stored as one: of an image, and of a line of it.
IMAGES = {"4-4": (7, 12), "8-8": (5, 16), "8-1": (8, 7)}


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "tf32"])
def test_contiguous_results_of_channels_last_operands_are_within_the_bound(kind: str, dtype: torch.dtype) -> None:
    direction, kernel = kind.split("-")
    tile = small(direction, kernel, dtype)
    for name in IMAGES if dtype is torch.float16 else ("4-4",):
        problem = typed(ConvProblem.of((3, 24, *IMAGES[name]), (24, 24, 3, 3), padding=1), dtype, "contiguous")
        operands = Operands(strides(typed(problem, dtype, "channels_last"), direction))
        together = cuda_tensor.pixels_together(problem, direction, operands, tile)
        assert together == min(int(name.split("-")[kernel == "halo"]), problem.vector_unit)
        assert_right(problem, direction, tile, name, "channels_last", "relu" if direction == "forward" else "none")
    if kind == "grad_input-tensor":
        assert_right(typed(PROBLEMS["3x3-stride2"], dtype, "contiguous"), direction, tile, "stride 2", "channels_last")


@pytest.mark.parametrize("name", CURATED)
def test_curated_problems_are_within_the_bound(name: str) -> None:
    for kind in KINDS:
        direction, kernel = kind.split("-")
        dtype = torch.float16 if "halo" in kind else torch.float32
        problem = typed(CURATED[name], dtype, "channels_last")
        if kernel == "tensor" or windows.refuses(problem, direction) is None:
            assert_right(problem, direction, small(direction, kernel, dtype), name, "channels_last")


def menu() -> list[tuple[Direction, Tile]]:
    """Every size of tile that is offered for some problem, by direction; the kernels `halo` and `tensor` take turns."""
    found: list[tuple[Direction, Tile]] = []
    for direction, channels in itertools.product(DIRECTIONS, (256, 16)):
        problem = typed(
            ConvProblem.of((8, channels, 28, 28), (channels, channels, 3, 3), padding=1), torch.float16, "channels_last"
        )
        asked = problem, direction, A100, Operands(strides(problem, direction))
        both = itertools.zip_longest(cuda_halo.tiles(*asked), cuda_tensor.tiles(*asked))
        for tile in filter(None, itertools.chain(*both)):
            known = [(d, t.rows, t.columns) for d, t in found]
            if (direction, tile.rows, tile.columns) not in known and (tile.kernel == "tensor" or len(known) % 2):
                found.append((direction, dataclasses.replace(tile, splits=1, depth=32)))
    return found


def strides(problem: ConvProblem, direction: Direction) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shapes = {"forward": "iw", "grad_input": "ow", "grad_weight": "oi"}[direction]
    of = {"i": problem.input_shape, "w": problem.weight_shape, "o": problem.output_shape}
    first, second = (torch.empty(of[s], device="meta", memory_format=problem.memory_format).stride() for s in shapes)
    return first, second


@pytest.mark.parametrize(("direction", "tile"), menu(), ids=lambda v: v if isinstance(v, str) else tile_id(v))
def test_every_tile_is_right_where_it_is_partly_empty(direction: Direction, tile: Tile) -> None:
    problem = typed(ConvProblem.of((2, 40, 13, 11), (136, 40, 3, 3), padding=1), torch.float16, "channels_last")
    assert_right(problem, direction, tile, "tiles", "channels_last")


def tile_id(tile: Tile) -> str:
    return f"{tile.kernel}-{tile.rows}x{tile.columns}-{tile.stages}stages"


@pytest.mark.parametrize("activation", [*reference.LIPSCHITZ, "leaky_relu(0.2)"])
def test_activation_is_applied_before_the_one_rounding(activation: str) -> None:
    problem = typed(PROBLEMS["3x3"], torch.float16, "channels_last")
    assert_right(problem, "forward", small("forward", "halo", torch.float16), "3x3", "channels_last", activation)


@pytest.mark.parametrize("kind", KINDS)
def test_wide_offsets_give_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS["3x3"], torch.bfloat16, "channels_last")
    given = tensors(problem, "3x3", torch.bfloat16, "cpu", "channels_last")
    tile = small(direction, kernel, torch.bfloat16)
    narrow = compute(problem, direction, tile, given)
    monkeypatch.setattr("gpuconv.backends.cuda.tensor.needs_64_bits", lambda *_: True)
    for a, b in zip(narrow, compute(problem, direction, tile, given), strict=True):
        assert torch.equal(a, b)


FEW_TAPS = ((2,), (3,), (1, 2), (2, 1), (2, 2), (1, 1, 2), (2, 1, 2), (3, 1, 2), (3, 2, 1), (3, 1, 3), (2, 2, 2))


@pytest.mark.parametrize("gpu", ["A100", "H100"])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_windows_follow_each_other_however_few_taps_they_have(direction: Direction, gpu: str) -> None:
    """The place of a window is not refilled before the last of its taps has been multiplied."""
    for taps in FEW_TAPS:
        summed, others = 136, 24  # in blocks of 64, so that there are three windows and more
        c, k = (summed, others) if direction == "forward" else (others, summed)
        shape = ConvProblem.of((1, c, *(5, 6, 7)[-len(taps) :]), (k, c, *taps))
        assert_right_as_planned(typed(shape, torch.float16, "channels_last"), direction, KNOWN[gpu])
    shape = ConvProblem.of((1, 128, 5, 6, 7), (64, 128, 3, 1, 2))
    assert_right_as_planned(typed(shape, torch.float16, "channels_last"), direction, KNOWN[gpu])


def assert_right_as_planned(problem: ConvProblem, direction: Direction, gpu: Gpu) -> None:
    """The result is right with the tile that the planner chooses, and with the best of those with a halo."""
    operands = contiguous_operands(problem, direction, problem.memory_format)
    halos = cuda_halo.tiles(problem, direction, gpu, operands)
    offered = halos + cuda_tensor.tiles(problem, direction, gpu, operands)
    best = {best_tile(backends.get("cuda"), tiles, problem, direction, gpu, False) for tiles in (offered, halos)}
    for tile in best - {None}:
        assert_right(problem, direction, tile, f"{problem.filter_size}", "channels_last")


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_threads_and_number_of_stages_do_not_change_a_bit(kind: str) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS["3x3-groups2"], torch.float16, "channels_last")
    given = tensors(problem, "bits", torch.float16, "cpu", "channels_last")
    tile = small(direction, kernel, torch.float16)
    first = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(0)))
    for order in (1, 2, 3):
        again = compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(order)))
        assert all(map(torch.equal, first, again))
    deeper = compute(problem, direction, dataclasses.replace(tile, stages=4), given)
    assert all(map(torch.equal, first, deeper))


@pytest.mark.parametrize("kind", KINDS)
def test_unaligned_pointers_are_staged_by_element(kind: str) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS["3x3"], torch.float16, "channels_last")
    given = tensors(problem, "3x3", torch.float16, "cpu", "channels_last")
    tile = small(direction, kernel, torch.float16)
    aligned = compute(problem, direction, tile, given)
    shifted = {name: moved_by_one(t) for name, t in given.items()}
    assert all(t.data_ptr() % 16 == 2 for t in shifted.values())
    for a, b in zip(aligned, compute(problem, direction, tile, shifted), strict=True):
        assert torch.equal(a, b)


def moved_by_one(t: torch.Tensor) -> torch.Tensor:
    """The values of t with the same strides, one element further in memory than a multiple of 16 bytes."""
    memory = torch.full((t.numel() + 17,), float("nan"), dtype=t.dtype)
    first = -memory.data_ptr() // t.element_size() % 8 + 1
    return memory[first:].as_strided(t.shape, t.stride()).copy_(t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_reaches_exactly_what_it_takes_part_in(kind: str, value: float) -> None:
    direction, kernel = kind.split("-")
    problem = typed(PROBLEMS["3x3-two-blocks-of-channels"], torch.float16, "channels_last")
    for poisoned in ("input", "grad_output"):
        given = tensors(problem, "poison", torch.float16, "cpu", "channels_last")
        given[poisoned][0, 3, 2, 4] = value
        got = compute(problem, direction, small(direction, kernel, torch.float16), given)
        x, w, gy = (reference.as_numpy(given[name]) for name in ("input", "weight", "grad_output"))
        bias, residual = (reference.as_numpy(given[name]) for name in ("bias", "residual"))
        exact = {
            "forward": lambda x=x, w=w: reference.forward(problem, x, w, bias, residual),  # noqa: B023
            "grad_input": lambda gy=gy, w=w: reference.grad_input(problem, gy, w),
            "grad_weight": lambda gy=gy, x=x: reference.grad_weight(problem, gy, x),
        }[direction]()
        assert_close_to_oracle(got[0], exact, f"{value} in {poisoned}")


@pytest.mark.parametrize("kernel", ["tensor", "halo"])
def test_padding_times_a_weight_that_is_not_finite_is_nan(kernel: str) -> None:
    problem = typed(PROBLEMS["3x3"], torch.float16, "channels_last")
    given = tensors(problem, "poison", torch.float16, "cpu", "channels_last")
    given["weight"][5, 2, 0, 0] = math.inf
    given["residual"].zero_()
    (got,) = compute(problem, "forward", small("forward", kernel, torch.float16), given)
    assert got[:, 5, 0, :].isnan().all() and got[:, 5, :, 0].isnan().all()
    assert got[:, 5, 1:, 1:].isinf().all()
    assert got[:, [*range(5), *range(6, 24)]].isfinite().all()


# ---- under the sanitizers --------------------------------------------------------------------------------------------

SANITIZED = ConvProblem.of((1, 40, 5, 6), (24, 40, 3, 3), padding=1)


def recorded(kind: str, dtype: torch.dtype, layout: str = "channels_last", stride: int = 1):
    direction, kernel = kind.split("-")
    problem = typed(dataclasses.replace(SANITIZED, stride=(stride, stride)), dtype, layout)
    runtime = Recorder()
    compute(
        problem, direction, small(direction, kernel, dtype), tensors(problem, "run", dtype, "cpu", layout),
        runtime=runtime,
    )  # fmt: skip
    return runtime.records[0]


@pytest.mark.parametrize("mode", ["address", "thread"])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *((kind, "channels_last") for kind in KINDS),
        ("forward-halo", "contiguous"),
        ("grad_weight-tensor", "contiguous"),
    ],
)
def test_sanitizer_finds_nothing(kind: str, layout: str, mode: str, tmp_path: Path) -> None:
    dtype = torch.float32 if "grad" in kind else torch.float16
    record = recorded(kind, dtype, layout, stride=1 if "halo" in kind else 2)
    result = replay(record, mode, 2, tmp_path)
    assert result.complaint == ""
    assert result.after == record.after


@pytest.mark.parametrize("name", [*planted_cuda.of("tensor"), *planted_cuda.of("halo")])
def test_planted_fault_is_reported(name: str, tmp_path: Path) -> None:
    fault = planted_cuda.FAULTS[name]
    record = recorded(fault.kind, torch.float16)
    text = fault.planted(record.launch.instance.file)
    assert fault.complaint in replay(record, fault.mode, 2, tmp_path, text).complaint


def test_missing_wait_makes_the_result_wrong(tmp_path: Path) -> None:
    record = recorded("forward-halo", torch.float16)
    text = planted_cuda.FAULTS["missing-wait"].planted("tensor_forward.cu")
    result = replay(record, "address", 0, tmp_path, text)
    assert result.complaint == "" and result.after != record.after
