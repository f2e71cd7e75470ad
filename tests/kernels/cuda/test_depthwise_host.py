"""The depthwise kernels under the host check: right, the same bits in any order of threads, no race, few bytes."""

import ctypes
import dataclasses
import itertools
import random
from pathlib import Path

import pytest
import torch
from host_cuda import COMPILER, HostRuntime, Recorder, build, compute, replay

from gpuconv import backends, reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import depthwise as cuda_depthwise
from gpuconv.backends.cuda.launch import Launch, source
from gpuconv.checking.problems import OPERANDS, laid_out, random_depthwise, tensors
from gpuconv.gpu import KNOWN
from gpuconv.planning.ranking import best_tile
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction, memory_format_of
from gpuconv.reference import as_numpy, assert_close_to_oracle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
ACTIVATIONS = ("none", "relu", "silu", "hardswish", "gelu", "leaky_relu(0.2)")

# Whole tiles of the layers that the kernels are for, which random problems seldom have.
CURATED = {
    "3x3-14": ConvProblem.of((2, 24, 14, 14), (24, 1, 3, 3), padding=1, groups=24),
    "3x3-stride2-28": ConvProblem.of((1, 16, 28, 28), (16, 1, 3, 3), padding=1, stride=2, groups=16),
    "5x5-stride2-7": ConvProblem.of((3, 32, 14, 14), (32, 1, 5, 5), padding=2, stride=2, groups=32),
    "7x7-7": ConvProblem.of((2, 40, 7, 7), (40, 1, 7, 7), padding=3, groups=40),
    "31x31": ConvProblem.of((1, 8, 14, 15), (8, 1, 31, 31), padding=15, groups=8),
    "1x9-multiplier3": ConvProblem.of((2, 8, 3, 21), (24, 1, 1, 9), padding=(0, 4), stride=(1, 2), groups=8),
    "causal": ConvProblem.of((2, 24, 1, 70), (24, 1, 1, 4), padding=((0, 0), (3, 0)), groups=24),
}


def operands_of(given: dict[str, torch.Tensor], direction: Direction) -> Operands:
    names = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight")}
    first, second = names.get(direction, ("grad_output", "input"))
    return Operands((given[first].stride(), given[second].stride()))


def offered(problem: ConvProblem, direction: Direction, given: dict[str, torch.Tensor]) -> list[Tile]:
    return cuda_depthwise.tiles(problem, direction, KNOWN["A100"], operands_of(given, direction))


def drawn(problem: ConvProblem, name: str, layout: str) -> tuple[ConvProblem, dict[str, torch.Tensor]]:
    """Tensors of the problem in this layout, and the problem with the memory format that follows."""
    given = tensors(problem, name, problem.dtype, "cpu", layout)
    return dataclasses.replace(problem, memory_format=memory_format_of(given["input"], given["grad_output"])), given


def assert_right(
    problem: ConvProblem, direction: Direction, tile: Tile, given: dict[str, torch.Tensor], activation: str = "none"
) -> None:
    act = Activation.parse(activation)
    got = compute(problem, direction, tile, given, act)
    n = {key: as_numpy(t) for key, t in given.items()}
    operands = (n[key] for key in OPERANDS[direction])
    exact = reference.results(problem, direction, *operands, n["bias"], n["residual"], act)
    for result, wanted in zip(got, exact, strict=True):
        assert_close_to_oracle(result, wanted, f"{direction} {tile}: {problem}")


# ---- right -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CURATED)
def test_curated_problems(name: str, direction: Direction) -> None:
    draw = random.Random(f"{name} {direction}")
    layout = draw.choice(LAYOUTS[:2])
    problem, given = drawn(dataclasses.replace(CURATED[name], dtype=draw.choice(DTYPES)), name, layout)
    tile = draw.choice(offered(problem, direction, given))
    if direction == "grad_weight":
        tile = dataclasses.replace(tile, splits=draw.choice((1, 2, 3)))
    assert_right(problem, direction, tile, given)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(300 if metafunc.config.getoption("--full") else 6))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_random_problems(seed: int, direction: Direction) -> None:
    draw = random.Random(f"{seed} {direction}")
    problem = dataclasses.replace(random_depthwise(seed), dtype=draw.choice(DTYPES))
    problem, given = drawn(problem, f"depthwise {seed}", draw.choice(LAYOUTS))
    tile = dataclasses.replace(draw.choice(offered(problem, direction, given)), splits=1)
    if direction == "grad_weight":
        tile = dataclasses.replace(tile, splits=draw.choice((1, 2, 5)))
    assert_right(problem, direction, tile, given, draw.choice(ACTIVATIONS) if direction == "forward" else "none")


@pytest.mark.parametrize(("layout", "direction"), list(zip(LAYOUTS[:2] * 2, DIRECTIONS, strict=False)))
def test_order_of_threads_wide_offsets_and_lost_alignment_do_not_change_a_bit(
    direction: Direction, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, given = drawn(CURATED["5x5-stride2-7"], "bits", layout)
    tile = dataclasses.replace(offered(problem, direction, given)[0], splits=2 if direction == "grad_weight" else 1)
    first, *others = (
        compute(problem, direction, tile, given, runtime=HostRuntime(itertools.repeat(order))) for order in range(4)
    )
    shifted = {name: _moved_by_one(t) for name, t in given.items()}
    runtime = Recorder()
    others.append(compute(problem, direction, tile, shifted, runtime=runtime))
    assert "-DX_VECTOR=0" in runtime.records[0].launch.instance.options
    monkeypatch.setattr("gpuconv.backends.derived._MOST_OFFSET", 10)
    others.append(compute(problem, direction, tile, given))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def _moved_by_one(t: torch.Tensor) -> torch.Tensor:
    """The values of t with the same strides, one element further in memory than a multiple of 16 bytes."""
    memory = torch.full((t.numel() + 17,), float("nan"), dtype=t.dtype)
    first = -memory.data_ptr() // t.element_size() % 4 + 1
    return memory[first:].as_strided(t.shape, t.stride()).copy_(t)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_not_a_number_is_not_lost_and_does_not_spread(direction: Direction) -> None:
    """It does not spread even to the taps and results that a strip computes beyond the image."""
    for layout in LAYOUTS[:2]:
        problem, given = drawn(ConvProblem.of((1, 8, 9, 9), (8, 1, 5, 5), stride=2, groups=8), "nan", layout)
        given["input"][0, 3, 7, 7] = given["grad_output"][0, 3, 2, 2] = float("nan")
        given["bias"].zero_()
        given["residual"].zero_()
        (got, *_) = compute(problem, direction, offered(problem, direction, given)[0], given)
        x, w, gy = (as_numpy(given[name]) for name in ("input", "weight", "grad_output"))
        first, second = {"forward": (x, w), "grad_input": (gy, w), "grad_weight": (gy, x)}[direction]
        exact = getattr(reference, direction)(problem, first, second).value
        assert torch.equal(got.isnan(), torch.from_numpy(exact).isnan()), layout


# ---- under the sanitizers --------------------------------------------------------------------------------------------


_CASES = list(itertools.product(("thread", "address"), LAYOUTS[:2], DIRECTIONS))
_USUAL = [case for case in _CASES if case[:2] == ("thread", "contiguous")]
_USUAL += [("thread", "channels_last", "grad_weight"), ("address", "channels_last", "grad_input")]


@pytest.mark.parametrize(
    ("mode", "layout", "direction"), [pytest.param(*c, marks=[] if c in _USUAL else pytest.mark.full) for c in _CASES]
)
def test_sanitizers_find_nothing(layout: str, mode: str, direction: Direction, tmp_path: Path) -> None:
    problem = dataclasses.replace(CURATED["3x3-14"], dtype=torch.bfloat16)
    problem, given = drawn(problem, "sanitizer", layout)
    tile = dataclasses.replace(offered(problem, direction, given)[1], splits=2 if direction == "grad_weight" else 1)
    runtime = Recorder()
    compute(problem, direction, tile, given, runtime=runtime)
    for record in runtime.records[:1]:
        result = replay(record, mode, 2, tmp_path)
        assert not result.complaint
        assert result.after == record.after


def test_removed_barrier_is_found(tmp_path: Path) -> None:
    right = "    stage_filters(shared.s_w, p_w, c0, channels, m, a);\n    __syncthreads();\n"
    problem, given = drawn(CURATED["7x7-7"], "fault", "contiguous")
    runtime = Recorder()
    compute(problem, "forward", offered(problem, "forward", given)[0], given, runtime=runtime)
    (record,) = runtime.records
    text = source(record.launch.instance.file)
    assert right in text
    wrong = text.replace(right, right.replace("__syncthreads();", ""))
    assert "data race" in replay(record, "thread", 2, tmp_path, wrong).complaint


# ---- bytes -----------------------------------------------------------------------------------------------------------

COUNTED = """
static long long moved = 0;
extern "C" __attribute__((visibility("default"))) long long bytes_moved() { return moved; }
template <typename T> T& counted(T& v) { moved += sizeof v; return v; }
#define copy_16(to, from, inside) (moved += (inside) ? 16 : 0, copy_16(to, from, inside))
#define store_16(to, from) (moved += 16, store_16(to, from))
"""
# Every access to global memory that is not one of those two.
ACCESSES = (
    "image.p[from + e]", "p_first[o_pixel + c * image.channel_stride]", "p_w[o_w]", "to.p[o + e]",
    "to.p[o + v * to.channel_stride]", "p_gw[v * channel_stride + i * tap_stride]",
    "p_gb[v * MEMBERS]", "p[split * size + i]", "p[split * filters]",
    "p_gw[offset_of(k, tap, a.w) + c * a.w[1]]", "p_gb[i - size]",
)  # fmt: skip


class Counting(HostRuntime):
    """Counts the bytes that all launches read and write, each as often as it is read or written."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        text = source(launch.instance.file)
        first = "constexpr int SIZE = Vector"
        assert first in text
        text = text.replace(first, COUNTED + first, 1)
        for access in ACCESSES:
            text = text.replace(access, f"counted({access})")
        library = ctypes.CDLL(str(build(text, launch.instance.options, "fast")))
        before = library.bytes_moved()
        parameters, _values = launch.parameters(tensors)
        run = getattr(library, f"launch_{launch.instance.function}")
        run.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
        run(launch.blocks, launch.instance.threads, launch.instance.shared, parameters, 0)
        self.bytes += library.bytes_moved() - before


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize(
    ("size", "taps", "stride"),
    [(56, 7, 1), (56, 3, 2), (14, 5, 1)],
    ids=["7x7-on-56", "3x3-stride2-on-56", "5x5-on-14"],
)
def test_moves_few_more_bytes_than_it_must(
    size: int, taps: int, stride: int, layout: str, direction: Direction
) -> None:
    """With the tile that the planner takes on an H100 for a layer of many such images and channels; here are few."""
    few = ConvProblem.of((1, 32, size, size), (32, 1, taps, taps), stride, taps // 2, 1, 32, dtype=torch.bfloat16)
    few, given = drawn(few, "bytes", layout)
    many = dataclasses.replace(few, batch=64, in_channels=192, out_channels=192, groups=192)
    strides = [laid_out(torch.empty(shape, device="meta"), layout).stride() for shape in many.operand_shapes(direction)]
    gpu, operands = KNOWN["H100"], Operands((strides[0], strides[1]))
    tiles = cuda_depthwise.tiles(many, direction, gpu, operands)
    tile = best_tile(backends.get("cuda"), tiles, many, direction, gpu, False)
    assert tile is not None
    given["residual"] = torch.zeros(1, dtype=few.dtype).expand(few.output_shape)
    runtime = Counting()
    compute(few, direction, dataclasses.replace(tile, splits=1), given, runtime=runtime)
    least = few.least_bytes(direction)
    assert 0.98 * least <= runtime.bytes <= 1.25 * least, runtime.bytes / least
