"""Compiling and launching CUDA C through CuPy, on PyTorch's device and stream. CuPy is imported when first needed."""

import ctypes
import importlib.util
import threading
from typing import Any

import torch

from gpuconv.backends.cuda_launch import Instance, Launch, source

COMMON_OPTIONS = ("-std=c++17",)
_SHARED_WITHOUT_ASKING = 48 << 10  # bytes of shared memory that a kernel may use without an attribute that says so
# CUDA_ERROR_INVALID_VALUE (too much shared memory asked for), …_INVALID_IMAGE, …_NO_BINARY_FOR_GPU, …_INVALID_PTX,
# …_UNSUPPORTED_PTX_VERSION, …_NOT_FOUND, …_LAUNCH_OUT_OF_RESOURCES
_CANNOT_BUILD = (1, 200, 209, 218, 222, 500, 701)


class CupyRuntime:
    """`cupy.RawModule`: a module for each GPU, file and options, compiled by NVRTC or found in CuPy's cache on disk."""

    def __init__(self) -> None:
        self._functions: dict[tuple[int, Instance], int] = {}  # handles, by GPU
        self._modules: dict[tuple[str, tuple[str, ...]], Any] = {}  # by file and options; CuPy loads each on each GPU
        self._lock = threading.Lock()
        self._launch_kernel: Any = None

    def unavailable(self) -> str | None:
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU"
        if importlib.util.find_spec("cupy") is None:
            return "CuPy is not installed (cupy-cuda12x or cupy-cuda13x)"
        try:
            from cupy_backends.cuda.libs import nvrtc

            nvrtc.getVersion()
        except Exception as error:
            first, *_ = str(error).splitlines() or [type(error).__name__]
            return f"CuPy finds no NVRTC ({first})"
        return None

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
        instance = launch.instance
        function = self._functions.get((index, instance)) or self._load(index, instance)
        stream = torch._C._cuda_getCurrentRawStream(index)
        parameters, _values = launch.parameters(tensors)
        self._launch_kernel(
            function, launch.blocks, 1, 1, instance.threads, 1, 1, instance.shared, stream,
            ctypes.addressof(parameters), 0,
        )  # fmt: skip

    def _load(self, index: int, instance: Instance) -> int:
        """The handle of the instance's function on this GPU."""
        import cupy
        from cupy_backends.cuda.api import driver

        with self._lock:
            found = self._functions.get((index, instance))
            if found is not None:
                return found
            with cupy.cuda.Device(index):
                key = instance.file, instance.options
                if key not in self._modules:
                    options = (*COMMON_OPTIONS, *instance.options)
                    self._modules[key] = cupy.RawModule(code=source(instance.file), options=options)
                kernel = self._modules[key].get_function(instance.function)
                if instance.shared > _SHARED_WITHOUT_ASKING:
                    kernel.max_dynamic_shared_size_bytes = instance.shared
                self._launch_kernel = driver.launchKernel
                found = self._functions[index, instance] = kernel.kernel.ptr
            return found
