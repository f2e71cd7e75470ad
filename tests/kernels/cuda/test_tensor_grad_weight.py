"""grad_weight on tensor cores: what its loop executes, and how it moves data, on a virtual GPU."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends, emulator, reference
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Tile
from gpuconv.backends.cuda import tensor as cuda_tensor
from gpuconv.inspection.machine_code import cuda_machine_code
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import ConvProblem
from gpuconv.reference import assert_close_to_oracle

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
# 64 products each: fragments (16 LDSM, or 64 LDS), 8 copies, and what finds pixels and addresses.
MOST = {torch.float16: 200, torch.float32: 300}


def problem_of(channels: int, size: int, taps: int, dtype: torch.dtype, layout: torch.memory_format) -> ConvProblem:
    shapes = (1, channels, size, size + 1), (channels, channels, taps, taps)
    return ConvProblem.of(*shapes, padding=taps // 2, dtype=dtype, memory_format=layout)


@pytest.mark.parametrize("dtype", MOST, ids=str)
def test_the_loop_divides_nothing_and_knows_no_bias(dtype: torch.dtype) -> None:
    problem = problem_of(256, 28, 3, dtype, LAST)
    operands = contiguous_operands(problem, "grad_weight", LAST)._replace(tf32=dtype is torch.float32)
    tile = Tile(128, 128, 64 // dtype.itemsize, 4, 4, splits=4, kernel="tensor")
    without, with_bias = (
        cuda_tensor.launches(problem, "grad_weight", operands, tile, with_bias=wanted)[0] for wanted in (False, True)
    )
    assert with_bias.instance == without.instance  # the same loop
    assert with_bias.blocks - without.blocks == 4 * (256 // 128)  # for each split and 128 filters
    loop = cuda_machine_code(without.instance, "sm_80").loop_instructions
    assert loop["HMMA"] == 64 and sum(loop.values()) <= MOST[dtype], loop
    assert not loop["MUFU"] + loop["F2I"] + loop["I2F"] + loop["FADD"] + loop["HADD2"], loop


@pytest.mark.parametrize(
    ("gpu", "dtype", "layout", "rows", "columns"),
    [
        ("a100", torch.float16, LAST, 128, 128),
        ("h100", torch.bfloat16, LAST, 64, 32),
        ("a100", torch.float32, LAST, 64, 64),
        ("a100", torch.float32, CONTIGUOUS, 64, 32),
    ],
    ids=str,
)
def test_tiles_move_in_whole_sectors_and_without_bank_conflicts(
    gpu: str, dtype: torch.dtype, layout: torch.memory_format, rows: int, columns: int
) -> None:
    if emulator.why_not() is not None:
        pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}")
    problem = problem_of(rows, 15, 3 if columns == 32 else 1, dtype, layout)
    operands = contiguous_operands(problem, "grad_weight", layout)._replace(tf32=dtype is torch.float32)
    warps = math.prod(cuda_tensor.WARPS[rows, columns])
    tile = Tile(rows, columns, 64 // dtype.itemsize, warps, 3, splits=2, kernel="tensor")
    random = torch.Generator().manual_seed(0)
    gy, x = (
        torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=layout)
        for shape in (problem.output_shape, problem.input_shape)
    )
    with emulator.on(gpu) as virtual:
        run = backends.get("cuda").bind(problem, "grad_weight", gy.device, IDENTITY, operands, tile)
        gw, gb = run(gy, x, True)
        counted = virtual.counters()[0].main_loop
    exact_gy, exact_x = reference.as_numpy(gy), reference.as_numpy(x)
    tf32 = dtype is torch.float32
    assert_close_to_oracle(gw, reference.grad_weight(problem, exact_gy, exact_x), "weight", tf32=tf32)
    assert_close_to_oracle(gb, reference.grad_bias(problem, exact_gy), "bias")
    assert counted.tensor_operations > 0
    # Pixels of a tap beside each other lie in whole sectors only where channels do.
    assert counted.global_sectors <= (1.0 if layout is LAST else 1.15) * counted.global_sectors_least
    assert counted.shared_passes <= 1.001 * counted.shared_passes_least
