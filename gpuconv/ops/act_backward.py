"""The op `gpuconv::act_backward`: the backward pass of the activation that a forward ended with.

    gz = gy · act'(saved)      gb[k] = Σ gz over batch and pixels, in the same pass, if `with_bias`

`saved` is y where the derivative is a function of y, else z (`gpuconv.activations`). The op has derivatives as the ops
of `gpuconv.ops` have; under torch.func PyTorch's own functions compute it, and are transformed.
"""

from typing import Any

import torch
from torch import Tensor

from gpuconv import sizes
from gpuconv.activations import Activation, backward_tensor, second_derivative
from gpuconv.ops.modes import BelowAutograd, make_differentiable, transforming
from gpuconv.planning import plan
from gpuconv.problem import allocate, check_tensors, memory_format_of
from gpuconv.settings import Settings

_library = torch.library.Library("gpuconv", "FRAGMENT")
_library.define(  # the second result is the gradient of the bias, empty unless `with_bias`
    "act_backward(Tensor grad_output, Tensor saved, bool with_bias, str key) -> (Tensor, Tensor)"
)


def _impl(grad_output: Tensor, saved: Tensor, with_bias: bool, key: str) -> tuple[Tensor, Tensor]:
    memory_format = memory_format_of(saved)
    if not saved.is_contiguous(memory_format=memory_format):  # called by hand: what a forward gave is dense
        saved = saved.contiguous(memory_format=memory_format)
    gz, gb = plan.act_backward(grad_output, saved, with_bias, key)(grad_output, saved)
    return gz, grad_output.new_empty(0) if gb is None else gb


_library.impl("act_backward", _impl, "CompositeExplicitAutograd")


@torch.library.register_fake("gpuconv::act_backward", lib=_library)
def _fake(grad_output: Tensor, saved: Tensor, with_bias: bool, key: str) -> tuple[Tensor, Tensor]:
    check_tensors(grad_output=grad_output, saved=saved)
    sizes.check_same("grad_output", grad_output.shape, saved.shape)
    gz = allocate(saved.shape, saved, memory_format_of(saved))
    return gz, grad_output.new_empty(saved.shape[1] if with_bias else 0)


# ---- the derivative -------------------------------------------------------------------------------------------------


def _activation(key: str) -> Activation:
    return Activation.parse(Settings.decode(key).activation)


_op = torch.ops.gpuconv.act_backward.default


class _ActBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, saved: Tensor, with_bias: bool, key: str) -> tuple[Tensor, Tensor]:
        with BelowAutograd():
            output = _op(grad_output, saved, with_bias, key)
        ctx.with_bias, ctx.key = with_bias, key
        curved = ctx.needs_input_grad[1] and second_derivative(_activation(key), saved[:0]) is not None
        ctx.save_for_backward(grad_output if curved else None, saved)
        if not with_bias:
            ctx.mark_non_differentiable(output[1])
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_bias: Tensor) -> Any:
        grad_output, saved = ctx.saved_tensors
        if ctx.with_bias:
            grad = grad + grad_of_bias.reshape(-1, *(1,) * (grad.dim() - 2))
        of_grad = act_backward(grad, saved, False, ctx.key)[0] if ctx.needs_input_grad[0] else None
        of_saved = None
        if grad_output is not None:
            wide = torch.float32 if saved.dtype.itemsize == 2 else saved.dtype
            second = second_derivative(_activation(ctx.key), saved.to(wide))
            of_saved = (grad.to(wide) * grad_output * second).to(saved.dtype)
        return of_grad, of_saved, None, None


def _transformed(grad_output: Tensor, saved: Tensor, with_bias: bool, key: str) -> tuple[Tensor, Tensor]:
    gz = backward_tensor(_activation(key), grad_output, saved)
    return gz, gz.sum((0, *range(2, gz.dim()))) if with_bias else grad_output.new_empty(0)


make_differentiable(_library, "act_backward", _ActBackward, _transformed)


def act_backward(grad_output: Tensor, saved: Tensor, with_bias: bool, key: str) -> tuple[Tensor, Tensor]:
    """grad_output · act'(saved), in saved's memory format, and its sums over batch and pixels, [K], if `with_bias`
    (else the second result is empty); differentiable in whatever mode PyTorch is in.

    grad_output, saved: [N, K, *size], saved y or z as `Activation.from_output` says; key: `Settings.encode()`. Raises
    as `gpuconv.ops.forward` does.
    """
    if torch.compiler.is_compiling():
        return _op(grad_output, saved, with_bias, key)
    if transforming():
        return _transformed(grad_output, saved, with_bias, key)
    if torch.is_grad_enabled() and (grad_output.requires_grad or saved.requires_grad):
        return _ActBackward.apply(grad_output, saved, with_bias, key)
    with BelowAutograd():
        return _op(grad_output, saved, with_bias, key)
