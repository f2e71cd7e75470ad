"""What the planner predicts of a kernel beside bounds in time is what the compilers make and the virtual GPU counts."""

import ast
import dataclasses
import io
import re
import tokenize
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends, emulator
from gpuconv.backends import constants
from gpuconv.backends.base import contiguous_operands
from gpuconv.bench import calibrate, suites
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import BACKENDS, inspect_kernels
from gpuconv.planning.ranking import ranked
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

needs_emulator = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
LAYERS = tuple(suites.SUITES["thirty"].layers)
GPUS = ("A100", "H100")
# Instructions are a sum of six kinds of work, fitted: kernels are not that regular.
TOLERANCE = {"bytes": 0.1, "sectors": 0.1, "instructions": 0.25}
# Layers of up to four channels are fetched element by element, or in runs that neighbouring pixels share: which of them
# meet in a sector depends on the lanes, and is not predicted.
FEW_CHANNELS = 4
ALL = [(name, gpu, direction) for name in LAYERS for gpu in GPUS for direction in DIRECTIONS]
SAMPLE = [
    ("resnet50-56-3x3", "H100", "forward"),
    ("resnet50-28-3x3-stride2", "A100", "grad_input"),
    ("resnet50-14-expand", "H100", "grad_weight"),
    ("resnet18-14-3x3-stride2", "A100", "grad_weight"),
]


def sampled(some: list[tuple[str, str, str]]) -> list[object]:
    """All of the list with --full, `some` of it without."""
    return [case if case in some else pytest.param(*case, marks=pytest.mark.full) for case in ALL]


def whole(name: str) -> ConvProblem:
    return suites.layer(f"thirty.{name}", dtype=torch.float16, memory_format=torch.channels_last)


@needs_emulator
@pytest.mark.parametrize(("name", "gpu", "direction"), sampled(SAMPLE))
def test_bytes_sectors_and_instructions_are_those_that_are_counted(name: str, gpu: str, direction: Direction) -> None:
    problem = calibrate.reduced(whole(name))
    for backend, tile in calibrate.tiles_of(problem, direction, KNOWN[gpu], False, whole(name)):
        row = calibrate.run(problem, direction, backend, KNOWN[gpu], tile)
        few = problem.in_channels <= FEW_CHANNELS
        for what in ("instructions",) if few else calibrate.Counted._fields:
            predicted, found = getattr(row.predicted, what), getattr(row.counted, what)
            assert abs(predicted - found) <= TOLERANCE[what] * found, (row.name, what, predicted, found)


@pytest.mark.parametrize(("name", "gpu", "direction"), sampled(SAMPLE))
def test_no_more_programs_are_assumed_on_a_multiprocessor_than_fit(name: str, gpu: str, direction: Direction) -> None:
    for backend in BACKENDS:
        for kernel in inspect_kernels(whole(name), direction, backend, KNOWN[gpu]):
            if kernel.prediction is not None:  # no copy, and no sum of partial sums
                assert kernel.prediction.together <= kernel.blocks, (backend, kernel.tile)


def test_every_constant_has_its_source_or_is_called_measured_counted_or_a_guess() -> None:
    source = Path(constants.__file__).read_text()
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            above = node.lineno - 1
            while above in comments:
                above -= 1
            said = " ".join(comments.get(line, "") for line in range(above + 1, node.end_lineno + 1))
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            names.append(name)
            assert re.search(r"\b(guess|counted|measured)\b|NVIDIA|CUDA C|et al\.|white paper|names of", said), name
    assert {"SHARED_BYTES", "MEMORY", "COSTS", "DESCRIPTOR"} <= set(names)


def test_a_large_tile_fetches_less_where_all_take_as_long() -> None:
    """A layer that device memory bounds: the smallest tile would fetch its input once for each block of filters."""
    problem, gpu = whole("resnet50-56-expand"), KNOWN["A100"]
    backend = backends.get("cuda")
    tiles = backend.tiles(problem, "forward", gpu, contiguous_operands(problem, "forward", problem.memory_format))
    alike = [dataclasses.replace(tile, kernel="tensor") for tile in tiles]
    (first, prediction), *others = ranked(backend, alike, problem, "forward", gpu, False)
    assert first.columns >= 128 and all(prediction.bytes <= other.bytes for _, other in others)
