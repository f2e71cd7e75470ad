"""What the compiled grad_weight of the window kernels fetches, counted on the emulator, beside the oracle."""

import dataclasses

import pytest
import torch
from emulated import complaint
from lanes import INTERPRETING
from schedules import SCHEDULES
from sweep import Case

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import programs_of_grad_weight
from gpuconv.backends.triton import window_shape
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.emulator import device as emulator
from gpuconv.problem import ConvProblem

pytestmark = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
]

SINGLE = Tile(64, 64, 64, warps=4, stages=3, splits=2, kernel="window")
THREE = dataclasses.replace(SINGLE, depth=128, taps=3)
PROBLEMS = {
    "across images": ConvProblem.of((17, 40, 5, 3), (72, 40, 3, 3), padding=(1, 2)),
    "of an image, and a tap too many": ConvProblem.of((2, 64, 5, 19), (64, 64, 5, 2), padding=(2, 0)),
}


@pytest.mark.parametrize("numbers", ["bfloat16", pytest.param("tf32", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_three_taps_at_once_are_right_under_every_schedule(name: str, numbers: str) -> None:
    depth = 128 if numbers == "bfloat16" else 64
    tile = dataclasses.replace(THREE, depth=depth)
    case = Case("triton", "H100", "grad_weight", numbers, "channels_last", name, PROBLEMS[name], tile)
    assert window_shape.weight_window(case.problem, tile).by_row
    assert complaint(case, SCHEDULES) is None


def test_three_taps_at_once_fetch_less_than_half_and_what_is_predicted() -> None:
    problem = ConvProblem.of(
        (32, 64, 4, 3), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, memory_format=torch.channels_last
    )
    t = tensors(problem, "fetched", problem.dtype, "cpu", "channels_last")
    a, b = (t[name] for name in OPERANDS["grad_weight"])
    operands = Operands((a.stride(), b.stride()))
    fetched = []
    for tile in (SINGLE, THREE):
        with emulator.on("h100") as gpu:
            bind = backends.get("triton").bind
            bind(problem, "grad_weight", a.device, Activation("none"), operands, tile)(a, b, True)
        counters, window = gpu.counters()[0], window_shape.weight_window(problem, tile)
        assert window.by_row
        step = window_shape.step_bytes(problem, tile, window)
        assert counters.tma_bytes == programs_of_grad_weight(problem, tile) * window.number * step
        loop = counters.main_loop
        assert loop.global_sectors == 0 and loop.shared_passes == loop.shared_passes_least
        fetched.append(counters.tma_bytes)
    assert fetched[1] <= 0.5 * fetched[0]
