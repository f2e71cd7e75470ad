"""Convolutions of NumPy and CuPy arrays: the functions of `gpuconv.functional`, without gradients.

    y = gpuconv.arrays.conv2d(x, w, b, padding=1)       # numpy.ndarray in, numpy.ndarray out; cupy likewise

Arrays go to PyTorch and back through DLPack, so none is copied, read-only ones included; but a NumPy array with strides
that DLPack cannot express (negative, or no multiple of its item) is copied first. CuPy arrays are computed on CuPy's
current stream, without waiting for it.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpuconv import functional


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Convolution of input [N, C, L] or [C, L], weight [K, C/groups, R], bias [K]; gives [N, K, P]. See `conv2d`."""
    return _call(functional.conv1d, input, weight, bias, (stride, padding, dilation, groups), backend)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Convolution of input [N, C, H, W] or [C, H, W] with weight [K, C/groups, R, S] and bias [K].

    Gives [N, K, P, Q], a NumPy array for NumPy arrays and a CuPy array for CuPy arrays.

    Raises TypeError for arrays of different kinds, for other objects and for a dtype that PyTorch does not have; else
    what `gpuconv.functional.conv2d` raises.
    """
    return _call(functional.conv2d, input, weight, bias, (stride, padding, dilation, groups), backend)


def conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Convolution of input [N, C, D, H, W] or [C, D, H, W], weight [K, C/groups, T, R, S], bias [K]. See `conv2d`."""
    return _call(functional.conv3d, input, weight, bias, (stride, padding, dilation, groups), backend)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Transposed convolution of input [N, C, L] or [C, L] with weight [C, K/groups, R], bias [K]. See `conv2d`."""
    settings = (stride, padding, output_padding, groups, dilation)
    return _call(functional.conv_transpose1d, input, weight, bias, settings, backend)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Transposed convolution of input [N, C, H, W] or [C, H, W] with weight [C, K/groups, R, S], bias [K].

    Gives [N, K, P, Q]. Raises as `conv2d` does.
    """
    settings = (stride, padding, output_padding, groups, dilation)
    return _call(functional.conv_transpose2d, input, weight, bias, settings, backend)


def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Any:
    """Transposed convolution of input [N, C, D, H, W] or [C, D, H, W] with weight [C, K/groups, T, R, S], bias [K]."""
    settings = (stride, padding, output_padding, groups, dilation)
    return _call(functional.conv_transpose3d, input, weight, bias, settings, backend)


# ---- there and back -------------------------------------------------------------------------------------------------


def _call(
    function: Callable[..., Tensor], input: Any, weight: Any, bias: Any, settings: tuple[Any, ...], backend: str | None
) -> Any:
    arrays = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    kinds = {name: _kind(name, array) for name, array in arrays.items()}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{name} from {kind}" for name, kind in kinds.items())
        raise TypeError(f"input, weight and bias must be arrays of one kind, but got {shown}")
    if kinds["input"] == "numpy":
        tensors = [_from_numpy(name, array) for name, array in arrays.items()]
        with torch.no_grad():
            return function(*tensors, *([None] if bias is None else []), *settings, backend=backend).numpy()
    cupy = sys.modules["cupy"]
    with cupy.cuda.Device(input.device.id), _on_stream_of(cupy, input.device.id), torch.no_grad():
        tensors = [torch.from_dlpack(array) for array in arrays.values()]
        return cupy.from_dlpack(function(*tensors, *([None] if bias is None else []), *settings, backend=backend))


def _kind(name: str, array: Any) -> str:
    if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):  # whose mask would be lost
        return "numpy"
    cupy = sys.modules.get("cupy")  # who has a CuPy array has imported CuPy
    if cupy is not None and isinstance(array, cupy.ndarray):
        return "cupy"
    hint = "; gpuconv.functional takes tensors" if isinstance(array, Tensor) else ""
    raise TypeError(f"{name} must be a NumPy or CuPy array, but got {type(array).__name__}{hint}")


class _Writable:
    """The memory of a read-only array, presented as writable: DLPack may not export it otherwise. It is only read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # stays alive
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    item = max(array.itemsize, 1)  # a dtype may have no bytes at all
    if any(stride < 0 or stride % item for stride in array.strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        return torch.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{name} must have a dtype of PyTorch's in native byte order, but got {array.dtype}") from error


def _on_stream_of(cupy: Any, device: int) -> contextlib.AbstractContextManager[None]:
    """A context in which PyTorch computes on CuPy's current stream of `device`, the current device."""
    pointer = cupy.cuda.get_current_stream().ptr
    if pointer == 0:  # the default stream; ExternalStream would take a null pointer for a request to make a stream
        return torch.cuda.stream(torch.cuda.default_stream(device))
    return torch.cuda.stream(torch.cuda.ExternalStream(pointer, device=device))
