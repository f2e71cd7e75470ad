"""The kernel that docs/your-own-kernel.md explains is checked, timed, and found wrong without its mask."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, block_after

from gpuconv import emulator
from gpuconv.backends.triton import launch as triton_launch

PAGE = DOCS / "your-own-kernel.md"
KERNEL = (DOCS / "examples" / "my_conv.py").read_text(encoding="utf-8")
CHECK, BENCH = re.findall(
    r"^TRITON_INTERPRET=1 gpuconv (?:check|bench) --backend my_conv:MyBackend (.*)$",
    block_after(PAGE, "Without a GPU, Triton's interpreter"),
    re.MULTILINE,
)


def on_the_kernel(folder: Path, kernel: str, command: str, options: str, interpret: bool = True) -> Any:
    """Run a command on this kernel as the page says."""
    pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    trouble = triton_launch.why_no_interpreter() if interpret else None
    if trouble:
        pytest.skip(trouble)
    (folder / "my_conv.py").write_text(kernel)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "gpuconv", command, "--backend", "my_conv:MyBackend", *options.split()],
        cwd=folder, env=environment | ({"TRITON_INTERPRET": "1"} if interpret else {}), capture_output=True, text=True,
    )  # fmt: skip


def test_the_kernel_passes_the_check(tmp_path: Path) -> None:
    run = on_the_kernel(tmp_path, KERNEL, "check", CHECK)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert "mine on cpu: 12 passed" in run.stdout
    assert "refused 1: Triton's interpreter (TRITON_INTERPRET=1) computes with bfloat16 as with integers" in run.stdout


def test_the_kernel_is_benched(tmp_path: Path) -> None:
    options = "--dtype float32 --dtype bfloat16 --layout contiguous"  # the first is the default on a CPU
    run = on_the_kernel(tmp_path, KERNEL, "bench", f"{BENCH} {options}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "mine is" in run.stdout and "WRONG" not in run.stdout and "× slower" in run.stdout
    assert "refused by mine 1×: Triton's interpreter" in run.stdout


def test_without_its_mask_the_check_prints_what_the_page_shows(tmp_path: Path) -> None:
    wrong = KERNEL.replace(" & (c < C)", "").replace("(c < C)[:, None] & ", "")
    assert "c < C" in KERNEL and "c < C" not in wrong
    run = on_the_kernel(tmp_path, wrong, "check", CHECK)
    assert (run.returncode, run.stderr) == (1, "")
    shown = block_after(PAGE, "the check exits with 1 and prints, among other lines,")
    as_printed = re.escape(shown).replace("…", "[^\n]*")
    assert re.search(as_printed, run.stdout), f"the page shows\n{shown}\nand the check prints\n{run.stdout}"


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}")
def test_on_an_emulated_gpu_the_check_finds_the_line_that_lacks_the_mask(tmp_path: Path) -> None:
    options = "--on h100 --problem 3x3-same --direction forward --dtype bfloat16"
    run = on_the_kernel(tmp_path, KERNEL, "check", options, interpret=False)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert "mine on H100 (emulated): 1 passed" in run.stdout
    run = on_the_kernel(tmp_path, KERNEL.replace(" & (c < C)", ""), "check", options, interpret=False)
    line = 1 + KERNEL.split("\n").index(next(text for text in KERNEL.split("\n") if "tl.load(window" in text))
    assert (run.returncode, run.stderr) == (1, "")
    assert "bounds: " in run.stdout and f"my_conv.py:{line}" in run.stdout, run.stdout


@pytest.mark.skipif(triton_launch.why_no_interpreter() is None, reason="Triton's interpreter works here")
def test_an_interpreter_that_does_not_work_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    (tmp_path / "my_conv.py").write_text(KERNEL)
    command = [sys.executable, "-m", "gpuconv", "check", "--backend", "my_conv:MyBackend", *CHECK.split()]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch("error: [^\n]* does not work with NumPy [^\n]*\n", run.stderr), run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compile it for")
@pytest.mark.parametrize(("command", "options"), [("check", CHECK), ("bench", BENCH)])
def test_a_triton_kernel_without_a_gpu_is_one_line(tmp_path: Path, command: str, options: str) -> None:
    run = on_the_kernel(tmp_path, KERNEL, command, options, interpret=False)
    assert run.returncode == 1 and run.stdout == ""
    assert re.fullmatch("error: backend 'mine' [^\n]* set TRITON_INTERPRET=1\n", run.stderr), run.stderr
