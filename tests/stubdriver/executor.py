"""Launches that compute: what reaches the stub of the driver is executed by gpuconv's emulator, on the GPU's memory.

    with executor.Executor() as gpu:
        layer(x)                # of "cuda" tensors: y has its values when this returns
        gpu.counters            # what each launch counted

The driver is given machine code. Its PTX is that which the compilers made of the same kernel: Triton keeps it in its
cache beside the machine code, and `remember` does the same for what NVRTC compiles. PTX that is loaded itself is
assembled by ptxas first, as a driver would. A kernel whose PTX is not known is an error, and so is everything that the
emulator finds: the launch itself fails, and says what was found.

A pointer reaches no further than the allocation that it points into: one tensor. A launch is executed at once, one that
is captured whenever its graph is launched.
"""

import contextlib
import ctypes
import itertools
import os
import struct
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import stubdriver
import torch

from gpuconv import emulator
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.files import cache_folder

# By the numbers of cuda.h.
ILLEGAL_ADDRESS, MISALIGNED_ADDRESS, LAUNCH_FAILED, NOT_SUPPORTED = 700, 716, 719, 801
_ERRORS = {"bounds": ILLEGAL_ADDRESS, "alignment": MISALIGNED_ADDRESS}
_PREPARE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(stubdriver.LaunchedStruct), ctypes.c_void_p, ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int),
)  # fmt: skip
_PERFORM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)
_ASSEMBLE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
_DESCRIPTOR = 128  # bytes of one for the copy engine, which begin with the address of its tensor


_numbers = itertools.count()  # of all executors together: a graph of another one is found out


class Prepared(NamedTuple):
    """A launch in the form that the emulator takes."""

    program: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    cluster: tuple[int, ...]
    shared: int
    arguments: list[Any]
    buffers: list[tuple[int, int, str]]


class Executor:
    """While it is entered, all launches of this process are executed, whichever their thread.

    `schedule` and `seed` are the emulator's. `counters` holds what each launch counted, in their order.

    Before release 3.8 Triton leaves out the fence between cp.async and a wgmma that reads what it brought, which is a
    race on a GPU: with such a one races are not looked for.
    """

    def __init__(self, schedule: str = "early", seed: int = 0) -> None:
        self.counters: list[Any] = []
        self._how = {"schedule": schedule, "seed": seed, "checks": RELEASE >= (3, 8)}
        self._prepared: dict[int, Prepared] = {}
        self._ptx: dict[tuple[str, bytes], str] = {}
        self._loaded: list[ctypes.Array[Any]] = []
        self._one_at_a_time = threading.Lock()
        self._callbacks = _PREPARE(self._prepare), _PERFORM(self._perform), _ASSEMBLE(self._assemble)

    def __enter__(self) -> "Executor":
        reason = emulator.why_not()
        if reason is not None:
            raise RuntimeError(f"no launch can be executed: {reason}")
        stubdriver.driver().stub_execute(*self._callbacks)
        return self

    def __exit__(self, *_: object) -> None:
        stubdriver.driver().stub_execute(_PREPARE(), _PERFORM(), _ASSEMBLE())

    # ---- what the driver calls ----

    def _prepare(self, launched: Any, image: int, size: int, parameters: Any, number: Any) -> int:
        return _status_of(lambda: self._note(launched.contents, ctypes.string_at(image, size), parameters, number))

    def _perform(self, number: int, keep: int) -> int:
        def perform() -> None:
            what = self._prepared[number] if keep else self._prepared.pop(number)
            with self._one_at_a_time:
                counted = what.program.run(
                    what.grid, what.block, what.shared, what.arguments, buffers=what.buffers, cluster=what.cluster,
                    **self._how,
                )  # fmt: skip
                self.counters.append(counted)

        return _status_of(perform)

    def _assemble(self, ptx: bytes, capability: int) -> int | None:
        """The address of the cubin of this PTX. It stays: whoever loads it copies it."""
        ptxas = stubdriver.package("triton") / "backends/nvidia/bin/ptxas"
        with tempfile.TemporaryDirectory() as folder:
            text, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            text.write_bytes(ptx)
            suffix = "a" if capability == 90 else ""
            command = [ptxas, f"-arch=sm_{capability}{suffix}", "-o", made, text]
            done = subprocess.run(command, capture_output=True, text=True)
            code = made.read_bytes() if done.returncode == 0 else done.stderr.encode()
        self._loaded.append(ctypes.create_string_buffer(code, len(code)))
        if done.returncode == 0:
            self._ptx["", code] = ptx.decode()
        return ctypes.addressof(self._loaded[-1])

    # ---- a launch ----

    def _note(self, launched: Any, image: bytes, parameters: Any, number: Any) -> None:
        name = launched.name.decode()
        program = emulator.load(self._ptx_of(name, image), name)
        if len(program.parameters) != launched.parameters:
            raise RuntimeError(f"{name}: PTX has {len(program.parameters)} parameters, its cubin {launched.parameters}")
        allocations, arguments, buffers = _Allocations(), [], {}
        for index, parameter in enumerate(program.parameters):
            raw = ctypes.string_at(parameters[index], parameter.size)
            arguments.append(_value(raw, parameter.type))
            if parameter.size in (8, _DESCRIPTOR) and parameter.type != "f64":
                at, size = allocations.around(int.from_bytes(raw[:8], "little"))
                if size:
                    buffers[at, size] = f"the tensor of parameter {index}"
        number[0] = next(_numbers)
        self._prepared[number[0]] = Prepared(
            program, tuple(launched.grid), tuple(launched.block), tuple(launched.cluster), launched.shared, arguments,
            [(*where, called) for where, called in buffers.items()],
        )  # fmt: skip

    def _ptx_of(self, name: str, image: bytes) -> str:
        for key in ((name, image), ("", image)):
            if key in self._ptx:
                return self._ptx[key]
        for folder in (os.environ.get("TRITON_CACHE_DIR"), os.environ.get("STUB_PTX")):
            for path in Path(folder).glob(f"*/{name}.cubin") if folder else ():
                if path.stat().st_size == len(image) and path.read_bytes() == image:
                    return self._ptx.setdefault((name, image), path.with_suffix(".ptx").read_text())
        raise _Unknown(f"no PTX is known of the kernel {name}, which was loaded as a cubin of {len(image)} bytes")


class _Unknown(RuntimeError):
    """A kernel that cannot be executed."""


def remember(folder: Path, name: str, cubin: bytes, ptx: str) -> None:
    """Keep the PTX of a kernel's machine code for a process whose STUB_PTX is this folder."""
    own = folder / str(len(list(folder.iterdir())) if folder.exists() else 0)
    own.mkdir(parents=True)
    (own / f"{name}.cubin").write_bytes(cubin)
    (own / f"{name}.ptx").write_text(ptx)


def share_core(cache: Path) -> None:
    """Let a process whose GPUCONV_CACHE is this folder have the core of the emulator that was compiled for this one."""
    from gpuconv.emulator import build

    build.library()
    cache.mkdir(exist_ok=True)
    (cache / "emulator").symlink_to(cache_folder() / "emulator", target_is_directory=True)


def _status_of(run: Callable[[], None]) -> int:
    """Execute a launch. 0, or the driver's number of an error, whose message the driver keeps."""
    try:
        run()
    except emulator.EmulationError as error:
        return stubdriver.driver().stub_fail(_ERRORS.get(error.kind, LAUNCH_FAILED), str(error).encode())
    except _Unknown as error:
        return stubdriver.driver().stub_fail(NOT_SUPPORTED, str(error).encode())
    except BaseException:  # it would be printed, and the launch would pass for one that went well
        return stubdriver.driver().stub_fail(LAUNCH_FAILED, traceback.format_exc()[-900:].encode())
    return 0


def _value(raw: bytes, kind: str) -> int | float | bytes:
    if kind in ("f32", "f64"):
        return struct.unpack("<f" if kind == "f32" else "<d", raw)[0]
    return int.from_bytes(raw, "little") if len(raw) <= 8 else raw


class _Allocations:
    """The memory that pointers may point into now: the stub's allocations, or the tensors that PyTorch made in them."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int]] | None = None

    def around(self, pointer: int) -> tuple[int, int]:
        """Address and bytes of the allocation that a pointer points into; (0, 0) if there is none."""
        at, size = ctypes.c_void_p(), ctypes.c_size_t()
        if not stubdriver.driver().stub_allocation(ctypes.c_void_p(pointer), ctypes.byref(at), ctypes.byref(size)):
            return 0, 0
        inside = [(begin, n) for begin, n in self._of_pytorch() if begin <= pointer < begin + n]
        return inside[0] if inside else (at.value or 0, size.value)

    def _of_pytorch(self) -> list[tuple[int, int]]:
        if self._blocks is None:
            self._blocks = []
            with contextlib.suppress(RuntimeError):  # there is no torch.cuda
                for segment in torch.cuda.memory_snapshot(include_traces=False) if torch.cuda.is_initialized() else ():
                    self._blocks += [
                        (block["address"], block["requested_size"])
                        for block in segment["blocks"]
                        if block["state"] != "inactive"
                    ]
        return self._blocks
