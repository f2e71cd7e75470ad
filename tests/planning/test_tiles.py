"""The planner's closed formula: which tile, for which problem, on which GPU; no GPU is needed to ask."""

import math

import pytest
import torch

from gpuconv import backends
from gpuconv.backends.base import Tile
from gpuconv.backends.roofline import programs_and_steps
from gpuconv.bench import suites
from gpuconv.gpu import INTERPRETER, KNOWN, Gpu
from gpuconv.planning import plan, ranking
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

# Those that the Triton backend runs on. The CUDA backend's tiles: tests/backends/test_cuda.py.
each_gpu = pytest.mark.parametrize(
    "gpu", [gpu for gpu in KNOWN.values() if gpu.capability >= (8, 0)], ids=lambda gpu: gpu.name
)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def best(problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool = False) -> Tile:
    operands = plan.contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)
    triton = backends.get("triton")
    tile = ranking.best_tile(triton, triton.tiles(problem, direction, gpu, operands), problem, direction, gpu, tf32)
    assert tile is not None
    return tile


def large(dtype: torch.dtype = torch.float16) -> ConvProblem:
    return ConvProblem.of(
        (64, 256, 56, 56), (256, 256, 3, 3), padding=1, dtype=dtype, memory_format=torch.channels_last
    )


@each_gpu
@each_direction
def test_every_layer_has_a_tile_that_fits(direction: Direction, gpu: Gpu) -> None:
    for name in suites.SUITES["thirty"].layers:
        for dtype in (torch.float16, torch.float32, torch.float64):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                problem = suites.layer(f"thirty.{name}", 8, dtype, memory_format)
                tile = best(problem, direction, gpu)
                rows = tile.columns if tile.halo and tile.kernel == "hopper" else tile.rows + tile.columns
                fetched = rows * tile.depth * dtype.itemsize
                assert fetched * (tile.stages - 1) <= gpu.shared_memory, (name, tile)
                groups = tile.warps // 4 if tile.kernel == "hopper" else 1  # three may have a window each
                sizes = (tile.rows // groups, tile.columns, tile.depth, tile.warps // groups)
                assert all(n & (n - 1) == 0 for n in sizes), (name, tile)
                assert tile.splits >= 1 and (tile.stages >= 2 or tile.kernel == "taps")  # which has nothing to pipeline


@each_gpu
def test_large_problems_take_large_tiles_and_narrow_ones_narrow(gpu: Gpu) -> None:
    assert best(large(), "forward", gpu).rows * best(large(), "forward", gpu).columns >= 128 * 128
    grouped = ConvProblem.of((8, 64, 28, 28), (64, 4, 3, 3), padding=1, groups=16, dtype=torch.float16)
    assert best(grouped, "forward", gpu).columns == 16


@each_gpu
def test_grad_weight_is_split_to_fill_the_gpu_and_no_further(gpu: Gpu) -> None:
    few = suites.layer("thirty.resnet50-56-3x3", 32, torch.float16, torch.channels_last)
    tile = best(few, "grad_weight", gpu)
    predicted = backends.get("triton").predict(few, "grad_weight", tile, gpu, False)
    assert tile.splits > 1 and gpu.multiprocessors / 2 <= predicted.programs and predicted.steps >= 4
    tiny = ConvProblem.of((1, 64, 4, 4), (64, 64, 3, 3), dtype=torch.float16)
    assert best(tiny, "grad_weight", gpu).splits == 1


def test_the_workspace_is_bounded() -> None:
    from gpuconv.backends.derived import WORKSPACE

    for c in (512, 2048, 4096):
        problem = ConvProblem.of((256, c, 14, 14), (c, c, 3, 3), padding=1, dtype=torch.float16)
        operands = plan.contiguous_operands(problem, "grad_weight")
        for tile in backends.get("triton").tiles(problem, "grad_weight", KNOWN["B200"], operands):
            assert tile.splits == 1 or 4 * tile.splits * (math.prod(problem.weight_shape) + c) <= WORKSPACE


def test_splits_are_never_empty() -> None:
    from gpuconv.backends.derived import splits_of

    for pixels in range(1, 200, 7):
        problem = ConvProblem.of((1, 1, pixels), (1, 1, 1))
        for splits in (1, 2, 3, 5, 8):
            steps, n = math.ceil(pixels / 16), splits_of(problem, Tile(16, 16, 16, 4, 2, splits))
            assert 1 <= n <= splits and (n - 1) * math.ceil(steps / n) < steps


@each_direction
def test_interpreting_takes_few_steps(direction: Direction) -> None:
    problem = ConvProblem.of((2, 17, 9, 7), (19, 17, 3, 3), padding=1)
    programs, steps = programs_and_steps(problem, direction, best(problem, direction, INTERPRETER))
    assert programs * steps <= 18


def test_the_formula_prefers_what_it_should() -> None:
    gpu, problem = KNOWN["H100"], large()

    def seconds(tile: Tile, problem: ConvProblem = problem, direction: Direction = "forward") -> float:
        return backends.get("triton").predict(problem, direction, tile, gpu, False).seconds

    assert seconds(Tile(128, 128, 64, 8, 4)) < seconds(Tile(64, 64, 64, 4, 4)) < seconds(Tile(64, 16, 64, 4, 4))
    assert seconds(Tile(128, 128, 64, 8, 4, addressed=16384)) > seconds(Tile(128, 128, 64, 8, 4))
    least = problem.flops / gpu.rate_16
    assert least <= seconds(Tile(128, 128, 64, 8, 4)) < 10 * least
    small = ConvProblem.of((1, 64, 8, 8), (64, 64, 3, 3), padding=1, dtype=torch.float16)
    assert seconds(Tile(64, 64, 64, 4, 4), small) <= seconds(Tile(128, 128, 64, 8, 4), small)
    weight = Tile(64, 64, 64, 4, 4)
    split = Tile(64, 64, 64, 4, 4, splits=16)
    narrow = ConvProblem.of((64, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=torch.float16)
    assert seconds(split, narrow, "grad_weight") < seconds(weight, narrow, "grad_weight")


def test_no_tile_to_choose_is_no_tile() -> None:
    assert ranking.best_tile(backends.get("triton"), (), large(), "forward", KNOWN["A100"], False) is None


def test_a_gpu_is_known_by_its_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from gpuconv import gpu

    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=66, L2_cache_size=1 << 20,
        shared_memory_per_block_optin=227 << 10, max_threads_per_multi_processor=2048,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    gpu._properties.cache_clear()
    half = Gpu.of(torch.device("cuda", 3))
    gpu._properties.cache_clear()
    assert half.capability == (9, 0) and half.multiprocessors == 66
    assert half.rate_16 == KNOWN["H100"].rate_16 / 2 and half.bandwidth == KNOWN["H100"].bandwidth
    assert Gpu.of(torch.device("cpu")) is INTERPRETER


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "expected"),
    [
        ("Tesla T4", (7, 5), 40, "T4"),
        ("Tesla V100-SXM2-16GB", (7, 0), 80, "T4"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 108, "A100"),
        ("NVIDIA L4", (8, 9), 58, "L4"),
        ("NVIDIA L40S", (8, 9), 142, "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 128, "RTX 4090"),
        ("NVIDIA H200", (9, 0), 132, "H100"),
        ("NVIDIA GB300", (10, 3), 152, "B200"),
        ("NVIDIA GB10", (12, 1), 48, "RTX 5090"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unknown_gpu_is_like_the_nearest_known_one(
    name: str, capability: tuple[int, int], multiprocessors: int, expected: str
) -> None:
    from gpuconv.gpu import nearest

    assert nearest(name, capability, multiprocessors).name == expected


def test_t4_has_tensor_cores_for_float16_alone() -> None:
    t4 = KNOWN["T4"]
    assert t4.rate(torch.float16, False) > t4.rate(torch.bfloat16, False) == t4.rate(torch.float32, True) == t4.rate_32
    assert KNOWN["A100"].rate(torch.bfloat16, False) == KNOWN["A100"].rate(torch.float16, False)


def test_tf32_is_asked_of_pytorch_only_for_float32_on_a_gpu() -> None:
    assert not plan.uses_tf32(torch.empty(1))
    pretended = torch.empty(1, device="meta")
    assert not plan.uses_tf32(pretended)
