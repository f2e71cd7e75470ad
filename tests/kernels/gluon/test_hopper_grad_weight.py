"""Hopper's grad_weight in Gluon: right under every schedule, its machine code, what it fetches, what it refuses."""

import dataclasses
import re

import pytest
import torch
from emulated import complaint
from lanes import INTERPRETING
from planted_kernels import Planned, planned
from planted_ptx import altered, instead, sites, without
from schedules import SCHEDULES
from sweep import Case

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.backends.triton import hopper_grad_weight
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.emulator import device as emulator
from gpuconv.gpu import KNOWN
from gpuconv.inspection.machine_code import machine_code
from gpuconv.problem import CHANNELS_LAST, ConvProblem

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")
emulated = pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}")

H100 = KNOWN["H100"]


def laid_out(problem: ConvProblem, dtype: torch.dtype = torch.bfloat16) -> tuple[ConvProblem, Operands]:
    """The problem with channels last, and its operands."""
    layout = CHANNELS_LAST.get(problem.ndim + 2, torch.contiguous_format)
    problem = dataclasses.replace(problem, dtype=dtype, memory_format=layout)
    return problem, contiguous_operands(problem, "grad_weight", layout)


def tile_of(problem: ConvProblem, rows: int, columns: int, depth: int, stages: int, splits: int, taps: int = 1) -> Tile:
    """A tile for the problem, which need not be one that the planner is offered."""
    problem, operands = laid_out(problem)
    gy, _ = hopper_grad_weight._images(problem, operands)
    number = hopper_grad_weight._window(gy, depth, taps).number
    return Tile(rows, columns, depth, 8, stages, splits, "hopper_grad_weight", number, taps=taps)


SMALL = {
    "three taps": (ConvProblem.of((5, 64, 7, 9), (64, 64, 3, 3), padding=1), (64, 64, 32, 4, 3, 3)),
    "five taps": (ConvProblem.of((3, 192, 6, 5), (96, 96, 5, 2), padding=(2, 0), groups=2), (64, 64, 16, 6, 2, 3)),
    "strides": (ConvProblem.of((5, 64, 8, 12), (72, 64, 3, 3), padding=1, stride=2), (64, 64, 32, 4, 2)),
    "where memory ends": (ConvProblem.of((2, 16, 8, 8), (72, 16, 1, 2), padding=(1, 0), stride=3), (64, 64, 16, 4, 2)),
    "three axes": (ConvProblem.of((2, 64, 4, 6, 7), (64, 64, 2, 3, 3), padding=1), (64, 64, 32, 6, 2, 3)),
    "1×1": (ConvProblem.of((5, 136, 7, 9), (264, 136, 1, 1)), (256, 128, 64, 3, 2)),
    "1×1, not split": (ConvProblem.of((5, 136, 7, 9), (136, 136, 1, 1)), (128, 64, 64, 3, 1)),
}  # fmt: skip
_BY_DEFAULT = ("three taps", "strides", "where memory ends", "1×1, not split")


@emulated
@pytest.mark.parametrize(
    "name", [name if name in _BY_DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in SMALL]
)
def test_it_is_right_under_every_schedule(name: str) -> None:
    problem, sizes = SMALL[name]
    tile = tile_of(problem, *sizes)
    assert hopper_grad_weight.refuses(*_asked(problem)) is None
    case = Case("triton", "H100", "grad_weight", "bfloat16", "channels_last", name, laid_out(problem)[0], tile)
    assert complaint(case, SCHEDULES) is None


LARGE = ConvProblem.of((32, 128, 28, 28), (128, 128, 3, 3), padding=1)
FLAT = ConvProblem.of((32, 128, 28, 28), (512, 128, 1, 1))


@pytest.mark.parametrize("with_bias", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("problem", "sizes", "most"),
    [
        (LARGE, (128, 128, 64, 6, 44, 3), 85),
        (FLAT, (128, 128, 64, 6, 33), 70),
        pytest.param(FLAT, (256, 128, 64, 4, 66), 70, marks=pytest.mark.full),
        pytest.param(LARGE, (64, 64, 64, 12, 11, 3), 85, marks=pytest.mark.full),
    ],
)
def test_its_loops_multiply_and_fetch_and_do_little_else(
    problem: ConvProblem, sizes: tuple[int, ...], most: int, with_bias: bool
) -> None:
    tile, (problem, operands) = tile_of(problem, *sizes), laid_out(problem)
    product, add = hopper_grad_weight.launches(problem, "grad_weight", operands, tile, with_bias=with_bias)
    code, adding = machine_code(product, 90), machine_code(add, 90)
    assert not code.spills and not adding.spills and not code.warnings and code.shared <= H100.shared_memory
    loop = code.loop_instructions
    products = tile.taps * tile.depth // 16 * max(1, tile.rows // 128)
    assert loop["HGMMA"] == products + (products // tile.taps if with_bias else 0)
    assert loop.total() <= most + (30 if with_bias else 0) and loop["BAR"] <= 2 + with_bias
    assert not any(loop[name] for name in ("LDS", "STS", "LDSM", "LDG", "STG", "SHFL", "UTMALDG"))
    # The step's own products are under way while it waits for those of the step before.
    waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)", code.sass)
    assert max(int(n, 16) for n in waits) == tile.taps + with_bias
    # Sums leave two at a time, 256 bytes of a warp together; partial sums are read four at a time.
    assert code.sass.count("STG.E.64") == tile.rows * tile.columns * tile.taps // (2 * 32 * tile.warps)
    assert adding.of_16_bytes["LDG"] >= 8 and (with_bias or adding.of_16_bytes["LDG"] == adding.instructions["LDG"])


@emulated
def test_three_taps_are_fetched_once() -> None:
    problem, operands = laid_out(ConvProblem.of((8, 64, 6, 8), (64, 64, 3, 3), padding=1))
    t = tensors(problem, "fetched", problem.dtype, "cpu", "channels_last")
    a, b = (t[name] for name in OPERANDS["grad_weight"])
    tile = tile_of(problem, 64, 64, 64, 6, 2, 3)
    with emulator.on("h100") as gpu:
        bind = backends.get("triton").bind
        bind(problem, "grad_weight", a.device, Activation("none"), operands, tile)(a, b, False)
    product, _ = gpu.counters()
    # One strip of six rows in two splits, for each of three columns of taps: five and five rows of x, three of gy.
    assert tile.windows == 6 and product.tma_bytes == 3 * 2 * (3 + 5) * 64 * 64 * 2
    loop = product.main_loop
    assert loop.global_sectors == 0 and loop.shared_passes == loop.shared_passes_least
    assert product.global_sectors == product.global_sectors_least  # whole lines of partial sums


@emulated
def test_each_wait_arrival_and_fence_of_its_protocol_is_needed() -> None:
    """Two strips, so that the second one's first items hand back the first one's last; each wait taken away, and each
    one's phase flipped, in turn. What the compiler adds (bar.sync, wgmma.fence and commit) may be redundant."""
    tile = {"stages": 4, "taps": 3, "depth": 16, "windows": 18, "warps": 8, "splits": 1}
    shapes = (2, 64, 9, 9), (64, 64, 3, 1)
    kernel = planned(
        "", Planned("triton", "H100", "grad_weight", "hopper_grad_weight", *shapes, {"padding": (1, 0)}, tile)
    )
    assert kernel.found(None) is None
    protocol = [site for site in sites(kernel.text, r"mbarrier\.|fence\.proxy|wgmma\.wait") if kernel.runs[site.line]]
    missed = [site for site in protocol if kernel.found(without(kernel.text, site)) is None]
    waits = [site for site in protocol if site.opcode.startswith("mbarrier.try_wait")]
    flip = "xor.b32 %faulty, {}, 1;"
    for site in waits:
        phase = re.findall(r"%\w+", site.text)[-1]
        if kernel.found(instead(kernel.text, site, altered(site, phase, flip))) is None:
            missed.append(site)
    assert not missed, missed
    # Of one main and two first items of a strip: three waits on either side, three arrivals and three announcements;
    # eight barriers; waits for products in the loop and after it; the fence behind the ones.
    assert len(waits) == 6 and len(protocol) == 6 + 3 + 3 + 8 + 2 + 1


@emulated
def test_a_large_contiguous_result_is_written_in_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_grad_weight, "_FEW", 0)  # large, as if
    problem = dataclasses.replace(ConvProblem.of((3, 64, 6, 7), (64, 64, 3, 3), padding=1), dtype=torch.bfloat16)
    tile = tile_of(problem, 64, 64, 32, 6, 2, 3)
    case = Case("triton", "H100", "grad_weight", "bfloat16", "channels_last", "contiguous", problem, tile)
    assert complaint(case, SCHEDULES[:1]) is None
    operands = contiguous_operands(problem, "grad_weight", torch.channels_last)
    gy, x = (torch.ones(shape, dtype=torch.bfloat16) for shape in problem.operand_shapes("grad_weight"))
    gy, x = (t.contiguous(memory_format=torch.channels_last) for t in (gy, x))
    with emulator.on("h100") as gpu:
        backends.get("triton").bind(problem, "grad_weight", gy.device, Activation("none"), operands, tile)(gy, x, False)
    _, add = gpu.counters()
    assert add.global_sectors <= 1.1 * add.global_sectors_least


def _asked(problem: ConvProblem, **changed: object) -> tuple[object, ...]:
    problem, operands = laid_out(dataclasses.replace(problem, **changed))  # type: ignore[arg-type]  # of its fields
    return problem, "grad_weight", H100, operands


def test_it_says_what_it_does_not_take() -> None:
    refuses = hopper_grad_weight.refuses
    assert "grad_weight alone" in refuses(LARGE, "forward", H100, contiguous_operands(LARGE, "forward"))
    assert "sm_90" in refuses(*_asked(LARGE)[:2], KNOWN["A100"], _asked(LARGE)[3])
    contiguous = contiguous_operands(LARGE, "grad_weight")
    assert "not channels last" in refuses(
        dataclasses.replace(LARGE, dtype=torch.float16), "grad_weight", H100, contiguous
    )
    assert "not float32" in refuses(LARGE, "grad_weight", H100, contiguous)
    assert "100 channels" in refuses(*_asked(LARGE, in_channels=100))
    assert "fill" in refuses(*_asked(LARGE, groups=8))
    assert "unequal" in refuses(*_asked(LARGE, input_size=(27, 28), stride=(2, 2)))
    assert "nothing" in refuses(*_asked(LARGE, batch=0))


def test_pixels_of_a_1x1_layer_follow_each_other() -> None:
    problem, operands = laid_out(ConvProblem.of((3, 64, 7, 7), (64, 64, 1, 1)))
    gy, x = hopper_grad_weight._images(problem, operands)
    assert gy.sizes == x.sizes == (1, 1, 1, 147)
    assert hopper_grad_weight._window(gy, 64, 1).number == 3
