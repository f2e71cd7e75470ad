"""grad_input of the window kernels as TF32, with weights that have been turned: no operand passes through registers."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import sweep
from emulated import complaint, lane_of
from lanes import INTERPRETING
from schedules import SCHEDULES

from gpuconv.backends import packing
from gpuconv.backends.triton import backend
from gpuconv.gpu import KNOWN
from gpuconv.planning.ranking import candidates
from gpuconv.problem import ConvProblem

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")

PROBLEMS = {
    "3x3": ConvProblem.of((2, 64, 9, 7), (96, 64, 3, 3), padding=1),
    "groups": ConvProblem.of((1, 128, 6, 8), (128, 64, 3, 3), padding=1, groups=2),
    "stride": ConvProblem.of((1, 32, 9, 10), (64, 32, 3, 3), padding=1, stride=2),
    "dilation": ConvProblem.of((1, 24, 9, 11), (32, 24, 5, 3), padding=2, dilation=(1, 2)),
    "1x1": ConvProblem.of((2, 72, 8, 10), (64, 72, 1, 1)),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_turned_weights_give_the_gradient(name: str, layout: str) -> None:
    with lane_of("triton", "H100").entered():
        pass
    plain = PROBLEMS[name]
    problem, operands = sweep.as_planned(plain, "grad_input", "tf32", layout)
    found = backend.TritonBackend().tiles(problem, "grad_input", KNOWN["H100"], operands)
    tile = [tile for tile in found if packing.TURNED_WEIGHT in tile.packs][-1]
    case = sweep.Case("triton", "H100", "grad_input", "tf32", layout, "3x3-same", plain, tile)
    assert complaint(case, SCHEDULES[:2]) is None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_they_are_chosen_for_real_layers(layout: str) -> None:
    plain = ConvProblem.of((64, 128, 28, 28), (128, 128, 3, 3), padding=1)
    problem, operands = sweep.as_planned(plain, "grad_input", "tf32", layout)
    best = candidates(problem, "grad_input", KNOWN["H100"], operands)[0][0]
    assert packing.TURNED_WEIGHT in best.tile.packs and best.tile.kernel in ("window", "hopper")


def test_the_loop_touches_shared_memory_through_the_copy_engine_alone() -> None:
    from gpuconv.inspection.machine_code import machine_code

    plain = PROBLEMS["3x3"]
    problem, operands = sweep.as_planned(plain, "grad_input", "tf32", "channels_last")
    found = backend.TritonBackend().tiles(problem, "grad_input", KNOWN["H100"], operands)
    tile = [tile for tile in found if packing.TURNED_WEIGHT in tile.packs and tile.kernel == "window"][-1]
    loop = machine_code(backend.launches(problem, "grad_input", operands, tile)[1], 90).loop_instructions
    assert loop["HGMMA"] > 0 and loop["UTMALDG"] == 2
    assert not loop["LDSM"] + loop["STS"], loop
