"""Every kernel that the planner chooses for thirty real layers compiles for six GPUs, and to what it should."""

import dataclasses
import itertools

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from buffers import too_few

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.elementwise import Elementwise
from gpuconv.backends.triton import act_backward as triton_act, backend
from gpuconv.backends.triton.backend import launches
from gpuconv.backends.triton.compiler import compile_for
from gpuconv.backends.triton.launch import Launch
from gpuconv.bench import suites
from gpuconv.gpu import KNOWN
from gpuconv.inspection.machine_code import MachineCode, machine_code
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

GPUS = {80: "A100", 86: "RTX 3090", 89: "L4", 90: "H100", 100: "B200", 120: "RTX 5090"}
NUMBERS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
    "float64": (torch.float64, False),
}
FORMATS = (torch.contiguous_format, torch.channels_last)


def planned(
    name: str, direction: Direction, numbers: str, memory_format: torch.memory_format, capability: int
) -> tuple[Launch, ...]:
    """What the planner launches for a layer: with a bias, which only adds to a kernel."""
    gpu, (dtype, tf32) = KNOWN[GPUS[capability]], NUMBERS[numbers]
    problem = suites.layer(f"thirty.{name}", 32, dtype, memory_format)
    operands = plan.contiguous_operands(problem, direction, memory_format)
    operands = operands._replace(tf32=tf32, bias=direction == "forward")
    candidates = backend.TritonBackend().tiles(problem, direction, gpu, operands)
    tile = ranking.best_tile(backends.get("triton"), candidates, problem, direction, gpu, tf32)
    assert tile is not None
    return launches(problem, direction, operands, tile, with_bias=True)


def instances(capability: int, numbers: str) -> dict[tuple[object, ...], tuple[str, Launch]]:
    """The different kernels among all layers, directions and formats, each with what it is first needed for."""
    found: dict[tuple[object, ...], tuple[str, Launch]] = {}
    for name in suites.SUITES["thirty"].layers:
        for memory_format in FORMATS:
            for direction in DIRECTIONS:
                for launch in planned(name, direction, numbers, memory_format, capability):
                    key = (launch.kernel, launch.dtypes, *launch.constants.items(), *launch.options.items())
                    found.setdefault(key, (f"{name} {direction} {memory_format}", launch))
    return found


def complaints(code: MachineCode, launch: Launch, capability: int, numbers: str) -> list[str]:
    """What is wrong with the code of a launch."""
    wrong = []
    if code.stack:
        wrong.append(f"{code.stack} bytes of stack at {code.registers} registers")
    limit = KNOWN[GPUS[capability]].shared_memory
    if code.shared > limit:
        wrong.append(f"{code.shared} bytes of shared memory, where there are {limit}")
    name = launch.kernel.__name__
    if capability == 90 and numbers == "float16" and name.endswith("grad_weight") and code.warnings:
        wrong.append(f"ptxas warns: {code.warnings}")  # assembled once more, so only with --full
    multiplies = not name.startswith(("depthwise_", "sum_", "window_sum", "pack"))  # on tensor cores, where they can
    if multiplies and numbers in ("float16", "bfloat16", "tf32") and not code.tensor_core:
        wrong.append("no tensor-core instruction")
    return wrong + too_few(code.ttgir)


# By default not everything is compiled for everything: float16 and bfloat16 differ in the suffix of an instruction, for
# these kernels sm_89 differs from sm_86 in its name, and multiply-adds are the same everywhere.
_WITH_FULL = {
    *((90, "float32"), (90, "float64"), (100, "float64"), (120, "float32")),
    *((80, "bfloat16"), (90, "float16"), (100, "float16"), (120, "bfloat16")),
    *((86, "bfloat16"), (86, "float32"), (86, "float64"), *((89, numbers) for numbers in NUMBERS)),
}
_PAIRS = [
    pytest.param(capability, numbers, marks=[pytest.mark.full] * ((capability, numbers) in _WITH_FULL))
    for capability in GPUS
    for numbers in NUMBERS
]


@pytest.mark.parametrize(("capability", "numbers"), _PAIRS, ids=str)
def test_all_that_the_planner_chooses_compiles_well(capability: int, numbers: str, pytestconfig: pytest.Config) -> None:
    """What of these tests/emulator/test_sweep.py runs is compiled once for both, by way of Triton's cache."""
    wrong = []
    for needed_for, launch in instances(capability, numbers).values():
        if launch.descriptors or launch.described:
            continue  # test_window_machine_code.py has every tile of theirs
        if (
            launch.kernel.__name__.startswith(("depthwise_", "pack"))
            and capability != 80
            and not pytestconfig.getoption("--full")
        ):
            continue  # no tensor cores, little difference; test_depthwise_machine_code.py has some for the others
        for complaint in complaints(machine_code(launch, capability), launch, capability, numbers):
            wrong.append(f"{needed_for}: {launch.kernel.__name__} {launch.constants}: {complaint}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("capability", "product"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA"), (120, "HMMA")], ids="{0}".format
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_channels_last_tiles_are_fetched_asynchronously_in_vectors(
    direction: Direction, capability: int, product: str
) -> None:
    launch = planned("resnet50-14-3x3", direction, "bfloat16", torch.channels_last, capability)[0]
    compiled = machine_code(launch, capability)
    code = compiled.instructions
    assert code[product] > 0
    # 16 bytes a thread from global to shared memory, past the registers; or whole tiles by the copy engine
    assert code["LDGSTS"] + code["UTMALDG"] > 0
    # The bias, or sums to be added; not the tiles, element by element.
    assert code["LDG"] <= 16 or not compiled.loop_instructions["LDG"]
    assert code["LDL"] == code["STL"] == 0


ACTIVATIONS = ("relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_what_the_layers_do_not_use_compiles_too(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations, residuals in the other format, 64-bit offsets, long filters, three axes: the interpreter takes what
    the compiler does not."""
    tile = Tile(64, 32, 16, warps=4, stages=2)
    monkeypatch.setattr("gpuconv.backends.derived._MOST_OFFSET", 0)
    contiguous = memory_format is torch.contiguous_format
    problem = ConvProblem.of(
        (2, 32, 4, 5, 12), (32, 32, 2, 3, 11), padding=((1, 0), (2, 1), (5, 5)), stride=(1, 2, 3),
        dtype=torch.bfloat16 if contiguous else torch.float64, memory_format=memory_format,
    )  # fmt: skip
    other = torch.channels_last_3d if contiguous else torch.contiguous_format
    residual = torch.empty(problem.output_shape, device="meta").contiguous(memory_format=other).stride()
    operands = plan.contiguous_operands(problem, "forward", memory_format)._replace(residual=residual, bias=True)
    for activation in ACTIVATIONS[contiguous::2]:
        (launch,) = launches(problem, "forward", operands, tile, Activation.parse(activation))
        assert launch.constants["WIDE"] and launch.constants["INSIDE"] == "compare"
        assert machine_code(launch, 80).tensor_core
    operands = plan.contiguous_operands(problem, "grad_input", memory_format)
    assert machine_code(launches(problem, "grad_input", operands, tile)[0], 80).tensor_core
    operands = plan.contiguous_operands(problem, "grad_weight", memory_format)
    tile = dataclasses.replace(tile, splits=2)
    (gather,) = launches(problem, "grad_weight", operands, tile, with_bias=contiguous)
    assert gather.workspace.counters and machine_code(gather, 80).tensor_core


@pytest.mark.full
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("capability", GPUS, ids="sm_{}".format)
@pytest.mark.parametrize("family", ["cells", "stem", "planes"])
def test_every_tile_that_could_be_chosen_compiles_well(family: str, capability: int, numbers: str) -> None:
    dtype, tf32 = NUMBERS[numbers]
    wrong = []
    for filters, memory_format, direction in itertools.product((16, 256), FORMATS, DIRECTIONS):
        shapes = {
            "cells": ((32, 3, 64, 64), (filters, 3, 7, 7), 2, 3),
            "stem": ((32, 3, 64, 64), (filters, 3, 7, 7), 2, 3),
            "planes": ((32, 64, 28, 28), (filters, 64, 1, 1)),
        }
        problem = ConvProblem.of(*shapes[family], dtype=dtype, memory_format=memory_format)
        operands = plan.contiguous_operands(problem, direction, memory_format)
        operands = operands._replace(tf32=tf32, bias=direction == "forward")
        tiles = backend.FAMILIES[family].tiles(problem, direction, KNOWN[GPUS[capability]], operands)
        for tile in {dataclasses.replace(tile, splits=1) for tile in tiles}:
            *_, launch = launches(problem, direction, operands, tile, with_bias=True)
            wrong += complaints(machine_code(launch, capability), launch, capability, numbers)
    assert not wrong, "\n".join(wrong)


def test_few_kernels_serve_many_layers() -> None:
    for capability in GPUS:
        for numbers in NUMBERS:
            # of 180 calls; Hopper has families of its own, beside those that take what they do not
            assert len(instances(capability, numbers)) <= 200, (capability, numbers)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["flat", "channels_last", "contiguous"])
def test_act_backward_moves_16_bytes_a_thread_and_spills_nothing(kind: str, capability: int) -> None:
    memory_format = torch.channels_last if kind == "channels_last" else torch.contiguous_format
    shape = (32, 64, 28, 28)
    strides = torch.empty(shape, device="meta").contiguous(memory_format=memory_format).stride()
    e = Elementwise(shape, torch.bfloat16, memory_format, strides, kind != "flat", Activation("gelu"))
    first, *add = triton_act.launches(e, KNOWN[GPUS[capability]])
    code = machine_code(first, capability)
    assert code.of_16_bytes["LDG"] >= 2 and code.of_16_bytes["STG"] and not code.spills
    assert len(add) == (kind != "flat")
    assert not any(machine_code(launch, capability).stack for launch in add)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_axis_of_more_than_2_to_the_31_compiles(direction: Direction) -> None:
    """Its sizes and strides are 64-bit arguments, and what a loop carries may not change its type for them."""
    problem = ConvProblem.of((2, 1, 2**31 + 64), (1, 1, 3), padding=1, dtype=torch.float16)
    operands = plan.contiguous_operands(problem, direction)
    for name, family in backend.FAMILIES.items():
        for tile in family.tiles(problem, direction, KNOWN["H100"], operands)[-1:]:
            for launch in family.launches(problem, direction, operands, tile, with_bias=True):
                assert compile_for(launch, 90).asm["cubin"], name


def test_no_launch_has_more_programs_than_cuda_allows() -> None:
    """2³¹ − 1 on the first axis. Two pixels an image and one channel a group: the most programs for the memory."""
    problem = ConvProblem.of((10**6, 4096, 1, 2), (4096, 1, 1, 1), groups=4096, dtype=torch.float16)
    for direction in DIRECTIONS:
        operands = plan.contiguous_operands(problem, direction)
        tiles = backend.TritonBackend().tiles(problem, direction, KNOWN["H100"], operands)
        best = ranking.best_tile(backends.get("triton"), tiles, problem, direction, KNOWN["H100"], False)
        assert best is not None
        assert all(launch.programs < 2**31 for launch in launches(problem, direction, operands, best, with_bias=True))
        assert all(
            launches(problem, direction, operands, tile)[0].programs < 2**31
            for tile in tiles
            if tile.kernel == "planes"
        )
