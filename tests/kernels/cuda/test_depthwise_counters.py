"""How the depthwise kernels move data: sectors and bank conflicts of MobileNetV2's layers, on a virtual GPU.

The tiles are those of the whole layer; run are two tiles' channels of one image.
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
from gpuconv.planning import ranking
from gpuconv.planning.plan import contiguous_operands
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import assert_close_to_oracle

if emulator.why_not() is not None:
    pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}", allow_module_level=True)

LAST, PLANES = torch.channels_last, torch.contiguous_format
LAYERS = [name for name, layer in suites.SUITES["mobilenetv2"].layers.items() if layer.groups > 1]
CASES = [  # what runs without --full
    ("depthwise_32_112", "forward", PLANES, torch.float16),
    ("depthwise_144_56", "grad_input", PLANES, torch.bfloat16),
    ("depthwise_192_28", "grad_weight", PLANES, torch.float32),
    ("depthwise_192_28_stride2", "grad_input", PLANES, torch.float32),
    ("depthwise_384_14", "forward", PLANES, torch.float32),
    ("depthwise_576_14", "grad_input", LAST, torch.float16),
]


def most_passes(name: str, direction: Direction, layout: torch.memory_format) -> float:
    """Passes of shared memory, as a multiple of the least, that a kernel may take."""
    if layout is PLANES and name.endswith("stride2"):
        # The last number of a strip's columns is read alone, in the four passes that its vector would take. In
        # grad_weight rows of several planes, two apart, share banks.
        return 1.31
    if name.endswith("_7") or (name.endswith("stride2") and direction == "forward"):
        return 1.28  # tiles so narrow that eight lanes are not rows of one strip
    return 1.11


def most_sectors(direction: Direction, layout: torch.memory_format) -> float:
    """Sectors of global memory, as a multiple of the least: with one image, whose gradients of the weight, a few bytes
    in each place, are as much as the image has."""
    return 2.0 if direction == "grad_weight" else 1.05


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = CASES
    if metafunc.config.getoption("--full"):
        dtypes = (torch.float16, torch.float32)
        cases = [(n, d, layout, t) for n in LAYERS for d in DIRECTIONS for layout in (LAST, PLANES) for t in dtypes]
    names = ["-".join(str(part).removeprefix("torch.") for part in case) for case in cases]
    metafunc.parametrize(("name", "direction", "layout", "dtype"), cases, ids=names)


def test_data_move_in_whole_sectors_and_with_few_bank_conflicts(
    name: str, direction: Direction, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    gpu, cuda = KNOWN["A100"], backends.get("cuda")
    whole = suites.layer(f"mobilenetv2.{name}", dtype=dtype, memory_format=layout)
    tiles = cuda_depthwise.tiles(whole, direction, gpu, contiguous_operands(whole, direction, layout))
    tile = ranking.best_tile(cuda, tiles, whole, direction, gpu, False)
    assert tile is not None
    channels = min(whole.groups, 2 * tile.columns)
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
    assert counted.shared_passes <= most_passes(name, direction, layout) * counted.shared_passes_least
    assert counted.global_sectors <= most_sectors(direction, layout) * counted.global_sectors_least
