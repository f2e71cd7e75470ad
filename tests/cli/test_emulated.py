"""The virtual GPU in place of the CPU from outside: the environment variable, and the commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lanes import INTERPRETING

from gpuconv.cli import main
from gpuconv.emulator import device as emulator
from gpuconv.gpu import INTERPRETER, Gpu

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
]


_CHILD = """
import sys
import torch, gpuconv
names = "triton", "cupy", "gpuconv.inspection.machine_code", "gpuconv.emulator.program"
heavy = [name for name in names if name in sys.modules]
assert not heavy, heavy
torch.manual_seed(0)
x, w = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(8, 8, 3, 3)
gpuconv.conv2d(x, w).square().sum().backward()
theirs = x.detach().clone().requires_grad_()
torch.conv2d(theirs, w).square().sum().backward()
error = ((x.grad - theirs.grad).abs().max() / theirs.grad.abs().max()).item()
assert 0 < error < 1e-2, error
print(gpuconv.planning.plan.device_name(x.device), "triton" in sys.modules)
"""


def child(code: str, environment: dict[str, str], **more: str) -> tuple[str, str]:
    run = subprocess.run([sys.executable, "-c", code], env=environment | more, capture_output=True, text=True)
    return run.stdout, run.stderr


def test_a_whole_process_can_be_on_it(clean_environment: dict[str, str]) -> None:
    """Nothing is imported for it before something is planned."""
    assert child(_CHILD, clean_environment, GPUCONV_EMULATE="a100") == ("A100 (emulated) True\n", "")


def test_a_wrong_name_in_the_environment_is_one_line_when_something_is_planned(
    clean_environment: dict[str, str],
) -> None:
    code = "from gpuconv.cli.main import run; run(['doctor']); raise SystemExit(run(['check', '--backend', 'cuda']))"
    output, errors = child(code, clean_environment, GPUCONV_EMULATE="h101")
    message = "GPUCONV_EMULATE must be one of T4, A100, .*, but got 'h101' .did you mean H100"
    assert re.fullmatch(f"error: {message}.*\n", errors), errors
    assert re.search(f"^  {message}.*$", output, re.MULTILINE)


def test_without_a_compiler_that_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    message = r"A100 cannot be emulated here: .* no C\+\+ compiler"
    with pytest.raises(emulator.EmulatorUnavailable, match=message), emulator.on("a100"):
        pass
    for command in (["train", "--steps", "1"], ["check", "--backend", "cuda"]):
        assert main.run([*command, "--on", "a100"]) == 1
        assert re.fullmatch("error: A100 cannot be emulated here: .*\n", capsys.readouterr().err)


def test_nothing_is_timed_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("bench", "tune"):
        with emulator.on("h100"):
            assert main.run([command, "--device", "cpu", "--layer", "resnet18.conv5_3x3"]) == 1
        assert "nothing can be timed on a GPU that is emulated" in capsys.readouterr().err


def test_the_command_line_takes_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy, whose NVRTC compiles CUDA C, is not installed")
    images, labels = np.arange(16 * 64, dtype=np.uint8).reshape(16, 8, 8), np.arange(16) % 2
    np.savez(tmp_path / "x.npz", images=images, labels=labels, test_images=images[:4], test_labels=labels[:4])
    few = ("--data", f"npz:{tmp_path / 'x.npz'}", "--steps", "2", "--batch-size", "8")
    losses = []
    for backend in (["--on", "a100"], ["--backend", "aten"]):
        assert main.run(["train", *backend, *few, "--json", "--out", str(tmp_path / backend[1])]) == 0
        captured = capsys.readouterr()
        assert ("A100 (emulated)" in captured.err) == (backend[0] == "--on")
        losses += [json.loads(captured.out)["losses"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2) and losses[0] != losses[1]
    assert Gpu.of(CPU) is INTERPRETER
    check = ["check", "--backend", "triton", "--problem", "1x1", "--dtype", "float32", "--direction", "forward"]
    assert main.run([*check, "--on", "a100"]) == 0
    assert "triton on A100 (emulated): " in capsys.readouterr().out
    assert main.run(["check", *check[3:], "--on", "t4"]) == 0  # those of ours that have kernels for it
    assert capsys.readouterr().out.startswith("cuda on T4 (emulated): ")
    assert main.run(["check", *check[3:], "--on", "a100", "--json"]) == 0
    assert [report["backend"] for report in json.loads(capsys.readouterr().out)] == ["triton", "cuda"]
    assert main.run(["check", *check[3:]]) == 1 and "--backend must be given" in capsys.readouterr().err
    for command in (["train", *few], check):
        for options, message in (
            (["--on", "h200"], "--on must be one of T4, A100, .*but got 'h200'"),
            (["--on", "h100", "--device", "cuda"], "--on emulates a GPU on the CPU, and --device is 'cuda'"),
        ):
            assert main.run([*command, *options]) == 1
            assert capsys.readouterr().err.startswith("error: " + message.partition(".*")[0])
