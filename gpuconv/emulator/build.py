"""The build of the core: C++ that is compiled when it is first needed, and kept in the user's cache."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.resources
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from gpuconv.emulator.errors import EmulatorUnavailable
from gpuconv.files import alone, cache_folder, write_atomically

# No contraction: a product and a sum are rounded as the PTX says. Rounding modes change while it runs.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-frounding-math", "-shared", "-fPIC")


def compiler() -> str | None:
    """The path of the C++ compiler: $CXX, or g++, clang++ or c++; None without one."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def why_not() -> str | None:
    """Why the emulator cannot run on this machine; None if it can."""
    if platform.system() != "Linux":
        return f"the emulator runs on Linux, and this is {platform.system()}"
    if compiler() is None:
        return (
            "the emulator compiles its core when it is first needed: there is no C++ compiler (install g++ or set CXX)"
        )
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The core, compiled if it was not. Raises EmulatorUnavailable, with the reason, where it cannot be compiled."""
    reason = why_not()
    if reason is not None:
        raise EmulatorUnavailable(reason)
    command = compiler()
    assert command is not None
    folder = importlib.resources.files("gpuconv.emulator.core")
    sources = {item.name: item.read_bytes() for item in folder.iterdir() if item.name.endswith((".h", ".cpp"))}
    digest = hashlib.sha256(repr((sorted(sources.items()), _FLAGS, _version(command), _processor())).encode())
    kept = cache_folder() / "emulator" / f"{digest.hexdigest()[:32]}.so"
    with contextlib.suppress(OSError):  # damaged, or not for this machine: compiled anew
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder_of_build:
        at = Path(folder_of_build)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with alone(kept.with_suffix(".lock")):  # several processes: one compiles, the others wait
                with contextlib.suppress(OSError):
                    return ctypes.CDLL(str(kept))
                write_atomically(kept, _compile(command, sources, at).read_bytes())
            return ctypes.CDLL(str(kept))
        except OSError:  # a cache that cannot be written is none
            return ctypes.CDLL(str(_compile(command, sources, at)))


def _compile(command: str, sources: dict[str, bytes], folder: Path) -> Path:
    for name, text in sources.items():
        (folder / name).write_bytes(text)
    made = folder / "core.so"
    run = subprocess.run([command, *_FLAGS, "-o", made, folder / "machine.cpp"], capture_output=True, text=True)
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if "error" in line] or run.stderr.splitlines()
        said = errors[0] if errors else f"it ended with {run.returncode}"
        raise EmulatorUnavailable(f"{command} cannot compile the emulator's core: {said}")
    return made


def _version(command: str) -> str:
    run = subprocess.run([command, "--version"], capture_output=True, text=True)
    return run.stdout


def _processor() -> str:
    """The processor, as far as -march=native depends on it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine()
