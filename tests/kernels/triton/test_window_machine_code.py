"""What the window and pointwise kernels compile to, with every tile that the planner can choose."""

import dataclasses
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from buffers import too_few

from gpuconv.activations import LIPSCHITZ, Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.elementwise import Elementwise
from gpuconv.backends.triton import (
    act_backward as triton_act,
    pointwise as triton_pointwise,
    window as triton_window,
    window_launch,
    window_shape,
)
from gpuconv.backends.triton.launch import Launch
from gpuconv.gpu import KNOWN
from gpuconv.inspection.machine_code import machine_code
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

GPUS = {90: "H100", 100: "B200", 120: "RTX 5090"}
NUMBERS = {"bfloat16": (torch.bfloat16, False), "tf32": (torch.float32, True)}
FAMILIES = {"window": triton_window, "pointwise": triton_pointwise}
# Many tiles for each multiprocessor, and few, so that sums are split; an odd image, so that each remainder has a view.
PROBLEMS = {
    "large": ConvProblem.of((64, 512, 56, 56), (512, 512, 3, 3), padding=1),
    "small": ConvProblem.of((4, 512, 14, 14), (512, 512, 3, 3), padding=1),
    "odd": ConvProblem.of((64, 512, 57, 57), (512, 512, 3, 3), padding=1, stride=2),
    "1x1": ConvProblem.of((64, 512, 28, 28), (512, 512, 1, 1)),
}
_OTHERS = [pytest.param(name, marks=pytest.mark.full) for name in PROBLEMS if name != "large"]


def launched(
    problem: ConvProblem, direction: Direction, numbers: str, capability: int, residual: bool = False,
    results: torch.memory_format = torch.channels_last,
) -> list[tuple[Tile, Launch]]:  # fmt: skip
    """Every kernel that could be chosen, with a bias, and where there is a residual the activation that takes most."""
    dtype, tf32 = NUMBERS[numbers]
    problem = dataclasses.replace(problem, dtype=dtype, memory_format=results)
    operands = plan.contiguous_operands(problem, direction, torch.channels_last)
    operands = operands._replace(tf32=tf32, bias=direction == "forward")
    if residual:
        like_y = torch.empty(problem.output_shape, device="meta", memory_format=results)
        operands = operands._replace(residual=like_y.stride())
    activation = Activation.parse("gelu" if residual else "relu")
    found: dict[tuple[object, ...], tuple[Tile, Launch]] = {}
    for family in FAMILIES.values():
        for tile in family.tiles(problem, direction, KNOWN[GPUS[capability]], operands):
            for launch in family.launches(problem, direction, operands, tile, activation, with_bias=True):
                key = (launch.kernel, launch.dtypes, *launch.constants.items(), *launch.options.items())
                found.setdefault(key, (tile, launch))
    return list(found.values())


def complaints(tile: Tile, launch: Launch, numbers: str, capability: int, direction: Direction) -> list[str]:
    """What is wrong with the code of a launch."""
    code, limit = machine_code(launch, capability), KNOWN[GPUS[capability]].shared_memory
    wrong = []
    if code.stack:
        wrong.append(f"{code.stack} bytes of stack at {code.registers} registers")
    if code.shared > limit:
        wrong.append(f"{code.shared} bytes of shared memory, where there are {limit}")
    if not (launch.descriptors or launch.described):  # it adds partial sums
        return wrong
    if not code.tensor_core:
        wrong.append("no tensor-core instruction")
    wrong += too_few(code.ttgir)
    if code.scratch > (window_launch.SCRATCH if launch.descriptors else 0):
        wrong.append(f"{code.scratch} bytes of scratch for each program")
    loop = code.loop_instructions
    if capability == 90 and not (loop["UTMALDG"] and loop["HGMMA"]):
        wrong.append(f"the loop is {loop}")
    if capability == 90:
        if loop["WARPGROUP"] >= 2 * loop["HGMMA"]:
            wrong.append(f"{loop['WARPGROUP']} WARPGROUP for {loop['HGMMA']} HGMMA")
        wrong += code.warnings  # C7515: the same
    in_place = direction != "grad_weight" or launch.constants["BY_ROW"]  # operands are read where they were fetched to
    # Is the epilogue a part of the loop, and are the products of two phases one loop?
    epilogue = launch.constants.get("PREFETCH", False) or tile.phases > 1
    if capability == 90 and numbers == "bfloat16" and in_place and not epilogue:
        wrong += [f"{loop[name]} {name} in the loop" for name in ("LDS", "STS", "LDSM", "LDG", "LDL") if loop[name]]
    return wrong


@pytest.mark.parametrize("problem", ["large", *_OTHERS])
@pytest.mark.parametrize("numbers", ["bfloat16", pytest.param("tf32", marks=pytest.mark.full)])
@pytest.mark.parametrize("capability", GPUS, ids="sm_{}".format)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_tile_compiles_well(
    direction: Direction, capability: int, numbers: str, problem: str, request: pytest.FixtureRequest
) -> None:
    """By default the largest tile alone, and on sm_90 also the one with the residual and activation that take most."""
    full = request.config.getoption("--full")
    with_residual = (False, True) if direction == "forward" and (full or capability == 90) else (False,)
    wrong = [
        f"{launch.kernel.__name__} {tile}: {complaint}"
        for residual in with_residual
        for tile, launch in launched(PROBLEMS[problem], direction, numbers, capability, residual)[: None if full else 1]
        for complaint in complaints(tile, launch, numbers, capability, direction)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("numbers", [pytest.param("bfloat16"), pytest.param("tf32", marks=pytest.mark.full)])
@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=pytest.mark.full) for c in (100, 120))])
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_contiguous_results_cost_no_spills(
    direction: Direction, capability: int, numbers: str, request: pytest.FixtureRequest
) -> None:
    """Addresses of their own for all elements of a tile would: the largest tile, of images whose rows are odd; and
    where a program computes two phases."""
    full = request.config.getoption("--full")

    def few(found: list[tuple[Tile, Launch]]) -> list[tuple[Tile, Launch]]:
        return found if full else [found[0], *[each for each in found if each[0].phases > 1][:1]]

    with_residual = (False, True) if direction == "forward" and full else (False,)
    wrong = [
        f"{tile}: {complaint}"
        for name in (PROBLEMS if full else ["odd"])
        for residual in with_residual
        for tile, launch in few(
            launched(PROBLEMS[name], direction, numbers, capability, residual, torch.contiguous_format)
        )
        for complaint in complaints(tile, launch, numbers, capability, direction)
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_pointwise_grad_weight_with_its_bias_compiles_well() -> None:
    """Its tiles are read where the copy engine put them: the bias's programs are to leave that as it is."""
    tile, launch = next(
        found for found in launched(PROBLEMS["1x1"], "grad_weight", "bfloat16", 90) if found[0].kernel == "pointwise"
    )
    assert not complaints(tile, launch, "bfloat16", 90, "grad_weight")
    loop = machine_code(launch, 90).loop_instructions
    assert not any(loop[name] for name in ("LDSM", "SHFL", "STS")), loop


@pytest.mark.skipif(window_shape.RELEASE < (3, 8), reason="before Triton 3.8 no window goes through registers")
def test_products_of_a_split_grad_weight_do_not_wait_for_one_another() -> None:
    """Where its loop may run no time, for all that ptxas knows, it waits after each (C7515) where one operand comes to
    registers: here windows are fetched whole."""
    wrong, seen = [], set()
    problem = ConvProblem.of((33, 512, 7, 7), (512, 512, 3, 3), padding=1)
    for tile, launch in launched(problem, "grad_weight", "bfloat16", 90):
        kind = tile.rows, tile.columns
        if not launch.described or launch.constants["BY_ROW"] or tile.splits == 1 or kind in seen:
            continue
        seen.add(kind)
        code = machine_code(launch, 90)
        loop = code.loop_instructions
        if code.warnings or loop["WARPGROUP"] >= 2 * loop["HGMMA"]:
            wrong.append(f"{tile}: {code.warnings}, {loop['WARPGROUP']} WARPGROUP for {loop['HGMMA']} HGMMA")
    assert len(seen) > 2 and not wrong, "\n".join(wrong)


def test_a_bias_leaves_the_loop_of_a_grad_weight_as_it_is() -> None:
    tile = Tile(128, 64, 128, warps=8, stages=3, splits=2, kernel="window", taps=3)
    problem = dataclasses.replace(PROBLEMS["large"], dtype=torch.bfloat16, memory_format=torch.channels_last)
    operands = plan.contiguous_operands(problem, "grad_weight", torch.channels_last)
    with_bias, without = (
        machine_code(triton_window.launches(problem, "grad_weight", operands, tile, with_bias=bias)[0], 90)
        for bias in (True, False)
    )
    loop = with_bias.loop_instructions
    assert abs(loop.total() - without.loop_instructions.total()) <= 10
    # 24 products of 16 pixels each, of one fetch of gy and half as much again of x
    assert loop["HGMMA"] == 24 and loop["UTMALDG"] == 4 + 6
    assert loop.total() <= 400  # 50 more than with descriptors made in the kernel, which cost far more than a loop
    assert not any(loop[name] for name in ("LDSM", "LDS", "STS", "SHFL")), loop


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("activation", LIPSCHITZ)
def test_no_subnormal_number_is_flushed_to_zero(activation: str, numbers: str) -> None:
    """All of an epilogue is in the short kernel that adds up a split forward. Of libdevice's erf alone is flushing not
    to be had out; it does no harm: erf is only ever added to 1, beside which a subnormal number is nothing."""
    dtype, tf32 = NUMBERS[numbers]
    problem = dataclasses.replace(PROBLEMS["small"], dtype=dtype, memory_format=torch.channels_last)
    operands = plan.contiguous_operands(problem, "forward", torch.channels_last)
    like_y = torch.empty(problem.output_shape, device="meta", memory_format=torch.channels_last)
    operands = operands._replace(tf32=tf32, bias=True, residual=like_y.stride())
    tile = Tile(64, 64, 32, warps=4, stages=2, splits=2, kernel="window")
    chosen = Activation.parse(activation if activation != "leaky_relu" else "leaky_relu(0.2)")
    _, add = triton_window.launches(problem, "forward", operands, tile, chosen)
    codes = [machine_code(add, 90).ptx]
    if activation != "none":
        e = Elementwise(problem.output_shape, dtype, torch.channels_last, like_y.stride(), False, chosen)
        codes += [machine_code(launch, 90).ptx for launch in triton_act.launches(e, KNOWN["H100"])]
    erf = {"abs.ftz.f32", "fma.rn.ftz.f32", "ex2.approx.ftz.f32"} if activation == "gelu" else set()
    for ptx in codes:
        assert {*re.findall(r"[a-z][\w.]*\.ftz[\w.]*", ptx)} <= erf
        assert len(re.findall("fma.rn.ftz", ptx)) == 7 * len(re.findall("ex2.approx.ftz", ptx))  # its polynomial
