"""Test files in a process where Triton interprets. A process either interprets Triton's kernels or compiles them."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpuconv.backends.triton.launch import why_no_interpreter

CONFIGURATION = Path(__file__).parents[2] / "pyproject.toml"
needs_interpreter = pytest.mark.skipif(why_no_interpreter() is not None, reason=str(why_no_interpreter()))


def passes(files: Iterable[Path], environment: dict[str, str], *flags: str) -> None:
    """Run the files there, and fail as they do."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", *flags, "-c", CONFIGURATION, *files]
    environment = environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout
