"""act_backward in CUDA C: under the sanitizers, and compiled for real GPUs. test_act_backward.py checks its results."""

from pathlib import Path

import pytest
import torch
from host_cuda import COMPILER, Recorder, replay

from gpuconv.activations import Activation
from gpuconv.backends.cuda import act_backward as cuda_act
from gpuconv.backends.cuda.backend import CudaBackend
from gpuconv.backends.elementwise import Elementwise
from gpuconv.gpu import REPRESENTATIVE

full_only = pytest.mark.full


def elementwise(dtype: torch.dtype, memory_format: torch.memory_format, with_bias: bool, dense: bool) -> Elementwise:
    shape = (2, 24, 9, 7)
    strides = torch.empty(shape, device="meta").contiguous(memory_format=memory_format).stride()
    strides = strides if dense else (24 * 9 * 10, 90, 10, 1)
    return Elementwise(shape, dtype, memory_format, strides, with_bias, Activation("gelu"))


@pytest.mark.skipif(COMPILER is None, reason="the host check needs g++")
@pytest.mark.parametrize("mode", ["address", "thread"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_sanitizers_find_nothing(memory_format: torch.memory_format, mode: str, tmp_path: Path) -> None:
    e = elementwise(torch.float32, memory_format, True, dense=memory_format is torch.channels_last)
    runtime, backend = Recorder(), CudaBackend()
    backend.runtimes["cpu"] = runtime
    gy = torch.empty_strided(e.shape, e.grad_strides).normal_()
    saved = torch.randn(e.shape).contiguous(memory_format=memory_format)
    backend.bind_act_backward(e, torch.device("cpu"))(gy, saved)
    assert [record.launch.instance.function for record in runtime.records] == ["act_backward", "sum_channels"]
    for record in runtime.records:
        result = replay(record, mode, 2, tmp_path)
        assert not result.complaint
        assert result.after == record.after


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in ("sm_75", "sm_90") else full_only) for name in REPRESENTATIVE],
)
def test_compiles_without_spills_and_moves_16_bytes_a_thread(architecture: str) -> None:
    pytest.importorskip("cupy", reason="CuPy, whose NVRTC compiles these, is not installed")
    machine_code = pytest.importorskip(
        "gpuconv.inspection.machine_code", reason="Triton, whose cuobjdump reads cubins, is not installed"
    )
    for memory_format, dtype in ((torch.channels_last, torch.bfloat16), (torch.contiguous_format, torch.float32)):
        strides = torch.empty((2, 24, 8, 8), device="meta").contiguous(memory_format=memory_format).stride()
        e = Elementwise((2, 24, 8, 8), dtype, memory_format, strides, True, Activation("gelu"))
        for launch in cuda_act.launches(e, 132)[: 2 if dtype is torch.float32 else 1]:
            code = machine_code.cuda_machine_code(launch.instance, architecture)
            assert code.spills == 0
            if launch.instance.function == "act_backward":
                assert code.of_16_bytes["LDG"] and code.of_16_bytes["STG"]


def test_offsets_are_64_bit_exactly_where_32_bits_overflow() -> None:
    e = elementwise(torch.float16, torch.channels_last, True, True)
    for batch, expected in ((31, 0), (33, 1)):
        shape = (batch, 64, 1024, 1024)
        strides = torch.empty(shape, device="meta", memory_format=torch.channels_last).stride()
        launch = cuda_act.launches(e._replace(shape=shape, grad_strides=strides), 132)[0]
        assert f"-DWIDE={expected}" in launch.instance.options
    far = e._replace(grad_strides=(1 << 31, 1, 24 * 7, 24))
    assert "-DWIDE=1" in cuda_act.launches(far, 132)[0].instance.options
