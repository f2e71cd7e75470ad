"""Subnormal numbers under the host check: every family reads and writes them, to the last bit that the type has."""

import dataclasses
import itertools

import pytest
import torch
from host_cuda import COMPILER, compute

from gpuconv import reference
from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.cuda import simt as cuda_simt
from gpuconv.backends.cuda.backend import FAMILIES
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import Exact, assert_close_to_oracle

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")

# Family, number type, input, weight.
CASES = {
    "simt-float32": ((2, 12, 6, 7), (16, 12, 3, 3)),
    "tensor-bfloat16": ((2, 16, 6, 7), (16, 16, 3, 3)),
    "halo-float16": ((2, 16, 6, 7), (16, 16, 3, 3)),
    "grouped-bfloat16": ((2, 32, 6, 7), (32, 4, 3, 3)),
    "depthwise-float32": ((2, 16, 6, 7), (16, 1, 3, 3)),
    "depthwise-float16": ((2, 16, 6, 7), (16, 1, 3, 3)),
    "banded-bfloat16": ((1, 4, 17, 18), (4, 1, 9, 9)),
}
A100 = KNOWN["A100"]


def case(name: str) -> tuple[str, ConvProblem]:
    kernel, dtype = name.split("-")
    x, w = CASES[name]
    layout = torch.contiguous_format if kernel == "banded" else torch.channels_last
    shape = {"padding": w[2] // 2, "groups": x[1] // w[1], "memory_format": layout}
    return kernel, ConvProblem.of(x, w, dtype=getattr(torch, dtype), **shape)


def smallest(kernel: str, problem: ConvProblem, direction: Direction) -> Tile:
    if kernel == "simt":
        offered = cuda_simt.menu(problem, direction, A100)
    else:
        operands = contiguous_operands(problem, direction, problem.memory_format)
        offered = [*FAMILIES[kernel].tiles(problem, direction, A100, operands)]
    return min((dataclasses.replace(tile, splits=1) for tile in offered), key=lambda tile: tile.rows * tile.columns)


def given(problem: ConvProblem) -> dict[str, torch.Tensor]:
    """Tensors of multiples of the smallest number of the type, and a weight of whole ones. All sums are exact."""
    info = torch.finfo(problem.dtype)
    generator, least = torch.Generator().manual_seed(7), info.tiny * info.eps

    def whole(shape: tuple[int, ...], times: float, most: int = 2) -> torch.Tensor:
        values = torch.randint(-most, most + 1, shape, generator=generator).double() * times
        lies = {"memory_format": problem.memory_format} if len(shape) == 4 else {}
        return values.to(problem.dtype).contiguous(**lies)

    shapes = {"input": problem.input_shape, "grad_output": problem.output_shape, "residual": problem.output_shape}
    subnormal = {name: whole(shape, least) for name, shape in shapes.items()}
    return subnormal | {"weight": whole(problem.weight_shape, 1), "bias": whole((problem.out_channels,), least)}


def exact(problem: ConvProblem, direction: Direction, tensors: dict[str, torch.Tensor]) -> tuple[Exact, ...]:
    x, w, gy, bias, residual = (
        reference.as_numpy(tensors[key]) for key in ("input", "weight", "grad_output", "bias", "residual")
    )
    if direction == "forward":
        return (reference.forward(problem, x, w, bias, residual),)
    if direction == "grad_input":
        return (reference.grad_input(problem, gy, w),)
    return reference.grad_weight(problem, gy, x), reference.grad_bias(problem, gy)


def drawn(name: str, direction: Direction) -> tuple[ConvProblem, Tile, dict[str, torch.Tensor]]:
    kernel, problem = case(name)
    tensors = given(problem)
    if direction == "grad_weight":  # one operand is subnormal, and the other one is not
        tensors["input"] = torch.ones_like(tensors["input"])
    return problem, smallest(kernel, problem, direction), tensors


@pytest.mark.parametrize(
    ("name", "direction"), [p for p in itertools.product(CASES, DIRECTIONS) if p != ("halo-float16", "grad_weight")]
)
def test_subnormal_numbers_are_numbers(name: str, direction: Direction) -> None:
    problem, tile, tensors = drawn(name, direction)
    got = compute(problem, direction, tile, tensors)
    for result, wanted in zip(got, exact(problem, direction, tensors), strict=True):
        assert 0 < abs(wanted.value).max() < 2000 * torch.finfo(problem.dtype).tiny
        assert_close_to_oracle(result, wanted, f"{name}, {direction}, {tile}")


@pytest.mark.parametrize("name", ["simt-float32", "tensor-bfloat16"])
def test_a_flush_to_zero_would_be_noticed(name: str) -> None:
    problem, tile, tensors = drawn(name, "forward")
    wanted = exact(problem, "forward", tensors)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        (got,) = compute(problem, "forward", tile, tensors)
    finally:
        torch.set_flush_denormal(False)
    with pytest.raises(AssertionError, match="times too large"):
        assert_close_to_oracle(got, wanted[0], "flushed")
