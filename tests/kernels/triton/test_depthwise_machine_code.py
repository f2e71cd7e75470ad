"""What Triton makes of the depthwise kernels: nothing on the stack, 16 bytes at a time where channels lie together."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends
from gpuconv.backends.triton import depthwise as triton_depthwise
from gpuconv.bench import suites
from gpuconv.gpu import REPRESENTATIVE
from gpuconv.inspection.machine_code import machine_code
from gpuconv.planning import plan, ranking
from gpuconv.problem import Direction


@pytest.mark.parametrize(
    ("layer", "direction", "layout", "dtype", "architecture"),
    [
        ("convnext_t.depthwise_96", "forward", torch.contiguous_format, torch.float32, 80),
        ("convnext_t.depthwise_96", "forward", torch.channels_last, torch.bfloat16, 90),
        ("convnext_t.depthwise_96", "grad_weight", torch.channels_last, torch.float16, 120),
        ("mobilenetv2.depthwise_144_56_stride2", "grad_input", torch.channels_last, torch.float32, 86),
        ("mobilenetv2.depthwise_144_56_stride2", "grad_weight", torch.contiguous_format, torch.bfloat16, 100),
    ],
    ids=str,
)
def test_compiles_to_what_was_meant(
    layer: str, direction: Direction, layout: torch.memory_format, dtype: torch.dtype, architecture: int
) -> None:
    gpu = REPRESENTATIVE[f"sm_{architecture}"]
    problem = suites.layer(layer, dtype=dtype, memory_format=layout)
    operands = plan.contiguous_operands(problem, direction, layout)
    tiles = triton_depthwise.tiles(problem, direction, gpu, operands)
    tile = ranking.best_tile(backends.get("triton"), tiles, problem, direction, gpu, False)
    assert tile is not None
    code = machine_code(triton_depthwise.launches(problem, direction, operands, tile)[0], architecture)
    assert code.spills == 0
    assert 2 * code.registers * 32 * tile.warps <= 65536 and 2 * code.shared <= gpu.shared_memory
    if layout is torch.channels_last:
        assert code.of_16_bytes["LDG"] > 0
        assert code.of_16_bytes["STG"] > 0 or direction == "grad_weight"
