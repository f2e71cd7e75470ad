"""Faults planted in CUDA C, compiled for sm_80 and sm_90: the emulator finds each.

The host check finds them too (tests/kernels/cuda).
"""

import functools

import planted_cuda
import pytest
import torch
from planted_kernels import Planned, planned, runs_here
from planted_ptx import Kernel

from gpuconv.backends.cuda import compiler as cuda_compile
from gpuconv.gpu import KNOWN

pytestmark = runs_here

TENSOR = Planned(
    "cuda", "", "forward", "tensor", (1, 40, 5, 6), (24, 40, 3, 3), {"padding": 1}, {}, dtype=torch.float16
)  # fmt: skip
BANDED = Planned(
    "cuda", "", "grad_weight", "banded", (3, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, {}, True, dtype=torch.float16
)  # fmt: skip
SIMT = Planned(
    "cuda", "", "forward", "simt", (2, 24, 13, 8), (136, 24, 3, 2), {"stride": (1, 2), "padding": ((1, 1), (2, 1))},
    dtype=torch.float32,
)  # fmt: skip


@functools.cache
def kernel_of(kind: str, gpu: str) -> Kernel:
    direction, family = kind.split("-")
    like = {"simt": SIMT, "banded": BANDED}.get(family, TENSOR)
    return planned(kind, like._replace(gpu=gpu, direction=direction, family=family))


HOST_FAULTS = [
    pytest.param(name, gpu, marks=[] if (number + at) % 2 else pytest.mark.full)
    for number, name in enumerate(planted_cuda.FAULTS)
    for at, gpu in enumerate(("A100", "H100"))
]


@pytest.mark.parametrize(("name", "gpu"), HOST_FAULTS)
def test_faults_of_the_host_check_are_found(name: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = planted_cuda.FAULTS[name]
    k = kernel_of(fault.kind, gpu)
    before = k.text
    monkeypatch.setattr(cuda_compile, "source", fault.planted)
    text = cuda_compile.ptx(k.instance, cuda_compile.architecture(KNOWN[gpu].capability), lines=True)
    if fault.emulated == "shared passes":  # right, and slower
        assert k.shared_passes(text) > 1.5 * k.shared_passes(before)
    else:
        assert k.found(text) == fault.emulated
