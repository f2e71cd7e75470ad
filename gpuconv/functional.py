"""Convolutions with the signatures of `torch.nn.functional`, computed by the backend that is selected.

Each takes one argument more, `backend`: a name from `gpuconv.backends.names()` or 'auto'; by default the one of
`gpuconv.use_backend`, of the environment variable GPUCONV_BACKEND, or 'auto'.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpuconv import backends, ops, problem as sizes
from gpuconv.plan import Settings, check_tensors

_ATEN = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_keys: dict[tuple[object, ...], str] = {}


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv1d`: input [N, C, L] or [C, L], weight [K, C/groups, R], bias [K]; gives [N, K, P]."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, backend)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d`: input [N, C, H, W] or [C, H, W], weight [K, C/groups, R, S], bias [K].

    Gives [N, K, P, Q]. stride, padding, dilation: an int, or one for each of H and W; padding also 'same' or 'valid'.
    Raises RuntimeError for shapes, dtypes or devices that do not fit together, ValueError for an unknown backend and
    BackendUnavailable for one that cannot do this, all before anything is computed.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, backend)


def _conv(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    backend: str | None,
) -> Tensor:
    if torch.compiler.is_compiling():
        return _dispatch(ndim, input, weight, bias, stride, padding, dilation, groups, backend, _key)
    try:
        return _dispatch(ndim, input, weight, bias, stride, padding, dilation, groups, backend, _remembered_key)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        failure = error
    # Only now is there time to find out what exactly was wrong, whichever backend stumbled over it.
    _validate(ndim, input, weight, bias, stride, padding, dilation, groups)
    raise failure


def _dispatch(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    backend: str | None,
    key_of: Callable[..., str],
) -> Tensor:
    name = backend or backends.selected()
    if name == "aten" or (name == "auto" and backends.auto_order(input.device.type)[0] == "aten"):
        return _ATEN[ndim](input, weight, bias, stride, padding, dilation, groups)
    key = key_of(ndim, weight, stride, padding, dilation, groups, name)
    device_type = input.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, weight = _autocast(input, dtype), _autocast(weight, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    if input.dim() == ndim + 1:
        return ops.forward(input.unsqueeze(0), weight, bias, None, key).squeeze(0)
    return ops.forward(input, weight, bias, None, key)


def _remembered_key(ndim: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, name: str) -> str:
    # A filter's size matters to the key where padding is 'same' only.
    call = (ndim, stride, padding, dilation, groups, name, weight.shape[2:] if padding == "same" else None)
    try:
        return _keys[call]
    except TypeError:  # a list among the arguments
        return _key(ndim, weight, stride, padding, dilation, groups, name)
    except KeyError:
        key = _keys[call] = _key(ndim, weight, stride, padding, dilation, groups, name)
        return key


def _key(ndim: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, backend: str) -> str:
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    filter_size = weight.shape[2:] if isinstance(padding, str) else (1,) * ndim
    pads = sizes.normalize_padding(padding, filter_size, stride, dilation)
    return Settings(stride, pads, dilation, groups, "none", backend).encode()


def _validate(
    ndim: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> None:
    """Raise an error that names the argument, what was expected and what came, if these do not fit together."""
    for name, t in (("input", input), ("weight", weight)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(t).__name__}")
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"groups must be int, but got {groups!r}")
    if input.dim() not in (ndim + 1, ndim + 2):
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to conv{ndim}d, "
            f"but got input of size: {list(input.shape)}"
        )
    if weight.dim() != ndim + 2:
        raise RuntimeError(f"Expected {ndim + 2}D weight for conv{ndim}d, but got weight of size: {list(weight.shape)}")
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    pads = sizes.normalize_padding(padding, weight.shape[2:], stride, dilation)
    shape = input.shape if input.dim() == ndim + 2 else (1, *input.shape)
    sizes.check_shapes(shape, weight.shape, stride, pads, dilation, groups)
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise TypeError(f"bias must be a torch.Tensor or None, but got {type(bias).__name__}")
        sizes.check_bias(weight.shape, bias.shape)
    if input.device.type == "meta" or not torch.is_autocast_enabled(input.device.type):
        check_tensors(input=input, weight=weight, bias=bias)


def _autocast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t as autocast gives it to a convolution: any floating type but float64 becomes `dtype`."""
    return t.to(dtype) if t.is_floating_point() and t.dtype is not torch.float64 else t
