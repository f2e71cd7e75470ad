"""bench/on_gpu.sh: its commands are ones that there are, and no step takes longer than it says."""

import importlib.util
import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest

from gpuconv.bench import suites
from gpuconv.cli import main

SCRIPT = Path(__file__).parents[2] / "bench/on_gpu.sh"
STEPS = ("check", "sanitize", "bench", "tiles", "train")


def run(folder: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    """Run the script with `echo` for Python: what it would call is in its logs."""
    told = os.environ | {"PYTHON": "echo", "OUT": str(folder), "CIFAR10": "DIR"}
    return subprocess.run(["bash", SCRIPT, *steps], env=told, capture_output=True, text=True)


def test_what_it_calls_is_there(tmp_path: Path) -> None:
    done = run(tmp_path, *STEPS)
    assert done.returncode == 0, done.stderr
    called = [log.read_text().split() for log in tmp_path.glob("*.log")]
    assert len(called) == done.stdout.count("\n== ") >= 16
    for _, module, *words in called:
        if module == "gpuconv":
            assert main.imported(words[0]).make_context(words[0], words[1:]) is not None
            layers = [value for option, value in itertools.pairwise(words) if option == "--layer"]
            assert all(suites.find(layer) for layer in layers)
        elif module == "pytest":
            assert all((SCRIPT.parents[1] / word).exists() for word in words if word.startswith("tests/"))
        else:
            assert importlib.util.find_spec(module) is not None


def test_a_step_that_there_is_not_is_named_before_anything_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "check", "sanitise")
    assert done.returncode == 2 and "sanitise" in done.stderr and not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize("step", ["check", "bench", "tiles"])
def test_steps_take_200_seconds_at_most(step: str) -> None:
    """By the limits of their commands, one after the other."""
    text = SCRIPT.read_text()
    body = re.search(rf"^{step}\(\) {{.*?\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)[1]
    measured = [int(seconds) + 15 for seconds in re.findall(r"measure \S+ (\d+)", body)]
    limits = [int(seconds) for seconds in re.findall(r"run \S+ (\d+)", body)] * (1 + ("for layout" in body))
    assert 120 < sum(measured + limits) <= 200
