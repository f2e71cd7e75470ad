"""The packages that gpuconv can use: which are installed, and how to get those that are not.

None is imported to find out, and no GPU is woken.
"""

import ctypes
import functools
import importlib.metadata
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# The packages of an extra by the module that is imported; pyproject.toml lists them too.
TRAIN = {
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "typer": "typer",
}
SEE = {"matplotlib": "matplotlib", "PIL": "pillow"}
BENCH = {"matplotlib": "matplotlib"}


def missing(needs: dict[str, str]) -> list[str]:
    """The packages that are not installed. `needs`: package by module; none is imported."""
    return [package for module, package in needs.items() if find_spec(module) is None]


def install(extra: str, packages: Iterable[str]) -> str:
    """How to install an extra, from an index or in a checkout, and which of its packages are missing."""
    return f"pip install 'gpuconv[{extra}]', or in a checkout pip install -e '.[{extra}]' (no {', '.join(packages)})"


# The names that a package may be installed by.
PACKAGES = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "triton": ("triton", "triton-windows"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
}


@functools.cache
def installed(package: str) -> str | None:
    """The installed version of a package of `PACKAGES`; None where it is not installed."""
    for name in PACKAGES[package]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@functools.cache
def driver() -> str | None:
    """The version of the NVIDIA driver, from the system or from the driver's own library; None without a driver."""
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
