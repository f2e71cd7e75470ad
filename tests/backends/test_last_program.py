"""A split sum that the last program of a tile adds: one launch, the same bits as with a launch more, counters that are
0 afterwards and that no two launches use at once."""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from schedules import SCHEDULES

from gpuconv import backends, emulator
from gpuconv.activations import IDENTITY
from gpuconv.backends import last_program
from gpuconv.backends.base import Operands, Tile
from gpuconv.gpu import KNOWN
from gpuconv.problem import ConvProblem

CPU, LAST = torch.device("cpu"), torch.channels_last
emulated = pytest.mark.skipif(emulator.why_not() is not None, reason=f"nothing is emulated: {emulator.why_not()}")


def problem(family: str) -> ConvProblem:
    channels, size = (3 if family == "stem" else 40), (1 if family in ("pointwise", "planes") else 3)
    memory_format = torch.contiguous_format if family == "planes" else LAST
    return ConvProblem.of(
        (1, channels, 16, 12), (24, channels, size, size), padding=size // 2, memory_format=memory_format,
        dtype=torch.float32 if family == "simt" else torch.float16,
    )  # fmt: skip


def tensors(of: ConvProblem) -> tuple[torch.Tensor, torch.Tensor, Operands]:
    torch.manual_seed(1)
    gy, x = (torch.randn(s).to(of.dtype, memory_format=of.memory_format) for s in (of.output_shape, of.input_shape))
    return gy, x, Operands((gy.stride(), x.stride()))


def three_splits(backend: str, family: str, gpu: str, of: ConvProblem, operands: Operands) -> Tile:
    """The smallest tile of a family, with three splits."""
    tiles = backends.get(backend).tiles(of, "grad_weight", KNOWN[gpu.upper()], operands)
    sizes = [tile for tile in tiles if tile.kernel == family]
    return dataclasses.replace(min(sizes, key=lambda tile: tile.rows * tile.columns), splits=3)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The counters that launches are given."""
    given: list[torch.Tensor] = []

    def counters_on(device: torch.device) -> Any:
        def counters(count: int) -> torch.Tensor:
            if not given:
                given.append(torch.zeros(last_program._COUNTERS, dtype=torch.int32))
            return given[0][:count]

        return counters

    for module in ("gpuconv.backends.triton.backend", "gpuconv.backends.cuda.backend"):
        monkeypatch.setattr(f"{module}.counters_on", counters_on)
    return given


@emulated
@pytest.mark.parametrize(
    ("backend", "family", "gpu"),
    [
        ("triton", "gather", "a100"),
        ("triton", "window", "h100"),
        pytest.param("triton", "planes", "a100", marks=pytest.mark.full),
        pytest.param("triton", "stem", "a100", marks=pytest.mark.full),
        ("cuda", "tensor", "a100"),
        ("cuda", "simt", "t4"),
    ],
)
def test_the_last_program_adds_in_order_whichever_it_is(
    backend: str, family: str, gpu: str, watched: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = problem(family)
    gy, x, operands = tensors(of)
    tile = three_splits(backend, family, gpu, of, operands)
    found = []

    def call(name: str, seed: int = 0) -> list[str]:
        with emulator.on(gpu, name, seed) as virtual:
            run = backends.get(backend).bind(of, "grad_weight", CPU, IDENTITY, operands, tile)
            found.append(run(gy, x, True))
            return virtual.launches

    for schedule in SCHEDULES[1:]:
        assert len(call(*schedule)) == 1
        assert not watched[0].any()  # and the next call finds them so
    monkeypatch.setattr(last_program, "_MOST_READ", 0)
    assert call("early")[1:] == ["sum_partials"]
    for gw, gb in found:
        assert torch.equal(gw, found[0][0]) and torch.equal(gb, found[0][1])


@emulated
@pytest.mark.parametrize(("backend", "family", "gpu"), [("triton", "window", "h100"), ("cuda", "tensor", "a100")])
def test_a_large_contiguous_result_is_written_in_whole_sectors(
    backend: str, family: str, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channels are as far apart as it has taps: a product would write a sector for each element."""
    of = dataclasses.replace(problem(family), memory_format=torch.contiguous_format)
    gy, x = (t.contiguous(memory_format=LAST) for t in tensors(of)[:2])  # packed, as it were
    operands = Operands((gy.stride(), x.stride()))
    tile = dataclasses.replace(three_splits(backend, family, gpu, of, operands), splits=1)
    found = []
    for most in (1, last_program._MANY_SECTORS):
        monkeypatch.setattr(last_program, "_MANY_SECTORS", most)
        with emulator.on(gpu) as virtual:
            found.append(backends.get(backend).bind(of, "grad_weight", CPU, IDENTITY, operands, tile)(gy, x, True))
        if most == 1:
            both = [pair for each in virtual.counters() for pair in zip(each.lines, each.table, strict=True)]
            written = [row for line, row in both if line.opcode.startswith("st.global")]
            assert virtual.launches[1:] == ["sum_partials"] and written
            sectors, least = (sum(int(row[name]) for row in written) for name in ("sectors", "sectors_least"))
            assert sectors <= 1.3 * least, (sectors, least)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_which_results_are_written_by_another_launch() -> None:
    tile = Tile(128, 128, 64, 8, 3)

    def apart(filters: int, taps: int, memory_format: torch.memory_format) -> bool:
        of = ConvProblem.of((2, 512, 7, 7), (filters, 512, taps, taps), memory_format=memory_format)
        return last_program.apart(of, tile, 1, 9)

    assert apart(512, 3, torch.contiguous_format)
    assert not apart(512, 3, LAST) and not apart(4096, 1, torch.contiguous_format)  # whole sectors as it is
    assert not apart(32, 3, torch.contiguous_format)  # small


# ---- counters --------------------------------------------------------------------------------------------------------


class Streams:
    """What torch.cuda says of the current stream."""

    def __init__(self) -> None:
        self.stream, self.capturing = 7, False


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    """A GPU without one: its counters lie on the CPU."""
    here, zeros = Streams(), torch.zeros
    monkeypatch.setattr(last_program, "_devices", {})
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: here.stream, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: here.capturing)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    yield here


def test_a_stream_keeps_its_counters_and_no_other_has_them(streams: Streams) -> None:
    counters = last_program.counters_on(torch.device("cuda", 0))
    first = counters(5)
    assert counters(9) is first and first.numel() >= 4096
    assert last_program.counters_on(torch.device("cuda", 0))(5) is first
    streams.stream = 8
    assert counters(5).data_ptr() != first.data_ptr()
    assert last_program.counters_on(torch.device("cuda", 1))(5).data_ptr() != first.data_ptr()
    streams.stream = 2  # a stream for each thread
    assert counters(5).data_ptr() != counters(5).data_ptr()


def test_each_captured_launch_has_counters_to_itself(streams: Streams) -> None:
    counters = last_program.counters_on(torch.device("cuda", 0))
    eager = counters(5)
    streams.capturing = True
    held = [counters(5) for _ in range(3)]
    starts = [t.data_ptr() for t in held]
    assert eager.data_ptr() not in starts and len({*starts}) == 3
    assert all(t.numel() == 5 and t.data_ptr() % 16 == 0 for t in held)
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 5 * 4
    shared = last_program._devices[0].for_graphs
    assert shared is not None and all(t.untyped_storage().data_ptr() == shared.data_ptr() for t in held)
    for _ in range(last_program._FOR_GRAPHS // 4096 + 1):
        last = counters(4096)
    assert last.untyped_storage().data_ptr() != shared.data_ptr()  # none are left: the graph zeroes its own
    streams.capturing = False
    assert counters(5) is eager


def test_threads_that_come_at_once_get_the_counters_of_their_stream(streams: Streams) -> None:
    counters, found = last_program.counters_on(torch.device("cuda", 0)), []
    threads = [threading.Thread(target=lambda: found.append(counters(5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({t.data_ptr() for t in found}) == 1


def test_a_large_sum_has_a_launch_of_its_own() -> None:
    def adds(rows: int, columns: int, warps: int, splits: int, tiles: int = 9) -> bool:
        return last_program.adds(Tile(rows, columns, 64, warps, 3), splits, tiles)

    assert adds(64, 64, 4, 8) and not adds(64, 64, 4, 9)  # what the last program reads
    assert not adds(64, 64, 4, 1)  # nothing to add
    assert adds(64, 64, 4, 2, 4096) and not adds(64, 64, 4, 2, 4097)  # counters
    assert adds(128, 64, 4, 2) and not adds(128, 128, 4, 2)  # sums of a thread
