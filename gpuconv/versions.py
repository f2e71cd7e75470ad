"""Which packages are installed, and which NVIDIA driver, without importing any of them or asking a GPU."""

import functools
import importlib.metadata
import re
from pathlib import Path

import torch

# The names that a package may be installed by.
PACKAGES = {
    "gpuconv": ("gpuconv",),
    "numpy": ("numpy",),
    "torch": ("torch",),
    "triton": ("triton", "triton-windows"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
}


@functools.cache
def installed(package: str) -> str | None:
    """The version of the one of `PACKAGES` that is installed, None where it is not."""
    for name in PACKAGES[package]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@functools.cache
def driver() -> str | None:
    """The version of the NVIDIA driver; where the system does not tell, of the CUDA that it supports; None without."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first)
        if found is not None:
            return found[0]
    except (OSError, IndexError):
        pass
    if not torch.cuda.is_available():
        return None
    version = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # of builds with CUDA
    return f"CUDA {version // 1000}.{version % 1000 // 10}"
