"""Causal convolution of sequences: padding on the left alone, one short filter for each channel.

    z[b, d, l] = Σ_i x[b, d, l − (W − 1) + i] · weight[d, i] + bias[d]            y = z or silu(z)

x at negative positions is the initial states, or zeros. It is a depthwise convolution of images one pixel high, and
that is how it is computed: the depthwise kernels read x once and write y once, with bias and SiLU in the epilogue, in
both layouts, and their gradients come with them; kernels of its own would move the same bytes. A sequence with channels
last is an image with channels last, and so is the result. Initial states reach the first W − 1 results only: those
alone are computed again, from the few elements that they depend on, so that x is never copied behind its states.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv import calls, ops
from gpuconv.ops.modes import transforming
from gpuconv.problem import check_tensors
from gpuconv.settings import Settings

_WIDTHS = range(2, 9)
_ACTIVATIONS = {None: "none", "silu": "silu", "swish": "silu"}


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
    channels first or last as in x. initial_states, [B, D, W − 1], come before x, instead of zeros. With
    return_final_states the result is (y, the last W − 1 elements of the sequence), the latter in final_states_out if
    that is given. Differentiable in x, weight, bias and initial_states. weight and bias may have another dtype than x
    and its states, float32 say: it is computed in the wider one, and the results have that of x. Raises TypeError,
    RuntimeError, ValueError or (for an unknown activation) NotImplementedError for arguments that do not fit together.

    seq_idx, integers [B, L], says to which of several sequences in a row an element belongs; none sees another's
    elements. Elements with a negative one are padding, and give 0. It is then computed by PyTorch's elementwise
    operations, one after the other, and takes neither initial nor final states.
    """
    device_type = x.device.type if isinstance(x, Tensor) else "cpu"
    cast = calls.autocasts(device_type)
    _check(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation, not cast
    )  # fmt: skip
    if cast:
        x, weight, bias, initial_states = calls.autocast(device_type, x, weight, bias, initial_states)
    if seq_idx is not None:
        return _compute_packed(x, weight, bias, seq_idx, activation)
    y = _compute(x, weight, bias, initial_states, activation, calls.resolve(backend, device_type))
    if not return_final_states:
        return y
    last = _final_states(x, initial_states, weight.shape[1])
    return y, last if final_states_out is None else final_states_out.copy_(last)


def _check(
    x: Any,
    weight: Any,
    bias: Any,
    seq_idx: Any,
    initial_states: Any,
    return_final_states: bool,
    final_states_out: Any,
    activation: Any,
    same_dtype: bool,
) -> None:
    """Raise an error that names the argument, what was expected and what came, if these do not fit together.

    same_dtype: nothing will bring the tensors to one dtype. That of weight and bias may be another than that of x and
    initial_states then, unless one of them is float64.
    """
    if activation not in _ACTIVATIONS:
        raise NotImplementedError(f"activation must be None, 'silu' or 'swish', but got {activation!r}")
    for name, t, form in (("x", x, "[B, D, L]"), ("weight", weight, "[D, W]")):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(t).__name__}")
        if t.dim() != form.count(",") + 1:
            raise RuntimeError(f"{name} must have shape {form}, but got {list(t.shape)}")
        if not t.is_floating_point():
            raise RuntimeError(f"{name} must be of a floating type, but got {t.dtype}")
    batch, channels, length = x.shape
    if weight.shape[0] != channels or not _WIDTHS[0] <= weight.shape[1] <= _WIDTHS[-1]:
        raise RuntimeError(
            f"weight must have shape [{channels}, W] with W from {_WIDTHS[0]} to {_WIDTHS[-1]}, "
            f"but got {list(weight.shape)}"
        )
    if length == 0:
        raise RuntimeError(f"x must not be empty, but got shape {list(x.shape)}")
    states = [batch, channels, weight.shape[1] - 1]
    for name, t, shape in (
        ("bias", bias, [channels]), ("initial_states", initial_states, states),
        ("final_states_out", final_states_out, states),
    ):  # fmt: skip
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, but got {type(t).__name__}")
        if list(t.shape) != shape:
            raise RuntimeError(f"{name} must have shape {shape}, but got {list(t.shape)}")
    if seq_idx is not None:
        if not isinstance(seq_idx, Tensor):
            raise TypeError(f"seq_idx must be a torch.Tensor or None, but got {type(seq_idx).__name__}")
        if list(seq_idx.shape) != [batch, length] or seq_idx.is_floating_point() or seq_idx.is_complex():
            raise RuntimeError(
                f"seq_idx must be of an integer type and have shape {[batch, length]}, but got {seq_idx.dtype}, "
                f"{list(seq_idx.shape)}"
            )
        if initial_states is not None or return_final_states:
            raise ValueError("initial_states and return_final_states are for one sequence: seq_idx must be None")
    if final_states_out is not None and not return_final_states:
        raise ValueError("final_states_out is given, but return_final_states is False")
    if same_dtype and (x.dtype == weight.dtype or torch.float64 in (x.dtype, weight.dtype)):
        check_tensors(x=x, weight=weight, bias=bias, initial_states=initial_states)
    elif same_dtype:
        check_tensors(x=x, initial_states=initial_states)
        check_tensors(weight=weight, bias=bias)
        if x.device != weight.device:
            raise RuntimeError(f"expected weight on the device of x ({x.device}), but got {weight.device}")


def _compute(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, activation: str | None, backend: str
) -> Tensor:
    """The result, [B, D, L], by the ops of gpuconv; by PyTorch's own convolution where `backend` is 'aten'.

    Where x and weight have two dtypes it is computed in the wider one and rounded to that of x.
    """
    if weight.dtype != x.dtype:
        wide = torch.promote_types(x.dtype, weight.dtype)
        bias, initial_states = (t if t is None else t.to(wide) for t in (bias, initial_states))
        return _compute(x.to(wide), weight.to(wide), bias, initial_states, activation, backend).to(x.dtype)
    before = weight.shape[1] - 1
    y = _convolve(x, weight, bias, before, activation, backend)
    if initial_states is None:
        return y
    early = _convolve(torch.cat((initial_states, x[..., :before]), -1), weight, bias, 0, activation, backend)
    if torch.compiler.is_compiling() or transforming():  # where writing to y may not be possible
        return torch.slice_scatter(y, early, -1, 0, before)
    y[..., :before].copy_(early)
    return y


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: int, activation: str | None, backend: str
) -> Tensor:
    """The convolution with `before` zeros on the left: [B, D, L] → [B, D, before + L − (W − 1)]."""
    if backend == "aten":
        z = torch.conv1d(F.pad(x, (before, 0)) if before else x, weight.unsqueeze(1), bias, groups=x.shape[1])
        return z if activation is None else F.silu(z)
    settings = Settings((1, 1), ((0, 0), (before, 0)), (1, 1), weight.shape[0], _ACTIVATIONS[activation], backend)
    return ops.forward(x.unsqueeze(2), weight[:, None, None], bias, None, settings.encode()).squeeze(2)


def _compute_packed(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None) -> Tensor:
    """The result for several sequences in a row: each element sees those alone that have its own seq_idx, [B, L].

    A negative seq_idx marks padding, where the result is 0.

    Tap by tap, by PyTorch's elementwise operations: which products count depends on the data, which the ops of gpuconv
    do not look at. Summed in float32 at least.
    """
    length, width = x.shape[-1], weight.shape[1]
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    real = seq_idx >= 0
    z = torch.zeros_like(x, dtype=wide) if bias is None else bias.to(wide)[:, None].expand_as(x)
    for i in range(min(width, length)):  # so many elements back
        same = (seq_idx[:, : length - i] == seq_idx[:, i:]) & real[:, i:]
        seen = torch.where(same[:, None], x[..., : length - i], 0).to(wide)
        z = z + F.pad(seen * weight[:, width - 1 - i, None].to(wide), (i, 0))
    z = torch.where(real[:, None], z, 0)
    return (z if activation is None else F.silu(z)).to(x.dtype)


def _final_states(x: Tensor, initial_states: Tensor | None, width: int) -> Tensor:
    """The last width − 1 elements of the sequence, initial states (or zeros) included where it is shorter."""
    last = x[..., -(width - 1) :]
    if initial_states is not None:
        return torch.cat((initial_states, last), -1)[..., -(width - 1) :].clone()
    return F.pad(last, (width - 1 - last.shape[-1], 0)) if last.shape[-1] < width - 1 else last.clone()
