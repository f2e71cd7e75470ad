"""The kernel that packs operands in CUDA C: on the CPU, under the sanitizers, and compiled for real GPUs."""

import math
from pathlib import Path

import pytest
import torch
from host_cuda import COMPILER, Recorder, replay

from gpuconv.backends import packing
from gpuconv.backends.cuda import pack
from gpuconv.backends.packing import Source
from gpuconv.gpu import REPRESENTATIVE


def pair(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    if name == "rows and filters":
        return random(2, 24, 12, 12), random(5, 24, 3, 3)
    if name == "sliced":
        return random(2, 40, 9, 12)[:, 3:35, 1:7, ::2], random(2, 9, 7, 100).movedim(-1, 1)[:, 3:35]
    return random(16 * 331 + 1)[1:].view(1, 16, 331), random(1, 1, 1).expand(2, 16, 5)


def source_of(t: torch.Tensor) -> Source:
    return packing.source(tuple(t.shape), t.stride())


@pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["rows and filters", "sliced", "long rows, unaligned"])
def test_copies_are_right_and_sanitizers_find_nothing(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    a, b = pair(name, dtype)
    runtime, copies = Recorder(), [torch.full((t.numel(),), math.nan, dtype=dtype) for t in (a, b)]
    launch = pack.launch((source_of(a), source_of(b)), dtype, aligned=name == "rows and filters")
    runtime.launch(launch, torch.device("cpu"), (a, b, *copies))
    for t, copy in zip((a, b), copies, strict=True):
        assert torch.equal(copy, t.movedim(1, -1).reshape(-1))
    (record,) = runtime.records
    for mode in ("address", "thread") if dtype is torch.float16 else ("address",):
        result = replay(record, mode, 2, tmp_path)
        assert not result.complaint
        assert result.after == record.after


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in ("sm_75", "sm_90") else pytest.mark.full) for name in REPRESENTATIVE],
)
def test_compiles_without_spills_and_moves_16_bytes_a_thread(architecture: str) -> None:
    pytest.importorskip("cupy", reason="CuPy, whose NVRTC compiles these, is not installed")
    machine_code = pytest.importorskip(
        "gpuconv.inspection.machine_code", reason="Triton, whose cuobjdump reads cubins, is not installed"
    )
    for dtype in (torch.bfloat16, torch.float32):
        launch = pack.launch(
            (packing.source((2, 24, 28, 28), (18816, 784, 28, 1)), source_of(torch.empty(5, 24, 3, 3))), dtype
        )
        code = machine_code.cuda_machine_code(launch.instance, architecture)
        assert code.spills == 0 and code.registers <= 64
        assert code.of_16_bytes["LDG"] and code.of_16_bytes["STG"]
