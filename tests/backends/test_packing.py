"""Packing: which operands are copied to channels last first, that the copies are right and cheap, and who shows it."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lanes import INTERPRETING, Lane

from gpuconv import backends, emulator, gpu as gpus
from gpuconv.activations import Activation
from gpuconv.backends import packing
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.bench import suites
from gpuconv.checking.judging import exact_results
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.cli import main
from gpuconv.gpu import KNOWN
from gpuconv.planning import distrust, plan, ranking, tuned
from gpuconv.problem import CHANNELS_LAST, DIRECTIONS, ConvProblem, Direction, memory_format_of
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")

from gpuconv.backends.cuda import pack as cuda_pack  # noqa: E402
from gpuconv.backends.triton import pack as triton_pack  # noqa: E402

CPU, H100, LAST = torch.device("cpu"), KNOWN["H100"], CHANNELS_LAST[4]
PACK: dict[str, Callable[..., Any]] = {"triton": triton_pack.launch, "cuda": cuda_pack.launch}
LANES = [Lane("triton", "cpu", "h100"), Lane("cuda", "cpu", "a100")]
each_lane = pytest.mark.parametrize("lane", LANES, ids=str)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
NUMBERS = [(torch.float16, False), (torch.float32, True)]


def source_of(t: torch.Tensor | None) -> packing.Source | None:
    return None if t is None else packing.source(tuple(t.shape), t.stride())


def counters_of_copying(
    lane: Lane, a: torch.Tensor | None, b: torch.Tensor | None, **how: bool
) -> "emulator.counters.Counters":
    """Counters of the launch that copies both, whose copies are right, to the last element."""
    dtype = next(t.dtype for t in (a, b) if t is not None)
    launch = PACK[lane.backend]((source_of(a), source_of(b)), dtype, **how)
    copies = [None if t is None else torch.full((t.numel() + 8,), math.nan, dtype=dtype) for t in (a, b)]
    with lane.entered(), lane.emulated() as gpu:
        of_backend = gpus.emulation.triton if lane.backend == "triton" else gpus.emulation.cuda
        of_backend.launch(launch, CPU, (a, b, *(None if copy is None else copy[:-8] for copy in copies)))
        (counters,) = gpu.counters()
    assert counters.kernel == "pack"
    for t, copy in zip((a, b), copies, strict=True):
        if t is not None:
            assert torch.equal(copy[:-8], t.movedim(1, -1).reshape(-1)) and copy[-8:].isnan().all()
    return counters


def random(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# ---- the copies ------------------------------------------------------------------------------------------------------

# Input and weight, as contiguous layers have them: rows of whole vectors, of half ones, and such that begin anywhere.
CONTIGUOUS = {
    "28x28": ((1, 72, 28, 28), (24, 72, 3, 3)),
    "14x14": ((2, 128, 14, 14), (16, 128, 3, 3)),
    "7x7": ((3, 128, 7, 7), (24, 64, 5, 5)),
    "12x20, 1x3": ((1, 64, 12, 20), (40, 64, 1, 3)),
}


@each_lane
@pytest.mark.parametrize("name", CONTIGUOUS)
def test_contiguous_tensors_are_copied_in_whole_sectors_and_without_bank_conflicts(lane: Lane, name: str) -> None:
    for dtype in (torch.float16, torch.float32)[: 1 + (name == "7x7")]:
        a, b = (random(*shape, dtype=dtype) for shape in CONTIGUOUS[name])
        counters = counters_of_copying(lane, a, b)
        assert counters.global_sectors <= 1.15 * counters.global_sectors_least
        assert counters.shared_passes <= 1.1 * counters.shared_passes_least
        assert counters.global_bytes == 2 * (a.numel() + b.numel()) * dtype.itemsize


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_a_weight_is_turned_in_whole_sectors(memory_format: torch.memory_format) -> None:
    """Its filters are channels of one image then, of which its channels and taps are the pixels."""
    weight = random(64, 72, 3, 3, dtype=torch.float32).contiguous(memory_format=memory_format)
    counters = counters_of_copying(LANES[0], None, weight.unsqueeze(0))
    assert counters.global_sectors <= 1.15 * counters.global_sectors_least
    assert counters.shared_passes <= 1.1 * counters.shared_passes_least


@each_lane
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 72, 28, 28), torch.float16), ((2, 64, 14, 14), torch.float16), ((2, 24, 14, 14), torch.float32),
        ((3, 40, 7, 5), torch.float16), ((2, 64, 3, 4, 6), torch.bfloat16), ((1, 16, 1, 2), torch.float32),
    ],
    ids=str,
)  # fmt: skip
def test_a_result_is_copied_from_channels_last_in_whole_sectors(
    lane: Lane, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    problem = ConvProblem.of(shape, (8, shape[1], *(1 for _ in shape[2:])), stride=2, dtype=dtype)
    computed = random(shape[0], *shape[2:], shape[1], dtype=dtype)
    launch, copy = (
        PACK[lane.backend]((packing.source_of_result(problem), None), dtype),
        torch.full((computed.numel() + 8,), math.nan, dtype=dtype),
    )
    with lane.entered(), lane.emulated() as gpu:
        of_backend = gpus.emulation.triton if lane.backend == "triton" else gpus.emulation.cuda
        of_backend.launch(launch, CPU, (computed, None, copy[:-8], None))
        (counters,) = gpu.counters()
    assert torch.equal(copy[:-8], computed.movedim(-1, 1).reshape(-1)) and copy[-8:].isnan().all()
    if math.prod(shape[2:]) % 2 == 0:  # else rows of pixels begin anywhere
        assert counters.global_sectors <= 1.15 * counters.global_sectors_least
        assert counters.shared_passes <= 1.1 * counters.shared_passes_least


@each_lane
def test_tensors_are_copied_however_they_lie(lane: Lane) -> None:
    wide = random(2, 100, 9, 11)
    counters_of_copying(lane, wide[:, 3:67, 1:8, ::2], random(1, 1, 1, 1).expand(3, 24, 5, 5))
    counters_of_copying(lane, wide.contiguous(memory_format=LAST)[:, 4:68], random(16, 40, 17).transpose(0, 2))
    counters_of_copying(lane, random(2, 16, 3, 4, 5), random(1, 24, 1501))
    counters_of_copying(lane, None, random(5, 16, 3, 3)[:, :, :, :1])
    counters_of_copying(lane, random(3, 2, 16, 6, 4)[:, 1], None)
    counters_of_copying(lane, random(7, 16, 31, 31, dtype=torch.bfloat16), None)


def test_unaligned_tensors_are_copied_by_a_variant_of_the_cuda_kernel() -> None:
    a, b = random(2 * 16 * 49 + 1)[1:].view(2, 16, 7, 7), random(8 * 16 * 144 + 3)[3:].view(8, 16, 12, 12)
    counters_of_copying(LANES[1], a, b, aligned=False)
    counters_of_copying(LANES[0], a, b)  # Triton sees it by itself


def test_offsets_are_64_bit_where_they_could_overflow() -> None:
    far = packing.source((2, 16, 3, 3), (2**31, 9, 3, 1))
    assert triton_pack.launch((far, None), torch.float16).constants["WIDE"]
    near = packing.source((2, 16, 3, 3), (144, 9, 3, 1))
    assert not triton_pack.launch((None, near), torch.float16).constants["WIDE"]


# ---- which operands, and which tiles ---------------------------------------------------------------------------------


def menu(lane: Lane, problem: ConvProblem, direction: Direction, operands: Operands) -> tuple[Tile, ...]:
    return backends.get(lane.backend).tiles(problem, direction, KNOWN[str(lane.gpu).upper()], operands)


def lying(
    problem: ConvProblem, direction: Direction, tf32: bool, *formats: torch.memory_format
) -> tuple[ConvProblem, Operands]:
    """The problem and the operands of a call whose two tensors lie in these formats."""
    shapes = problem.operand_shapes(direction)
    a, b = (torch.empty(shape, device="meta", memory_format=f) for shape, f in zip(shapes, formats, strict=True))
    return dataclasses.replace(problem, memory_format=memory_format_of(a, b)), Operands(
        (a.stride(), b.stride()), tf32=tf32
    )


PLAIN, MIXES = torch.contiguous_format, list(itertools.product((torch.contiguous_format, LAST), repeat=2))


@each_lane
@each_direction
def test_dense_layers_fetch_nothing_element_by_element(lane: Lane, direction: Direction) -> None:
    """16-bit numbers and TF32, more than 8 channels that are whole vectors, both layouts and mixed ones."""
    layers = [suites.layer(f"thirty.{name}", 8) for name in suites.SUITES["thirty"].layers]
    layers = [p for p in layers if p.groups == 1 and all(n > 8 and n % 8 == 0 for n in (p.in_channels, p.out_channels))]
    assert len(layers) > 15
    for layer, formats, (dtype, tf32) in itertools.product(layers, MIXES, NUMBERS):
        problem, operands = lying(dataclasses.replace(layer, dtype=dtype), direction, tf32, *formats)
        tiles = menu(lane, problem, direction, operands)
        assert tiles and not any(tile.addressed for tile in tiles), (problem, formats)
        if LAST in formats and formats[0] is formats[1]:
            assert {tile.packs for tile in tiles} <= {"", "turned weight"}
        names = {name for tile in tiles for name in tile.packs.split("+") if tile.packs} - {"turned weight"}
        in_parts = direction == "grad_input" and LAST not in formats and problem.stride[-1] > 1
        assert ("result" in names) is in_parts
        names.discard("result")
        assert names <= {name for name, f in zip(OPERANDS[direction], formats, strict=True) if f is PLAIN}
        last, operands = lying(problem, direction, tf32, LAST, LAST)
        few = len(menu(lane, last, direction, operands)) + 20  # a first call is still planned quickly
        assert len(tiles) <= few * (1 + in_parts)


@each_lane
def test_elements_are_still_fetched_one_by_one_where_channels_are_no_vectors(lane: Lane) -> None:
    for channels, dtype, tf32, packs in (
        (16, torch.float16, False, "input+weight"), (8, torch.float16, False, ""), (20, torch.float16, False, ""),
        (20, torch.float32, True, "input+weight"), (64, torch.float32, False, ""), (64, torch.float64, False, ""),
    ):  # fmt: skip
        problem = ConvProblem.of((2, channels, 9, 9), (24, channels, 3, 3), dtype=dtype)
        operands = contiguous_operands(problem, "forward")._replace(tf32=tf32)
        tiles = menu(lane, problem, "forward", operands)
        assert {tile.packs for tile in tiles} == {packs}
        assert any(tile.addressed for tile in tiles) is not bool(packs) or (lane.backend == "cuda" and not tf32)
    depthwise = ConvProblem.of((2, 64, 9, 9), (64, 1, 3, 3), groups=64, dtype=torch.float16)
    assert not any(tile.packs for tile in menu(lane, depthwise, "forward", contiguous_operands(depthwise, "forward")))
    gradient = Operands(((0, 0, 0, 0), (144, 9, 3, 1)))  # of a sum: one number, expanded
    problem = ConvProblem.of((2, 16, 9, 9), (24, 16, 3, 3), dtype=torch.float16)
    assert {tile.packs for tile in menu(lane, problem, "grad_input", gradient)} == {"grad_output+weight"}


@each_direction
@pytest.mark.parametrize(("dtype", "tf32"), NUMBERS, ids=["float16", "tf32"])
def test_a_contiguous_layer_is_predicted_to_take_little_more(
    dtype: torch.dtype, tf32: bool, direction: Direction
) -> None:
    def found(memory_format: torch.memory_format) -> list[ranking.Candidate]:
        problem = suites.layer("resnet50.conv3_3x3", 64, dtype, memory_format)
        operands = contiguous_operands(problem, direction, memory_format)._replace(tf32=tf32)
        return ranking.candidates(problem, direction, H100, operands)[0]

    plain = found(PLAIN)[0]  # `hopper` stores no contiguous result: held to the same family
    last = next(each for each in found(LAST) if each.tile.kernel == plain.tile.kernel)
    assert plain.tile.packs.replace("turned ", "") == "+".join(OPERANDS[direction])
    assert last.tile.packs in ("", "turned weight")
    # grad_weight copies two activations, each as large as the weight is small: half of what the product takes.
    most = 1.6 if direction == "grad_weight" else 1.5
    assert last.prediction.seconds < plain.prediction.seconds <= most * last.prediction.seconds


# ---- calls -----------------------------------------------------------------------------------------------------------


@each_lane
@pytest.mark.parametrize("formats", MIXES[:3], ids=lambda formats: "-".join(map(str, formats)))
def test_a_call_packs_once_and_gives_what_the_oracle_says(lane: Lane, formats: tuple[torch.memory_format, ...]) -> None:
    p = ConvProblem.of((2, 24, 7, 9), (40, 24, 3, 3), padding=1, stride=(1, 2), dtype=torch.float16)
    given = tensors(p, "packing", p.dtype, "cpu", "contiguous")
    n = {name: as_numpy(t) for name, t in given.items()}
    with lane.entered():
        for direction in DIRECTIONS:
            a, b = (
                given[name].contiguous(memory_format=f) for name, f in zip(OPERANDS[direction], formats, strict=True)
            )
            problem, operands = lying(p, direction, False, *formats)
            with lane.emulated() as gpu:
                settings = Settings(p.stride, p.padding, p.dilation, 1, backend=lane.backend)
                chosen = plan.choose(problem, direction, CPU, settings, operands)
                rest = {"forward": (None, None), "grad_input": (), "grad_weight": (True,)}[direction]
                results = chosen.run(a, b, *rest), chosen.run(a, b, *rest)
                assert chosen.tile is not None and chosen.tile.packs and gpu.launches.count("pack") == 2
                assert gpu.launches[0] == "pack"
            first, again = (one if isinstance(one, tuple) else (one,) for one in results)
            exact = exact_results(problem, direction, n)
            for result, same, (name, wanted) in zip(first, again, exact.items(), strict=True):
                assert_close_to_oracle(result, wanted, f"{lane} {direction} {name} {formats}")
                assert torch.equal(result, same)
                if result.dim() == 4:
                    assert result.is_contiguous(memory_format=problem.memory_format)


@each_lane
@pytest.mark.parametrize(("dtype", "tf32"), NUMBERS, ids=["float16", "tf32"])
def test_a_strided_contiguous_grad_input_is_computed_channels_last_and_copied(
    lane: Lane, dtype: torch.dtype, tf32: bool
) -> None:
    plain = ConvProblem.of((2, 32, 7, 8), (32, 32, 3, 3), padding=1, stride=2, dtype=dtype)
    problem, operands = lying(plain, "grad_input", tf32, PLAIN, PLAIN)
    given = tensors(problem, "packing", dtype, "cpu", "contiguous")
    (exact,) = exact_results(problem, "grad_input", {name: as_numpy(t) for name, t in given.items()}).values()
    tiles = {tile.kernel: tile for tile in menu(lane, problem, "grad_input", operands) if "result" in tile.packs}
    assert {*tiles} >= ({"window", "gather"} if lane.backend == "triton" else {"tensor"})
    for kernel in ("window", "tensor"):
        if kernel not in tiles:
            continue
        tile = tiles[kernel]
        with lane.entered(), lane.emulated() as gpu:
            run = backends.get(lane.backend).bind(problem, "grad_input", CPU, Activation("none"), operands, tile)
            first, again = (run(given["grad_output"], given["weight"]) for _ in range(2))
        assert gpu.launches == 2 * ["pack", f"{kernel}_grad_input", "pack"]
        assert first.is_contiguous() and torch.equal(first, again)
        assert_close_to_oracle(first, exact, f"{lane} {tile}", tf32=tf32)
        copied = packing.bytes_of(problem, "grad_input", tile.packs)
        assert copied["result"] == first.numel() * dtype.itemsize and copied["weight"] == 9 * 32 * 32 * dtype.itemsize


@pytest.mark.parametrize(("dtype", "tf32"), NUMBERS, ids=["float16", "tf32"])
def test_a_result_in_parts_of_sectors_is_predicted_to_take_longer(dtype: torch.dtype, tf32: bool) -> None:
    """On an H100 it did: 89 µs where channels last took 47, and 139 where it took 68 (CUDA, 32 images)."""
    layer = suites.layer("resnet50.conv3_3x3_stride2", 32, dtype)
    operands = contiguous_operands(layer, "grad_input")._replace(tf32=tf32)
    found, _ = ranking.candidates(layer, "grad_input", H100, operands)
    for backend in ("triton", "cuda"):
        best = next(c for c in found if c.backend == backend)
        assert "result" in best.tile.packs
        direct = next(c for c in found if c.backend == backend and "result" not in c.tile.packs)
        assert dict(direct.prediction.parts)["parts of sectors"] > 20e-6
    unstrided = suites.layer("resnet50.conv3_3x3", 32, dtype)
    found, _ = ranking.candidates(unstrided, "grad_input", H100, operands)
    assert not any("result" in c.tile.packs or "parts of sectors" in dict(c.prediction.parts) for c in found)


def test_launches_and_inspect_name_the_copies_first(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", "--layer", "resnet50.conv3_3x3", "--layout", "contiguous", "--arch", "sm_80", "--json"]
    assert main.run([*command, "--direction", "grad_weight"]) == 0
    kernels = json.loads(capsys.readouterr().out)
    for backend in ("triton", "cuda"):
        first, second, *_ = (kernel for kernel in kernels if kernel["backend"] == backend)
        assert first["kernel"] == "pack" and first["predicted_seconds"] is None and first["spill_bytes"] == 0
        assert first["tile"]["packs"] == "grad_output+input" and second["predicted_seconds"]


def test_plan_says_what_is_copied(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--layer", "resnet50.conv3_3x3", "--layout", "contiguous", "--gpu", "h100", "--batch", "64"]
    assert main.run([*command, "--direction", "forward"]) == 0
    shown = capsys.readouterr().out
    assert "packed window" in shown
    assert "packed: input (12.8 MB) and weight (0.3 MB) copied to channels last first, " in shown
    assert "triton window:" not in shown  # it is refused for these operands, but not for copies of them
    assert main.run([*command, "--direction", "forward", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        packed = {"input": 64 * 128 * 28 * 28 * 2, "weight": 128 * 128 * 9 * 2} if row["tile"]["packs"] else {}
        assert row["packed_bytes"] == packed
        assert (0 < row["predicted_packing_seconds"] < row["predicted_seconds"]) is bool(packed)


def test_plan_says_that_a_result_is_copied(capsys: pytest.CaptureFixture[str]) -> None:
    layer = "resnet50.conv3_3x3_stride2"
    command = ["plan", "--layer", layer, "--layout", "contiguous", "--gpu", "h100", "--batch", "32"]
    assert main.run([*command, "--direction", "grad_input"]) == 0
    shown = capsys.readouterr().out
    assert "packed: grad_output (6.4 MB) and weight (0.3 MB) copied to channels last first, result (25.7 MB) " in shown
    assert "result (25.7 MB) copied from channels last after, " in shown


def test_a_family_that_is_right_is_trusted_although_it_failed_on_copies() -> None:
    tile, copied = Tile(64, 64, 32, 4, 4, kernel="window"), Tile(64, 64, 32, 4, 4, kernel="window", packs="input")
    failed = distrust.Failed("H100", distrust.Kernels("triton", "packed window", "forward", "float16"), "", "", "", {})
    tiles, reasons = distrust.sift((tile, copied), "triton", "forward", "float16", {failed.kernels: failed}, {})
    assert tiles == (tile,) and [*reasons] == ["packed window"]


def test_a_winner_that_packs_is_recorded_and_found_and_one_of_before_still_read() -> None:
    p = ConvProblem.of((2, 16, 9, 9), (24, 16, 3, 3), dtype=torch.float16)
    operands = contiguous_operands(p, "forward")
    tiles = menu(LANES[0], p, "forward", operands)
    winner = tiles[-1]
    key = tuned.key_of(p, "forward", "some GPU", operands)
    assert key is not None
    tuned.record({key: {"triton": tuned.Measured(1e-6, winner)}})
    tuned.forget()
    (found,) = tuned.look_up(p, "forward", "some GPU", operands).values()
    assert found.tile == winner and winner.packs and tuned.on_the_menu(found, tiles, "triton") is winner
    text = json.loads(tuned.path().read_text())
    assert "packs" in json.dumps(text)
    before = dataclasses.asdict(dataclasses.replace(winner, packs=""))
    del before["packs"]
    assert Tile(**before) == winner.without_packs


def test_what_begins_anywhere_is_copied_and_then_taken_by_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last, but sliced off by an element: no stride says so. Layers as small as this one would be gathered, so
    those kernels are taken away; tests/backends/test_unaligned.py has the choice."""
    lane, p = LANES[0], ConvProblem.of((2, 32, 7, 9), (64, 32, 3, 3), padding=1, dtype=torch.float16)
    given = tensors(p, "packing", p.dtype, "cpu", "channels_last")
    n = {name: as_numpy(t) for name, t in given.items()}

    def moved(t: torch.Tensor) -> torch.Tensor:
        return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].as_strided(t.shape, t.stride()).copy_(t)

    with lane.entered():
        for direction in DIRECTIONS:
            a, b = (given[name] for name in OPERANDS[direction])
            problem, operands = lying(p, direction, False, LAST, LAST)
            (tile, *_) = (tile for tile in menu(lane, problem, direction, operands) if tile.kernel == "window")
            rest: tuple[object, ...] = {"forward": (None, None), "grad_input": (), "grad_weight": (True,)}[direction]
            with lane.emulated() as gpu, monkeypatch.context() as m:
                run = backends.get("triton").bind(problem, direction, CPU, Activation("none"), operands, tile)
                m.setattr("gpuconv.backends.triton.gather.tiles", lambda *_: [])
                results = run(a, b, *rest), run(moved(a), b, *rest)
            window = f"window_{direction}"
            assert [name for name in gpu.launches if name != "sum_partials"] == [window, "pack", window]
            first, again = (one if isinstance(one, tuple) else (one,) for one in results)
            for result, same, wanted in zip(first, again, exact_results(problem, direction, n).values(), strict=True):
                assert_close_to_oracle(result, wanted, direction)
                assert torch.equal(result, same)
