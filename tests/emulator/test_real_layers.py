"""What `auto` launches for the layers of ResNet-50, VGG-16 and MobileNetV2 wastes little bandwidth, in its main loop
and where it stores.

Counted on the emulated A100 and H100, in both layouts and all directions, as 16-bit numbers and as TF32, on problems
with fewer images, rows and channels:

- loads from global memory take at most 1.15 times the sectors that their bytes fill;
- shared memory takes at most 1.1 times the passes that its bytes need;
- layers with more than 8 channels fetch no element by itself;
- what a call stores, copies and partial sums included, takes at most 1.3 times the sectors that its bytes fill.

`ALLOWED` and `STORED` say where it is more, and why. By default one layer for each kind of kernel; `--full` takes each
layer, and bfloat16 too.
"""

import math
import re
from typing import NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import real_layers
from emulated import lane_of
from lanes import INTERPRETING
from real_layers import Case

from gpuconv.backends.roofline import SECTOR
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.emulator.counters import Instruction
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, Direction

pytestmark = [
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
    pytest.mark.skipif(RELEASE < (3, 8), reason="what Triton before 3.8 makes of these kernels moves more"),
]

_MOST = {"sectors": 1.15, "passes": 1.1}
_MOST_STORED = 1.3  # sectors
_NEGLIGIBLE = 0.03  # of all that a kernel takes
_FEW_CHANNELS = 8
_LOADS = ("ld.global", "cp.async", "ld.shared", "ldmatrix")


class Allowance(NamedTuple):
    """Up to how many times the least some main loops may take, and why."""

    reason: str
    sectors: float = _MOST["sectors"]
    passes: float = _MOST["passes"]


ALLOWED = {
    "first layer": Allowance("with three channels a pixel's are no vector, and neighbours share sectors", 2.1, 2.6),
    "its gradient": Allowance("of three channels, each found by itself; no network asks for it in training", 2.1, 3.7),
    "its weight's, TF32": Allowance("and Triton turns both operands round for wgmma", 4.1, 14),
    "TF32 by wgmma": Allowance("it sums over pixels, which are not innermost: Triton turns them round", passes=9),
    "TF32, small": Allowance("another launch, to turn the weight before, would take longer than the loop", passes=5),
    "TF32 planes": Allowance("Triton reads pixels in twice the passes; device memory bounds these layers", passes=1.7),
    "depthwise planes": Allowance("rows begin anywhere, and each tap's begin elsewhere", 1.25, 1.4),
    "taps": Allowance("at a stride the next tap has the rest of a sector, from the L1 cache", 2.8),
}


def allowance(case: Case, flops: int) -> Allowance:
    """What the main loop of a case, of a layer with so many operations, may take."""
    tile, weighs = case.tile, case.direction == "grad_weight"
    hopper, tf32 = case.gpu == "H100", case.numbers == "tf32"
    if case.plain.groups == 1 and case.plain.in_channels <= 4:
        if case.direction == "grad_input":
            return ALLOWED["its gradient"]
        return ALLOWED["its weight's, TF32" if weighs and tf32 and hopper else "first layer"]
    if tile.kernel == "taps":
        return ALLOWED["taps"]
    if tile.kernel == "depthwise" and case.layout == "contiguous":
        return ALLOWED["depthwise planes"]
    if case.backend == "triton" and tf32 and weighs and hopper and tile.kernel != "planes":
        return ALLOWED["TF32 by wgmma"]
    if case.direction == "grad_input" and tf32 and hopper and tile.kernel in ("window", "pointwise"):
        return ALLOWED["TF32, small"] if flops < 1e9 and "turned" not in tile.packs else Allowance("")
    if case.backend == "triton" and tf32 and tile.kernel == "planes" and not hopper:
        return ALLOWED["TF32 planes"]
    return Allowance("")


class Stored(NamedTuple):
    """Up to how many times the least sectors some kernels may store, and why."""

    reason: str
    sectors: float = _MOST_STORED


STORED = {
    "weight of few channels": Stored("a row of 3 × 7 × 7 terms begins anywhere; all fits the L2 cache", 3.6),
    "taps": Stored("they are innermost in a contiguous weight: small ones are stored so, in the L2 cache", 10),
    "tiles": Stored("sums lie in tiles of 16 × 8, and a row of 8 channels is half a sector", 2.1),
    "depthwise weight": Stored("few kilobytes, of which each channel's programs have single elements", 9.1),
    "cells": Stored("a pixel has three channels, its row in a cell twice as many: the next cell has the rest", 2.1),
    "odd planes": Stored("planes of 7 × 7 pixels begin anywhere", 1.6),
    "windows": Stored("parts of rows begin anywhere: the next store of a warp has the rest of a sector", 1.9),
    "short windows": Stored("8 pixels, where 16 would be more blocks: the next block has the rest of a sector", 2.1),
    "phases": Stored("a result that stays in the L2 cache until other phases' programs have filled it", 4.1),
}


def stored(case: Case, kernel: str) -> Stored:
    """What this kernel of a case may store."""
    tile, planes = case.tile, case.layout == "contiguous"
    if case.direction == "grad_weight":
        if case.plain.groups > 1:
            return STORED["depthwise weight"]
        if case.plain.in_channels <= 4:
            return STORED["weight of few channels"]
        if planes and case.plain.taps > 1:
            return STORED["taps"]
        return STORED["tiles"] if kernel == "sum_tiles" else Stored("")
    if kernel.startswith("pack"):
        return Stored("")
    if tile.kernel == "cells":
        return STORED["cells"]
    if planes and "result" not in tile.packs:
        strided = case.direction == "grad_input" and case.plain.groups == 1 and max(case.plain.stride) > 1
        if strided and tile.phases == 1:
            size = math.prod(case.plain.input_shape) * case.dtype.itemsize
            return STORED["phases"] if size < KNOWN[case.gpu].l2 / 2 else Stored("")
        if tile.kernel in ("window", "halo"):
            return STORED["windows" if tile.kernel == "window" else "short windows"]
        if math.prod(case.problem.output_size) % 2:
            return STORED["odd planes"]
    return Stored("")


def width(load: Instruction) -> int:
    """Bytes that a lane fetches from global memory by this instruction."""
    if load.opcode.startswith("cp.async"):
        return int(load.text.rstrip("; ").split(",")[2], 0)
    vector = re.search(r"\.v(\d)", load.opcode)
    bits = re.search(r"(\d+)$", load.opcode)
    assert bits is not None, load.text
    return int(bits[1]) // 8 * int(vector[1] if vector else 1)


def complaints(case: Case) -> list[str]:
    """What the main loops of a case, reduced, and its stores waste."""
    whole, case = case, real_layers.reduced(case)
    found, allowed = [], allowance(case, whole.plain.flops)
    for counters in real_layers.counters(case):
        used, least = real_layers.stored_sectors(counters)
        negligible = _NEGLIGIBLE * (counters.global_sectors + counters.tma_bytes / SECTOR)
        if used > stored(whole, counters.kernel).sectors * least + negligible:
            times = f"{used / max(1, least):.3g} times"
            found.append(f"{counters.kernel} stores {used:,} sectors, least {least:,} ({times})")
        if counters.kernel.startswith(("pack", "sum_", "window_sum")):
            continue  # they do not multiply; tests of their own count what they move
        loop, facts = counters.main_loop, counters.facts()
        rows_of = zip(loop.lines, loop.table, strict=True)
        loads = [(line, row) for line, row in rows_of if line.opcode.startswith(_LOADS)]
        for unit, kept in (("sectors", "global_sectors"), ("passes", "shared_passes")):
            rows = loop.table if unit == "passes" else [row for _, row in loads]
            used, least = (sum(int(row[name]) for row in rows) for name in (unit, f"{unit}_least"))
            most = getattr(allowed, unit)
            if used > most * least + _NEGLIGIBLE * facts[kept]:
                found.append(f"{used:,} {unit}, least {least:,} ({used / max(1, least):.3g} times)")
        dense = case.problem.groups == 1 and case.problem.group_channels > _FEW_CHANNELS
        global_loads = [(line, row) for line, row in loads if row["sectors"]]
        total = sum(int(row["bytes"]) for _, row in global_loads)
        for line, row in global_loads:
            if dense and width(line) <= case.dtype.itemsize and row["bytes"] * 20 > total:
                found.append(f"elements are fetched one by one: {line.opcode} ({line.source})")
    return [f"{case}: {complaint}" for complaint in dict.fromkeys(found)]


@pytest.mark.parametrize("numbers", ["16-bit", "tf32"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("gpu", real_layers.GPUS)
def test_no_bandwidth_is_wasted(gpu: str, direction: Direction, numbers: str, pytestconfig: pytest.Config) -> None:
    with lane_of("triton", gpu).entered():
        pass  # skips where GPUs cannot be emulated
    full = pytestconfig.getoption("--full")
    kinds = {"tf32": ("tf32",), "16-bit": ("float16", "bfloat16") if full else ("float16",)}[numbers]
    cases = list(real_layers.chosen(gpu, direction, kinds))
    if not full:
        cases = list({real_layers.kind(case): case for case in reversed(cases)}.values())
    assert len(cases) > 2
    wasteful = [complaint for case in cases for complaint in complaints(case)]
    assert not wasteful, "\n".join(wasteful)
