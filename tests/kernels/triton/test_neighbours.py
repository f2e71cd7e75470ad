"""Neighbouring threads move neighbours in memory, whichever axis Triton takes where it sees none."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends, emulator
from gpuconv.activations import IDENTITY
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import inspect_kernels
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import ConvProblem, Direction

STEM = ConvProblem.of((1, 3, 28, 28), (64, 3, 7, 7), padding=3, stride=2, dtype=torch.bfloat16)
# Sectors for each that the bytes would fill: pixels between others, and rows that begin anywhere. One for each element
# would be 16.
MOST = 6


@pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
@pytest.mark.parametrize(
    ("family", "problem", "direction"),
    [("gather", STEM, "grad_input"), ("stem", STEM, "forward")],
)
def test_what_moves_element_by_element_shares_sectors(family: str, problem: ConvProblem, direction: Direction) -> None:
    gpu, operands = KNOWN["A100"], contiguous_operands(problem, direction, problem.memory_format)
    tile = backends.get("triton").families[family].tiles(problem, direction, gpu, operands)[0]
    kernel = inspect_kernels(problem, direction, "triton", gpu, run=True, tile=tile, bias=False)[0]
    counters = kernel.counters
    assert counters is not None
    loads = stores = least = 0
    for line, row in zip(counters.lines, counters.table, strict=True):
        if line.opcode.startswith("st.global"):
            stores += int(row["sectors"])
        else:
            loads, least = loads + int(row["sectors"]), least + int(row["sectors_least"])
    written = math.prod(problem.view(direction).shape) * problem.dtype.itemsize / 32
    assert loads <= MOST * least and stores <= MOST * written, (loads / least, stores / written)


def images(taps: int, memory_format: torch.memory_format = torch.channels_last, groups: int = 1) -> ConvProblem:
    shapes, settings = ((2, 64, 8, 8), (64, 64 // groups, taps, taps)), {"padding": taps // 2, "groups": groups}
    return ConvProblem.of(*shapes, **settings, dtype=torch.bfloat16, memory_format=memory_format)


@pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
@pytest.mark.parametrize(
    ("family", "problem"),
    [
        pytest.param("window", images(3), id="window"),
        pytest.param("pointwise", images(1), id="pointwise"),
        pytest.param("planes", images(1, torch.contiguous_format), id="planes"),
        pytest.param("taps", images(3, groups=64), id="taps"),
    ],
)
def test_gradients_of_weights_are_stored_in_whole_sectors(family: str, problem: ConvProblem) -> None:
    """Triton 3.6 gave each element of them a sector of its own, which on an H100 doubled or tripled the time."""
    gpu, operands = KNOWN["H100"], contiguous_operands(problem, "grad_weight", problem.memory_format)
    tiles = backends.get("triton").families[family].tiles(problem, "grad_weight", gpu, operands)
    a, b = (
        torch.ones(shape, dtype=problem.dtype).contiguous(memory_format=problem.memory_format)
        for shape in problem.operand_shapes("grad_weight")
    )
    with emulator.on("h100", checks=RELEASE >= (3, 8)) as virtual:  # see `lanes.Lane.emulated`
        tile = max(tiles, key=lambda tile: tile.splits)
        bind = backends.get("triton").bind
        bind(problem, "grad_weight", torch.device("cpu"), IDENTITY, operands, tile)(a, b, False)
    counters, *_ = virtual.counters()
    stores = [row for line, row in zip(counters.lines, counters.table, strict=True) if line.opcode[:9] == "st.global"]
    assert sum(int(row["sectors"]) for row in stores) <= sum(int(row["bytes"]) for row in stores) / 32
