"""The SIMT kernels under the host check: every tile, vectors and wide offsets; and under the sanitizers."""

import dataclasses
import itertools
from pathlib import Path

import planted_cuda
import pytest
import torch
from host_cuda import COMPILER, HostRuntime, Record, Recorder, compute, replay

from gpuconv import reference
from gpuconv.backends.base import Tile
from gpuconv.backends.cuda import simt as cuda_simt
from gpuconv.checking.problems import CURATED, OPERANDS, tensors
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")

# Channels in multiples of 16 bytes, so that vectors are loaded; more than a tile of everything, none of it whole.
VECTORS = ConvProblem.of((2, 24, 13, 8), (136, 24, 3, 2), stride=(1, 2), padding=((1, 1), (2, 1)))
ODD = CURATED["3x3-groups2-stride2"]


def menu() -> list[tuple[torch.dtype, Tile]]:
    """Every tile of every dtype."""
    found = []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        problem = dataclasses.replace(VECTORS, dtype=dtype, in_channels=256, out_channels=256)
        found += [(dtype, tile) for tile in cuda_simt.menu(problem, "forward", KNOWN["A100"])]
    return found


def name_of(value: object) -> str:
    if isinstance(value, Tile):
        return f"{value.rows}x{value.columns}x{value.depth}"
    return str(value).removeprefix("torch.")


def narrow(dtype: torch.dtype, splits: int = 1) -> Tile:
    """The smallest tile."""
    return dataclasses.replace([tile for of, tile in menu() if of is dtype][-1], splits=splits)


def assert_right(problem: ConvProblem, direction: Direction, tile: Tile, layout: str) -> None:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    problem = dataclasses.replace(problem, memory_format=memory_format)
    given = tensors(problem, "simt", problem.dtype, "cpu", layout)
    got = compute(problem, direction, tile, given)
    n = {key: as_numpy(t) for key, t in given.items()}
    operands = (n[key] for key in OPERANDS[direction])
    exact = reference.results(problem, direction, *operands, n["bias"], n["residual"])
    for result, wanted in zip(got, exact, strict=True):
        assert_close_to_oracle(result, wanted, f"{direction} {tile} {layout}: {problem}")


# ---- right ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("dtype", "tile"), menu(), ids=name_of)
def test_every_tile_is_right_with_vectors(dtype: torch.dtype, tile: Tile, direction: Direction) -> None:
    splits = 3 if direction == "grad_weight" else 1
    problem = dataclasses.replace(VECTORS, dtype=dtype)
    assert_right(problem, direction, dataclasses.replace(tile, splits=splits), "channels_last")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_wide_offsets_give_the_same_bits(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors(ODD, "wide", torch.float32)
    tile = narrow(torch.float32, splits=2)
    narrow_result = compute(ODD, direction, tile, given)
    monkeypatch.setattr("gpuconv.backends.derived._MOST_OFFSET", 10)
    for a, b in zip(narrow_result, compute(ODD, direction, tile, given), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_order_of_threads_does_not_change_a_bit(direction: Direction) -> None:
    given = tensors(ODD, "order", torch.float32)
    tile = narrow(torch.float32, splits=2)
    first, *others = (
        compute(ODD, direction, tile, given, runtime=HostRuntime(itertools.repeat(order))) for order in range(4)
    )
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pointers_that_are_not_aligned_are_read_number_by_number(direction: Direction) -> None:
    problem = dataclasses.replace(VECTORS, memory_format=torch.channels_last)
    given = tensors(problem, "aligned", torch.float32, "cpu", "channels_last")
    shifted = {name: _moved_by_one(t) for name, t in given.items()}
    tile = narrow(torch.float32)
    runtime = Recorder()
    for a, b in zip(
        compute(problem, direction, tile, given),
        compute(problem, direction, tile, shifted, runtime=runtime),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert "-DROW_VECTOR=0" in runtime.records[0].launch.instance.options


def _moved_by_one(t: torch.Tensor) -> torch.Tensor:
    """The values of t with the same strides, one element further in memory than a multiple of 16 bytes."""
    memory = torch.full((t.numel() + 17,), float("nan"), dtype=t.dtype)
    first = -memory.data_ptr() // t.element_size() % 4 + 1
    return memory[first:].as_strided(t.shape, t.stride()).copy_(t)


def test_bias_may_be_an_expanded_number() -> None:
    given = tensors(ODD, "bias", torch.float32) | {"bias": torch.full((), 3.0).expand(ODD.out_channels)}
    (got,) = compute(ODD, "forward", narrow(torch.float32), given)
    (expected,) = compute(ODD, "forward", narrow(torch.float32), given | {"bias": given["bias"].clone()})
    assert torch.equal(got, expected)


# ---- under the sanitizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "order"), [("address", 2), pytest.param("thread", 0, marks=pytest.mark.full), ("thread", 2)]
)  # races: on the emulator by clocks, whatever the order
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", ["vectors-64x16", "odd-128x64"])
def test_sanitizers_find_nothing(case: str, direction: Direction, mode: str, order: int, tmp_path: Path) -> None:
    if case.startswith("vectors"):
        problem, dtype = dataclasses.replace(VECTORS, memory_format=torch.channels_last), torch.bfloat16
        tile = narrow(dtype, splits=2 if direction == "grad_weight" else 1)
        given = tensors(problem, case, dtype, "cpu", "channels_last")
    else:
        problem, dtype = ODD, torch.float32
        tile = Tile(128, 64, 8, warps=4, stages=2, kernel="simt")
        given = tensors(problem, case, dtype, "cpu", "sliced")
    problem = dataclasses.replace(problem, dtype=dtype)
    runtime = Recorder()
    compute(problem, direction, tile, given, runtime=runtime)
    for record in runtime.records:
        result = replay(record, mode, order, tmp_path)
        assert not result.complaint
        assert result.after == record.after


@pytest.mark.parametrize("name", planted_cuda.of("simt"))
def test_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    fault, record = planted_cuda.FAULTS[name], record_of_forward()
    text = fault.planted(record.launch.instance.file)
    assert fault.complaint in replay(record, fault.mode, 2, tmp_path, text).complaint


def test_shared_memory_that_nobody_wrote_is_not_a_number(tmp_path: Path) -> None:
    record = record_of_forward()
    text = planted_cuda.FAULTS["not-written"].planted(record.launch.instance.file)
    result = replay(record, "address", 0, tmp_path, text)
    assert not result.complaint
    y = result.after[-1]
    assert y is not None and torch.frombuffer(bytearray(y), dtype=torch.float32).isnan().any()


def record_of_forward() -> Record:
    problem = dataclasses.replace(VECTORS, memory_format=torch.channels_last)
    runtime = Recorder()
    given = tensors(problem, "fault", torch.float32, "cpu", "channels_last")
    compute(problem, "forward", narrow(torch.float32), given, runtime=runtime)
    return runtime.records[0]
