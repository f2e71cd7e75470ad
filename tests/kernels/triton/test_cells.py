"""Results of few channels in cells: what it compiles to and counts on the virtual GPU, and where it is taken."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends, emulator
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.backends.triton import cells
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.bench import suites
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import inspect_kernels
from gpuconv.planning import ranking
from gpuconv.problem import ConvProblem, Direction

FIRST, LAST = torch.contiguous_format, torch.channels_last
TILE = Tile(128, 64, 64, warps=4, stages=4, kernel="cells")
formats = pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=["contiguous", "channels_last"])


def operands(problem: ConvProblem, tf32: bool = False, direction: Direction = "grad_input") -> Operands:
    return contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)


old_triton = pytest.mark.skipif(
    RELEASE < (3, 8), reason="Triton before 3.8 leaves out a fence on sm_90, and the emulator finds that race"
)


@pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
@pytest.mark.parametrize(
    ("gpu", "product", "most"), [("A100", "HMMA", 245), pytest.param("H100", "HGMMA", 200, marks=old_triton)]
)
@formats
def test_the_loop_fetches_16_bytes_a_thread_and_results_leave_in_runs(
    memory_format: torch.memory_format, gpu: str, product: str, most: int
) -> None:
    problem = ConvProblem.of((1, 3, 32, 32), (64, 3, 7, 7), 2, 3, dtype=torch.float16, memory_format=memory_format)
    tile = dataclasses.replace(TILE, packs="grad_output" if memory_format is FIRST else "")
    kernels = inspect_kernels(problem, "grad_input", "triton", KNOWN[gpu], False, run=True, tile=tile)
    *before, pack, kernel = kernels
    assert [one.name for one in before] == ["pack"] * (memory_format is FIRST) and pack.name == "pack_cells"
    code = kernel.code
    assert code.spills == 0 and code.loop_instructions[product] and code.loop_instructions.total() <= most
    assert code.of_16_bytes["LDGSTS"] == code.instructions["LDGSTS"] >= 8
    assert code.instructions["STG"] == TILE.rows * TILE.columns // 128 // 4  # four neighbours each
    assert kernel.error is not None and kernel.error <= 1 and kernel.counters is not None
    loop = kernel.counters.main_loop
    assert 0 < loop.global_sectors <= 1.15 * loop.global_sectors_least
    assert 0 < loop.shared_passes <= 1.1 * loop.shared_passes_least


def test_cells_are_as_large_as_columns_allow_and_meet_few_outputs() -> None:
    resnet = suites.layer("stems.resnet", 32, torch.float16, LAST)
    assert cells.cells_of(resnet, "grad_input", 16).each("pixels") == (1, 2, 2)
    large = cells.cells_of(resnet, "grad_input", 64)
    assert large.each("pixels") == (1, 4, 4) and large.each("met") == (1, 5, 5) and large.each("first") == (0, -1, -1)
    vgg = cells.cells_of(suites.layer("stems.vgg", 32, torch.float16, LAST), "grad_input", 64)
    assert vgg.each("pixels") == (1, 4, 4)  # of 4 × 5 there were one output in fifteen less, but none divides the image
    vit = suites.layer("stems.vit", 32, torch.float16, LAST)
    assert cells.cells_of(vit, "grad_input", 64).each("pixels") == (1, 16, 16) and cells.cells_of(
        vit, "grad_input", 64
    ).each("met") == (1, 1, 1)
    axis = cells.cells_of(ConvProblem.of((1, 1, 3, 20), (1, 1, 3, 4), (1, 3), (1, 2), (2, 2)), "grad_input", 16).axes[2]
    outputs = range(9)  # (20 + 2·2 − 2·3 − 1) // 3 + 1 of them: 6
    met = [axis.step * i + axis.first + v for i in range(axis.cells) for v in range(axis.met)]
    assert axis.fetched == sum(p in outputs[:6] for p in met)


# First layers: what an H100 takes for grad_input, in 16-bit numbers and TF32.
@pytest.mark.parametrize("name", ["resnet", "resnet_d1", "vgg", "alexnet", "inception_v3", "convnext", "vit", "cifar"])
@formats
def test_first_layers_are_taken(name: str, memory_format: torch.memory_format) -> None:
    triton, gpu = backends.get("triton"), KNOWN["H100"]
    for dtype, tf32 in ((torch.float16, False), (torch.float32, True)):
        problem = suites.layer(f"stems.{name}", 64, dtype, memory_format)
        tiles = triton.tiles(problem, "grad_input", gpu, operands(problem, tf32))
        best = ranking.best_tile(triton, tiles, problem, "grad_input", gpu, tf32)
        assert best is not None and best.kernel == "cells"


@formats
def test_last_layers_of_decoders_are_taken_forward(memory_format: torch.memory_format) -> None:
    """Of a 3×3 filter each pixel is read about three times, not nine; heads of 1×1 are for others."""
    triton, gpu = backends.get("triton"), KNOWN["H100"]
    for dtype, tf32 in ((torch.float16, False), (torch.float32, True)):
        problem = ConvProblem.of(
            (1, 128, 512, 512), (3, 128, 3, 3), padding=1, dtype=dtype, memory_format=memory_format
        )  # fmt: skip
        of = operands(problem, tf32, "forward")
        tiles = triton.tiles(problem, "forward", gpu, of)
        best = ranking.best_tile(triton, tiles, problem, "forward", gpu, tf32)
        assert best is not None and best.kernel == "cells"
        of_cells = cells.cells_of(problem, "forward", best.columns)
        assert of_cells.product("cells") * of_cells.product("met") <= 3.2 * 512 * 512
        assert cells.predict(problem, "forward", best, gpu, tf32).bytes <= 4 * problem.dtype.itemsize * 128 * 512 * 512
    head = ConvProblem.of((4, 64, 388, 388), (2, 64, 1, 1), dtype=torch.float16, memory_format=memory_format)
    assert cells.cells_of(head, "forward", 16).each("pixels") == (1, 1, 1)


def test_what_cells_are_not_for_they_refuse() -> None:
    def reason(problem: ConvProblem) -> str:
        return backends.get("triton").refused_families(problem, "grad_input", KNOWN["H100"], operands(problem))["cells"]

    assert "channels" in reason(ConvProblem.of((2, 9, 8, 8), (16, 9, 3, 3)))
    assert "group" in reason(ConvProblem.of((2, 4, 8, 8), (16, 2, 3, 3), groups=2))
    assert "nothing" in reason(ConvProblem.of((0, 3, 8, 8), (16, 3, 3, 3)))
