"""`sanitize` as far as a machine without a GPU can tell: its problems, and what it says without its tool."""

import os
from pathlib import Path

import pytest
import torch

from gpuconv.backends.cuda.backend import CudaBackend
from gpuconv.checking import sanitize
from gpuconv.checking.precision import NUMBERS
from gpuconv.gpu import KNOWN, Gpu


def test_its_problems_are_right() -> None:
    assert sanitize.main(["--backend", "numpy", "--device", "cpu"]) == 0


def test_its_problems_take_every_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "of", staticmethod(lambda device: KNOWN["H100"]))
    backend = CudaBackend()
    monkeypatch.setattr(backend, "refuses", lambda *_: None)
    found = {
        (case.direction, case.tile.kernel, NUMBERS[case.numbers].itemsize)
        for case in sanitize.cases(backend, torch.device("meta"))
        if case.tile is not None
    }
    for direction in ("forward", "grad_input", "grad_weight"):
        kernels = ("tensor", "halo") if direction != "grad_weight" else ("tensor",)
        assert {(direction, kernel, size) for kernel in kernels for size in (2, 4)} <= found
        assert {(direction, "simt", size) for size in (4, 8)} <= found


@pytest.fixture
def folder_of_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which compute-sanitizer can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(sanitize.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    return tmp_path


def test_without_compute_sanitizer_it_says_so(folder_of_tool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["--backend", "numpy", "--device", "cpu", "--tool", "memcheck"]) == 0
    assert "memcheck skipped: there is no compute-sanitizer" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="the tool is a shell script here")
@pytest.mark.parametrize(
    ("says", "status", "expected"),
    [("========= ERROR SUMMARY: 1 error", 9, 9), ("========= Error: Device not supported", 1, 0), ("fine", 0, 0)],
)
def test_what_compute_sanitizer_says_is_passed_on(
    says: str, status: int, expected: int, folder_of_tool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = folder_of_tool / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $*"\necho "{says}"\nexit {status}\n')
    tool.chmod(0o755)
    assert sanitize.main(["--backend", "numpy", "--device", "cpu", "--tool", "racecheck"]) == expected
    said = capsys.readouterr().out
    assert said.startswith("1 --tool racecheck --error-exitcode 9 ") and says in said
    assert ("skipped" in said) == ("not supported" in says)
