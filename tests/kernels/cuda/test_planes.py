"""The CUDA C kernels for planes: every path against the oracle under the host check, and their machine code."""

import dataclasses
from pathlib import Path

import pytest
import torch
from host_cuda import COMPILER, HostChecked, HostRuntime, Recorder, replay

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, contiguous_operands
from gpuconv.backends.cuda import planes
from gpuconv.checking.problems import tensors
from gpuconv.gpu import KNOWN, REPRESENTATIVE
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy, assert_close_to_oracle

A100 = KNOWN["A100"]
SILU = Activation.parse("silu")
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}
# Planes in pieces of 16, 8 and 4 bytes as float16; channels in vectors and not; partial tiles everywhere.
PROBLEMS = {
    "pieces-of-16": ConvProblem.of((2, 40, 8, 10), (72, 40, 1, 1)),
    "pieces-of-8": ConvProblem.of((2, 72, 14, 14), (24, 72, 1, 1)),
    "pieces-of-4": ConvProblem.of((3, 20, 10, 7), (20, 20, 1, 1)),
    "groups": ConvProblem.of((2, 48, 6, 8), (32, 24, 1, 1), groups=2),
    "three-axes": ConvProblem.of((1, 16, 3, 4, 6), (24, 16, 1, 1, 1)),
    "odd-channels": ConvProblem.of((2, 17, 4, 6), (19, 17, 1, 1)),
}
on_host = pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")
both = pytest.mark.parametrize("direction", ["forward", "grad_input"])


def operands_of(problem: ConvProblem, direction: Direction) -> Operands:
    tf32 = problem.dtype is torch.float32
    return contiguous_operands(problem, direction)._replace(tf32=tf32, bias=direction == "forward")


def run(
    problem: ConvProblem, direction: Direction, given: dict[str, torch.Tensor], runtime: HostRuntime | None = None
) -> torch.Tensor:
    """The result of the smallest tile under the host check; of forward with bias, residual and SiLU."""
    host = HostChecked()
    if runtime is not None:
        host.runtimes["cpu"] = runtime
    operands = operands_of(problem, direction)
    if direction == "forward":
        operands = operands._replace(residual=given["residual"].stride())
    tile = planes.tiles(problem, direction, A100, operands)[-1]
    bound = host.bind(problem, direction, torch.device("cpu"), SILU, operands, tile)
    if direction == "forward":
        return bound(given["input"], given["weight"], given["bias"], given["residual"])
    return bound(given["grad_output"], given["weight"])


@on_host
@both
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("numbers", TYPES)
def test_each_path_is_within_the_bound(numbers: str, name: str, direction: Direction) -> None:
    problem = dataclasses.replace(PROBLEMS[name], dtype=TYPES[numbers])
    given = tensors(problem, name, problem.dtype, "cpu", "contiguous")
    got = run(problem, direction, given)
    x, w, bias, residual, gy = (
        as_numpy(given[name]) for name in ("input", "weight", "bias", "residual", "grad_output")
    )
    forward = direction == "forward"
    exact = reference.forward(problem, x, w, bias, residual, SILU) if forward else reference.grad_input(problem, gy, w)
    assert_close_to_oracle(got, exact, f"{name}, {direction}, {numbers}", tf32=numbers == "tf32")


@on_host
@both
@pytest.mark.parametrize("mode", ["address", "thread"])
def test_sanitizer_finds_nothing(mode: str, direction: Direction, tmp_path: Path) -> None:
    dtype = torch.float16 if direction == "forward" else torch.float32
    problem = dataclasses.replace(PROBLEMS["pieces-of-4"], dtype=dtype)
    runtime = Recorder()
    run(problem, direction, tensors(problem, "run", dtype, "cpu", "contiguous"), runtime)
    (record,) = runtime.records
    result = replay(record, mode, 2, tmp_path)
    assert result.complaint == ""
    assert result.after == record.after


def test_what_it_is_not_for() -> None:
    problem = PROBLEMS["pieces-of-4"]

    def refused(problem: ConvProblem, direction: Direction = "forward", **changes: torch.dtype) -> str | None:
        problem = dataclasses.replace(problem, **({"dtype": torch.float16} | changes))
        return planes.refuses(problem, direction, A100, operands_of(problem, direction))

    assert refused(problem) is None
    assert "grad_weight" not in (refused(problem, "grad_weight") or "grad_weight")
    assert "1×1" in (refused(ConvProblem.of((2, 16, 8, 8), (16, 16, 3, 3))) or "")
    assert "no pixels" in (refused(ConvProblem.of((0, 16, 8, 8), (16, 16, 1, 1))) or "")
    assert "four bytes" in (refused(ConvProblem.of((2, 16, 7, 7), (16, 16, 1, 1))) or "")
    assert "tensor cores" in (refused(problem, dtype=torch.float64) or "")


@both
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80"])
def test_the_loop_copies_in_vectors_and_computes_few_addresses(architecture: str, direction: Direction) -> None:
    pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    from gpuconv.inspection.machine_code import cuda_architecture, cuda_machine_code

    gpu = REPRESENTATIVE[architecture]
    problem = ConvProblem.of((8, 256, 28, 28), (256, 256, 1, 1), dtype=torch.float16)
    operands = operands_of(problem, direction)
    for tile in planes.tiles(problem, direction, gpu, operands):
        (launch,) = planes.launches(problem, direction, operands, tile)
        code = cuda_machine_code(launch.instance, cuda_architecture(gpu))
        loop = code.loop_instructions
        assert code.spills == 0 and code.registers * 32 * tile.warps <= 65536, (tile, code)
        assert loop["LDSM"] > 0 and loop["LDG"] <= code.of_16_bytes["LDG"], (tile, code)
        if architecture == "sm_80":
            products, copies = loop["HMMA"], loop["LDGSTS"]
            assert products == tile.rows * tile.columns * tile.depth // (16 * 8 * 16 * tile.warps)
            assert copies > 0
            assert sum(loop.values()) <= 2 * products + 16 * copies + 60, (tile, code)
