"""The suite again over the `triton` backend, whose kernels run under Triton's interpreter on a machine without a GPU.

A process either interprets or compiles Triton's kernels, never both, so this starts processes of its own. By default it
is a quick check that interpreting works, for readers: what is compiled runs on the emulator. All of it with --full.
"""

from pathlib import Path

import pytest
from in_interpreter import needs_interpreter, passes

pytestmark = needs_interpreter
SHARDS = 4
TESTS = Path(__file__).parents[1]
SUITES = [
    TESTS / "backends/test_oracle_suite.py",
    TESTS / "ops/test_convolution.py",
    TESTS / "ops/test_compile.py",
    TESTS / "test_functional.py",
    TESTS / "test_transposed.py",
    TESTS / "ops/test_act_backward.py",
]


def test_suite_passes_in_the_interpreter(clean_environment: dict[str, str]) -> None:
    passes(SUITES, clean_environment, "-ktriton-cpu")


@pytest.mark.full
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_of_the_suite_passes_in_the_interpreter(shard: int, clean_environment: dict[str, str]) -> None:
    passes(SUITES, clean_environment, "-ktriton-cpu", "--full", f"--shard={shard}/{SHARDS}")


@pytest.mark.full
@pytest.mark.parametrize("suite", ["models/test_networks.py", "ops/test_op_db.py"])
def test_networks_and_the_operator_database_pass_in_the_interpreter(
    suite: str, clean_environment: dict[str, str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    passes([TESTS / suite], clean_environment, "-ktriton-cpu", "--full")
