"""`gpuconv inspect --run`: our kernels, run once on a virtual GPU, have the counters that theory predicts."""

import dataclasses
import json
import re
from importlib.resources import files

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import backends, emulator, reference
from gpuconv.backends.cuda import compiler as cuda_compile
from gpuconv.cli import main
from gpuconv.emulator import device
from gpuconv.gpu import KNOWN
from gpuconv.inspection.kernels import Kernel, inspect_kernels
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem

if emulator.why_not() is not None:
    pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}", allow_module_level=True)

LAYER = "airbench96.proxy_group2_conv2"  # 64 → 64 channels, 3×3 on 7×7
COUNTERS = {
    "instructions", "global_sectors", "global_sectors_least", "shared_passes", "shared_passes_least", "tma_bytes",
    "tensor_operations",
}  # fmt: skip


def needs(backend: str) -> None:
    if backend == "cuda":
        pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")


def layer(
    filter_size: int, memory_format: torch.memory_format = torch.channels_last, **settings: object
) -> ConvProblem:
    """64 → 64 channels on two images of 16×16: sizes that every tile divides."""
    padding = (filter_size // 2,) * 2
    return ConvProblem.of(
        (2, 64, 16, 16), (64, 64, filter_size, filter_size), padding=(padding, padding), memory_format=memory_format,
        dtype=settings.pop("dtype", torch.float16), **settings,
    )  # fmt: skip


def ran(problem: ConvProblem, backend: str, gpu: str, direction: str = "forward", **named: object) -> list[Kernel]:
    needs(backend)
    kernels = inspect_kernels(problem, direction, backend, KNOWN[gpu], run=True, **named)
    assert all(kernel.error <= 1 for kernel in kernels)
    return kernels


@pytest.mark.parametrize(
    ("backend", "gpu", "filter_size"),
    [("triton", "A100", 1), ("triton", "H100", 3), ("cuda", "A100", 1), ("cuda", "H100", 3)],
)
def test_operations_of_tensor_cores_are_the_layer_s_where_it_fits_the_tile(
    backend: str, gpu: str, filter_size: int
) -> None:
    problem = layer(filter_size)
    (kernel,) = ran(problem, backend, gpu)
    n, k, p, q = problem.output_shape
    assert kernel.counters.tensor_operations == 2 * n * p * q * k * 64 * filter_size**2 == problem.flops


def test_bytes_of_the_copy_engine_are_the_boxes_that_windows_and_filters_are_fetched_in() -> None:
    problem = layer(3)
    operands = plan.contiguous_operands(problem, "forward", problem.memory_format)
    offered = backends.get("triton").tiles(problem, "forward", KNOWN["H100"], operands)
    tile = next(tile for tile in offered if tile.kernel == "window" and tile.rows == 64 and tile.splits == 1)
    (kernel,) = ran(problem, "triton", "H100", tile=tile)
    assert problem.flops == 2 * 512 * 64 * 9 * 64
    blocks = 512 // tile.rows * (64 // tile.columns)
    fetched = 9 * (64 // tile.depth) * (tile.rows + tile.columns) * tile.depth * 2  # of a block, for nine taps
    stored = tile.rows * tile.columns * 2
    assert kernel.counters.tma_bytes == blocks * (fetched + stored)


def test_a_layer_without_waste_takes_the_least() -> None:
    """Channels of pixels follow each other: whole sectors, and no bank conflicts in a swizzled tile."""
    (kernel,) = ran(layer(1), "triton", "A100")
    counters = kernel.counters
    assert counters.global_sectors == counters.global_sectors_least > 512 * 64 * 2 * 2 / 32
    assert counters.shared_passes == counters.shared_passes_least > 0


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_what_is_wasted_is_told_by_the_line_of_the_kernel(backend: str) -> None:
    """Contiguous 16-bit layers whose channels fill no vectors are fetched number by number."""
    odd = dataclasses.replace(layer(3, torch.contiguous_format, dtype=torch.bfloat16), in_channels=60)
    (kernel,) = ran(odd, backend, "A100")
    folder = files(f"gpuconv.kernels.{backend}")
    lines = [line for line in kernel.counters.by_source() if line.counts["sectors"]]
    assert sum(line.counts["sectors"] for line in lines) == kernel.counters.global_sectors
    name, number = max(lines, key=lambda line: line.counts["sectors"]).source.split(":")
    assert re.search(r"load|fetch|__ldg|\bbase\[", (folder / name).read_text().splitlines()[int(number) - 1])
    worst = max(lines, key=lambda line: line.wasted)
    assert not worst.wasted or f"{worst.source}: " in kernel.text().split("most beyond the least")[1]


def test_json_has_the_counters_of_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", "--layer", LAYER, "--backend", "triton", "--arch", "a100", "--direction", "grad_weight"]
    assert main.run([*command, "--run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["kernel"] == "gather_grad_weight"
    for row in rows:
        assert row["counters"].keys() == COUNTERS and row["counters"]["instructions"] > 0
        assert row["batch"] == 2 and 0 < row["error_of_bound"] <= 1
        assert row["registers"] > 0
    assert rows[0]["counters"]["tensor_operations"] >= 2 * 2 * 49 * 64 * 64 * 9
    assert main.run([*command, "--json"]) == 0
    assert all("counters" not in row for row in json.loads(capsys.readouterr().out))


def test_the_text_says_what_was_run_and_that_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    needs("cuda")
    options = ["--backend", "cuda", "--arch", "h100", "--direction", "forward", "--batch", "3", "--dtype", "bfloat16"]
    assert main.run(["inspect", "--layer", LAYER, *options, "--run"]) == 0
    text = capsys.readouterr().out
    assert "run on a virtual H100, batch 3, random data: right, error 0." in text
    for word in ("main loop", "instructions", "global memory", "shared memory", "tensor cores", "most instructions"):
        assert word in text


@pytest.mark.parametrize(
    ("backend", "direction", "dtype", "tf32"),
    [
        ("triton", "grad_input", torch.float64, False),
        ("triton", "grad_weight", torch.float32, True),
        ("cuda", "forward", torch.float32, False),
        ("cuda", "grad_input", torch.float16, False),
        ("cuda", "grad_weight", torch.bfloat16, False),
    ],
)
def test_every_launch_of_a_call_is_counted(backend: str, direction: str, dtype: torch.dtype, tf32: bool) -> None:
    problem = ConvProblem.of((2, 8, 5, 6), (8, 8, 3, 3), padding=((1, 1), (1, 1)), dtype=dtype)
    kernels = ran(problem, backend, "A100", direction, tf32=tf32)
    assert all(kernel.counters.kernel == kernel.name and kernel.counters.instructions for kernel in kernels)


def test_a_wrong_result_is_said_and_is_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that no sum in float32 can keep."""
    monkeypatch.setattr(reference, "BOUND_CONSTANT", 0.0)
    command = ["inspect", "--layer", LAYER, "--backend", "triton", "--arch", "a100", "--direction", "forward"]
    assert main.run([*command, "--dtype", "float32", "--run"]) == 1
    assert "random data: WRONG, error" in capsys.readouterr().out


def test_instructions_of_sm_100_are_named_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", "--layer", LAYER, "--backend", "triton", "--direction", "forward", "--run"]
    assert main.run([*command, "--arch", "sm_100"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: backend 'triton' on B200: ")
    assert error.count("\n") == 1 and "tcgen05." in error
    assert main.run([*command, "--arch", "sm_100", "--arch", "sm_80"]) == 0  # the others are shown
    assert "virtual A100" in (text := capsys.readouterr().out) and "tcgen05." in text


def test_a_fault_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA C without its barriers."""
    needs("cuda")
    text = cuda_compile.source
    monkeypatch.setattr(cuda_compile, "source", lambda file: text(file).replace("__syncthreads();", ""))
    monkeypatch.setattr(device, "_nvrtc", device._nvrtc.__wrapped__)  # whose results are kept
    command = ["inspect", "--layer", LAYER, "--backend", "cuda", "--arch", "t4", "--direction", "forward", "--run"]
    assert main.run([*command, "--dtype", "float32"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert re.match(rf"error: {LAYER} forward, backend 'cuda' on T4: simt_forward: (race|uninitialised): ", error)


def test_a_kernel_that_does_not_fit_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cuda")
    small = dataclasses.replace(KNOWN["T4"], shared_memory=1024)
    monkeypatch.setattr(device, "_available", lambda name, called: small)
    command = ["inspect", "--layer", LAYER, "--backend", "cuda", "--arch", "t4", "--direction", "forward", "--run"]
    assert main.run(command) == 1
    assert re.fullmatch("error: backend 'cuda' on T4: .* bytes of shared memory[^\n]*\n", capsys.readouterr().err)


def test_no_compiler_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main.run(["inspect", "--layer", LAYER, "--backend", "triton", "--arch", "a100", "--run"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("error: kernels cannot be run on a virtual GPU: ") and "C++ compiler" in error
