"""The machine code of the depthwise kernels: no stack, 16 bytes at a time, two blocks on a multiprocessor."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends
from gpuconv.backends.cuda import depthwise as cuda_depthwise
from gpuconv.bench import suites
from gpuconv.gpu import KNOWN, REPRESENTATIVE, Gpu
from gpuconv.inspection.machine_code import cuda_architecture, cuda_machine_code
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS, Direction

GPUS = {cuda_architecture(gpu): gpu for gpu in REPRESENTATIVE.values()}
LAYERS = ("mobilenetv2.depthwise_144_56_stride2", "efficientnet_b0.depthwise5x5_480_14", "convnext_t.depthwise_96")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.channels_last, torch.contiguous_format)
SUITES = ("mobilenetv2", "efficientnet_b0", "convnext_t", "replknet31", "mamba")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All combinations with --full; else each layer and direction, of the rest another for each."""
    if "architecture" not in metafunc.fixturenames:
        return
    cases = list(itertools.product(LAYERS, DIRECTIONS, LAYOUTS, DTYPES, GPUS))
    if not metafunc.config.getoption("--full"):
        rest = zip(itertools.cycle(LAYOUTS), itertools.cycle(DTYPES[:3]), itertools.cycle(GPUS), strict=False)
        cases = [(*case, *next(rest)) for case in itertools.product(LAYERS, DIRECTIONS)]
    names = ["-".join(str(part).removeprefix("torch.") for part in case) for case in cases]
    metafunc.parametrize(("layer", "direction", "layout", "dtype", "architecture"), cases, ids=names)


def test_compiles_to_what_was_meant(
    layer: str, direction: Direction, layout: torch.memory_format, dtype: torch.dtype, architecture: str
) -> None:
    gpu = GPUS[architecture]
    problem = suites.layer(layer, dtype=dtype, memory_format=layout)
    operands = plan.contiguous_operands(problem, direction, layout)
    tiles = cuda_depthwise.tiles(problem, direction, gpu, operands)
    tile = ranking.best_tile(backends.get("cuda"), tiles, problem, direction, gpu, False)
    assert tile is not None
    instance = cuda_depthwise.launches(problem, direction, operands, tile)[0].instance
    code = cuda_machine_code(instance, architecture)
    assert code.spills == 0
    assert 2 * code.registers * instance.threads <= 65536
    assert 2 * (instance.shared + 1024) <= gpu.shared_memory + 1024 or architecture == "sm_75"
    assert 2 * instance.shared <= gpu.shared_memory
    assert code.of_16_bytes["LDG" if architecture == "sm_75" else "LDGSTS"] > 0
    assert code.of_16_bytes["STG"] > 0 or direction == "grad_weight"
    assert code.of_16_bytes["LDS"] > 0


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_planner_takes_them_for_every_depthwise_layer(gpu: Gpu) -> None:
    """(float32, channels last; the others in turn.)"""
    layers = [
        (suite, name) for suite in SUITES for name, layer in suites.SUITES[suite].layers.items() if layer.groups > 1
    ]
    for turn, (suite, name) in enumerate(layers):
        for direction in DIRECTIONS:
            problem = suites.layer(f"{suite}.{name}", dtype=torch.float32, memory_format=LAYOUTS[turn % 2])
            operands = plan.contiguous_operands(problem, direction, problem.memory_format)
            found, _ = ranking.candidates(problem, direction, gpu, operands)
            ours = next(candidate for candidate in found if candidate.tile.kernel == "depthwise")
            assert found[0].tile.kernel in ("depthwise", "taps"), (name, direction, found[0])
            # Measured on an H100, 192 channels of 28 × 28 at stride 2: 13.6 µs by `taps` and 41.7 by these, contiguous;
            # 11.8 and 11.9 channels last.
            quick = set(problem.stride) == {1} and problem.memory_format is torch.channels_last
            most = 1.3 if quick else 2.5
            assert ours.prediction.seconds < most * found[0].prediction.seconds, (name, direction, found[0])
