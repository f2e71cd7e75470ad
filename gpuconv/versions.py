"""Which packages are installed, and which NVIDIA driver, without importing any of them or waking a GPU."""

import ctypes
import functools
import importlib.metadata
import re
from pathlib import Path

# The names that a package may be installed by.
PACKAGES = {
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
    """The version of the NVIDIA driver, from the system or from the driver's own library; None without."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first)
        return found and found[0]
    except (OSError, IndexError):
        pass
    try:  # WSL has no such file
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    return text.value.decode(errors="replace")
