"""Runs `interpreted….py` where Triton interprets. A process either interprets kernels or compiles them, never both.

By default a reader's quick check, in one process: what is compiled runs on the emulator. With --full hundreds of
problems, in a process for each file.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

FILES = sorted(Path(__file__).parent.glob("interpreted*.py"))


def interpreted(files: list[Path], environment: dict[str, str], *flags: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        *flags,
        *files,
        "-c",
        FILES[0].parents[3] / "pyproject.toml",
    ]
    environment = environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


def test_kernels_in_the_interpreter(clean_environment: dict[str, str]) -> None:
    assert len(FILES) == 4
    interpreted(FILES, clean_environment)


@pytest.mark.full
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_kernels_in_the_interpreter(file: Path, clean_environment: dict[str, str]) -> None:
    interpreted([file], clean_environment, "--full")
