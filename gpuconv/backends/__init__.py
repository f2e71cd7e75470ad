"""The backends by name, and which of them a call uses.

A call names its backend by argument, else by the innermost `use_backend`, else by the environment variable
GPUCONV_BACKEND (read when gpuconv is imported), else it is `auto`. Two names leave the choice to the planner:

    auto      gpuconv's kernels on a GPU; PyTorch's own where they cannot do it, and on any other device
    fastest   what `gpuconv tune` found quickest on this device, PyTorch's own included; otherwise as `auto`
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module

import torch

from gpuconv.backends.base import Backend, BackendUnavailable
from gpuconv.text import did_you_mean

__all__ = [
    "CHOICES",
    "Backend",
    "BackendUnavailable",
    "auto_order",
    "get",
    "load",
    "names",
    "register",
    "selected",
    "use_backend",
]

# The modules of the backends, imported when first needed, so that importing gpuconv stays cheap.
_MODULES = {
    "triton": ("gpuconv.backends.triton.backend", "TritonBackend"),
    "cuda": ("gpuconv.backends.cuda.backend", "CudaBackend"),
    "numpy": ("gpuconv.backends.numpy", "NumpyBackend"),
    "aten": ("gpuconv.backends.aten", "AtenBackend"),
}
CHOICES = ("auto", "fastest")
_loaded: dict[str, Backend] = {}
_on_register: list[Callable[[], None]] = []

# The backends that `auto` tries, in order, by the type of device; for any other type PyTorch's own.
_AUTO: dict[str, tuple[str, ...]] = {"cuda": ("triton", "cuda", "aten")}
_ATEN_ONLY = ("aten",)

_default = os.environ.get("GPUCONV_BACKEND") or "auto"
_selected: ContextVar[str | None] = ContextVar("gpuconv_backend", default=None)
_traced: str | None = None  # the same for code under compilation, on any thread: PyTorch 2.11 cannot trace a ContextVar


def names() -> tuple[str, ...]:
    """The names of all backends, `CHOICES` aside."""
    return tuple(dict.fromkeys((*_MODULES, *_loaded)))


def get(name: str) -> Backend:
    """The backend called `name`. Raises ValueError for a name that is not known."""
    backend = _loaded.get(name)
    if backend is None:
        if name not in _MODULES:
            known = (*CHOICES, *names())
            raise ValueError(f"backend must be one of {', '.join(known)}, but got {name!r}{did_you_mean(name, known)}")
        module, cls = _MODULES[name]
        backend = _loaded[name] = getattr(import_module(module), cls)()
    return backend


def register(backend: Backend) -> None:
    """Make `backend` known by its name, for `use_backend` and as an argument. A name can be registered again."""
    if not isinstance(backend, Backend):
        raise TypeError(f"backend must be a gpuconv.backends.Backend, but got {type(backend).__name__}")
    if not getattr(backend, "name", "") or backend.name in CHOICES:
        raise ValueError(f"a backend needs a name, other than {' and '.join(map(repr, CHOICES))}")
    _loaded[backend.name] = backend
    for forget in _on_register:
        forget()


def load(spec: str) -> str:
    """The name of the backend that `spec` means: one that is known already, or `package.module:Class`, which is
    imported (from the current directory too), made and registered.

    Raises ValueError, saying what is wrong, for anything else.
    """
    module, colon, attribute = spec.partition(":")
    if not colon:
        if spec not in names():
            known = f"package.module:Class or one of {', '.join(names())}"
            raise ValueError(f"backend must be {known}, but got {spec!r}{did_you_mean(spec, names())}")
        return spec
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), attribute)
        backend = found() if isinstance(found, type) else found
    except Exception as error:  # somebody else's module: whatever it raises
        raise ValueError(f"backend {spec!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(backend, Backend):
        raise ValueError(f"backend {spec!r} must be a gpuconv.backends.Backend, but is {found!r}")
    if getattr(backend, "name", "") in _MODULES:
        raise ValueError(f"backend {spec!r} is called {backend.name!r}, as one of gpuconv's own; give it another name")
    register(backend)
    return backend.name


def on_register(forget: Callable[[], None]) -> None:
    """Call `forget` whenever a backend is registered: what was planned before may no longer hold."""
    _on_register.append(forget)


def auto_order(device_type: str) -> tuple[str, ...]:
    """The backends that `auto` tries, in order, for tensors on a device of this type."""
    return _AUTO.get(device_type, _ATEN_ONLY)


def plan_for_cpu_as_for(device_type: str) -> None:
    """From now on `auto` tries the same for CPU tensors as for those on a device of this type."""
    if device_type == "cpu":
        _AUTO.pop("cpu", None)
    else:
        _AUTO["cpu"] = _AUTO[device_type]


def require(name: str) -> None:
    """Raise unless `name` is one of `CHOICES` or a backend that can run on this machine.

    ValueError for an unknown name; BackendUnavailable, with the reason, for one that cannot run.
    """
    if name in CHOICES:
        return
    reason = get(name).unavailable()
    if reason is not None:
        raise BackendUnavailable(f"backend {name!r} cannot run here: {reason}; use 'auto' or 'aten' instead")


def selected() -> str:
    """The name of the backend for a call that does not name one."""
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export():  # ONNX has PyTorch's convolutions, and not our ops
            return "aten"
        return _traced or _default
    return _selected.get() or _default


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within this context, convolutions use the backend called `name` (gradients of them too, whenever they run).

    Raises ValueError for an unknown name, BackendUnavailable if the backend cannot run on this machine.
    """
    global _traced
    require(name)
    token, before, _traced = _selected.set(name), _traced, name
    try:
        yield
    finally:
        _selected.reset(token)
        _traced = before
