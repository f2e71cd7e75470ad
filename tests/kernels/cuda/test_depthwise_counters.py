"""How the depthwise kernels move data: sectors and bank conflicts of MobileNetV2's layers, on a virtual GPU.

Run are the channels of one tile of the layer, of one image.
"""

import dataclasses

import pytest
import torch

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends, emulator, reference
from gpuconv.activations import IDENTITY
from gpuconv.backends.cuda import depthwise as cuda_depthwise
from gpuconv.bench import suites
from gpuconv.gpu import KNOWN
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import assert_close_to_oracle

if emulator.why_not() is not None:
    pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}", allow_module_level=True)

LAST, PLANES = torch.channels_last, torch.contiguous_format
CASES = [  # a layer, and the height, width and channels of a tile that it is offered; passes as a multiple of the least
    ("depthwise_32_112", "forward", PLANES, torch.float16, (38, 112, 2), 1.1),
    ("depthwise_144_56", "grad_input", PLANES, torch.bfloat16, (56, 56, 2), 1.1),
    ("depthwise_192_28", "grad_weight", PLANES, torch.float32, (28, 32, 4), 1.1),
    # The last number of a strip's columns is read alone, in the four passes that its vector would take.
    ("depthwise_192_28_stride2", "grad_input", PLANES, torch.float32, (30, 32, 8), 1.13),
    ("depthwise_384_14", "forward", PLANES, torch.float32, (14, 16, 16), 1.1),
    ("depthwise_192_28_stride2", "grad_input", LAST, torch.float16, (30, 32, 64), 1.1),
]


@pytest.mark.parametrize(("name", "direction", "layout", "dtype", "size", "passes"), CASES, ids=str)
def test_data_move_in_whole_sectors_and_with_few_bank_conflicts(
    name: str,
    direction: Direction,
    layout: torch.memory_format,
    dtype: torch.dtype,
    size: tuple[int, ...],
    passes: float,
) -> None:
    gpu, cuda = KNOWN["A100"], backends.get("cuda")
    whole = suites.layer(f"mobilenetv2.{name}", dtype=dtype, memory_format=layout)
    tiles = cuda_depthwise.tiles(whole, direction, gpu, contiguous_operands(whole, direction, layout))
    tile = next(tile for tile in tiles if (tile.rows // tile.width, tile.width, tile.columns) == size)
    channels = min(whole.groups, tile.columns)
    problem = ConvProblem.of(
        (1, channels, *whole.input_size), (channels, 1, *whole.filter_size), stride=whole.stride,
        padding=whole.padding, groups=channels, dtype=dtype, memory_format=layout,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    x, w, gy = (
        torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=layout)
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    operands, tile = contiguous_operands(problem, direction, layout), dataclasses.replace(tile, splits=1)
    with emulator.on("a100") as virtual:
        run = cuda.bind(problem, direction, x.device, IDENTITY, operands, tile)
        given = {"forward": (x, w, None, None), "grad_input": (gy, w), "grad_weight": (gy, x, False)}[direction]
        got = run(*given)
    exact = getattr(reference, direction)(problem, *(reference.as_numpy(t) for t in given[:2]))
    assert_close_to_oracle(got[0] if direction == "grad_weight" else got, exact, name)
    (counted,) = virtual.counters()
    assert counted.shared_passes <= passes * counted.shared_passes_least
    assert counted.global_sectors <= 1.15 * counted.global_sectors_least
