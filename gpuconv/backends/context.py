"""The primary context of a GPU, which is PyTorch's, in threads where nothing else has made it current.

The CUDA runtime does so when it needs one; in a thread where only gpuconv launches (autograd's, a pool's), nothing else
does.
"""

import ctypes
import functools


def enter(index: int) -> None:
    """Make the primary context of the GPU of this number current in this thread."""
    _check(_driver().cuCtxSetCurrent(_primary(index)))


def enter_one(index: int) -> None:
    """Make that context current in this thread, if none is."""
    current = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(current)))
    if not current:
        enter(index)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _primary(index: int) -> ctypes.c_void_p:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_driver().cuDeviceGet(ctypes.byref(device), index))
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    return context


def _check(error: int) -> None:
    if error:
        said = ctypes.c_char_p()
        _driver().cuGetErrorString(error, ctypes.byref(said))
        raise RuntimeError(f"the driver gives no context: {(said.value or b'error %d' % error).decode()}")
