"""The suite again over the `triton` backend, whose kernels run under Triton's interpreter on a machine without a GPU.

A process either interprets or compiles Triton's kernels, never both, so this starts processes of its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

SHARDS = 4
SUITES = ["test_oracle_suite.py", "test_ops.py", "test_functional.py"]


@pytest.mark.parametrize("shard", range(SHARDS))
def test_suite_passes_in_the_interpreter(shard: int, request: pytest.FixtureRequest, clean_environment) -> None:
    folder = Path(__file__).parent
    full = ["--full"] if request.config.getoption("--full") else []
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-ktriton-cpu", f"--shard={shard}/{SHARDS}", *full]
    command += ["-c", folder.parent / "pyproject.toml", *(folder / suite for suite in SUITES)]
    environment = clean_environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout
