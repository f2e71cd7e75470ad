"""The host check: the CUDA kernels run on the CPU, launched by the backend's own launcher.

`HostRuntime` stands where `gpuconv.backends.cuda.cupy_runtime.CupyRuntime` stands on a GPU. It compiles the kernel's
text with g++ against cuda_on_host.h and calls it with the tensors' own memory. `Recorder` also keeps what went in and
out, so that `replay` can run the launch again in a process of its own, under a sanitizer.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from gpuconv import backends, reference
from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import simt as cuda_simt
from gpuconv.backends.cuda.backend import CudaBackend
from gpuconv.backends.cuda.launch import Instance, Launch, source
from gpuconv.checking.problems import tensors
from gpuconv.gpu import KNOWN, Gpu
from gpuconv.problem import ConvProblem, Direction

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
MODES = {
    "fast": ["-O1", "-march=native", "-fvisibility=hidden"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-O1", "-fsanitize=thread"],
}
_DEFINES = {"fast": [], "address": ["-DWITH_ADDRESS_SANITIZER"], "thread": ["-DWITH_THREAD_SANITIZER"]}
# -ffp-contract=off: only what the kernel says is fused, so that every mode gives the same bits. -fno-thread-jumps: a
# barrier stays one barrier, whatever the compiler knows of the threads that come to it.
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-ffp-contract=off", "-fno-thread-jumps"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-I{HERE}"]


# ---- building --------------------------------------------------------------------------------------------------------


def unit(text: str, options: tuple[str, ...]) -> str:
    """The text for g++: the built-ins and the options, the kernel's text, and a function that calls each kernel."""
    names = re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s(\w+)\(', text)
    callers = "\n".join(f"HOST_KERNEL({name})" for name in names)
    # As -D options of the compiler they would keep it from using the precompiled header.
    macros = "\n".join(f"#define {option.removeprefix('-D').replace('=', ' ', 1)}" for option in options)
    return f'#include "cuda_on_host.h"\n{macros}\n{text}\n{callers}\n'


def build(text: str, options: tuple[str, ...], mode: str) -> Path:
    """A shared library of the kernels in `text`, or for a sanitizer a program that replays launches of them."""
    product = ["-shared"] if mode == "fast" else ["-rdynamic", str(HERE / "replay.cpp"), "-ldl"]
    flags = (f"-I{_precompiled_header(mode)}", *FLAGS, *MODES[mode])
    return compiled(unit(text, options), flags, (str(_fibers(mode)), *product))


@functools.cache
def _fibers(mode: str) -> Path:
    return compiled((HERE / "fibers.cpp").read_text(), (*FLAGS, "-O2", *_DEFINES[mode]), ("-c",))


@functools.cache
def _precompiled_header(mode: str) -> Path:
    """A folder with the precompiled cuda_on_host.h: to read it takes the compiler as long as a kernel does."""
    text = (HERE / "cuda_on_host.h").read_text()
    made = compiled(text, (*FLAGS, *MODES[mode], "-w"), (), "c++-header")
    folder = made.with_suffix(".precompiled")
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "cuda_on_host.h.gch").hardlink_to(made)
    return folder


def compiled(text: str, flags: tuple[str, ...], rest: tuple[str, ...], language: str = "c++") -> Path:
    """The compiler's result for this text and these flags, made at most once. Safe among processes."""
    folder = Path(tempfile.gettempdir()) / f"gpuconv-hostcheck-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    ours = sorted(path for path in HERE.iterdir() if path.suffix in (".h", ".cpp"))
    everything = [language, text, *flags, *rest, *(path.read_text() for path in ours)]
    key = hashlib.sha256("\0".join(everything).encode()).hexdigest()[:20]
    made = folder / key
    with _locked(folder / f"{key}.lock"):
        if not made.exists():
            assert COMPILER is not None
            (folder / f"{key}.cpp").write_text(text)
            # The rest is C++ too but for objects, which g++ tells by their first bytes if no language is named.
            command = [COMPILER, *flags, "-o", f"{made}.new", "-x", language, f"{made}.cpp", "-x", "none", *rest]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode != 0 or "warning:" in run.stderr:
                raise CompileError(f"{' '.join(command)}:\n{run.stderr}")
            os.replace(f"{made}.new", made)
    return made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- running ---------------------------------------------------------------------------------------------------------


class CompileError(RuntimeError):
    """The compiler refuses a kernel."""


class HostRuntime:
    """Runs launches on CPU tensors, one at a time, each in another order of threads than the one before."""

    def __init__(self, orders: Iterator[int] | None = None) -> None:
        self._functions: dict[Instance, ctypes._CFuncPtr] = {}
        self._lock = threading.Lock()
        self._orders = orders or itertools.cycle(range(4))

    def unavailable(self) -> str | None:
        return None if COMPILER else "the host check needs g++"

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        parameters, _values = launch.parameters(tensors)
        with self._lock:
            function = self._functions.get(launch.instance) or self._load(launch.instance)
            instance = launch.instance
            function(launch.blocks, instance.threads, instance.shared, parameters, next(self._orders))

    def cannot_build(self, error: Exception) -> bool:
        return isinstance(error, CompileError)

    def _load(self, instance: Instance) -> ctypes._CFuncPtr:
        library = ctypes.CDLL(str(build(source(instance.file), instance.options, "fast")))
        function = self._functions[instance] = getattr(library, f"launch_{instance.function}")
        function.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint]
        return function


class HostChecked(CudaBackend):
    """The backend, with CPU tensors computed by the host check.

    Each problem takes one of the tiles that it could take on a GPU, another for each problem, so that all are used; its
    pixels are split although they are few.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runtimes["cpu"] = HostRuntime()

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        if gpu.capability != (0, 0):
            return super().tiles(problem, direction, gpu, operands)
        gpu = KNOWN["A100"]
        offered = *cuda_simt.menu(problem, direction, gpu), *super().tiles(problem, direction, gpu, operands)
        candidates = list(dict.fromkeys(dataclasses.replace(tile, splits=1) for tile in offered))
        draw = zlib.crc32(f"{direction} {problem}".encode())
        tile = candidates[draw % len(candidates)]
        if direction == "grad_weight":
            tile = dataclasses.replace(tile, splits=(1, 2, 5)[draw // len(candidates) % 3])
        return (tile,)


def install() -> None:
    """Let backend `cuda` compute CPU tensors by the host check, in this process."""
    backends.register(HostChecked())


def compute(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    given: dict[str, torch.Tensor],
    activation: Activation = IDENTITY,
    runtime: HostRuntime | None = None,
    tf32: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The result of the kernel with this tile for `problems.tensors`; for grad_weight with the bias's gradient."""
    backend = HostChecked()
    backend.runtimes["cpu"] = runtime or HostRuntime()
    x, w, gy, residual = (given[name] for name in ("input", "weight", "grad_output", "residual"))
    first, second = {"forward": (x, w), "grad_input": (gy, w), "grad_weight": (gy, x)}[direction]
    forward = direction == "forward"
    operands = Operands((first.stride(), second.stride()), residual.stride() if forward else None, forward, tf32)
    run = backend.bind(problem, direction, torch.device("cpu"), activation, operands, tile)
    if forward:
        return (run(x, w, given["bias"], residual),)
    return (run(gy, w),) if direction == "grad_input" else run(gy, x, True)


def assert_right(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    name: str,
    layout: str = "contiguous",
    activation: str = "none",
    one_sign: bool = False,
) -> None:
    """The kernel agrees with the oracle; float32 is multiplied as TF32. `name` seeds the data."""
    given = tensors(problem, name, problem.dtype, "cpu", layout)
    if one_sign:
        given = {key: t.abs() for key, t in given.items()}
    act, tf32 = Activation.parse(activation), problem.dtype is torch.float32
    got = compute(problem, direction, tile, given, act, tf32=tf32)
    x, w, bias, residual, gy = (reference.as_numpy(t) for t in given.values())
    exact = {
        "forward": lambda: (reference.forward(problem, x, w, bias, residual, act),),
        "grad_input": lambda: (reference.grad_input(problem, gy, w),),
        "grad_weight": lambda: (reference.grad_weight(problem, gy, x), reference.grad_bias(problem, gy)),
    }[direction]()
    for i, (result, wanted) in enumerate(zip(got, exact, strict=True)):
        # The bias's gradient is a sum without products.
        reference.assert_close_to_oracle(
            result, wanted, f"{name}, {layout}, {direction}, {tile}", tf32=tf32 and i == 0, one_sign=one_sign
        )


# ---- recording and replaying -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Record:
    """A launch, and the memory of its tensors before and after."""

    launch: Launch
    before: tuple[bytes | None, ...]
    after: tuple[bytes | None, ...]


class Recorder(HostRuntime):
    """A HostRuntime that keeps a record of every launch."""

    def __init__(self) -> None:
        super().__init__(itertools.repeat(0))
        self.records: list[Record] = []

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        before = tuple(map(_memory, tensors))
        super().launch(launch, device, tensors)
        self.records.append(Record(launch, before, tuple(map(_memory, tensors))))


def _memory(t: torch.Tensor | None) -> bytes | None:
    """The memory from a tensor's first element to its last."""
    if t is None:
        return None
    if not t.numel():
        return b""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return ctypes.string_at(t.data_ptr(), (last + 1) * t.element_size())


@dataclasses.dataclass(frozen=True)
class Replay:
    """The outcome of running a record again: the tensors' memory, and the sanitizer's report if it stopped the run."""

    after: tuple[bytes | None, ...]
    complaint: str


def replay(record: Record, mode: str, order: int, folder: Path, text: str | None = None) -> Replay:
    """Run a record under a sanitizer. `text`: another kernel text than the record's own, to plant a fault in it."""
    instance = record.launch.instance
    program = build(source(instance.file) if text is None else text, instance.options, mode)
    sizes = [-1 if memory is None else len(memory) for memory in record.before]
    params = record.launch.conv.tobytes()
    numbers = (record.launch.blocks, instance.threads, instance.shared, len(params), len(sizes), *sizes)
    tensors = b"".join(memory for memory in record.before if memory)
    (folder / "before").write_bytes(struct.pack(f"{len(numbers)}q", *numbers) + params + tensors)
    command = [program, instance.function, str(order), folder / "before", folder / "after"]
    environment = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1", "PATH": os.environ["PATH"]}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in run.stderr:  # the thread sanitizer of older compilers, on newer kernels of Linux
        command = ["setarch", os.uname().machine, "-R", *command]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        return Replay((), run.stderr or f"ended with {run.returncode}")
    memory = (folder / "after").read_bytes()
    ends = itertools.accumulate(max(size, 0) for size in sizes)
    parts = [memory[end - max(size, 0) : end] for size, end in zip(sizes, ends, strict=True)]
    return Replay(tuple(None if size < 0 else part for size, part in zip(sizes, parts, strict=True)), run.stderr)
