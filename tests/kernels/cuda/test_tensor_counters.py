"""forward and grad_input on tensor cores: how they move data, on a virtual GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends, emulator, reference
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import windows
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import assert_close_to_oracle

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize("layout", [LAST, CONTIGUOUS], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize(
    ("gpu", "direction", "kernel", "dtype", "rows", "columns", "warps"),
    [
        ("a100", "forward", "tensor", torch.float16, 128, 64, 4),
        ("a100", "grad_input", "tensor", torch.float32, 128, 32, 4),
        ("h100", "forward", "halo", torch.bfloat16, 64, 64, 4),
        ("h100", "grad_input", "halo", torch.float16, 128, 128, 4),
    ],
    ids=str,
)
def test_data_move_in_whole_sectors_and_without_bank_conflicts(
    gpu: str,
    direction: Direction,
    kernel: str,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    warps: int,
    layout: torch.memory_format,
) -> None:
    """Operands are channels last, as after packing; the result, and the residual, have either layout."""
    if emulator.why_not() is not None:
        pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}")
    problem = ConvProblem.of((1, 64, 16, 16), (64, 64, 3, 3), padding=1, dtype=dtype, memory_format=layout)
    random = torch.Generator().manual_seed(0)
    x, w, gy, residual = (
        torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=LAST)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape, problem.output_shape)
    )
    residual, bias = residual.contiguous(memory_format=layout), torch.randn(64, generator=random).to(dtype)
    tile = Tile(rows, columns, 64 // dtype.itemsize, warps, 3, kernel=kernel)
    if kernel == "halo":
        tile = windows.windowed(tile, problem, direction)
    tf32, forward = dtype is torch.float32, direction == "forward"
    operands = Operands(
        ((x if forward else gy).stride(), w.stride()), residual.stride() if forward else None, forward, tf32
    )
    with emulator.on(gpu) as virtual:
        run = backends.get("cuda").bind(problem, direction, x.device, IDENTITY, operands, tile)
        result = run(x, w, bias, residual) if forward else run(gy, w)
        counted = virtual.counters()[0]
    exact = (
        reference.forward(problem, *map(reference.as_numpy, (x, w, bias, residual)))
        if forward
        else reference.grad_input(problem, reference.as_numpy(gy), reference.as_numpy(w))
    )
    assert_close_to_oracle(result, exact, "result", tf32=tf32)
    assert result.is_contiguous(memory_format=layout)
    loop = counted.main_loop
    assert loop.tensor_operations > 0
    assert loop.global_sectors == loop.global_sectors_least and loop.shared_passes == loop.shared_passes_least
    # Beside the loop: bias, residual and result, tables of rows, and sums on their way out.
    assert counted.global_sectors <= 1.02 * counted.global_sectors_least
    assert counted.shared_passes <= 1.02 * counted.shared_passes_least
