"""The machine code of the tensor-core kernels, beyond test_machine_code.py: large and small tiles, how data move."""

import dataclasses
import itertools

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import halo as cuda_halo, tensor as cuda_tensor
from gpuconv.backends.cuda.launch import Instance
from gpuconv.gpu import REPRESENTATIVE, Gpu
from gpuconv.inspection.machine_code import MachineCode, cuda_architecture, cuda_machine_code
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

GPUS = {cuda_architecture(gpu): gpu for gpu in REPRESENTATIVE.values()}
REGISTERS = 65536  # of a multiprocessor
KINDS = [(direction, kernel) for direction in DIRECTIONS for kernel in ("tensor", "halo")][:-1]


def problem_of(dtype: torch.dtype, channels: int, layout: torch.memory_format) -> ConvProblem:
    shape = (8, channels, 28, 28), (channels, channels, 3, 3)
    return ConvProblem.of(*shape, padding=1, dtype=dtype, memory_format=layout)


def offered(
    gpu: Gpu, direction: Direction, kernel: str, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> tuple[ConvProblem, Operands, list[Tile]]:
    """A layer with many channels, and the tiles of a kind that `gpu` is offered for it, largest first."""
    problem = problem_of(dtype, 256, layout)
    operands = contiguous_operands(problem, direction, layout)._replace(tf32=dtype is torch.float32, bias=True)
    family = {"tensor": cuda_tensor.FAMILY, "halo": cuda_halo.FAMILY}[kernel]
    tiles = family.tiles(problem, direction, gpu, operands)
    found = dict.fromkeys(dataclasses.replace(tile, splits=1) for tile in tiles)
    return problem, operands, list(found)


def assert_compiles_well(instance: Instance, architecture: str) -> MachineCode:
    code = cuda_machine_code(instance, architecture)
    assert code.spills == 0, (instance, code)
    assert code.registers * instance.threads <= REGISTERS, (instance, code)
    assert code.instructions["HMMA"] > 0, (instance, code)
    return code


def assert_moves_16_bytes(code: MachineCode, architecture: str) -> None:
    """Tiles come in by cp.async (before sm_80 through registers) and go out, all 16 bytes at a time."""
    assert code.of_16_bytes["STG"] > 0, code
    if architecture == "sm_75":
        assert code.of_16_bytes["LDG"] > 0 and code.of_16_bytes["STS"] > 0, code
    else:
        assert code.instructions["LDGSTS"] > 0, code


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a"])
@pytest.mark.parametrize(("direction", "kernel"), KINDS)
def test_float16(direction: Direction, kernel: str, architecture: str, pytestconfig: pytest.Config) -> None:
    problem, operands, tiles = offered(GPUS[architecture], direction, kernel, torch.float16)
    for tile in tiles if pytestconfig.getoption("--full") else (tiles[0], tiles[-1]):
        instance = cuda_tensor.instance(problem, direction, operands, tile, wide=False)
        code = assert_compiles_well(instance, architecture)
        assert code.instructions["LDSM"] > 0, code
        assert_moves_16_bytes(code, architecture)


@pytest.mark.parametrize("architecture", ["sm_80"])
@pytest.mark.parametrize(("direction", "kernel"), KINDS)
def test_tf32(direction: Direction, kernel: str, architecture: str, pytestconfig: pytest.Config) -> None:
    problem, operands, tiles = offered(GPUS[architecture], direction, kernel, torch.float32)
    for tile in tiles if pytestconfig.getoption("--full") else (tiles[0], tiles[-1]):
        instance = cuda_tensor.instance(problem, direction, operands, tile, wide=False)
        code = assert_compiles_well(instance, architecture)
        assert (code.instructions["LDSM"] > 0) == (direction != "grad_weight"), code  # it cannot transpose floats
        assert_moves_16_bytes(code, architecture)


@pytest.mark.parametrize(
    ("kernel", "most"),
    [("tensor", 280), ("halo", 350)],  # with the copy of a window, once for all taps, and its loop
    ids=["tensor", "halo"],
)
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_a_step_of_the_loop_is_little_more_than_its_products(direction: Direction, kernel: str, most: int) -> None:
    problem, operands, (tile, *_) = offered(GPUS["sm_80"], direction, kernel, torch.float16)
    assert (tile.rows, tile.columns, tile.depth) == (256, 128, 64)
    code = assert_compiles_well(cuda_tensor.instance(problem, direction, operands, tile, wide=False), "sm_80")
    assert code.loop_instructions["HMMA"] == 128
    assert code.loop_instructions["LDSM"] == 32
    assert sum(code.loop_instructions.values()) <= most, code.loop_instructions


@pytest.mark.parametrize(("direction", "kernel"), KINDS)
def test_bfloat16_with_wide_offsets(direction: Direction, kernel: str) -> None:
    problem, operands, (tile, *_) = offered(GPUS["sm_90a"], direction, kernel, torch.bfloat16)
    assert_compiles_well(cuda_tensor.instance(problem, direction, operands, tile, wide=True), "sm_90a")


@pytest.mark.parametrize("architecture", ["sm_80"])
@pytest.mark.parametrize(("direction", "kernel"), KINDS)
def test_element_by_element(direction: Direction, kernel: str, architecture: str) -> None:
    layout = torch.contiguous_format
    problem, operands, (tile, *_) = offered(GPUS[architecture], direction, kernel, torch.float16, layout)
    instance = cuda_tensor.instance(problem, direction, operands, tile, wide=False)
    assert "-DA_VECTOR=0" in instance.options
    assert_compiles_well(instance, architecture)


@pytest.mark.parametrize("architecture", GPUS)
def test_every_tile_fits_the_shared_memory(architecture: str) -> None:
    gpu = GPUS[architecture]
    layouts = (torch.channels_last, torch.contiguous_format)
    for direction, dtype, channels, layout, wide in itertools.product(
        DIRECTIONS, (torch.float16, torch.bfloat16, torch.float32), (4, 16, 48, 256), layouts, (False, True)
    ):
        problem = problem_of(dtype, channels, layout)
        operands = contiguous_operands(problem, direction, layout)._replace(tf32=True)
        tiles = cuda_tensor.tiles(problem, direction, gpu, operands)
        assert bool(tiles) == (architecture != "sm_75" or dtype is torch.float16)
        for tile in (*tiles, *cuda_halo.tiles(problem, direction, gpu, operands)):
            assert cuda_tensor.instance(problem, direction, operands, tile, wide).shared <= gpu.shared_memory
