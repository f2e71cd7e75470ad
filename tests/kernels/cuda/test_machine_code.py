"""The machine code of the SIMT and tensor-core kernels: registers, spills, shared memory, instructions. Needs no GPU.

Every kernel in every dtype is compiled for each architecture, with one of its tiles, another for each architecture;
`--full` compiles every tile for every architecture.
"""

import dataclasses
import functools

import pytest
import torch

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import simt as cuda_simt
from gpuconv.backends.cuda.backend import FAMILIES, launches
from gpuconv.backends.cuda.launch import Instance
from gpuconv.gpu import REPRESENTATIVE, Gpu
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

pytest.importorskip("cupy", reason="CuPy, whose NVRTC compiles these, is not installed")
machine_code = pytest.importorskip(
    "gpuconv.inspection.machine_code", reason="Triton, whose cuobjdump reads cubins, is not installed"
)

GPUS = {machine_code.cuda_architecture(gpu): gpu for gpu in REPRESENTATIVE.values()}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
REGISTERS = 65536  # of a multiprocessor


def problem_of(dtype: torch.dtype) -> ConvProblem:
    size, taps = (32, 128, 28, 28), (128, 128, 3, 3)
    return ConvProblem.of(size, taps, padding=1, dtype=dtype, memory_format=torch.channels_last)


@functools.cache
def tiles(kernel: str, dtype: torch.dtype, direction: Direction, gpu: Gpu) -> list[tuple[Operands, Tile]]:
    """The tiles of a kernel that the planner may choose on `gpu`, in channels-last layout."""
    problem = problem_of(dtype)
    operands = contiguous_operands(problem, direction, torch.channels_last)
    operands = operands._replace(tf32=dtype is torch.float32 and kernel != "simt")
    if kernel == "simt":
        found = cuda_simt.menu(problem, direction, gpu)
    else:
        found = [*FAMILIES[kernel].tiles(problem, direction, gpu, operands)]
    return list(dict.fromkeys((operands, dataclasses.replace(tile, splits=1)) for tile in found))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    cases = []
    for turn, (architecture, gpu) in enumerate(GPUS.items()):
        for kernel in ("simt", "tensor", "halo"):
            for dtype in DTYPES:
                for direction in DIRECTIONS:
                    offered = tiles(kernel, dtype, direction, gpu)
                    for operands, tile in offered if full else offered[turn % max(1, len(offered)) :][:1]:
                        shape = f"{tile.rows}x{tile.columns}x{tile.depth}"
                        name = f"{architecture}-{kernel}-{direction}-{str(dtype).removeprefix('torch.')}-{shape}"
                        cases.append(pytest.param(architecture, dtype, direction, operands, tile, id=name))
    metafunc.parametrize(("architecture", "dtype", "direction", "operands", "tile"), cases)


def test_compiles_within_its_budget(
    architecture: str, dtype: torch.dtype, direction: Direction, operands: Operands, tile: Tile
) -> None:
    instance = launches(problem_of(dtype), direction, operands, tile)[0].instance
    code = machine_code.cuda_machine_code(instance, architecture)
    assert code.registers * instance.threads <= REGISTERS
    assert code.shared <= GPUS[architecture].shared_memory
    assert code.spills_in_product == 0
    if tile.kernel == "simt":
        _assert_simt(code, instance, dtype, tile, direction)
    else:
        assert code.tensor_core > 0
        assert code.of_16_bytes["LDGSTS"] > 0 or architecture == "sm_75"  # cp.async


def _assert_simt(
    code: "machine_code.MachineCode", instance: Instance, dtype: torch.dtype, tile: Tile, direction: Direction
) -> None:
    """Three blocks of 128 threads, or 512 threads otherwise, on a multiprocessor; sums in registers; wide loads."""
    together = 3 if instance.threads == 128 else 512 // instance.threads
    assert code.registers <= REGISTERS // (together * instance.threads)
    # Before sm_90 the taps of a phase, which are read once in a while, do not fit beside 64 sums.
    tight = direction == "grad_input" and dtype is torch.float32 and tile.columns == 128
    assert code.stack <= (16 if tight else 0)
    assert code.shared <= 48 << 10
    assert code.tensor_core == 0
    products = code.instructions["DFMA" if dtype is torch.float64 else "FFMA"]
    assert products >= tile.rows * tile.columns * tile.depth // instance.threads
    assert code.of_16_bytes["LDG"] > 0
    assert code.of_16_bytes["LDS"] > 0
