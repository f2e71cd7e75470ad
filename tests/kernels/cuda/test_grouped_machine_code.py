"""The machine code of packed groups, on ResNeXt-50's layers: 16 bytes at a time, blocks of zeros not multiplied."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv.backends.base import contiguous_operands
from gpuconv.backends.cuda import grouped, grouped_halo, tensor as cuda_tensor
from gpuconv.backends.derived import packed
from gpuconv.bench import suites
from gpuconv.gpu import REPRESENTATIVE
from gpuconv.inspection.machine_code import cuda_architecture, cuda_machine_code
from gpuconv.problem import DIRECTIONS, Direction

GPUS = {cuda_architecture(gpu): gpu for gpu in REPRESENTATIVE.values()}
REGISTERS = 65536  # of a multiprocessor


def assert_compiles_well(architecture: str, direction: Direction, dtype: torch.dtype, name: str, most: int) -> None:
    """The first `most` tiles of a layer whose groups have 4, 8 or 16 channels: none takes more products than 16 do."""
    problem = suites.layer(f"resnext50.{name}", dtype=dtype, memory_format=torch.channels_last)
    operands = contiguous_operands(problem, direction, torch.channels_last)
    operands = operands._replace(tf32=dtype is torch.float32, bias=True)
    families = (grouped_halo.FAMILY, grouped.FAMILY)
    tiles = [tile for f in families for tile in f.tiles(problem, direction, GPUS[architecture], operands)]
    assert tiles
    for tile in list(dict.fromkeys(dataclasses.replace(tile, splits=1) for tile in tiles))[:most]:
        instance = cuda_tensor.instance(problem, direction, operands, tile, wide=False, merged=packed(problem))
        code = cuda_machine_code(instance, architecture)
        assert code.spills == 0, (instance, code)
        assert code.registers * instance.threads <= REGISTERS, (instance, code)
        assert instance.shared <= GPUS[architecture].shared_memory
        assert code.instructions["HMMA"] > 0, (instance, code)
        if direction != "grad_weight":
            blocks = tile.rows // 64 * (tile.columns // 8)  # of 16 rows × 8 columns, of a warp
            pieces = 16 * dtype.itemsize // 32 * (2 if architecture == "sm_75" else 1)  # that an instruction sums
            assert code.instructions["HMMA"] == blocks * pieces, (instance, code)
        if architecture != "sm_75":
            assert code.of_16_bytes["LDGSTS"] > 0, (instance, code)
        assert code.of_16_bytes["STG"] > 0 or direction == "grad_weight", (instance, code)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("architecture", "dtype", "name"),
    [
        ("sm_75", torch.float16, "conv3_3x3"),
        ("sm_80", torch.float32, "conv2_3x3"),
        ("sm_90a", torch.bfloat16, "conv2_3x3"),
    ],
    ids=["sm_75-float16-8", "sm_80-tf32-4", "sm_90a-bfloat16-4"],
)
def test_largest_tile(architecture: str, dtype: torch.dtype, name: str, direction: Direction) -> None:
    assert_compiles_well(architecture, direction, dtype, name, 1)


@pytest.mark.full
@pytest.mark.parametrize("architecture", GPUS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_tile(architecture: str, direction: Direction) -> None:
    for dtype in (torch.float16,) if architecture == "sm_75" else (torch.float16, torch.bfloat16, torch.float32):
        for name in ("conv2_3x3", "conv3_3x3", "conv4_3x3", "conv3_3x3_stride2"):
            assert_compiles_well(architecture, direction, dtype, name, 9)
