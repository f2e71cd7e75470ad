"""Runs `interpreted….py` where Triton interprets. A process either interprets kernels or compiles them, never both."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

FILES = {
    "interpreted": 1,
    "interpreted_64_bit": 1,
    "interpreted_depthwise": 1,
    "interpreted_window": 2,
}  # and in how many processes


@pytest.mark.parametrize(("name", "shard"), [(name, i) for name, shards in FILES.items() for i in range(shards)])
def test_kernels_in_the_interpreter(name: str, shard: int, request: pytest.FixtureRequest, clean_environment) -> None:
    file = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", f"--shard={shard}/{FILES[name]}", file]
    command += ["-c", file.parents[3] / "pyproject.toml"]
    command += ["--full"] if request.config.getoption("--full") else []
    environment = clean_environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout
