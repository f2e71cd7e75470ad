"""Convolutions with the signatures of `torch.nn.functional`, computed by the backend that is selected.

Each takes one argument more, `backend`: a name from `gpuconv.backends.names()` or 'auto'; by default the one of
`gpuconv.use_backend`, of the environment variable GPUCONV_BACKEND, or 'auto'.

A transposed convolution is `ops.grad_input`. A complex one is three real ones, as in PyTorch. Integers, which no
backend of ours computes, and what has no channels go to PyTorch, whatever the backend. Autocast applies, in the dtype
that is active when a function is called. Our kernels are deterministic and none is chosen by timing, so
`torch.use_deterministic_algorithms` and `torch.backends.cudnn.deterministic` and `.benchmark` have nothing to change in
them; `torch.backends.cudnn.conv.fp32_precision` (or `.allow_tf32`) decides about TF32, as it does in PyTorch.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from gpuconv import backends, causal, ops, sizes
from gpuconv.activations import Activation, activate_tensor
from gpuconv.ops import overrides
from gpuconv.problem import check_tensors
from gpuconv.settings import Settings

Ints = int | Sequence[int]
_Value = TypeVar("_Value")
_Recalled = dict[tuple[object, ...], tuple[_Value, tuple[object, ...]]]
_MOST_RECALLED = 16_384  # a program with ever-changing shapes starts afresh beyond this

_ATEN = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_ATEN_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


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
    that is made anyway. The derivative is told from the output where it can be ('none' to 'tanh' above); for the others
    the convolution is computed again, so that nothing is kept but what went in. Backend 'aten' calls PyTorch's own
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


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolution of sequences with padding on the left alone: `causal_conv1d_fn` of the package causal_conv1d.

    x [B, D, L], weight [D, W] with W from 2 to 8, bias [D], activation None, 'silu' or 'swish'. Gives [B, D, L], with
    channels first or last as x is. initial_states, [B, D, W − 1], come before x, instead of zeros. With
    return_final_states the result is (y, the last W − 1 elements of the sequence), the latter in final_states_out if
    that is given. Differentiable in x, weight, bias and initial_states. weight and bias may be of another dtype than x
    and its states, float32 say: the wider one is computed in, and the results are of x's. Raises as `conv2d` does for
    arguments that do not fit together.

    seq_idx, integers [B, L], says which of several sequences in a row an element is of; none sees another's. Elements
    with a negative one are padding, and give 0. It is then computed by PyTorch's elementwise operations, one after the
    other, and takes neither initial nor final states.
    """
    name = backend or backends.selected()
    device_type = x.device.type if isinstance(x, Tensor) else "cpu"
    cast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    causal.check(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation, not cast
    )  # fmt: skip
    if cast:
        x, weight, bias, initial_states = _autocast(device_type, x, weight, bias, initial_states)
    if name == "auto" and backends.auto_order(device_type)[0] == "aten":
        name = "aten"
    if seq_idx is not None:
        return causal.compute_packed(x, weight, bias, seq_idx, activation)
    y = causal.compute(x, weight, bias, initial_states, activation, name)
    if not return_final_states:
        return y
    last = causal.final_states(x, initial_states, weight.shape[1])
    return y, last if final_states_out is None else final_states_out.copy_(last)


overrides.ROUTES |= {
    getattr(torch, f.__name__): f
    for f in (conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d)
}

# Symbolic tracing (torch.fx) records these two as they are called: what is inside depends on the tensors.
torch.fx.wrap("_conv")
torch.fx.wrap("_conv_transpose")


# ---- convolution -----------------------------------------------------------------------------------------------------


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
        asked = overrides.opinionated(input, weight, bias, residual)
        if asked:
            settings = (stride, padding, dilation, groups)
            y = overrides.ask(asked, _ATEN[ndim], (input, weight, bias, *settings), backend)
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
    name = backend or backends.selected()
    if name == "aten" or (name == "auto" and backends.auto_order(input.device.type)[0] == "aten"):
        y = _ATEN[ndim](input, weight, bias, stride, padding, dilation, groups)
        return y if activation == "none" and residual is None else _finish(y, activation, residual)
    device_type = input.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        input, weight, bias, residual = _autocast(device_type, input, weight, bias, residual)
    if not input.is_floating_point() or weight.size(1) == 0:
        if input.is_complex() and weight.size(1) != 0:
            key = key_of(ndim, weight, stride, padding, dilation, groups, "none", name)
            y = _complex(functools.partial(_forward, ndim, residual=None, key=key), input, weight, bias)
            return _finish(y, activation, residual)
        _check_known(name)  # and without channels in, PyTorch gives no channels out
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
        if y.device.type != "meta" and torch.is_autocast_enabled(y.device.type):
            (residual,) = _autocast(y.device.type, residual)
        check_tensors(input=y, residual=residual)
        y = y + residual
    return activate_tensor(Activation.parse(activation), y)


_keys: _Recalled[str] = {}


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
    key = _recall(_keys, call, arguments, compute)
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
    _check_kinds(f"conv{ndim}d", ndim, input, weight, bias, groups)
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    pads = sizes.normalize_padding(padding, weight.shape[2:], stride, dilation)
    shape = input.shape if input.dim() == ndim + 2 else (1, *input.shape)
    sizes.check_shapes(shape, weight.shape, stride, pads, dilation, groups)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape)
    if input.device.type == "meta" or not torch.is_autocast_enabled(input.device.type):
        check_tensors(input=input, weight=weight, bias=bias, residual=residual)
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a str, but got {activation!r}")
    Activation.parse(activation)
    if residual is not None:
        output = sizes.output_size(shape[2:], weight.shape[2:], stride, pads, dilation)
        full = (shape[0], weight.shape[0], *output)
        sizes.check_same("residual", residual.shape, full if input.dim() == ndim + 2 else full[1:])


def _check_kinds(function: str, ndim: int, input: Any, weight: Any, bias: Any, groups: Any) -> None:
    """Raise unless these are tensors of the right rank and an int."""
    for name, t in (("input", input), ("weight", weight)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(t).__name__}")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None, but got {type(bias).__name__}")
    sizes.whole("groups", groups)
    if input.dim() not in (ndim + 1, ndim + 2):
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to {function}, "
            f"but got input of size: {list(input.shape)}"
        )
    if weight.dim() != ndim + 2:
        raise RuntimeError(f"Expected {ndim + 2}D weight for {function}, but got weight of size: {list(weight.shape)}")


# ---- transposed convolution ------------------------------------------------------------------------------------------


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
        asked = overrides.opinionated(input, weight, bias)
        if asked:
            return overrides.ask(asked, _ATEN_TRANSPOSED[ndim], (input, weight, bias, *arguments), backend)
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
    name = backend or backends.selected()
    if name == "aten" or (name == "auto" and backends.auto_order(input.device.type)[0] == "aten"):
        return _ATEN_TRANSPOSED[ndim](input, weight, bias, *arguments)
    device_type = input.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        input, weight, bias = _autocast(device_type, input, weight, bias)
    call = view(ndim, input, weight, bias, arguments, name)
    if call is None:
        _check_known(name)
        return _ATEN_TRANSPOSED[ndim](input, weight, bias, *arguments)
    run = functools.partial(_grad_input, ndim, call)
    return _complex(run, input, weight, bias) if input.is_complex() else run(input, weight, bias)


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


_grad_inputs: _Recalled[_GradInput | None] = {}


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
    return _recall(_grad_inputs, call, arguments, compute)


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
    """As `_validate`; gives stride, padding, output_padding, groups and dilation, one for each axis."""
    _check_kinds(f"conv_transpose{ndim}d", ndim, input, weight, bias, groups)
    if isinstance(padding, str):
        raise TypeError(f"padding of conv_transpose{ndim}d must be int or a sequence of int, but got {padding!r}")
    stride, dilation = sizes.per_axis("stride", stride, ndim), sizes.per_axis("dilation", dilation, ndim)
    padding = sizes.per_axis("padding", padding, ndim)
    output_padding = sizes.per_axis("output_padding", output_padding, ndim)
    shape = input.shape if input.dim() == ndim + 2 else (1, *input.shape)
    sizes.check_transposed(shape, weight.shape, stride, padding, output_padding, groups, dilation)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape, weight.shape[1] * groups)
    if input.device.type == "meta" or not torch.is_autocast_enabled(input.device.type):
        check_tensors(input=input, weight=weight, bias=bias)
    return stride, padding, output_padding, groups, dilation


# ---- both ------------------------------------------------------------------------------------------------------------


def _recall(
    known: _Recalled[_Value], call: tuple[Any, ...], arguments: tuple[Any, ...], compute: Callable[[], _Value]
) -> _Value:
    """What `compute` gives, which `known` has for this `call` from now on.

    A call names its `arguments` by their ids, behind its first element: 2, 2.0 and True are equal, but not all of them
    are right. What is remembered holds the arguments, so that their ids stay theirs.
    """
    if not all(_is_constant(argument) for argument in arguments):
        return compute()
    alike = (call[0], arguments, *call[1 + len(arguments) :])  # a call with other objects that are equal
    value = known[alike][0] if alike in known else compute()
    if len(known) >= _MOST_RECALLED:
        known.clear()
    known[call] = known[alike] = (value, arguments)
    return value


def _is_constant(argument: object) -> bool:
    if type(argument) is tuple:
        return all(type(item) is int for item in argument)
    return type(argument) is int or type(argument) is str


def _complex(
    conv: Callable[[Tensor, Tensor, Tensor | None], Tensor], input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A complex convolution as three real ones, (a + ib)(c + id) = ac − bd + i((a + b)(c + d) − ac − bd)."""
    a, b, c, d = input.real, input.imag, weight.real, weight.imag
    ac = conv(a, c, None if bias is None else bias.real)
    bd = conv(b, d, None)
    both = conv(a + b, c + d, None if bias is None else bias.real + bias.imag)
    return torch.complex(ac - bd, both - ac - bd)


def _check_known(name: str) -> None:
    """Raise ValueError unless `name` is 'auto' or a backend: PyTorch computes this, but a wrong name stays wrong."""
    if name != "auto":
        backends.get(name)


def _autocast(device_type: str, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as autocast gives them to a convolution: any floating type but float64 becomes the active one."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t for t in tensors
    )
