"""Every kernel as it is compiled for GPUs computes what the oracle says, under every schedule, and no check fires.

Triton's kernels compiled for sm_80 (A100) and sm_90 (H100), CUDA C's for sm_75 (T4) too. What runs by default:

- every (backend, GPU, family, direction, number type, layout) that any family says it takes, on a small problem;
- what the planner chooses for each curated problem and for 20 random ones, in each direction, for one of the GPUs, in
  one number type and layout (sliced and expanded ones among them): another one for each direction and problem;
- with each family's forward passes every epilogue: no bias, a bias, a residual, each activation;
- every tile that the planner chooses for the thirty layers (bench/suites.py), for one of the GPUs, number types and
  layouts that it is chosen for: the kernel that is compiled for the layer, on a problem that has less of everything.

Each within the oracle's bound, every element written and none beside it, inputs as they were, and the same bits whether
asynchronous work is done early, late or in two random orders (tiles of real layers: in two of these four, in turn).

`--full` takes the whole product: all curated problems and 300 random ones, on each GPU, in each number type and layout,
with each epilogue; each tile for each GPU, number type and layout that it is chosen for, under all four schedules.
"""

import itertools

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import sweep
from emulated import complaint, lane_of
from lanes import INTERPRETING
from schedules import SCHEDULES

from gpuconv.checking.precision import NUMBERS
from gpuconv.problem import DIRECTIONS, Direction

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")


def skip_unless_it_compiles(backend: str) -> None:
    with lane_of(backend, "A100").entered():
        pass


def cases(config: pytest.Config, backend: str) -> tuple[tuple[sweep.Case, ...], tuple[sweep.Case, ...]]:
    full = config.getoption("--full")
    return sweep.cases(backend, 300 if full else 20, full)


each_kind = pytest.mark.parametrize(
    ("backend", "direction", "numbers"), list(itertools.product(sweep.GPUS, DIRECTIONS, NUMBERS))
)


@each_kind
def test_compiled_kernels_are_right_under_every_schedule(
    backend: str, direction: Direction, numbers: str, pytestconfig: pytest.Config
) -> None:
    skip_unless_it_compiles(backend)
    small, _ = cases(pytestconfig, backend)
    mine = [case for case in small if (case.direction, case.numbers) == (direction, numbers)]
    wrong = [complaint(case) for case in mine]
    assert mine and not any(wrong), "\n".join(filter(None, wrong))


@each_kind
def test_tiles_of_real_layers_are_right(
    backend: str, direction: Direction, numbers: str, pytestconfig: pytest.Config
) -> None:
    skip_unless_it_compiles(backend)
    _, tiles = cases(pytestconfig, backend)
    wrong = []
    for at, case in enumerate(tiles):
        if (case.direction, case.numbers) == (direction, numbers):
            two = SCHEDULES[at % 2], SCHEDULES[2 + at // 2 % 2]
            case = sweep.smallest(case)
            assert case.plain.flops < 6e8, case
            wrong.append(complaint(case, SCHEDULES if pytestconfig.getoption("--full") else two))
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("backend", sweep.GPUS)
def test_the_cases_are_all_that_any_family_says_it_takes(backend: str, pytestconfig: pytest.Config) -> None:
    small, tiles = cases(pytestconfig, backend)
    claimed = {kind for lane in sweep.LANES if lane[0] == backend for kind in sweep.claimed(lane)}
    assert claimed <= {case.kind for case in (*small, *tiles)}
    forward = [case for case in small if case.direction == "forward"]
    families = sweep.MODULES[backend].FAMILIES
    assert {family.removeprefix("packed ") for _, _, family, *_ in claimed} == {*families}
    for family in {name.removeprefix("packed ") for _, _, name, direction, *_ in claimed if direction == "forward"}:
        assert {case.epilogue for case in forward if case.tile.kernel == family} == {*sweep.EPILOGUES}, family
    assert {(case.name, case.direction) for case in small} >= {
        (name, direction) for name in sweep.CURATED for direction in DIRECTIONS
    }
    assert len(tiles) > 100


def test_nothing_beside_a_run_of_results_is_activated() -> None:
    """Depthwise results of packed planes pass through shared memory in vectors, which at a run's ends are written in
    part; gelu branches on what it is given."""
    skip_unless_it_compiles("cuda")
    plain = sweep.SMALL["7x7-depthwise"]
    tile = sweep.menu("cuda", "A100", "forward", "bfloat16", "contiguous", plain)[0]
    gelu = sweep.Epilogue(True, True, "gelu")
    case = sweep.Case("cuda", "A100", "forward", "bfloat16", "contiguous", "7x7-depthwise", plain, tile, gelu)
    assert tile.kernel == "depthwise" and complaint(case) is None
