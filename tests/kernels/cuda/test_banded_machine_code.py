"""The machine code of the banded kernels: products on tensor cores, 16 bytes at a time, nothing spilled."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.cuda import banded as cuda_banded
from gpuconv.bench import suites
from gpuconv.gpu import REPRESENTATIVE
from gpuconv.inspection.machine_code import cuda_architecture, cuda_machine_code
from gpuconv.problem import DIRECTIONS, Direction

GPUS = {cuda_architecture(gpu): gpu for gpu in REPRESENTATIVE.values() if gpu.capability >= (8, 0)}
REGISTERS = 65536  # of a multiprocessor


def offered(architecture: str, direction: Direction, dtype: torch.dtype, name: str):
    problem = suites.layer(f"replknet31.{name}", dtype=dtype)
    operands = contiguous_operands(problem, direction)._replace(tf32=dtype is torch.float32, bias=True)
    tiles = cuda_banded.tiles(problem, direction, GPUS[architecture], operands)
    return problem, operands, list(dict.fromkeys(dataclasses.replace(tile, splits=1) for tile in tiles))


def assert_compiles_well(architecture: str, direction: Direction, dtype: torch.dtype, name: str, tile: Tile) -> None:
    problem, operands, _ = offered(architecture, direction, dtype, name)
    instance = cuda_banded.instance(problem, direction, operands, tile)
    code = cuda_machine_code(instance, architecture)
    assert code.spills == 0, (instance, code)
    assert code.registers * instance.threads <= REGISTERS, (instance, code)
    assert code.instructions["HMMA"] > 0, (instance, code)
    assert (code.instructions["LDSM"] > 0) == (dtype is not torch.float32 or direction != "grad_weight"), code
    if name == "depthwise31":  # rows of 56: what moves is aligned to 16 bytes
        assert code.of_16_bytes["LDGSTS"] > 0, (instance, code)
        assert code.of_16_bytes["STG"] > 0 or direction == "grad_weight", (instance, code)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("sm_80", torch.float32), ("sm_90a", torch.bfloat16)],
    ids=["sm_80-tf32", "sm_90a-bfloat16"],
)
def test_largest_tile_of_31x31(architecture: str, dtype: torch.dtype, direction: Direction) -> None:
    _, _, (tile, *_) = offered(architecture, direction, dtype, "depthwise31")
    assert_compiles_well(architecture, direction, dtype, "depthwise31", tile)


@pytest.mark.full
@pytest.mark.parametrize("architecture", GPUS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_tile(architecture: str, direction: Direction) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for name in ("depthwise31", "depthwise27", "depthwise13"):
            for tile in offered(architecture, direction, dtype, name)[2]:
                assert_compiles_well(architecture, direction, dtype, name, tile)


@pytest.mark.parametrize("architecture", GPUS)
def test_every_tile_fits_the_shared_memory(architecture: str) -> None:
    for direction in DIRECTIONS:
        for dtype in (torch.float16, torch.float32):
            for name in ("depthwise31", "depthwise29", "depthwise27", "depthwise13"):
                problem, operands, tiles = offered(architecture, direction, dtype, name)
                assert tiles
                for tile in tiles:
                    shared = cuda_banded.instance(problem, direction, operands, tile).shared
                    assert shared <= GPUS[architecture].shared_memory, (name, tile)
