"""Hopper's forward and grad_input in Gluon: right under every schedule, their machine code, bytes, what they refuse."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated import complaint
from lanes import INTERPRETING
from schedules import SCHEDULES
from sweep import Case, Epilogue

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv.backends.base import Operands, contiguous_operands
from gpuconv.backends.triton import hopper
from gpuconv.emulator import device as emulator
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import inspect_kernels
from gpuconv.inspection.machine_code import MachineCode, machine_code
from gpuconv.kernels.gluon import hopper_conv
from gpuconv.problem import CHANNELS_LAST, ConvProblem, Direction

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")
emulated = pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}")

H100 = KNOWN["H100"]
EVERYTHING = Epilogue(True, True, "silu")
NOTHING = Epilogue()


def laid_out(
    problem: ConvProblem, direction: Direction, dtype: torch.dtype = torch.bfloat16
) -> tuple[ConvProblem, Operands]:
    """The problem with channels last, and its operands."""
    layout = CHANNELS_LAST.get(problem.ndim + 2, torch.contiguous_format)
    problem = dataclasses.replace(problem, dtype=dtype, memory_format=layout)
    operands = contiguous_operands(problem, direction, layout)
    return problem, operands._replace(tf32=dtype is torch.float32)


# Direction, problem, rows and columns of a tile, and what is done at its end. "shared": rows for taps below each other.
SMALL: dict[str, tuple[Direction, ConvProblem, tuple[int, int], Epilogue]] = {
    "shared": ("forward", ConvProblem.of((5, 72, 7, 9), (136, 72, 3, 3), padding=1), (192, 128), EVERYTHING),
    "shared, left": ("forward", ConvProblem.of((3, 72, 9, 5), (64, 72, 2, 3), padding=1), (256, 64), EVERYTHING),
    "shared, three axes": ("forward", ConvProblem.of((2, 64, 3, 6, 7), (64, 64, 2, 3, 2)), (192, 64), NOTHING),
    "shared, back": (
        "grad_input", ConvProblem.of((3, 72, 12, 10), (136, 72, 3, 5), padding=2, dilation=(2, 1)), (192, 64), NOTHING,
    ),
    "three groups": ("forward", ConvProblem.of((5, 72, 7, 9), (136, 72, 3, 3), padding=1), (192, 128), EVERYTHING),
    "filters left": ("forward", ConvProblem.of((5, 64, 7, 9), (64, 64, 3, 3), padding=1), (384, 64), EVERYTHING),
    "strides": (
        "forward",
        ConvProblem.of((5, 64, 9, 12), (72, 64, 5, 3), padding=((1, 2), (0, 1)), stride=(3, 2), dilation=(1, 2)),
        (128, 64), NOTHING,
    ),
    "three axes": ("forward", ConvProblem.of((3, 64, 4, 6, 7), (64, 64, 3, 3, 3), padding=1), (256, 64), NOTHING),
    "groups": ("forward", ConvProblem.of((3, 128, 9, 7), (256, 64, 3, 3), groups=2), (256, 128), EVERYTHING),
    "back": ("grad_input", ConvProblem.of((5, 72, 7, 9), (136, 72, 3, 3), padding=(1, 0)), (256, 128), NOTHING),
    "back, three axes": (
        "grad_input", ConvProblem.of((2, 64, 4, 6, 7), (72, 64, 2, 3, 3), dilation=2, padding=2), (192, 64), NOTHING,
    ),
    "back, groups": ("grad_input", ConvProblem.of((3, 256, 9, 7), (128, 128, 3, 3), groups=2), (128, 128), NOTHING),
}  # fmt: skip
_BY_DEFAULT = ("shared", "filters left", "back", "shared, back")


@emulated
@pytest.mark.parametrize(
    "name", [name if name in _BY_DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in SMALL]
)
def test_it_is_right_under_every_schedule(name: str) -> None:
    direction, plain, sizes, epilogue = SMALL[name]
    problem, operands = laid_out(plain, direction)
    assert hopper.refuses(problem, direction, H100, operands) is None
    offered = hopper.tiles(problem, direction, H100, operands)
    of_size = (tile for tile in offered if (tile.rows, tile.columns) == sizes)
    (tile,) = (tile for tile in of_size if (tile.halo > 0) == name.startswith("shared"))
    tile = dataclasses.replace(tile, persistent=2)  # so that each program takes several
    case = Case("triton", "H100", direction, "bfloat16", "channels_last", name, plain, tile, epilogue)
    assert complaint(case, SCHEDULES) is None


LARGE = ConvProblem.of((32, 256, 56, 56), (256, 256, 3, 3), padding=1)


def loops(code: MachineCode, name: str) -> list[list[str]]:
    """The instructions of the innermost loops that have some of this name, the shortest first."""
    found = []
    for end, instruction, rest in code._listing:
        target = re.search(r"\b0x([0-9a-f]+)\s*$", rest) if instruction == "BRA" else None
        if target is not None and (start := int(target[1], 16)) < end:
            found.append((start, end, [each for at, each, _ in code._listing if start <= at <= end]))
    found = [loop for loop in found if name in loop[2]]
    inner = [
        names
        for start, end, names in found
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b, _ in found)
    ]
    return sorted(inner, key=len)


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        ("forward", torch.bfloat16),
        pytest.param("grad_input", torch.bfloat16, marks=pytest.mark.full),
        pytest.param("forward", torch.float32, marks=pytest.mark.full),
    ],
)
def test_its_loops_multiply_or_fetch_and_do_little_else(
    direction: Direction, dtype: torch.dtype, pytestconfig: pytest.Config
) -> None:
    full = pytestconfig.getoption("--full")
    problem, operands = laid_out(LARGE, direction, dtype)
    offered = hopper.tiles(problem, direction, H100, operands)
    assert len(offered) >= 4
    assert any(tile.halo for tile in offered)
    for tile in offered if full else (offered[2], next(tile for tile in offered if tile.halo)):
        (launch,) = hopper.launches(problem, direction, operands, tile)
        code, groups, taps = machine_code(launch, 90), tile.warps // 4, 3 if tile.halo else 1
        assert not code.spills and not code.warnings and code.shared <= H100.shared_memory
        multiply, fetch = loops(code, "HGMMA"), loops(code, "UTMALDG")
        assert len(multiply) >= groups and len(fetch) >= 1
        for loop in multiply[:groups]:
            assert len(loop) <= 60 * taps and loop.count("BAR") <= 3 * taps
            assert not {"LDS", "STS", "LDSM", "LDG", "STG", "UTMALDG"} & {*loop}
        if not tile.halo:  # (of those with several loops inside, the compiler lays out others' code between)
            assert "HGMMA" not in fetch[0]
            assert fetch[0].count("UTMALDG") >= 1 + groups and len(fetch[0]) <= 35 + 7 * groups
        # A step's own product is under way while it waits for the one before.
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)", code.sass)
        assert [int(n, 16) for n in waits].count(1) == groups * taps


@emulated
def test_it_fetches_what_the_formula_says() -> None:
    problem, operands = laid_out(ConvProblem.of((8, 64, 8, 8), (128, 64, 3, 3), padding=1), "forward")
    offered = hopper.tiles(problem, "forward", H100, operands)
    alone, shared = (tile for tile in offered if (tile.rows, tile.columns) == (128, 128))
    # Four tiles, nine taps: windows of 128 pixels; or, for each of three columns, the four rows of 64 that they have.
    for tile, pixels in ((alone, 9 * 128), (shared, 3 * 4 * 64)):
        (kernel,) = inspect_kernels(problem, "forward", "triton", H100, run=True, tile=tile)
        assert kernel.threads == 32 * (4 + 4 + 4)
        assert kernel.counters is not None and kernel.prediction is not None
        fetched = 4 * (pixels + 9 * 128) * 64 * 2
        assert kernel.prediction.bytes == pytest.approx(fetched)
        assert kernel.counters.tma_bytes == fetched + 4 * 128 * 128 * 2


def test_it_says_what_it_refuses() -> None:
    for problem, direction, why in (
        (ConvProblem.of((2, 64, 9, 9), (64, 64, 3, 3), stride=2), "forward", "divide the image"),
        (ConvProblem.of((2, 64, 8, 8), (64, 64, 2, 2), stride=2), "grad_input", "stride 1"),
        (ConvProblem.of((2, 60, 8, 8), (64, 60, 3, 3)), "forward", "60 channels in"),
        (ConvProblem.of((2, 64, 8, 8), (64, 1, 3, 3), groups=64), "forward", "1 channels in"),
        (ConvProblem.of((2, 32, 8), (64, 32, 3)), "forward", "channels last"),
        (ConvProblem.of((2, 64, 8, 8), (64, 64, 3, 3)), "grad_weight", "no grad_weight"),
    ):
        planned, operands = laid_out(problem, direction)
        assert why in (hopper.refuses(planned, direction, H100, operands) or ""), problem
    problem, operands = laid_out(LARGE, "forward")
    assert "sm_90" in (hopper.refuses(problem, "forward", KNOWN["A100"], operands) or "")
    contiguous = contiguous_operands(problem, "forward")
    assert "channels last" in (hopper.refuses(problem, "forward", H100, contiguous) or "")


# What orders accesses, in the kernel's text; what stands in its place; and whether it is for shared rows, or else, too.
ORDERING = {
    "a free slot": ("mbarrier.wait(x_empty.index(slot), phase)", "pass", "both"),
    "free filters": ("mbarrier.wait(w_empty.index(w_slot), w_phase)", "pass", "shared"),
    "a full slot": ("mbarrier.wait(x_full.index(slot), phase)", "pass", "both"),
    "full filters": ("mbarrier.wait(w_full.index(w_slot), w_phase)", "pass", "shared"),
    "a slot handed back": ("mbarrier.arrive(x_empty.index(slot_before(slot, STAGES)), pred=i > 0)", "pass", "both"),
    "filters handed back": (
        "mbarrier.arrive(w_empty.index(slot_before(w_slot, W_STAGES)), pred=i > 0)", "pass", "shared",
    ),
    "the product before": ("warpgroup_mma_wait(1, deps=(product,))", "warpgroup_mma_wait(2, deps=(product,))", "both"),
    "the last product": ("warpgroup_mma_wait(0, deps=(acc,))", "warpgroup_mma_wait(1, deps=(acc,))", "both"),
    "the residual": ("mbarrier.wait(came.index(ME), round)", "pass", "both"),
    "the residual's phase": ("round ^= 1", "pass", "both"),
    "a place for the residual": ("tma.store_wait(0)\n            mbarrier.expect", "mbarrier.expect", "both"),
    "the result before": ("tma.store_wait(0)  # the result before has left", "pass", "alone"),
    "the last result": ("    tma.store_wait(0)\n\n", "\n", "both"),
}  # fmt: skip


@emulated
@pytest.mark.full
@pytest.mark.parametrize(
    ("what", "shared"),
    [
        (what, shared)
        for what, (_, _, where) in ORDERING.items()
        for shared in (False, True)
        if shared or where != "shared"
    ],
)
def test_without_what_orders_accesses_a_fault_is_found(
    what: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, where = ORDERING[what]
    text = Path(hopper_conv.__file__).read_text()
    assert old in text
    monkeypatch.setattr(hopper, "hopper_conv", _kernel_of(text.replace(old, new), tmp_path))
    epilogue = NOTHING if where == "alone" else Epilogue(residual=True)
    plain = ConvProblem.of((5, 72, 7, 9), (64, 72, 3, 3), padding=1)
    problem, operands = laid_out(plain, "forward")
    offered = hopper.tiles(problem, "forward", H100, operands)
    (tile,) = (t for t in offered if (t.rows, t.columns, t.halo > 0) == (192, 64, shared))
    tile = dataclasses.replace(tile, persistent=2, stages=4 if shared else 3)  # with which neither ring waits for both
    case = Case("triton", "H100", "forward", "bfloat16", "channels_last", what, plain, tile, epilogue)
    assert complaint(case, SCHEDULES) is not None


def _kernel_of(text: str, folder: Path) -> Any:
    """The kernel of this text, beside the modules that it imports from."""
    file = folder / "altered.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("gpuconv.kernels.gluon.altered", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hopper_conv
