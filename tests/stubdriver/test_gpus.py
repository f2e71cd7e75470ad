"""What users do, on GPUs that are none (tests/stubdriver): PyTorch's streams, graphs and threads around us."""

import shutil
from pathlib import Path

import executor
import pytest
import stubdriver

from gpuconv import emulator

reason = stubdriver.why_not(runtime=True)
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no stub of the driver: {reason}")


@pytest.fixture
def environment(clean_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return clean_environment | {"GPUCONV_CACHE": str(tmp_path / "cache")}


def without_compiler(environment: dict[str, str], folder: Path) -> None:
    """Let no compiler be found. `file` stays: Triton's cache asks it what machine this is."""
    environment.pop("CC", None)
    environment["PATH"] = str(folder)
    if file := shutil.which("file"):
        (folder / "file").symlink_to(file)


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"no launch can be executed: {emulator.why_not()}")
def test_models_train_on_every_gpu_and_nothing_is_asked_that_a_driver_refuses(environment: dict[str, str]) -> None:
    executor.share_core(Path(environment["GPUCONV_CACHE"]))
    told = environment | {"GPUCONV_BACKEND": "triton"}
    found = dict(stubdriver.run("driven_by_torch.py", told, "90,90,80", True))
    assert len(found) == 34
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
    arguments = ["no-header"] if lacking == "Python.h" else []
    (found,) = stubdriver.run("without_compiler.py", environment, "90", True, *arguments)
    says = {"a compiler": "no C compiler", "Python.h": "Python.h is missing", "a compiler that works": "/bin/false"}
    assert says[lacking] in found["reason"] and "Triton cannot compile" in found["reason"]
    assert found["reason"] in found["text"] and found["passed over"]["triton"] == found["reason"]
    assert found["chosen"] != "triton" and found["reason"] in found["refusal"]


def test_no_compiler_is_needed_for_what_is_in_tritons_cache(environment: dict[str, str], tmp_path: Path) -> None:
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    (with_compiler,) = stubdriver.run("without_compiler.py", environment, "90", True)
    assert with_compiler["reason"] is None and with_compiler["chosen"] == "triton"
    without_compiler(environment, tmp_path)
    (without,) = stubdriver.run("without_compiler.py", environment, "90", True)
    # Older ones compile another launcher for each kind of kernel, and new kinds may come.
    assert (without["reason"] is None) == with_compiler["one launcher for all"], without
