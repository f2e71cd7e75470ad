"""Convolutions with the signatures of `torch.nn.functional`, computed by the backend that is selected.

Each takes one more argument, `backend`: a name from `gpuconv.backends.names()` or 'auto'; by default the one of
`gpuconv.use_backend`, of the environment variable GPUCONV_BACKEND, or 'auto'.

A transposed convolution is `gpuconv.ops.grad_input` (`gpuconv.transposed`). A complex one is three real ones, as in
PyTorch. Integers, which gpuconv's backends do not support, and inputs without channels go to PyTorch, whatever the
backend. Autocast applies, in the dtype that is active when a function is called. Our kernels are deterministic and none
is chosen by timing, so
`torch.use_deterministic_algorithms` and `torch.backends.cudnn.deterministic` and `.benchmark` have nothing to change in
them; `torch.backends.cudnn.conv.fp32_precision` (or `.allow_tf32`) decides about TF32, as it does in PyTorch.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from gpuconv import calls, ops, sizes
from gpuconv.activations import Activation, activate_tensor
from gpuconv.calls import Ints
from gpuconv.causal import causal_conv1d
from gpuconv.ops import overrides
from gpuconv.problem import check_tensors
from gpuconv.settings import Settings
from gpuconv.transposed import conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = [
    "causal_conv1d",
    "conv1d",
    "conv1d_act",
    "conv2d",
    "conv2d_act",
    "conv3d",
    "conv3d_act",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

_ATEN = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
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
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
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


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv3d`: input [N, C, D, H, W] or [C, D, H, W], weight [K, C/groups, T, R, S], bias [K]."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, backend)


def conv1d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`conv2d_act` on one axis: input [N, C, L] or [C, L], residual [N, K, P] or [K, P]."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, backend, activation, residual)


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """activation(conv2d(input, weight, bias, …) + residual), in one kernel and rounded once.

    activation: 'none', 'relu', 'relu6', 'leaky_relu' (or 'leaky_relu(0.2)'), 'sigmoid', 'tanh', 'hardswish', 'silu',
    'gelu' or 'gelu_tanh'. residual: the shape and dtype of the result, [N, K, P, Q] or [K, P, Q].

    A backward pass multiplies with the activation's derivative in one pass, and the bias's gradient comes out of a pass
    that is made anyway. The derivative is computed from the output where that is possible ('none' to 'tanh' above); for
    the others the convolution is computed again, so that only the inputs are kept. Backend 'aten' calls PyTorch's own
    functions one after the other. Raises as `conv2d` does, and ValueError for an unknown activation.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, backend, activation, residual)


def conv3d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`conv2d_act` on three axes: input [N, C, D, H, W] or [C, D, H, W]."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, backend, activation, residual)


overrides.ROUTES |= {torch.conv1d: conv1d, torch.conv2d: conv2d, torch.conv3d: conv3d}

torch.fx.wrap("_conv")  # symbolic tracing records it as it is called: what is inside depends on the tensors


# ---- from a call to the op -------------------------------------------------------------------------------------------


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
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    call = (ndim, input, weight, bias, stride, padding, dilation, groups, backend, activation, residual)
    if torch.compiler.is_compiling():
        return _dispatch(*call, _key)
    if has_torch_function_variadic(input, weight, bias, residual):
        overriding = overrides.overriding(input, weight, bias, residual)
        if overriding:
            settings = (stride, padding, dilation, groups)
            y = overrides.call(overriding, _ATEN[ndim], (input, weight, bias, *settings), backend)
            return activate_tensor(Activation.parse(activation), y if residual is None else y + residual)
    try:
        return _dispatch(*call, _remembered_key)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        failure = error
    try:  # Only now is there time to find out what exactly was wrong, whichever backend stumbled over it.
        _validate(ndim, input, weight, bias, stride, padding, dilation, groups, activation, residual)
        raise failure
    finally:
        del failure  # it knows this frame: the two would keep each other alive, and with them all that its callers hold


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
    activation: str,
    residual: Tensor | None,
    key_of: Callable[..., str],
) -> Tensor:
    device_type = input.device.type
    name = calls.resolve(backend, device_type)
    if name == "aten":
        y = _ATEN[ndim](input, weight, bias, stride, padding, dilation, groups)
        return y if activation == "none" and residual is None else _finish(y, activation, residual)
    if calls.autocasts(device_type):
        input, weight, bias, residual = calls.autocast(device_type, input, weight, bias, residual)
    if not input.is_floating_point() or weight.size(1) == 0:
        if input.is_complex() and weight.size(1) != 0:
            key = key_of(ndim, weight, stride, padding, dilation, groups, "none", name)
            y = calls.convolve_complex(functools.partial(_forward, ndim, residual=None, key=key), input, weight, bias)
            return _finish(y, activation, residual)
        calls.check_backend(name)  # and without channels in, PyTorch gives no channels out
        y = _ATEN[ndim](input, weight, bias, stride, padding, dilation, groups)
        return _finish(y, activation, residual)
    key = key_of(ndim, weight, stride, padding, dilation, groups, activation, name)
    return _forward(ndim, input, weight, bias, residual, key)


def _forward(
    ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str
) -> Tensor:
    if input.dim() == ndim + 1:
        residual = None if residual is None else residual.unsqueeze(0)
        return ops.forward(input.unsqueeze(0), weight, bias, residual, key).squeeze(0)
    return ops.forward(input, weight, bias, residual, key)


def _finish(y: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    """activation(y + residual) by PyTorch's own functions."""
    if residual is not None:
        sizes.check_same("residual", residual.shape, y.shape)
        if calls.autocasts(y.device.type):
            (residual,) = calls.autocast(y.device.type, residual)
        check_tensors(input=y, residual=residual)
        y = y + residual
    return activate_tensor(Activation.parse(activation), y)


_keys: calls.Recalled[str] = {}


def _remembered_key(
    ndim: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, activation: str, name: str
) -> str:
    # A filter's size matters to the key where padding is 'same' only.
    filter_size = weight.shape[2:] if padding == "same" else None
    call = (ndim, id(stride), id(padding), id(dilation), id(groups), activation, name, filter_size)
    try:
        return _keys[call][0]
    except KeyError:
        pass
    arguments = (stride, padding, dilation, groups)
    compute = functools.partial(_key, ndim, weight, stride, padding, dilation, groups, activation, name)
    key = calls.recall(_keys, call, arguments, compute)
    if padding == "same" and any(low != high for low, high in Settings.decode(key).padding):
        _warn_of_uneven_padding()
    return key


@functools.cache  # once in a process, as PyTorch does
def _warn_of_uneven_padding() -> None:
    warnings.warn(
        "Using padding='same' with even kernel lengths and odd dilation may require a zero-padded copy of the input "
        "be created",
        stacklevel=6,
    )


def _key(
    ndim: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, activation: str, backend: str
) -> str:
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    filter_size = weight.shape[2:] if isinstance(padding, str) else (1,) * ndim
    pads = sizes.normalize_padding(padding, filter_size, stride, dilation)
    return Settings(stride, pads, dilation, sizes.whole("groups", groups), activation, backend).encode()


def _validate(
    ndim: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    residual: Any,
) -> None:
    """Raise an error that names the argument, what was expected and what came, if these do not fit together."""
    calls.check_kinds(f"conv{ndim}d", ndim, input, weight, bias, groups)
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    pads = sizes.normalize_padding(padding, weight.shape[2:], stride, dilation)
    shape = input.shape if input.dim() == ndim + 2 else (1, *input.shape)
    sizes.check_shapes(shape, weight.shape, stride, pads, dilation, groups)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape)
    if not calls.autocasts(input.device.type):
        check_tensors(input=input, weight=weight, bias=bias, residual=residual)
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a str, but got {activation!r}")
    Activation.parse(activation)
    if residual is not None:
        output = sizes.output_size(shape[2:], weight.shape[2:], stride, pads, dilation)
        full = (shape[0], weight.shape[0], *output)
        sizes.check_same("residual", residual.shape, full if input.dim() == ndim + 2 else full[1:])
