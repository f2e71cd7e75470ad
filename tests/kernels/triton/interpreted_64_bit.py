"""The gather kernels beyond 2³¹ elements, without that many; `test_kernels_in_interpreter.py` runs them."""

import dataclasses
import math

import pytest
import sparse
import torch

from gpuconv import reference
from gpuconv.activations import IDENTITY
from gpuconv.backends import derived
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import backend, launch as triton_launch
from gpuconv.checking.problems import tensors
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle, worst_violation

PLAIN = ConvProblem.of((3, 8, 4, 6), (12, 8, 3, 3), padding=1, dtype=torch.float16)
GROUPS = ConvProblem.of((3, 16, 4, 6), (16, 8, 3, 3), padding=1, groups=2, dtype=torch.float16)
TILE = Tile(64, 16, 16, warps=4, stages=2)
NAMES = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
NEVER = 1 << 62


def exact(problem: ConvProblem, direction: Direction, t: dict[str, torch.Tensor]) -> reference.Exact:
    n = {name: as_numpy(value) for name, value in t.items()}
    if direction == "forward":
        return reference.forward(problem, n["input"], n["weight"], n["bias"], n["residual"])
    return getattr(reference, direction)(problem, *(n[name] for name in NAMES[direction]))


def compute(problem: ConvProblem, direction: Direction, t: dict[str, torch.Tensor]) -> torch.Tensor:
    first, second = (t[name] for name in NAMES[direction])
    operands = plan.Operands((first.stride(), second.stride()))
    tile = dataclasses.replace(TILE, splits=2 if direction == "grad_weight" else 1)
    if direction == "forward":
        operands = operands._replace(residual=t["residual"].stride(), bias=True)
    wide = [launch.constants["WIDE"] for launch in backend.launches(problem, direction, operands, tile)]
    assert wide[0] is (derived._MOST_OFFSET != NEVER)
    run = backend.TritonBackend().bind(problem, direction, torch.device("cpu"), IDENTITY, operands, tile)
    if direction == "forward":
        return run(first, second, t["bias"], t["residual"])
    return run(first, second) if direction == "grad_input" else run(first, second, False)[0]


CASES = [
    (direction, name, axis)
    for direction in DIRECTIONS
    for name in (*NAMES[direction], *(["residual"] if direction == "forward" else []))
    for axis in (0, 1, 3)  # rows are as columns
]


@pytest.mark.parametrize(("direction", "name", "axis"), CASES)
def test_operands_with_strides_beyond_32_bits(direction: Direction, name: str, axis: int) -> None:
    """In vectors, where channels are neighbours."""
    order = sparse.CONTIGUOUS if axis == 1 else sparse.CHANNELS_LAST
    problem = PLAIN if axis == 1 else dataclasses.replace(GROUPS, memory_format=torch.channels_last)
    t = tensors(problem, "64 bit", problem.dtype)
    expected = exact(problem, direction, t)
    t[name] = sparse.apart(t[name], axis, order)
    assert_close_to_oracle(compute(problem, direction, t), expected, f"{direction} {name} {axis}")


@pytest.mark.parametrize(("direction", "name", "axis"), [case for case in CASES if case[2] == 0])
def test_32_bits_would_be_wrong(direction: Direction, name: str, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_MOST_OFFSET", NEVER)
    t = tensors(PLAIN, "64 bit", PLAIN.dtype)
    expected = exact(PLAIN, direction, t)
    t[name] = sparse.apart(t[name], axis, sparse.CONTIGUOUS)
    assert worst_violation(compute(PLAIN, direction, t), expected)[0] > 100


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_64_bits_exactly_where_32_overflow(direction: Direction) -> None:
    """The largest offset of any operand decides, and nothing else."""
    most = derived._MOST_OFFSET
    plain = plan.contiguous_operands(PLAIN, direction)
    plain = plain._replace(residual=plain.strides[0] if direction == "forward" else None)
    shapes = [*PLAIN.operand_shapes(direction), *([PLAIN.output_shape] if direction == "forward" else [])]
    for i, shape in enumerate(shapes):
        for axis, size in enumerate(shape):
            for offset, expected in ((most - 1, False), (most + size, True)):
                strides = tuple(offset // (size - 1) if a == axis else 0 for a in range(4))
                both = [*plain.strides]
                if i < 2:
                    both[i] = strides
                residual = strides if i == 2 else plain.residual
                operands = plain._replace(strides=tuple(both), residual=residual)
                launch = backend.launches(PLAIN, direction, operands, TILE)[0]
                assert launch.constants["WIDE"] is expected, (i, axis)


# ---- more than 2³¹ pixels and elements: the last programs of a launch ------------------------------------------------

HUGE = ConvProblem.of((32_800, 2, 256, 256), (3, 2, 3, 3), padding=1, dtype=torch.float16)  # 2.15·10⁹ pixels


def run_one(launch: triton_launch.Launch, program: int, monkeypatch: pytest.MonkeyPatch, *tensors: object) -> None:
    """One program of a launch."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    first = builder.create_get_program_id

    def shifted(axis: int) -> interpreter.TensorHandle:
        handle = first(axis)
        return interpreter.TensorHandle(handle.data + program, handle.dtype) if axis == 0 else handle

    with monkeypatch.context() as m:
        m.setattr(builder, "create_get_program_id", shifted)
        launch._grid = (1, 1, 1)
        launch(None, *tensors)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_last_program_of_more_than_2_to_the_31_pixels(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HUGE.batch * math.prod(HUGE.output_size) > 2**31
    first, second = HUGE.operand_shapes(direction)
    result_shape = {"forward": HUGE.output_shape, "grad_input": HUGE.input_shape}.get(direction)
    one = dataclasses.replace(HUGE, batch=1)
    small = tensors(one, "last image", HUGE.dtype)
    a, b = (small[name] for name in NAMES[direction])

    def in_the_end(t: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """t as the last image of many that are zero."""
        if tuple(t.shape) == shape:
            return t
        many = sparse.empty_strided(shape, torch.empty(shape, device="meta").stride(), t.dtype)
        many[-1:] = t
        return many

    a, b = in_the_end(a, first), in_the_end(b, second)
    operands = plan.Operands((a.stride(), b.stride()))
    if direction != "grad_weight":
        launch = backend.launches(HUGE, direction, operands, TILE)[0]
        assert launch.constants["WIDE"]
        result = in_the_end(torch.full((1, *result_shape[1:]), math.nan, dtype=HUGE.dtype), result_shape)
        bias = (None, None) if direction == "forward" else ()
        run_one(launch, launch.programs - 1, monkeypatch, a, b, *bias, result)
        last = result[-1].flatten(1)[:, -TILE.rows :]  # [channels, pixels]
        whole = exact(one, direction, small | {"bias": torch.zeros(3), "residual": torch.zeros(one.output_shape)})
        part = (0, slice(None), -1, slice(-TILE.rows, None))
        assert_close_to_oracle(last, whole._replace(value=whole.value[part], magnitude=whole.magnitude[part]))
        assert result[-1].flatten(1)[:, : -TILE.rows].isnan().all()
        return
    # Each split of grad_weight takes a few steps, and the last one the last pixels: the partial sum of their rows.
    steps = 4
    tile = dataclasses.replace(TILE, splits=HUGE.batch * math.prod(HUGE.output_size) // (TILE.depth * steps))
    gather, _ = backend.launches(HUGE, direction, operands, tile)
    assert gather.constants["WIDE"]
    size, k = math.prod(HUGE.weight_shape), HUGE.out_channels
    partials = sparse.empty_strided((tile.splits, HUGE.taps, k, 2), (size, 2 * k, 2, 1), torch.float32)
    run_one(gather, gather.programs - 1, monkeypatch, a, b, partials, None, None, None)
    kept = small["grad_output"].clone()
    kept.view(k, -1)[:, : -TILE.depth * steps] = 0
    whole = exact(one, direction, small | {"grad_output": kept})
    last_tap = (slice(None), slice(None), -1, -1)
    assert_close_to_oracle(
        partials[-1, -1], whole._replace(value=whole.value[last_tap], magnitude=whole.magnitude[last_tap])
    )
