"""A virtual GPU: the PTX that Triton, Gluon and NVRTC compile kernels to, executed on the CPU, checked and counted.

    run_ptx, load         any PTX, on arrays
    triton_gpu            any Triton or Gluon kernel, through Triton's own JIT
    on                    gpuconv's own kernels: CPU tensors stand for the GPU's

It needs a C++ compiler, no GPU. What it proves and what it cannot is said in docs/emulator.md.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "run_ptx": "program",
    "load": "program",
    "Program": "program",
    "Counters": "counters",
    "TensorMap": "tensor_map",
    "triton_gpu": "triton_jit",
    "on": "device",
    "why_not": "build",
    "EmulationError": "errors",
    "EmulatorUnavailable": "errors",
    "UnknownInstruction": "errors",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
