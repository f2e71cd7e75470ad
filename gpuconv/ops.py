"""The three ops, `gpuconv::conv_forward`, `conv_grad_input` and `conv_grad_weight`, and their derivatives.

Each op's derivative with respect to each of its tensors is one of the other two, so three formulas give derivatives
of any order. They are attached three times, because no single way serves everything PyTorch offers:

    register_autograd                 what torch.compile and torch.export see; slow in eager mode, not under torch.func
    _Forward, _GradInput, _GradWeight ordinary eager mode, and quick there
    _Bilinear                         while a torch.func transform or forward-mode AD is active: vmap and jvp rules

`forward`, `grad_input` and `grad_weight` below choose among them. Settings travel as one string (`plan.Settings`), the
backend among them, since a backward pass may run on another thread, outside any `use_backend`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpuconv import plan, sizes
from gpuconv.act_backward import BelowAutograd as _BelowAutograd, act_backward, transforming as _transforming
from gpuconv.activations import Activation, activate_tensor
from gpuconv.plan import Settings
from gpuconv.problem import allocate, memory_format_of

_library = torch.library.Library("gpuconv", "DEF")
_library.define("conv_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str key) -> Tensor")
_library.define("conv_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, str key) -> Tensor")
_library.define(  # the second result is the gradient of the bias, empty unless asked for
    "conv_grad_weight(Tensor grad_output, Tensor input, SymInt[] weight_size, bool with_bias, str key)"
    " -> (Tensor, Tensor)"
)


# ---- the implementations --------------------------------------------------------------------------------------------


def _forward_impl(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str) -> Tensor:
    return plan.forward(input, weight, bias, residual, key)(input, weight, bias, residual)


def _grad_input_impl(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    return plan.grad_input(grad_output, weight, input_size, key)(grad_output, weight)


def _grad_weight_impl(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    gw, gb = plan.grad_weight(grad_output, input, weight_size, with_bias, key)(grad_output, input, with_bias)
    return gw, grad_output.new_empty(0) if gb is None else gb


_library.impl("conv_forward", _forward_impl, "CompositeExplicitAutograd")
_library.impl("conv_grad_input", _grad_input_impl, "CompositeExplicitAutograd")
_library.impl("conv_grad_weight", _grad_weight_impl, "CompositeExplicitAutograd")


# ---- the fakes: sizes may be symbolic, so no problem is built -------------------------------------------------------


def _check(input_size: Sequence[int], weight_size: Sequence[int], key: str) -> Settings:
    settings = Settings.decode(key)
    sizes.check_shapes(input_size, weight_size, *settings[:4])
    return settings


def _output_shape(input_size: Sequence[int], weight_size: Sequence[int], key: str) -> tuple[int, ...]:
    s = _check(input_size, weight_size, key)
    pixels = sizes.output_size(input_size[2:], weight_size[2:], s.stride, s.padding, s.dilation)
    return (input_size[0], weight_size[0], *pixels)


@torch.library.register_fake("gpuconv::conv_forward", lib=_library)
def _forward_fake(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str) -> Tensor:
    plan.check_tensors(input=input, weight=weight, bias=bias, residual=residual)
    shape = _output_shape(input.shape, weight.shape, key)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape)
    if residual is not None:
        sizes.check_same("residual", residual.shape, shape)
    return allocate(shape, input, memory_format_of(input, weight))


@torch.library.register_fake("gpuconv::conv_grad_input", lib=_library)
def _grad_input_fake(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    plan.check_tensors(grad_output=grad_output, weight=weight)
    sizes.check_same("grad_output", grad_output.shape, _output_shape(input_size, weight.shape, key))
    return allocate(input_size, grad_output, memory_format_of(grad_output, weight))


@torch.library.register_fake("gpuconv::conv_grad_weight", lib=_library)
def _grad_weight_fake(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    plan.check_tensors(grad_output=grad_output, input=input)
    sizes.check_same("grad_output", grad_output.shape, _output_shape(input.shape, weight_size, key))
    gw = allocate(weight_size, grad_output, memory_format_of(grad_output, input))
    return gw, grad_output.new_empty(weight_size[0] if with_bias else 0)


# ---- the derivatives, once ------------------------------------------------------------------------------------------
#
# `save` keeps what `backward` needs and no more. The formulas call the ops through `calls`, which is the bare ops where
# register_autograd applies and the functions of this module in eager mode; both have the same signatures.


@dataclasses.dataclass(frozen=True)
class _Calls:
    forward: Callable[..., Tensor]
    grad_input: Callable[..., Tensor]
    grad_weight: Callable[..., tuple[Tensor, Tensor]]
    act_backward: Callable[..., tuple[Tensor, Tensor]]


@functools.lru_cache(maxsize=4096)
def _linear(key: str) -> tuple[str, Activation]:
    """The key without its activation, and the activation."""
    settings = Settings.decode(key)
    return settings._replace(activation="none").encode(), Activation.parse(settings.activation)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, residual, key = inputs
    ctx.input_size, ctx.weight_size, ctx.key = input.shape, weight.shape, key
    activation = _linear(key)[1]
    need = ctx.needs_input_grad
    if activation.name == "none":
        ctx.save_for_backward(input if need[1] else None, weight if need[0] else None)
    elif activation.from_output:
        ctx.save_for_backward(input if need[1] else None, weight if need[0] else None, output)
    else:
        ctx.save_for_backward(input, weight, bias, residual)


def _forward_backward(calls: _Calls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, *rest = ctx.saved_tensors
    need = ctx.needs_input_grad
    key, activation = _linear(ctx.key)
    gx = gw = gb = None
    if activation.name != "none":
        # z is computed again rather than kept: a tensor as large as the output, and an output that is rounded twice.
        saved = rest[0] if activation.from_output else calls.forward(input, weight, *rest, key)
        alone = need[2] and not need[1]  # else grad_weight gives the bias's gradient from what it reads anyway
        grad, gb = calls.act_backward(grad, saved, alone, ctx.key)
    if need[0]:
        gx = calls.grad_input(grad, weight, ctx.input_size, key)
    if need[1]:
        gw, gb = calls.grad_weight(grad, input, ctx.weight_size, need[2], key)
    if not need[2]:
        gb = None
    elif gb is None:
        gb = grad.sum((0, *range(2, grad.dim())))
    return gx, gw, gb, grad if need[3] else None, None


def _save_grad_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, weight, _, ctx.key = inputs
    ctx.weight_size = weight.shape
    ctx.save_for_backward(grad_output if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)


def _grad_input_backward(calls: _Calls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    need = ctx.needs_input_grad
    return (
        calls.forward(grad, weight, None, None, ctx.key) if need[0] else None,
        calls.grad_weight(grad_output, grad, ctx.weight_size, False, ctx.key)[0] if need[1] else None,
        None,
        None,
    )


def _save_grad_weight(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, input, _, ctx.with_bias, ctx.key = inputs
    ctx.input_size = input.shape
    ctx.save_for_backward(grad_output if ctx.needs_input_grad[1] else None, input if ctx.needs_input_grad[0] else None)


def _grad_weight_backward(calls: _Calls, ctx: Any, grad: Tensor, grad_of_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, input = ctx.saved_tensors
    need = ctx.needs_input_grad
    return (
        calls.forward(input, grad, grad_of_bias if ctx.with_bias else None, None, ctx.key) if need[0] else None,
        calls.grad_input(grad_output, grad, ctx.input_size, ctx.key) if need[1] else None,
        None,
        None,
        None,
    )


# ---- first attachment: register_autograd, for compile and export ----------------------------------------------------

_ops = _Calls(
    torch.ops.gpuconv.conv_forward.default,
    torch.ops.gpuconv.conv_grad_input.default,
    torch.ops.gpuconv.conv_grad_weight.default,
    torch.ops.gpuconv.act_backward.default,
)
for _name, _save, _formula in (
    ("conv_forward", _save_forward, _forward_backward),
    ("conv_grad_input", _save_grad_input, _grad_input_backward),
    ("conv_grad_weight", _save_grad_weight, _grad_weight_backward),
):
    torch.library.register_autograd(
        f"gpuconv::{_name}",
        functools.partial(_formula, _ops),
        setup_context=(lambda save: lambda ctx, inputs, output: save(ctx, inputs, output))(_save),  # by keyword
        lib=_library,
    )


# ---- second attachment: eager mode ----------------------------------------------------------------------------------


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str
    ) -> Tensor:
        with _BelowAutograd():
            output = _ops.forward(input, weight, bias, residual, key)
        _save_forward(ctx, (input, weight, bias, residual, key), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _forward_backward(_eager, ctx, grad)


class _GradInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
        with _BelowAutograd():
            output = _ops.grad_input(grad_output, weight, input_size, key)
        _save_grad_input(ctx, (grad_output, weight, input_size, key), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _grad_input_backward(_eager, ctx, grad)


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
    ) -> tuple[Tensor, Tensor]:
        with _BelowAutograd():
            output = _ops.grad_weight(grad_output, input, weight_size, with_bias, key)
        _save_grad_weight(ctx, (grad_output, input, weight_size, with_bias, key), output)
        if not with_bias:
            ctx.mark_non_differentiable(output[1])
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_bias: Tensor) -> Any:
        return _grad_weight_backward(_eager, ctx, grad, grad_of_bias)


# ---- third attachment: torch.func and forward-mode AD ---------------------------------------------------------------


class _Bilinear(torch.autograd.Function):
    """One of the three functions of its two tensors, named by `which`; bias, residual and activation stay outside.

    which   a            b        size
    "y"     input        weight   (unused)
    "x"     grad_output  weight   of the input
    "w"     grad_output  input    of the weight
    """

    @staticmethod
    def forward(which: str, a: Tensor, b: Tensor, size: Sequence[int], key: str) -> Tensor:
        if which == "y":
            return _ops.forward(a, b, None, None, key)
        return _ops.grad_input(a, b, size, key) if which == "x" else _ops.grad_weight(a, b, size, False, key)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.which, a, b, ctx.size, ctx.key = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        (of_a, *from_a), (of_b, *from_b) = {
            "y": (("x", grad, b, a.shape), ("w", grad, a, b.shape)),
            "x": (("y", grad, b, ()), ("w", a, grad, b.shape)),
            "w": (("y", b, grad, ()), ("x", a, grad, b.shape)),
        }[ctx.which]
        need = ctx.needs_input_grad
        return (
            None,
            _Bilinear.apply(of_a, *from_a, ctx.key) if need[1] else None,
            _Bilinear.apply(of_b, *from_b, ctx.key) if need[2] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, _which: None, da: Tensor | None, db: Tensor | None, *_rest: None) -> Tensor:
        a, b = ctx.saved_tensors
        parts = [_Bilinear.apply(ctx.which, da, b, ctx.size, ctx.key)] if da is not None else []
        parts += [_Bilinear.apply(ctx.which, a, db, ctx.size, ctx.key)] if db is not None else []
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], which: str, a: Tensor, b: Tensor, size: Sequence[int], key: str
    ) -> Any:
        """A batch of images folds into N; a batch of filters, in or out, folds into the groups."""
        batch, (_, a_dim, b_dim, *_) = info.batch_size, in_dims
        if which != "w" and b_dim is None:
            a = a.movedim(a_dim, 0)
            folded = (batch * size[0], *size[1:]) if which == "x" else size
            out = _Bilinear.apply(which, a.flatten(0, 1), b, folded, key)
            return out.unflatten(0, (batch, a.shape[1])), 0
        a = a.unsqueeze(0).expand(batch, *a.shape) if a_dim is None else a.movedim(a_dim, 0)
        b = b.unsqueeze(0).expand(batch, *b.shape) if b_dim is None else b.movedim(b_dim, 0)
        a = a.transpose(0, 1).flatten(1, 2)  # [N, batch·channels, ...]
        b = b.transpose(0, 1).flatten(1, 2) if which == "w" else b.flatten(0, 1)
        settings = Settings.decode(key)
        key = settings._replace(groups=settings.groups * batch).encode()
        if which == "w":
            out = _Bilinear.apply(which, a, b, (batch * size[0], *size[1:]), key)
            return out.unflatten(0, (batch, size[0])), 0
        folded = (size[0], batch * size[1], *size[2:]) if which == "x" else size
        out = _Bilinear.apply(which, a, b, folded, key)
        return out.unflatten(1, (batch, out.shape[1] // batch)), 1


def _transformed_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str
) -> Tensor:
    """`forward` under torch.func and forward-mode AD: the epilogue is done by PyTorch, which transforms it."""
    key, activation = _linear(key)
    y = _Bilinear.apply("y", input, weight, (), key)
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * (weight.dim() - 2))
    if residual is not None:
        y = y + residual
    return activate_tensor(activation, y)


# ---- the way in -----------------------------------------------------------------------------------------------------


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str) -> Tensor:
    """activation(input ⋆ weight + bias + residual), differentiable in whatever mode PyTorch is in.

    input: [N, C, *size]; weight: [K, C/groups, *filter]; bias: [K]; residual and result: [N, K, *output];
    key: `plan.Settings.encode()`. Raises RuntimeError for shapes, dtypes or devices that do not fit together,
    ValueError for an unknown backend or activation, BackendUnavailable for a backend that cannot do it.
    """
    if torch.compiler.is_compiling():
        return _ops.forward(input, weight, bias, residual, key)
    if _transforming():
        return _transformed_forward(input, weight, bias, residual, key)
    if torch.is_grad_enabled() and (
        input.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return _Forward.apply(input, weight, bias, residual, key)
    with _BelowAutograd():
        return _ops.forward(input, weight, bias, residual, key)


def grad_input(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    """The derivative of `forward` with respect to its input, [N, C, *size]; differentiable, raises as `forward`."""
    if torch.compiler.is_compiling():
        return _ops.grad_input(grad_output, weight, input_size, key)
    if _transforming():
        return _Bilinear.apply("x", grad_output, weight, tuple(input_size), key)
    if torch.is_grad_enabled() and (grad_output.requires_grad or weight.requires_grad):
        return _GradInput.apply(grad_output, weight, input_size, key)
    with _BelowAutograd():
        return _ops.grad_input(grad_output, weight, input_size, key)


def grad_weight(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    """The derivative of `forward` with respect to its weight, [K, C/groups, *filter], and, if `with_bias`, to its bias,
    [K] (else the second result is empty); differentiable, raises as `forward`."""
    if torch.compiler.is_compiling():
        return _ops.grad_weight(grad_output, input, weight_size, with_bias, key)
    if _transforming():
        gw = _Bilinear.apply("w", grad_output, input, tuple(weight_size), key)
        return gw, grad_output.sum((0, *range(2, grad_output.dim()))) if with_bias else grad_output.new_empty(0)
    if torch.is_grad_enabled() and (grad_output.requires_grad or input.requires_grad):
        return _GradWeight.apply(grad_output, input, weight_size, with_bias, key)
    with _BelowAutograd():
        return _ops.grad_weight(grad_output, input, weight_size, with_bias, key)


_eager = _Calls(forward, grad_input, grad_weight, act_backward)
