"""What users do, on GPUs that are none (tests/stubdriver): PyTorch's streams, graphs and threads around us."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stubdriver

reason = stubdriver.why_not(runtime=True)
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no stub of the driver: {reason}")


def run(script: str, environment: dict[str, str], gpus: str, *arguments: str) -> list[Any]:
    """The lines of JSON that it prints."""
    command = [sys.executable, Path(stubdriver.__file__).with_name(script), *arguments]
    environment = stubdriver.environment(environment, gpus, runtime=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def environment(clean_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return clean_environment | {"GPUCONV_CACHE": str(tmp_path / "cache")}


def without_compiler(environment: dict[str, str], folder: Path) -> None:
    """Let no compiler be found. `file` stays: Triton's cache asks it what machine this is."""
    environment.pop("CC", None)
    environment["PATH"] = str(folder)
    if file := shutil.which("file"):
        (folder / "file").symlink_to(file)


def test_models_train_on_every_gpu_and_nothing_is_asked_that_a_driver_refuses(environment: dict[str, str]) -> None:
    found = dict(run("driven_by_torch.py", environment | {"GPUCONV_BACKEND": "triton"}, "90,90,80"))
    assert len(found) == 22
    wrong = {part: why for part, why in found.items() if why is not None}
    assert not wrong, "\n".join(f"{part}: {why}" for part, why in wrong.items())


@pytest.mark.parametrize("lacking", ["a compiler", "Python.h", "a compiler that works"])
def test_auto_passes_triton_over_where_its_launchers_cannot_be_compiled(
    environment: dict[str, str], tmp_path: Path, lacking: str
) -> None:
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    if lacking == "a compiler":
        without_compiler(environment, tmp_path)
    if lacking == "a compiler that works":
        environment["CC"] = "/bin/false"
    (found,) = run("without_compiler.py", environment, "90", *(["no-header"] if lacking == "Python.h" else []))
    says = {"a compiler": "no C compiler", "Python.h": "Python.h is missing", "a compiler that works": "/bin/false"}
    assert says[lacking] in found["reason"] and "Triton cannot compile" in found["reason"]
    assert found["reason"] in found["text"] and found["passed over"]["triton"] == found["reason"]
    assert found["chosen"] != "triton" and found["reason"] in found["refusal"]


def test_no_compiler_is_needed_for_what_is_in_tritons_cache(environment: dict[str, str], tmp_path: Path) -> None:
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    (with_compiler,) = run("without_compiler.py", environment, "90")
    assert with_compiler["reason"] is None and with_compiler["chosen"] == "triton"
    without_compiler(environment, tmp_path)
    (without,) = run("without_compiler.py", environment, "90")
    one_launcher = _triton() >= (3, 8)  # before, each kind of kernel has one of its own, and new ones may come
    assert (without["reason"] is None) == one_launcher, without


def _triton() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])
