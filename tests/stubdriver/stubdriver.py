"""Stub GPUs: the launch code of the backends, and PyTorch's around it, run on a machine without a GPU.

`libcuda.c` stands for the CUDA driver, `libcudart.c` for the runtime that PyTorch is linked with; they say what they
do. They are compiled with the C compiler when first needed, and preloaded into a process of its own:

    driven_alone.py         the driver alone: what gpuconv's launcher gives Triton's C launcher, beside Triton's own
    driven_by_torch.py      driver and runtime: torch.cuda finds GPUs, and models are trained on them (steps.py)
    driven_through_cupy.py  the same for CUDA C
    without_compiler.py     the errors where Triton cannot compile its launcher
    refused.py              that the stub refuses what a driver refuses

    python tests/stubdriver/stubdriver.py 90,90,80 gpuconv doctor      # anything else, on two "H100"s and an "A100"

Nothing runs by itself. Within `executor.Executor` gpuconv's emulator executes what is launched, and what PyTorch
launches of its own its kernels for the CPU compute (on_host.py), as far as a training step needs.

What that proves: what reaches the driver is what the compiled kernels want (number, order, width and values of their
parameters, grid, block, shared memory), on the right device, stream and context, nothing is asked that a driver
refuses, and what it makes the kernels compute is right. What it cannot: launches are executed one after the other in
the order of their calls, so streams that do not wait for each other are not found out, and nothing is quick; and cuDNN,
cuBLAS, NCCL and CuPy's own copy of the runtime have no stub.
"""

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
DRIVER, RUNTIME = "libcuda.so.1", "libcudart-stub.so"


def why_not(runtime: bool) -> str | None:
    """Why there can be no stub here; `runtime`: of PyTorch's runtime too."""
    import torch

    if sys.platform != "linux" or package("triton") is None:
        return "Triton is not installed (it is on Linux alone)"
    if _compiler() is None:
        return "there is no C compiler"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "there is no Python.h, which Triton's C code includes"
    if runtime and (torch.version.cuda or "").split(".")[0] != "13":
        return f"PyTorch is built for CUDA {torch.version.cuda}, and the stub of its runtime is one of CUDA 13"
    if runtime and not (_toolkit() / "cuda_runtime_api.h").exists():
        return "there is no cuda_runtime_api.h beside PyTorch"
    return None


def environment(base: dict[str, str], gpus: str, runtime: bool) -> dict[str, str]:
    """The environment of a process that finds these GPUs: compute capabilities times ten, as in "90,90,80"."""
    libraries = _built(runtime)
    preloaded = [libraries / DRIVER, *([libraries / RUNTIME] if runtime else [])]
    return base | {
        "STUB_GPUS": gpus,
        "LD_PRELOAD": ":".join(map(str, preloaded)),
        "TRITON_LIBCUDA_PATH": str(libraries),  # what its C code is linked with
        "TRITON_CACHE_DIR": base.get("TRITON_CACHE_DIR", str(_folder() / "triton")),
        "TORCHINDUCTOR_CACHE_DIR": str(_folder() / "inductor"),
    }


def run(script: str, base: dict[str, str], gpus: str, runtime: bool, *arguments: str) -> list[Any]:
    """What a script of this folder prints, in lines of JSON, in a process that finds these GPUs."""
    told = environment(base, gpus, runtime)
    done = subprocess.run([sys.executable, HERE / script, *arguments], env=told, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{script}:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---- building --------------------------------------------------------------------------------------------------------


def _built(runtime: bool) -> Path:
    """The folder of the libraries, which are made if they were not made before. Safe among processes."""
    include = {"libcuda": [package("triton") / "backends/nvidia/include"]}
    if runtime:
        include["libcudart"] = [
            _toolkit(),
            *include["libcuda"],
        ]  # Triton has headers of another one too
    sources = [path.read_text() for path in sorted(HERE.iterdir()) if path.suffix in (".c", ".h")]
    key = hashlib.sha256("\0".join([*sources, repr(include), str(_compiler())]).encode()).hexdigest()[:20]
    made = _folder() / key
    with open(f"{made}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = Path(tempfile.mkdtemp(dir=_folder()))
            _compile("libcuda", new / DRIVER, include["libcuda"], ["-ldl"])
            if runtime:
                _compile("libcudart", new / RUNTIME, include["libcudart"], [f"-L{new}", f"-l:{DRIVER}"])
            new.rename(made)
    return made


def _compile(name: str, library: Path, include: list[Path], libraries: list[str]) -> None:
    command = [_compiler(), "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    command += [f"-I{folder}" for folder in include]
    command += [f"-Wl,-soname,{library.name}", "-o", library, HERE / f"{name}.c", *libraries]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0 or "warning:" in run.stderr:
        raise RuntimeError(f"{command}:\n{run.stderr}")


@functools.cache
def _folder() -> Path:
    """The folder of all that is made here."""
    folder = Path(tempfile.gettempdir()) / f"gpuconv-stubdriver-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    return folder


def _compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def package(name: str) -> Path | None:
    """The folder of a package, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else Path(next(iter(spec.submodule_search_locations or ("",))))


def _toolkit() -> Path:
    """The runtime's headers, of the wheels that PyTorch wants."""
    return (package("nvidia") or Path()) / "cu13" / "include"


# ---- within such a process -------------------------------------------------------------------------------------------


class LaunchedStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("device", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("attributes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("function", ctypes.c_void_p),
        ("parameters", ctypes.c_int),
        ("sizes", ctypes.c_int * 128),
        ("values", ctypes.c_uint64 * 128),
    ]


class Launched(NamedTuple):
    """A launch as the driver got it."""

    name: str
    device: int
    thread: int  # counted in the order of their first launch
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    attributes: int
    stream: int
    function: int
    sizes: tuple[int, ...]  # bytes of each parameter, as the cubin says
    values: tuple[int, ...]  # what each was given, without a sign


def driver() -> ctypes.CDLL:
    """The stub that is loaded in this process."""
    library = ctypes.CDLL(DRIVER)
    library.stub_refusal.restype = ctypes.c_char_p
    library.stub_launch.restype = ctypes.POINTER(LaunchedStruct)
    library.stub_own.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def runtime() -> ctypes.CDLL:
    """The stub of PyTorch's runtime that is loaded in this process."""
    library = ctypes.CDLL(RUNTIME)
    library.stub_runtime_kernels.restype = ctypes.c_long
    return library


def launches() -> list[Launched]:
    """All launches since `driver().stub_clear()`."""
    found = []
    for index in range(driver().stub_launches()):
        got = driver().stub_launch(index).contents
        n = got.parameters
        found.append(
            Launched(
                got.name.decode(), got.device, got.thread, tuple(got.grid), tuple(got.block), got.shared,
                got.attributes, got.stream or 0, got.function, tuple(got.sizes[:n]), tuple(got.values[:n]),
            )
        )  # fmt: skip
    return found


if __name__ == "__main__":
    reason = why_not(runtime=True)
    if reason is not None or len(sys.argv) < 3:
        sys.exit(reason or __doc__)
    os.execvpe(sys.argv[2], sys.argv[2:], environment(dict(os.environ), sys.argv[1], runtime=True))
