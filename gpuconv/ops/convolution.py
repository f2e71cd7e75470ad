"""The three ops `gpuconv::conv_forward`, `conv_grad_input` and `conv_grad_weight`, and their derivatives.

Each op's derivative with respect to each of its tensors is one of the other two, so three formulas give derivatives
of any order. They are attached twice, because no single way serves everything PyTorch offers:

    _Forward, _GradInput, _GradWeight  ordinary reverse mode, and quick
    modes.Bilinear                     while a torch.func transform or forward-mode AD is active: vmap and jvp rules

`forward`, `grad_input` and `grad_weight` below choose among them, and so do the ops themselves, which are what
torch.compile and torch.export see. Settings travel as one string (`gpuconv.settings`), the backend among them, since a
backward pass may run on another thread, outside any `use_backend`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpuconv import sizes
from gpuconv.activations import Activation, activate_tensor
from gpuconv.ops.act_backward import act_backward
from gpuconv.ops.modes import BelowAutograd, Bilinear, make_differentiable, transforming
from gpuconv.planning import plan
from gpuconv.problem import allocate, check_tensors, memory_format_of
from gpuconv.settings import Settings

_library = torch.library.Library("gpuconv", "DEF")
_library.define("conv_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str key) -> Tensor")
_library.define("conv_grad_input(Tensor grad_output, Tensor weight, SymInt[] input_size, str key) -> Tensor")
_library.define(  # the second result is the gradient of the bias, empty unless `with_bias`
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
    check_tensors(input=input, weight=weight, bias=bias, residual=residual)
    shape = _output_shape(input.shape, weight.shape, key)
    if bias is not None:
        sizes.check_bias(weight.shape, bias.shape)
    if residual is not None:
        sizes.check_same("residual", residual.shape, shape)
    return allocate(shape, input, memory_format_of(input, weight))


@torch.library.register_fake("gpuconv::conv_grad_input", lib=_library)
def _grad_input_fake(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    check_tensors(grad_output=grad_output, weight=weight)
    sizes.check_same("grad_output", grad_output.shape, _output_shape(input_size, weight.shape, key))
    return allocate(input_size, grad_output, memory_format_of(grad_output, weight))


@torch.library.register_fake("gpuconv::conv_grad_weight", lib=_library)
def _grad_weight_fake(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    check_tensors(grad_output=grad_output, input=input)
    sizes.check_same("grad_output", grad_output.shape, _output_shape(input.shape, weight_size, key))
    gw = allocate(weight_size, grad_output, memory_format_of(grad_output, input))
    return gw, grad_output.new_empty(weight_size[0] if with_bias else 0)


# ---- reverse mode: each saves what its backward needs and no more ----------------------------------------------------

_conv_forward = torch.ops.gpuconv.conv_forward.default
_conv_grad_input = torch.ops.gpuconv.conv_grad_input.default
_conv_grad_weight = torch.ops.gpuconv.conv_grad_weight.default


@functools.lru_cache(maxsize=4096)
def _linear(key: str) -> tuple[str, Activation]:
    """The key without its activation, and the activation."""
    settings = Settings.decode(key)
    return settings._replace(activation="none").encode(), Activation.parse(settings.activation)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str
    ) -> Tensor:
        with BelowAutograd():
            output = _conv_forward(input, weight, bias, residual, key)
        ctx.input_size, ctx.weight_size, ctx.key = input.shape, weight.shape, key
        activation = _linear(key)[1]
        need = ctx.needs_input_grad
        if activation.name == "none":
            ctx.save_for_backward(input if need[1] else None, weight if need[0] else None)
        elif activation.from_output:
            ctx.save_for_backward(input if need[1] else None, weight if need[0] else None, output)
        else:
            ctx.save_for_backward(input, weight, bias, residual)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight, *rest = ctx.saved_tensors
        need = ctx.needs_input_grad
        key, activation = _linear(ctx.key)
        gx = gw = gb = None
        if activation.name != "none":
            # z is computed again rather than kept: a tensor as large as the output, and an output rounded twice.
            saved = rest[0] if activation.from_output else forward(input, weight, rest[0], rest[1], key)
            alone = need[2] and not need[1]  # else grad_weight gives the bias's gradient from what it reads anyway
            grad, gb = act_backward(grad, saved, alone, ctx.key)
        if need[0]:
            gx = grad_input(grad, weight, ctx.input_size, key)
        if need[1]:
            gw, gb = grad_weight(grad, input, ctx.weight_size, need[2], key)
        if not need[2]:
            gb = None
        elif gb is None:
            gb = grad.sum((0, *range(2, grad.dim())))
        return gx, gw, gb, grad if need[3] else None, None


class _GradInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
        with BelowAutograd():
            output = _conv_grad_input(grad_output, weight, input_size, key)
        ctx.weight_size, ctx.key = weight.shape, key
        need = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need[1] else None, weight if need[0] else None)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_output, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        return (
            forward(grad, weight, None, None, ctx.key) if need[0] else None,
            grad_weight(grad_output, grad, ctx.weight_size, False, ctx.key)[0] if need[1] else None,
            None,
            None,
        )


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
    ) -> tuple[Tensor, Tensor]:
        with BelowAutograd():
            output = _conv_grad_weight(grad_output, input, weight_size, with_bias, key)
        ctx.input_size, ctx.with_bias, ctx.key = input.shape, with_bias, key
        need = ctx.needs_input_grad
        ctx.save_for_backward(grad_output if need[1] else None, input if need[0] else None)
        if not with_bias:
            ctx.mark_non_differentiable(output[1])
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_bias: Tensor) -> Any:
        grad_output, input = ctx.saved_tensors
        need = ctx.needs_input_grad
        return (
            forward(input, grad, grad_of_bias if ctx.with_bias else None, None, ctx.key) if need[0] else None,
            grad_input(grad_output, grad, ctx.input_size, ctx.key) if need[1] else None,
            None,
            None,
            None,
        )


# ---- torch.func and forward-mode AD ---------------------------------------------------------------------------------


def _transformed_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str
) -> Tensor:
    """`forward` under a transform: the epilogue is computed by PyTorch's own functions, which it transforms."""
    key, activation = _linear(key)
    y = Bilinear.apply("y", input, weight, (), key)
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * (weight.dim() - 2))
    if residual is not None:
        y = y + residual
    return activate_tensor(activation, y)


def _transformed_grad_input(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    return Bilinear.apply("x", grad_output, weight, tuple(input_size), key)


def _transformed_grad_weight(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    gw = Bilinear.apply("w", grad_output, input, tuple(weight_size), key)
    return gw, grad_output.sum((0, *range(2, grad_output.dim()))) if with_bias else grad_output.new_empty(0)


# ---- both in the ops themselves -------------------------------------------------------------------------------------

make_differentiable(_library, "conv_forward", _Forward, _transformed_forward)
make_differentiable(_library, "conv_grad_input", _GradInput, _transformed_grad_input)
make_differentiable(_library, "conv_grad_weight", _GradWeight, _transformed_grad_weight)


# ---- the way in -----------------------------------------------------------------------------------------------------


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, key: str) -> Tensor:
    """activation(input ⋆ weight + bias + residual), differentiable to any order, in every mode of PyTorch.

    input: [N, C, *size]; weight: [K, C/groups, *filter]; bias: [K]; residual and result: [N, K, *output];
    key: `Settings.encode()`. Raises RuntimeError for shapes, dtypes or devices that do not fit together,
    ValueError for an unknown backend or activation, BackendUnavailable for a backend that cannot do it.
    """
    if torch.compiler.is_compiling():
        return _conv_forward(input, weight, bias, residual, key)
    if transforming():
        return _transformed_forward(input, weight, bias, residual, key)
    if torch.is_grad_enabled() and (
        input.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return _Forward.apply(input, weight, bias, residual, key)
    with BelowAutograd():
        return _conv_forward(input, weight, bias, residual, key)


def grad_input(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], key: str) -> Tensor:
    """The derivative of `forward` with respect to its input, [N, C, *size]; differentiable.

    grad_output: [N, K, *output]; weight: [K, C/groups, *filter]; input_size: [N, C, *size]. Raises as `forward` does.
    """
    if torch.compiler.is_compiling():
        return _conv_grad_input(grad_output, weight, input_size, key)
    if transforming():
        return _transformed_grad_input(grad_output, weight, input_size, key)
    if torch.is_grad_enabled() and (grad_output.requires_grad or weight.requires_grad):
        return _GradInput.apply(grad_output, weight, input_size, key)
    with BelowAutograd():
        return _conv_grad_input(grad_output, weight, input_size, key)


def grad_weight(
    grad_output: Tensor, input: Tensor, weight_size: Sequence[int], with_bias: bool, key: str
) -> tuple[Tensor, Tensor]:
    """The derivatives of `forward` with respect to weight, [K, C/groups, *filter], and bias, [K]; differentiable.

    grad_output: [N, K, *output]; input: [N, C, *size]; weight_size: [K, C/groups, *filter]. Without `with_bias` the
    second result is empty. Raises as `forward` does.
    """
    if torch.compiler.is_compiling():
        return _conv_grad_weight(grad_output, input, weight_size, with_bias, key)
    if transforming():
        return _transformed_grad_weight(grad_output, input, weight_size, with_bias, key)
    if torch.is_grad_enabled() and (grad_output.requires_grad or input.requires_grad):
        return _GradWeight.apply(grad_output, input, weight_size, with_bias, key)
    with BelowAutograd():
        return _conv_grad_weight(grad_output, input, weight_size, with_bias, key)
