"""Transposed convolutions with the signatures of `torch.nn.functional`: each is the op `gpuconv.ops.grad_input`.

y = conv_transpose(x, w)  =  grad_input(x, w)      of the convolution that takes an image of y's size to x's
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from gpuconv import calls, ops, sizes
from gpuconv.calls import Ints
from gpuconv.ops import overrides
from gpuconv.problem import check_tensors
from gpuconv.settings import Settings

_ATEN = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose1d`: input [N, C, L] or [C, L], weight [C, K/groups, R], bias [K]."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation, backend)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`: input [N, C, H, W] or [C, H, W], weight [C, K/groups, R, S], bias [K].

    Gives [N, K, (H − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1, …]. Raises as `conv2d` does.
    """
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation, backend)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose3d`: input [N, C, D, H, W] or [C, D, H, W], weight [C, K/groups, T, R, S]."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation, backend)


overrides.ROUTES |= {
    torch.conv_transpose1d: conv_transpose1d,
    torch.conv_transpose2d: conv_transpose2d,
    torch.conv_transpose3d: conv_transpose3d,
}

torch.fx.wrap("_conv_transpose")  # symbolic tracing records it as it is called: what is inside depends on the tensors


# ---- from a call to the op -------------------------------------------------------------------------------------------


def _conv_transpose(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    backend: str | None,
) -> Tensor:
    arguments = (stride, padding, output_padding, groups, dilation)
    if torch.compiler.is_compiling():
        return _dispatch_transpose(ndim, input, weight, bias, arguments, backend, _as_grad_input)
    if has_torch_function_variadic(input, weight, bias):
        overriding = overrides.overriding(input, weight, bias)
        if overriding:
            return overrides.call(overriding, _ATEN[ndim], (input, weight, bias, *arguments), backend)
    try:
        return _dispatch_transpose(ndim, input, weight, bias, arguments, backend, _remembered_grad_input)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        failure = error
    try:
        _validate_transposed(ndim, input, weight, bias, *arguments)
        raise failure
    finally:
        del failure


def _dispatch_transpose(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    arguments: tuple[Any, ...],
    backend: str | None,
    view: Callable[..., "_GradInput | None"],
) -> Tensor:
    device_type = input.device.type
    name = calls.resolve(backend, device_type)
    if name == "aten":
        return _ATEN[ndim](input, weight, bias, *arguments)
    if calls.autocasts(device_type):
        input, weight, bias = calls.autocast(device_type, input, weight, bias)
    call = view(ndim, input, weight, bias, arguments, name)
    if call is None:
        calls.check_backend(name)
        return _ATEN[ndim](input, weight, bias, *arguments)
    run = functools.partial(_grad_input, ndim, call)
    return calls.convolve_complex(run, input, weight, bias) if input.is_complex() else run(input, weight, bias)


class _GradInput(NamedTuple):
    """A transposed convolution as the grad_input of a convolution from its output to its input."""

    key: str
    size: tuple[int, ...]  # of the output, batch and channels included, before anything is appended
    zeros: tuple[int, ...] | None  # to append, as F.pad takes them: output that no tap reaches


def _grad_input(ndim: int, call: _GradInput, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    unbatched = input.dim() == ndim + 1
    y = ops.grad_input(input.unsqueeze(0) if unbatched else input, weight, call.size, call.key)
    if call.zeros is not None:
        y = torch.nn.functional.pad(y, call.zeros)
    if bias is not None:
        y = y + bias.view(-1, *(1,) * ndim)
    return y.squeeze(0) if unbatched else y


_grad_inputs: calls.Recalled[_GradInput | None] = {}


def _remembered_grad_input(
    ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...], name: str
) -> _GradInput | None:
    call = (
        ndim, *map(id, arguments), name, input.shape, input.dtype, weight.shape, weight.dtype,
        None if bias is None else (bias.shape, bias.dtype),
    )  # fmt: skip
    try:
        return _grad_inputs[call][0]
    except KeyError:
        pass
    compute = functools.partial(_as_grad_input, ndim, input, weight, bias, arguments, name)
    return calls.recall(_grad_inputs, call, arguments, compute)


def _as_grad_input(
    ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...], name: str
) -> _GradInput | None:
    """The call that computes this, or None for what PyTorch computes: integers, and results that no tap reaches.

    Raises unless all fits together. A stride of one input pixel is what a convolution may leave over
    at the end of its input, so output_padding below the stride is part of the output's size. From there up (it may be
    up to the dilation) it is padding taken away on the high side, and zeros where there is none left.
    """
    stride, padding, output_padding, groups, dilation = _validate_transposed(ndim, input, weight, bias, *arguments)
    check_tensors(input=input, weight=weight, bias=bias)
    if not (input.is_floating_point() or input.is_complex()):
        return None
    output = sizes.transposed_size(input.shape[-ndim:], weight.shape[2:], stride, padding, output_padding, dilation)
    pads, zeros = [], []
    for s, p, extra in zip(stride, padding, output_padding, strict=True):
        pads.append((p, p if extra < s else max(p - extra, 0)))
        zeros.append(0 if extra < s else max(extra - p, 0))
    reached = [h - zero for h, zero in zip(output, zeros, strict=True)]
    if weight.shape[1] == 0 or any(h <= 0 for h in reached):
        return None
    batch = input.shape[0] if input.dim() == ndim + 2 else 1
    size = (batch, weight.shape[1] * groups, *reached)
    key = Settings(stride, tuple(pads), dilation, groups, "none", name).encode()
    appended = tuple(side for zero in reversed(zeros) for side in (0, zero)) if any(zeros) else None
    return _GradInput(key, size, appended)


def _validate_transposed(
    ndim: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> tuple[Any, ...]:
    """Raise an error that names the argument, what was expected and what came, if these do not fit together.

    Gives stride, padding, output_padding, groups and dilation, one for each axis."""
    calls.check_kinds(f"conv_transpose{ndim}d", ndim, input, weight, bias, groups)
    if isinstance(padding, str):
        raise TypeError(f"padding of conv_transpose{ndim}d must be int or a sequence of int, but got {padding!r}")
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    padding = sizes.per_axis("padding", padding, ndim)
    output_padding = sizes.per_axis("output_padding", output_padding, ndim)
    shape = input.shape if input.dim() == ndim + 2 else (1, *input.shape)
    sizes.check_transposed(shape, weight.shape, stride, padding, output_padding, groups, dilation)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape, weight.shape[1] * groups)
    if not calls.autocasts(input.device.type):
        check_tensors(input=input, weight=weight, bias=bias)
    return stride, padding, output_padding, groups, dilation
