"""The compiler of CUDA C: from a kernel's text to PTX or machine code for any GPU, on a machine without one.

It uses the NVRTC that CuPy finds, through CuPy's binding of it. `cupy.RawModule` will not do: it adds -ftz=true to
whatever options it is given, so that subnormal numbers would become zero, against what `gpuconv.reference` promises.
"""

import hashlib
import importlib.util
from contextlib import suppress

from gpuconv.backends.cuda.launch import Instance, source
from gpuconv.files import cache_folder, write_atomically

_OPTIONS = ("-std=c++17", "-ftz=false")
_DIGEST = hashlib.sha256().digest_size


def why_not() -> str | None:
    """Why nothing can be compiled on this machine, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (cupy-cuda12x or cupy-cuda13x)"
    try:
        _version()
    except Exception as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        return f"CuPy finds no NVRTC ({first})"
    return None


def architecture(capability: tuple[int, int]) -> str:
    """The architecture to compile for: "sm_80"; on capability 9.0 "sm_90a", with instructions that later GPUs lack."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major == 9 else ''}"


def cubin(instance: Instance, architecture: str) -> bytes:
    """Machine code of a kernel for an architecture. Raises RuntimeError with the compiler's log where it fails."""
    return _compiled(instance, architecture, "getCUBIN") + b"\0"  # CuPy's binding drops the last byte, which is 0


def ptx(instance: Instance, architecture: str, lines: bool = False) -> str:
    """PTX of a kernel for an architecture; `lines`: with the source line of each instruction."""
    more = ("-lineinfo",) if lines else ()
    return _compiled(instance, architecture.replace("sm_", "compute_"), "getPTX", more).decode()


def kept_cubin(instance: Instance, architecture: str) -> bytes:
    """Machine code as from `cubin`, kept in the user's cache folder once the same NVRTC has compiled it."""
    text = "\0".join((source(instance.file), *_OPTIONS, *instance.options, architecture, repr(_version())))
    path = cache_folder() / "cuda" / f"{hashlib.sha256(text.encode()).hexdigest()}.cubin"
    with suppress(OSError):
        kept = path.read_bytes()
        if hashlib.sha256(kept[_DIGEST:]).digest() == kept[:_DIGEST]:
            return kept[_DIGEST:]
    code = cubin(instance, architecture)
    with suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(code).digest() + code)
    return code


def _version() -> tuple[int, int]:
    from cupy_backends.cuda.libs import nvrtc

    major, minor = nvrtc.getVersion()
    return major, minor


def _compiled(instance: Instance, architecture: str, result: str, more: tuple[str, ...] = ()) -> bytes:
    """The compiled program, as NVRTC's function `result` returns it. Raises ModuleNotFoundError without CuPy."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source(instance.file), instance.file, (), ())
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture={architecture}", *_OPTIONS, *more, *instance.options])
        made: bytes = getattr(nvrtc, result)(program)
        return made
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC {_version()} cannot compile {instance} for {architecture}: {log}") from error
    finally:
        nvrtc.destroyProgram(program)
