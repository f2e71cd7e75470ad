"""Loading and launching CUDA C through CuPy's binding of the driver, on PyTorch's device and stream.

CuPy is imported when first needed. Only its binding of the driver is used: no `cupy.cuda.Device`, which goes through
CuPy's own copy of the CUDA runtime, and no `cupy.RawModule` (`gpuconv.backends.cuda.compiler` says why).
"""

import ctypes
import importlib.util
import threading
from typing import Any, NamedTuple

import torch

from gpuconv.backends import context
from gpuconv.backends.capture import refuse_capture
from gpuconv.backends.cuda import compiler
from gpuconv.backends.cuda.launch import Instance, Launch

_DEFAULT_SHARED = 48 << 10  # bytes of shared memory that a kernel may use unless an attribute of it allows more
# CUDA_ERROR_INVALID_VALUE (too much shared memory asked for), …_INVALID_IMAGE, …_NO_BINARY_FOR_GPU, …_INVALID_PTX,
# …_UNSUPPORTED_PTX_VERSION, …_NOT_FOUND, …_LAUNCH_OUT_OF_RESOURCES
_CANNOT_BUILD = (1, 200, 209, 218, 222, 500, 701)


class _Module(NamedTuple):
    """The key of a loaded module. Instances that differ in nothing else share it, and its functions."""

    device: int
    file: str
    options: tuple[str, ...]


class _Thread(threading.local):
    """The GPU whose primary context was made current last in this thread."""

    device = -1


class CupyRuntime:
    """Loads and launches kernels on GPUs: a module for each GPU, file and options.

    Modules stay loaded: a captured graph may launch their kernels at any time.
    """

    def __init__(self) -> None:
        self._functions: dict[tuple[int, Instance], int] = {}  # handles, by GPU
        self._modules: dict[_Module, int] = {}
        self._functions_of: dict[tuple[_Module, str], int] = {}  # by their names
        self._shared: dict[int, int] = {}  # bytes that a function may be launched with, by its handle
        self._thread = _Thread()
        self._lock = threading.Lock()
        self._launch_kernel: Any = None

    def unavailable(self) -> str | None:
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU"
        return compiler.why_not()

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        if torch.cuda.current_device() != index:
            with torch.cuda.device(index):
                self._launch(launch, index, tensors)
        else:
            self._launch(launch, index, tensors)

    def cannot_build(self, error: Exception) -> bool:
        if importlib.util.find_spec("cupy") is None:
            return False
        from cupy.cuda.compiler import CompileException
        from cupy_backends.cuda.api.driver import CUDADriverError
        from cupy_backends.cuda.libs.nvrtc import NVRTCError

        if isinstance(error, CUDADriverError):
            return error.status in _CANNOT_BUILD
        return isinstance(error, (CompileException, NVRTCError)) or isinstance(error.__cause__, NVRTCError)

    def _launch(self, launch: Launch, index: int, tensors: tuple[torch.Tensor | None, ...]) -> None:
        if self._thread.device != index:
            context.enter(index)
            self._thread.device = index
        instance = launch.instance
        function = self._functions.get((index, instance)) or self._load(index, instance)
        stream = torch._C._cuda_getCurrentRawStream(index)
        parameters, _values = launch.parameters(tensors)
        self._launch_kernel(
            function, launch.blocks, 1, 1, instance.threads, 1, 1, instance.shared, stream,
            ctypes.addressof(parameters), 0,
        )  # fmt: skip

    def _load(self, index: int, instance: Instance) -> int:
        """The handle of the instance's function on this GPU, whose context is current."""
        from cupy_backends.cuda.api import driver

        with self._lock:
            found = self._functions.get((index, instance))
            if found is not None:
                return found
            module = _Module(index, instance.file, instance.options)
            found = self._functions_of.get((module, instance.function))
            if found is None:
                refuse_capture(instance.function)
                if module not in self._modules:
                    architecture = compiler.architecture(torch.cuda.get_device_capability(index))
                    self._modules[module] = driver.moduleLoadData(compiler.kept_cubin(instance, architecture))
                found = driver.moduleGetFunction(self._modules[module], instance.function)
                self._functions_of[module, instance.function] = found
            if instance.shared > self._shared.get(found, _DEFAULT_SHARED):  # never lowered: others launch it too
                driver.funcSetAttribute(found, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, instance.shared)
                self._shared[found] = instance.shared
            self._launch_kernel = driver.launchKernel
            self._functions[index, instance] = found
            return found
