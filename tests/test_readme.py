"""What the README shows can be run."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gpuconv import emulator
from gpuconv.backends.triton import launch as triton_launch
from gpuconv.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_readme_has_its_snippets() -> None:
    assert {"Use it in your model", "Use it in your code", "Fused convolutions"} <= {title for title, _ in SNIPPETS}


def test_the_environment_variables_that_are_used_are_those_that_the_readme_names() -> None:
    """A name that is set, read or told of somewhere and not elsewhere does nothing."""
    files = [*ROOT.glob("*.md"), *(p for d in ("gpuconv", "bench", "kernels", "tests") for p in (ROOT / d).rglob("*"))]
    found: dict[str, set[str]] = {}
    for file in files:
        if file.suffix in (".py", ".sh", ".md", ".cu", ".cuh") and file != ROOT / "README.md":
            for name in re.findall(r"\bGPUCONV_[A-Z_]*[A-Z]\b", file.read_text()):
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    documented = set(re.findall(r"\bGPUCONV_[A-Z_]*[A-Z]\b", README))
    read = {name for name, where in found.items() if any(f.startswith(("gpuconv/", "bench/")) for f in where)}
    assert found.keys() == read == documented, found


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_python_in_the_readme_runs(title: str, code: str, tmp_path: Path) -> None:
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    if "triton" in code:
        pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    file = tmp_path / "readme.py"  # Triton reads the text of its kernels
    file.write_text(code)
    runpy.run_path(str(file))


COMMANDS = re.findall(r"(?:^|-m |&& )gpuconv ([a-z]\w*[^#\n`&]*)", README, re.MULTILINE)


def test_readme_has_its_commands() -> None:
    assert len(COMMANDS) > 20 and {command.split()[0] for command in COMMANDS} == set(main.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_the_readme_has_these_options(command: str) -> None:
    name, *words = shlex.split(command)
    assert main.imported(name).make_context(name, words) is not None


# ---- the README's own kernel -----------------------------------------------------------------------------------------

KERNEL = README.split("```python\n# my_conv.py\n")[1].split("```")[0]
CHECK = re.search(r"`(--device cpu [^`]*)` for\s+the first command", README)[1]
BENCH = re.search(r"`(--device cpu [^`]*)` for\s+the second", README)[1]


def on_the_kernel(folder: Path, kernel: str, command: str, options: str, interpret: bool = True) -> Any:
    """Run a command on this kernel as the README says."""
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


def test_the_readme_kernel_passes_the_readme_check(tmp_path: Path) -> None:
    run = on_the_kernel(tmp_path, KERNEL, "check", CHECK)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert "mine on cpu: 12 passed" in run.stdout
    assert "refused 1: Triton's interpreter (TRITON_INTERPRET=1) computes with bfloat16 as with integers" in run.stdout


def test_the_readme_kernel_is_benched(tmp_path: Path) -> None:
    options = "--dtype float32 --dtype bfloat16 --layout contiguous"  # the first is the default on a CPU
    run = on_the_kernel(tmp_path, KERNEL, "bench", f"{BENCH} {options}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "mine is" in run.stdout and "WRONG" not in run.stdout and "× slower" in run.stdout
    assert "refused by mine 1×: Triton's interpreter" in run.stdout


def test_without_its_mask_the_check_prints_what_the_readme_shows(tmp_path: Path) -> None:
    wrong = KERNEL.replace(" & (c < C)", "").replace("(c < C)[:, None] & ", "")
    assert "c < C" in KERNEL and "c < C" not in wrong
    run = on_the_kernel(tmp_path, wrong, "check", CHECK)
    assert (run.returncode, run.stderr) == (1, "")
    shown = re.search(r"exits with 1 and prints, among\s+other lines,\n\n```\n(.*?)```", README, re.DOTALL)[1]
    as_printed = re.escape(shown).replace("…", "[^\n]*")
    assert re.search(as_printed, run.stdout), f"the README shows\n{shown}\nand the check prints\n{run.stdout}"


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
