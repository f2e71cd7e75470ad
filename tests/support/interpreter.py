"""Triton kernels under the interpreter against the oracle, with a given tile, in buffers that have NaN around them."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import backend
from gpuconv.checking.judging import CANARY, MARGIN, surrounded
from gpuconv.checking.problems import tensors
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction, allocate, memory_format_of
from gpuconv.reference import as_numpy, assert_close_to_oracle

SMALL = Tile(16, 16, 16, warps=4, stages=2)


def few(all_of_them: Iterable[Any], by_default: int) -> list[Any]:
    """Parameters of a test (tuples are several), of which the first ones run by default and all with --full."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full if at >= by_default else ()
        )
        for at, value in enumerate(all_of_them)
    ]


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> object:
    """Results are allocated inside larger buffers, which must be untouched around them in the end."""
    buffers = []

    def inside_a_buffer(shape, like, memory_format):
        plain = allocate(shape, like, memory_format)
        if plain.device.type == "meta":
            return plain
        buffer = torch.full((plain.numel() + 2 * MARGIN,), CANARY, dtype=plain.dtype)
        buffer[MARGIN : MARGIN + plain.numel()] = math.nan
        buffers.append(buffer)
        return buffer.as_strided(plain.shape, plain.stride(), MARGIN)

    monkeypatch.setattr(backend, "allocate", inside_a_buffer)
    yield
    for buffer in buffers:
        outside = torch.cat((buffer[:MARGIN], buffer[-MARGIN:]))
        assert (outside == torch.tensor(CANARY, dtype=buffer.dtype)).all(), "written outside the result"


def check(
    problem: ConvProblem,
    name: str,
    layout: str = "contiguous",
    tile: Tile = SMALL,
    activation: str = "none",
    directions: tuple[Direction, ...] = DIRECTIONS,
    results: torch.memory_format | None = None,
    of_residual: torch.memory_format | None = None,
) -> None:
    """The directions with this tile against the oracle; grad_weight gives the same bits twice.

    results, of_residual: the formats of results and of the residual, where they are not to follow from `layout`.
    """
    given = {
        key: t if layout == "expanded" else surrounded(t)
        for key, t in tensors(problem, name, problem.dtype, "cpu", layout).items()
    }
    if of_residual is not None:
        given["residual"] = surrounded(given["residual"].contiguous(memory_format=of_residual))
    x, w, b, residual, gy = given.values()
    n = {key: as_numpy(t) for key, t in given.items()}
    act = Activation.parse(activation)
    exactly = reference.precision_for(problem.dtype)
    bind, cpu, context = backend.TritonBackend().bind, torch.device("cpu"), f"{layout} {tile}: {problem}"

    def operands(first: torch.Tensor, second: torch.Tensor, **more: object) -> plan.Operands:
        return plan.Operands((first.stride(), second.stride()), **more)

    def formatted(first: torch.Tensor, second: torch.Tensor) -> ConvProblem:
        return dataclasses.replace(problem, memory_format=results or memory_format_of(first, second))

    if "forward" in directions:
        with_epilogue = operands(x, w, residual=residual.stride(), bias=True)
        y = bind(formatted(x, w), "forward", cpu, act, with_epilogue, tile)(x, w, b, residual)
        exact = reference.forward(problem, n["input"], n["weight"], n["bias"], n["residual"], act, exactly)
        assert_close_to_oracle(y, exact, context)
    if "grad_input" in directions:
        gx = bind(formatted(gy, w), "grad_input", cpu, act, operands(gy, w), tile)(gy, w)
        assert_close_to_oracle(gx, reference.grad_input(problem, n["grad_output"], n["weight"], exactly), context)
    if "grad_weight" in directions:
        grad_weight = bind(formatted(gy, x), "grad_weight", cpu, act, operands(gy, x), tile)
        gw, gb = grad_weight(gy, x, True)
        assert_close_to_oracle(gw, reference.grad_weight(problem, n["grad_output"], n["input"], exactly), context)
        assert_close_to_oracle(gb, reference.grad_bias(problem, n["grad_output"], exactly), context)
        again, none = grad_weight(gy, x, False)
        assert none is None and torch.equal(again, gw)
