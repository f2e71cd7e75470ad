"""Runs `interpreted*.py` where Triton interprets. A process either interprets kernels or compiles them, never both."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

SHARDS = 1


@pytest.mark.parametrize("name", ["interpreted.py", "interpreted_64_bit.py"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_gather_kernels_in_the_interpreter(shard: int, name: str, clean_environment) -> None:
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", f"--shard={shard}/{SHARDS}", file]
    command += ["-c", file.parents[3] / "pyproject.toml"]
    environment = clean_environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout
