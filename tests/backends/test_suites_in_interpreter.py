"""The suite again over the `triton` backend, whose kernels run under Triton's interpreter on a machine without a GPU.

A process either interprets or compiles Triton's kernels, never both, so this starts processes of its own. By default it
is a quick check that interpreting works, for readers: what is compiled runs on the emulator. All of it with --full.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

FOLDER = Path(__file__).parents[1]
SHARDS = 4
SUITES = [
    "backends/test_oracle_suite.py",
    "ops/test_convolution.py",
    "ops/test_compile.py",
    "test_functional.py",
    "test_transposed.py",
    "ops/test_act_backward.py",
]


def passes_in_the_interpreter(suites: list[str], environment: dict[str, str], *flags: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-ktriton-cpu", *flags]
    command += ["-c", FOLDER.parent / "pyproject.toml", *(FOLDER / suite for suite in suites)]
    environment = environment | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4_000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


def test_suite_passes_in_the_interpreter(clean_environment: dict[str, str]) -> None:
    passes_in_the_interpreter(SUITES, clean_environment)


@pytest.mark.full
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_of_the_suite_passes_in_the_interpreter(shard: int, clean_environment: dict[str, str]) -> None:
    passes_in_the_interpreter(SUITES, clean_environment, "--full", f"--shard={shard}/{SHARDS}")


@pytest.mark.full
@pytest.mark.parametrize("suite", ["models/test_networks.py", "ops/test_op_db.py"])
def test_networks_and_the_operator_database_pass_in_the_interpreter(
    suite: str, clean_environment: dict[str, str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    passes_in_the_interpreter([suite], clean_environment, "--full")
