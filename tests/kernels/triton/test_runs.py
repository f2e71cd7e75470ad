"""Few input channels in runs: what kernels compile to, what they count on the virtual GPU, and where they are taken."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends, emulator
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.backends.triton import backend, runs
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.bench import suites
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import inspect_kernels
from gpuconv.inspection.machine_code import machine_code
from gpuconv.planning import ranking
from gpuconv.problem import ConvProblem, Direction

FIRST, LAST = torch.contiguous_format, torch.channels_last
DIRECTIONS: tuple[Direction, ...] = ("forward", "grad_weight")
STEM = ((2, 3, 32, 32), (64, 3, 7, 7), 2, 3)
needs_emulator = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
formats = pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["contiguous", "channels_last"])
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def operands(problem: ConvProblem, direction: Direction, tf32: bool = False) -> Operands:
    return contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)


def tile(direction: Direction, kernel: str = "packed_runs") -> Tile:
    if direction == "forward":
        return Tile(128, 64, 32, warps=4, stages=4, kernel=kernel, width=32)
    return Tile(64, 128, 64, warps=4, stages=3, kernel=kernel, width=32)


# Instructions of the loop of a warp: products and fetches of 16 bytes, and not many beside.
LOOP = {("forward", 80): 125, ("forward", 90): 105, ("grad_weight", 80): 440, ("grad_weight", 90): 400}


@pytest.mark.parametrize(("capability", "product"), [(80, "HMMA"), (90, "HGMMA")], ids="{0}".format)
@formats
@directions
def test_the_loop_fetches_16_bytes_a_thread_past_the_registers(
    direction: Direction, memory_format: torch.memory_format, capability: int, product: str
) -> None:
    problem = ConvProblem.of(*STEM, dtype=torch.float16, memory_format=memory_format)
    pack, kernel, *_ = backend.launches(problem, direction, operands(problem, direction), tile(direction))
    assert isinstance(pack, runs.Pack)
    assert machine_code(pack, capability).spills == 0
    code = machine_code(kernel, capability)
    loop = code.loop_instructions
    assert loop[product] and code.spills == 0
    assert loop.total() <= LOOP[direction, capability]
    by_thread = direction == "grad_weight" and memory_format is LAST and capability == 80  # gyᵀ, in vectors
    assert loop["LDGSTS"] >= 4 and loop["LDG"] <= 4 * by_thread
    assert code.of_16_bytes["LDGSTS"] == code.instructions["LDGSTS"]
    assert loop["WARPGROUP"] < 2 * max(1, loop["HGMMA"])


old_triton = pytest.mark.skipif(
    RELEASE < (3, 8), reason="Triton before 3.8 leaves out a fence on sm_90, and the emulator finds that race"
)


@needs_emulator
@pytest.mark.parametrize("gpu", ["A100", pytest.param("H100", marks=old_triton)])
@formats
@directions
def test_the_loop_reads_the_sectors_and_passes_that_its_bytes_need(
    direction: Direction, memory_format: torch.memory_format, gpu: str
) -> None:
    problem = ConvProblem.of(*STEM, dtype=torch.float16, memory_format=memory_format)
    _, kernel, *_ = inspect_kernels(
        problem, direction, "triton", KNOWN[gpu], False, run=True, tile=tile(direction), bias=False
    )
    assert kernel.name == f"runs_{direction}" and kernel.error is not None and kernel.error <= 1
    assert kernel.counters is not None
    loop = kernel.counters.main_loop
    assert 0 < loop.global_sectors <= 1.15 * loop.global_sectors_least
    assert 0 < loop.shared_passes <= 1.1 * loop.shared_passes_least


@needs_emulator
@formats
def test_grad_weight_in_tf32_turns_nothing_round(memory_format: torch.memory_format) -> None:
    """wgmma would want the pixels innermost; two warps multiply by mma.sync, which takes them as they lie."""
    problem, gpu = ConvProblem.of(*STEM, memory_format=memory_format), KNOWN["H100"]
    triton, of = backends.get("triton"), operands(problem, "grad_weight", tf32=True)
    best = next(t for t in triton.tiles(problem, "grad_weight", gpu, of) if t.kernel == "packed_runs" and t.rows == 64)
    assert (best.columns, best.warps) == (128, 2)
    _, kernel, *_ = inspect_kernels(problem, "grad_weight", "triton", gpu, True, run=True, tile=best, bias=False)
    code = kernel.code
    assert code.spills == 0 and code.instructions["HMMA"] and not code.instructions["HGMMA"]
    assert code.of_16_bytes["LDGSTS"] == code.instructions["LDGSTS"]
    assert kernel.error is not None and kernel.error <= 1 and kernel.counters is not None
    loop = kernel.counters.main_loop
    assert 0 < loop.global_sectors <= 1.15 * loop.global_sectors_least
    assert 0 < loop.shared_passes <= 1.1 * loop.shared_passes_least
    large = suites.layer("stems.resnet", 32, torch.float32, memory_format)
    tiles = triton.tiles(large, "grad_weight", gpu, operands(large, "grad_weight", tf32=True))
    best = ranking.best_tile(triton, tiles, large, "grad_weight", gpu, True)
    assert best is not None and best.kernel == "packed_runs"


# First layers, and the family that takes them: 16-bit numbers on an H100.
TAKEN = {
    "resnet": "packed_runs", "resnet_d1": "packed_runs", "vgg": "packed_runs", "alexnet": "packed_runs",
    "inception_v3": "packed_runs", "convnext": "patches", "vit": "patches",
}  # fmt: skip


@formats
@directions
@pytest.mark.parametrize("name", TAKEN)
def test_first_layers_of_networks_are_fetched_in_runs(
    name: str, direction: Direction, memory_format: torch.memory_format
) -> None:
    problem, gpu = suites.layer(f"stems.{name}", 64, torch.float16, memory_format), KNOWN["H100"]
    triton = backends.get("triton")
    tiles = triton.tiles(problem, direction, gpu, operands(problem, direction))
    best = ranking.best_tile(triton, tiles, problem, direction, gpu, False)
    assert best is not None and best.kernel == TAKEN[name]


def test_what_runs_cannot_do_they_refuse() -> None:
    gpu = KNOWN["H100"]

    def reasons(problem: ConvProblem, direction: Direction = "forward", tf32: bool = False) -> dict[str, str]:
        return backends.get("triton").refused_families(problem, direction, gpu, operands(problem, direction, tf32))

    plain = ConvProblem.of(*STEM, dtype=torch.float16)
    assert "packed_runs" not in reasons(plain) and "vectors" in reasons(plain)["patches"]
    assert "float32" in reasons(dataclasses.replace(plain, dtype=torch.float32))["packed_runs"]
    assert "packed_runs" not in reasons(dataclasses.replace(plain, dtype=torch.float32), tf32=True)
    assert "neighbours" in reasons(dataclasses.replace(plain, dilation=(1, 2)))["packed_runs"]
    assert "packed_runs" not in reasons(dataclasses.replace(plain, dilation=(2, 1)))
    assert "filters" in reasons(plain, "grad_input")["packed_runs"]
    patches = ConvProblem.of((2, 3, 32, 32), (8, 3, 8, 8), 8, dtype=torch.float16)
    assert "patches" not in reasons(patches)
    assert "patches" in reasons(dataclasses.replace(patches, input_size=(32, 34)))  # rows of 68 bytes
