"""Results of the compiled window kernels in another layout than their operands', on the emulator, by the oracle."""

import pytest
import torch
from lanes import INTERPRETING

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.triton import backend
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.checking.judging import exact_results, judge, surrounded
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.emulator import device as emulator
from gpuconv.emulator.counters import Counters
from gpuconv.gpu import KNOWN
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle

pytestmark = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
]

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
# family, direction, input, weight, settings, formats of the result and of a residual, whether sums are split; the
# sectors of 32 bytes that threads read and write, for 1 that the elements fill
CASES = {
    "vectors": ("window", "forward", (2, 64, 8, 16), (64, 64, 3, 3), {"padding": 1}, CONTIGUOUS, CONTIGUOUS, False, 1),
    "rows-are-odd": ("window", "forward", (2, 64, 9, 7), (10, 64, 3, 3), {"padding": 1}, CONTIGUOUS, LAST, False, 5),
    "split": ("window", "forward", (2, 64, 5, 8), (64, 64, 3, 3), {"padding": 1}, CONTIGUOUS, CONTIGUOUS, True, 1),
    "residual-alone": ("window", "forward", (2, 64, 8, 16), (64, 64, 3, 3), {"padding": 1}, LAST, CONTIGUOUS, False, 2),
    "phases": (
        "window", "grad_input", (2, 64, 9, 7), (64, 64, 3, 3), {"padding": 1, "stride": 2}, CONTIGUOUS, None, False,
        3.1,
    ),
    "phases-together": (
        "window", "grad_input", (2, 64, 8, 32), (64, 64, 3, 3), {"padding": 1, "stride": 2}, CONTIGUOUS, None, False, 1,
    ),
    "odd-phases-together": (
        "window", "grad_input", (2, 64, 9, 7), (64, 64, 3, 4), {"padding": 1, "stride": (1, 2)}, CONTIGUOUS, None,
        False, 3.1,
    ),
    "images-in-one-row": ("pointwise", "forward", (3, 64, 5, 8), (64, 64, 1, 1), {}, CONTIGUOUS, CONTIGUOUS, False, 1),
    "odd-images": ("pointwise", "grad_input", (3, 64, 7, 7), (64, 64, 1, 1), {}, CONTIGUOUS, None, False, 1.6),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_and_residuals_in_any_layout(name: str, dtype: torch.dtype) -> None:
    family, direction, x, w, settings, results, of_residual, split, sectors = CASES[name]
    problem = ConvProblem.of(x, w, **settings, dtype=dtype, memory_format=results)
    counters = _run(problem, direction, of_residual, family, split, name)
    if dtype is torch.bfloat16 and (RELEASE >= (3, 8) or sectors == 1):  # before, lanes of odd rows lie across them
        assert counters.global_sectors <= sectors * counters.global_sectors_least
    if results is CONTIGUOUS and dtype is torch.bfloat16:
        assert counters.shared_passes == counters.shared_passes_least


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_a_program_that_takes_many_tiles_fetches_for_the_next_while_it_finishes_one(direction: Direction) -> None:
    """The same bits, and fewer waits for copies: at the beginning alone, not of each of its eight tiles."""
    problem = ConvProblem.of((4, 64, 16, 16), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, memory_format=LAST)
    t = tensors(problem, "prefetch", torch.bfloat16, "cpu", "channels_last")
    a, b = (t[key] for key in OPERANDS[direction])
    found, waits = [], []
    for programs in (0, 1):
        tile = Tile(128, 64, 64, warps=8, stages=3, kernel="window", persistent=programs)
        operands = Operands((a.stride(), b.stride()))
        with emulator.on("h100") as gpu:
            run = backend.TritonBackend().bind(problem, direction, a.device, Activation("none"), operands, tile)
            found.append(run(a, b, None, None) if direction == "forward" else run(a, b))
        waits.append(gpu.counters()[0].waits)
    arrays = (as_numpy(t[key]) for key in OPERANDS[direction])
    assert_close_to_oracle(found[1], getattr(reference, direction)(problem, *arrays))
    assert torch.equal(*found)
    assert waits[1] < 0.85 * waits[0], waits


def _run(
    problem: ConvProblem, direction: Direction, of_residual: torch.memory_format | None, family: str, split: bool,
    name: str,
) -> Counters:  # fmt: skip
    """Judge the results of two runs; the counters of the first launch."""
    t = tensors(problem, name, problem.dtype, "cpu", "channels_last")
    bias = residual = None
    if direction == "forward":
        bias = t["bias"] = surrounded(t["bias"])
        residual = t["residual"] = surrounded(t["residual"].contiguous(memory_format=of_residual))
    activation, numbers = Activation.parse("relu"), {key: as_numpy(value) for key, value in t.items()}
    added = (numbers["bias"], numbers["residual"]) if direction == "forward" else (None, None)
    exact = exact_results(problem, direction, numbers, *added, activation)
    a, b = (surrounded(t[key]) for key in OPERANDS[direction])
    epilogue = {"bias": bias, "residual": residual} if direction == "forward" else {}
    read = dict(zip(OPERANDS[direction], (a, b), strict=True)) | epilogue
    tf32 = problem.dtype is torch.float32
    operands = Operands(
        (a.stride(), b.stride()), None if residual is None else residual.stride(), bias is not None, tf32
    )
    found = backend.FAMILIES[family].tiles(problem, direction, KNOWN["H100"], operands)
    together = 2 if "together" in name else 1
    tile = next(
        tile for tile in found
        if (tile.splits > 1) == split and (tile.rows == 128 or split) and tile.phases == together
    )  # fmt: skip
    with emulator.on("h100") as gpu:
        run = backend.TritonBackend().bind(problem, direction, a.device, activation, operands, tile)
        finding = judge(
            read, exact, lambda: (run(a, b, *epilogue.values()),),
            problem.memory_format, 2, tf32,
        )  # fmt: skip
    assert not finding.check, finding.message
    return gpu.counters()[0]
