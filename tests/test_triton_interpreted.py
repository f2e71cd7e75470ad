"""The suite again over the `triton` backend, whose kernels run under Triton's interpreter on a machine without a GPU.

A process either interprets or compiles Triton's kernels, never both, so this starts processes of its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

FOLDER = Path(__file__).parent
SHARDS = 4
SUITES = ["test_oracle_suite.py", "test_ops.py", "test_functional.py", "test_act_backward.py"]


def passes_in_the_interpreter(suites: list[str], request: pytest.FixtureRequest, environment, *flags: str) -> None:
    full = ["--full"] if request.config.getoption("--full") else []
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-ktriton-cpu", *flags, *full]
    command += ["-c", FOLDER.parent / "pyproject.toml", *(FOLDER / suite for suite in suites)]
    environment = environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


@pytest.mark.parametrize("shard", range(SHARDS))
def test_suite_passes_in_the_interpreter(shard: int, request: pytest.FixtureRequest, clean_environment) -> None:
    passes_in_the_interpreter(SUITES, request, clean_environment, f"--shard={shard}/{SHARDS}")


def test_a_network_passes_in_the_interpreter(request: pytest.FixtureRequest, clean_environment) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    passes_in_the_interpreter(["test_models.py"], request, clean_environment)


def test_operator_database_passes_in_the_interpreter(request: pytest.FixtureRequest, clean_environment) -> None:
    passes_in_the_interpreter(["test_op_db.py"], request, clean_environment)  # in one process: it loads slowly
