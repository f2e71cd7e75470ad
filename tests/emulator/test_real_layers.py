"""What `auto` launches for the layers of ResNet-50, VGG-16 and MobileNetV2 wastes no bandwidth in its main loop.

Counted on the emulated A100 and H100, in both layouts and all directions, as 16-bit numbers and as TF32, on problems
with fewer images, rows and channels:

- loads from global memory take at most 1.15 times the sectors that their bytes fill;
- shared memory takes at most 1.1 times the passes that its bytes need;
- layers with more than 8 channels fetch no element by itself.

By default one layer for each kind of kernel; `--full` takes each layer, and bfloat16 too.
"""

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import real_layers
from emulated import lane_of
from lanes import INTERPRETING
from real_layers import Case

from gpuconv.emulator.counters import Instruction
from gpuconv.problem import DIRECTIONS, Direction

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")

_SECTORS, _PASSES = 1.15, 1.1
_FEW_CHANNELS = 8
_LOADS = ("ld.global", "cp.async", "ld.shared", "ldmatrix")


def width(load: Instruction) -> int:
    """Bytes that a lane fetches from global memory by this instruction."""
    if load.opcode.startswith("cp.async"):
        return int(load.text.rstrip("; ").split(",")[2], 0)
    vector = re.search(r"\.v(\d)", load.opcode)
    bits = re.search(r"(\d+)$", load.opcode)
    assert bits is not None, load.text
    return int(bits[1]) // 8 * int(vector[1] if vector else 1)


def complaints(case: Case) -> list[str]:
    """What the main loops of a case waste."""
    found = []
    for counters in real_layers.counters(case):
        loop = counters.main_loop
        loads = [
            (line, row) for line, row in zip(loop.lines, loop.table, strict=True) if line.opcode.startswith(_LOADS)
        ]
        for unit, most in (("sectors", _SECTORS), ("passes", _PASSES)):
            rows = loop.table if unit == "passes" else [row for _, row in loads]
            used, least = (sum(int(row[name]) for row in rows) for name in (unit, f"{unit}_least"))
            if used > most * least:
                found.append(f"{used:,} {unit}, least {least:,} ({used / least:.3g} times)")
        dense = case.problem.groups == 1 and case.problem.group_channels > _FEW_CHANNELS
        global_loads = [(line, row) for line, row in loads if row["sectors"]]
        total = sum(int(row["bytes"]) for _, row in global_loads)
        for line, row in global_loads:
            if dense and width(line) <= case.dtype.itemsize and row["bytes"] * 20 > total:
                found.append(f"elements are fetched one by one: {line.text} ({line.source})")
    return [f"{case}: {complaint}" for complaint in dict.fromkeys(found)]


@pytest.mark.parametrize("numbers", ["16-bit", "tf32"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("gpu", real_layers.GPUS)
def test_main_loops_waste_no_bandwidth(
    gpu: str, direction: Direction, numbers: str, pytestconfig: pytest.Config
) -> None:
    with lane_of("triton", gpu).entered():
        pass  # skips where GPUs cannot be emulated
    full = pytestconfig.getoption("--full")
    kinds = {"tf32": ("tf32",), "16-bit": ("float16", "bfloat16") if full else ("float16",)}[numbers]
    cases = list(real_layers.chosen(gpu, direction, kinds))
    if not full:
        cases = list({real_layers.kind(case): case for case in reversed(cases)}.values())
    assert len(cases) > 2
    wasteful = [complaint for case in cases for complaint in complaints(real_layers.reduced(case))]
    assert not wasteful, "\n".join(wasteful)
