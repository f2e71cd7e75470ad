"""The launches of the CUDA kernels through the real CuPy, without a GPU: tests/stubdriver stands for it, and the
emulator computes."""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driven_through_cupy
import executor
import pytest
import stubdriver

from gpuconv import emulator
from gpuconv.backends.cuda import compiler as cuda_compile
from gpuconv.backends.cuda.backend import FAMILIES
from gpuconv.problem import DIRECTIONS

reason = cuda_compile.why_not() or stubdriver.why_not(runtime=True) or emulator.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no launches through CuPy: {reason}")


Happened = Callable[[str], dict[str, Any]]


@pytest.fixture
def happened(clean_environment: dict[str, str]) -> Happened:
    """Access to what happened in each part of driven_through_cupy.py."""

    def of(part: str) -> dict[str, Any]:
        found: dict[str, Any] = _happened(tuple(clean_environment.items()))[part]
        assert "error" not in found, found["error"]
        return found

    return of


@functools.cache
def _happened(environment: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """What driven_through_cupy.py prints. What it launches is compiled here, as NVRTC may ask a driver for its secrets;
    there it comes from the cache."""
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        executor.share_core(Path(cache))  # before the folder is another one
        patch.setenv("GPUCONV_CACHE", cache)
        texts = _ptx_of_every_cubin(patch)
        for instance in dict.fromkeys(driven_through_cupy.instances()):
            cubin = cuda_compile.kept_cubin(instance, "sm_90a")
            executor.remember(Path(cache, "ptx"), instance.function, cubin, texts[-1])
        own = {"GPUCONV_CACHE": cache, "STUB_PTX": str(Path(cache, "ptx"))}
        told = stubdriver.environment({**dict(environment), **own}, "90,90", runtime=True)
        command = [sys.executable, driven_through_cupy.__file__]
        done = subprocess.run(command, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _ptx_of_every_cubin(patch: pytest.MonkeyPatch) -> list[str]:
    """The PTX behind every cubin that NVRTC makes from now on, the last one last: nothing is compiled twice."""
    from cupy_backends.cuda.libs import nvrtc

    texts: list[str] = []
    get = nvrtc.getCUBIN

    def get_both(program: Any) -> bytes:
        texts.append(nvrtc.getPTX(program).decode())
        return get(program)

    patch.setattr(nvrtc, "getCUBIN", get_both)
    return texts


def test_every_family_gives_the_driver_what_its_kernels_want(happened: Happened) -> None:
    found = happened("every_family")
    rows = found["rows"]
    for row in rows:
        assert row["got"] == row["wanted"], row["family"]
    families = {f"{family} {direction}" for family in FAMILIES for direction in DIRECTIONS}
    families -= {"halo grad_weight", "grouped_halo grad_weight", "planes grad_weight"}
    assert {row["family"] for row in rows} == {*families, "act_backward"}
    assert {family for family, _ in found["errors"]} == {row["family"] for row in rows}
    assert [one for one in found["errors"] if not one[1] <= 1] == []
    assert {"sum_partials", "sum_channels"} < {row["got"][0] for row in rows}
    assert found["refusals"] == 0


def test_mistakes_in_a_launch_are_seen_in_what_it_computes(happened: Happened) -> None:
    found = happened("with_mistakes")
    assert not found["a block too few"] <= 1
    assert "bounds: global memory" in found["two tensors swapped"]  # the filters are fewer than the pixels


def test_shared_memory_that_was_allowed_stays_allowed(happened: Happened) -> None:
    """The kernels share a function, and the one that needs less is loaded second."""
    found = happened("shared_memory")
    assert found["options alike"] and found["functions"] == 1
    more, less, again = found["shared"]
    assert more == again > less > 48 << 10


def test_threads_without_a_context_get_the_one_of_pytorch(happened: Happened) -> None:
    found = happened("in_threads")
    assert found["contexts before"] == [0] * 8
    assert found["failures"] == [] and found["launched"] == 8


def test_a_kernel_is_loaded_once_whatever_the_number_of_threads(happened: Happened) -> None:
    assert happened("in_threads")["modules"] == 1


def test_each_gpu_is_launched_on_in_its_own_context(happened: Happened) -> None:
    found = happened("on_the_second")
    assert found["failures"] == [] and found["got"] == found["turns"]
    assert set(found["current"]) == {0}


def test_clearing_cupys_memory_unloads_nothing(happened: Happened) -> None:
    assert happened("after_clear_memo") == {"launched": 2, "unloaded": 0}


def test_loading_while_a_graph_is_captured_says_what_to_do(happened: Happened) -> None:
    found = happened("while_capturing")
    assert "kernel tensor_forward is not loaded yet" in found["said"] and "gpuconv.warmup" in found["said"]
    assert found["refusals"] == 0 and found["launched"] == 3
