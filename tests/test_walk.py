"""The walk of a call, from `gpuconv.conv2d` to the launch of a kernel: through few files, and through none twice."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from lanes import INTERPRETING, Lane

import gpuconv
from gpuconv.emulator import device as emulator

PACKAGE = Path(gpuconv.__file__).parent
MOST = 6
BEHIND = ("launch.py of the backend", "the kernel")  # which the emulator stands for here

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not launched on an emulated GPU")


def files(frame: FrameType | None) -> list[str]:
    """The files of gpuconv that the calls down to this frame are in; calls within one file count as one."""
    found: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            name = path.relative_to(PACKAGE).as_posix()
            if found[:1] != [name]:
                found.insert(0, name)
        frame = frame.f_back
    return found


def walks(call: Callable[[], object]) -> list[list[str]]:
    """The files on the way to each launch within a call."""
    found = []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is emulator.VirtualGpu.run.__code__:
            *walk, runtime = files(frame)
            assert runtime == "emulator/device.py"
            found.append(walk)

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("lane", [Lane("triton", "cpu", "a100"), Lane("cuda", "cpu", "a100")], ids=str)
def test_a_call_walks_through_six_files_at_most_and_through_none_twice(lane: Lane) -> None:
    x, w = torch.randn(1, 8, 5, 5), torch.randn(8, 8, 3, 3)
    with lane.entered(), lane.emulated():
        conv2d = lambda: gpuconv.conv2d(x, w, backend=lane.backend)  # noqa: E731
        (first,) = walks(conv2d)  # compiles
        (later,) = walks(conv2d)
    assert later == ["functional.py", "ops/convolution.py", f"backends/{lane.backend}/backend.py"]
    for walk in first, later:
        assert len(walk) == len(set(walk))
        assert len(walk) + len(BEHIND) <= MOST, walk


@pytest.mark.parametrize("lane", [Lane("triton", "cpu", "a100"), Lane("cuda", "cpu", "a100")], ids=str)
def test_a_call_that_packs_walks_no_further(lane: Lane) -> None:
    x, w = torch.randn(1, 16, 5, 5), torch.randn(16, 16, 3, 3)
    with lane.entered(), lane.emulated() as gpu:
        found = [walk for _ in range(2) for walk in walks(lambda: gpuconv.conv2d(x, w, backend=lane.backend))]
        assert gpu.launches[::2] == ["pack", "pack"] and len(gpu.launches) == len(found) == 4
    for walk in found:
        assert len(walk) == len(set(walk))
        assert len(walk) + len(BEHIND) <= MOST, walk
