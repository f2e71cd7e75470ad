"""Modes of differentiation, torch.func and forward-mode AD: which is active, and the ops as a function to transform.

The ops of `gpuconv.ops` are linear in each of their two tensors, and each one's derivatives are the other two: so one
`torch.autograd.Function` with rules for vmap and jvp, applied to itself, has derivatives of any order in any mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gpuconv.settings import Settings

BelowAutograd = torch._C._AutoDispatchBelowAutograd


def transforming() -> bool:
    """Whether a torch.func transform or forward-mode AD is active.

    Not meaningful in compiled code, where PyTorch enters and leaves them between the ops, which find out themselves.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def make_differentiable(
    library: torch.library.Library,
    name: str,
    function: type[torch.autograd.Function],
    transformed: Callable[..., Any],
) -> None:
    """Register the derivatives of an op: `function` in reverse mode, `transformed` in the other modes.

    `transformed` consists of functions that PyTorch can transform. It runs while a torch.func transform is active or
    one of the tensors carries a tangent. The op itself chooses, wherever it is called from: a compiler puts it into a
    graph, and PyTorch enters and leaves transforms between the graph's nodes.
    """

    def autograd(*arguments: Any) -> Any:
        return (transformed if _has_tangent(arguments) else function.apply)(*arguments)

    library.impl(name, autograd, "Autograd")
    library.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")  # called instead of any other


def _has_tangent(arguments: tuple[Any, ...]) -> bool:
    tensors = (t for t in arguments if isinstance(t, Tensor))
    return any(forward_ad.unpack_dual(t, level=0).tangent is not None for t in tensors)


class Bilinear(torch.autograd.Function):
    """One of the three ops, named by `which`, as a function of its two tensors; without bias, residual and activation.

    which   a            b        size
    "y"     input        weight   (unused)
    "x"     grad_output  weight   of the input
    "w"     grad_output  input    of the weight
    """

    @staticmethod
    def forward(which: str, a: Tensor, b: Tensor, size: Sequence[int], key: str) -> Tensor:
        ops = torch.ops.gpuconv
        with BelowAutograd():
            if which == "y":
                return ops.conv_forward.default(a, b, None, None, key)
            if which == "x":
                return ops.conv_grad_input.default(a, b, size, key)
            return ops.conv_grad_weight.default(a, b, size, False, key)[0]

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
            Bilinear.apply(of_a, *from_a, ctx.key) if need[1] else None,
            Bilinear.apply(of_b, *from_b, ctx.key) if need[2] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, _which: None, da: Tensor | None, db: Tensor | None, *_rest: None) -> Tensor:
        # PyTorch calls this with forward mode off for all levels. What comes out is to carry the tangents of the outer
        # ones, so it goes on again, and the tensors are stripped of the tangents of this level, which are da and db.
        with forward_ad._set_fwd_grad_enabled(True):
            a, b = (forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors)
            parts = [Bilinear.apply(ctx.which, da, b, ctx.size, ctx.key)] if da is not None else []
            parts += [Bilinear.apply(ctx.which, a, db, ctx.size, ctx.key)] if db is not None else []
            return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], which: str, a: Tensor, b: Tensor, size: Sequence[int], key: str
    ) -> Any:
        """Fold the batch into the sizes: a batch of images into N, a batch of filters (in or out) into the groups."""
        batch, (_, a_dim, b_dim, *_) = info.batch_size, in_dims
        if which != "w" and b_dim is None:
            a = a.movedim(a_dim, 0)
            folded = (batch * size[0], *size[1:]) if which == "x" else size
            out = Bilinear.apply(which, a.flatten(0, 1), b, folded, key)
            return out.unflatten(0, (batch, a.shape[1])), 0
        a = a.unsqueeze(0).expand(batch, *a.shape) if a_dim is None else a.movedim(a_dim, 0)
        b = b.unsqueeze(0).expand(batch, *b.shape) if b_dim is None else b.movedim(b_dim, 0)
        a = a.transpose(0, 1).flatten(1, 2)  # [N, batch·channels, ...]
        b = b.transpose(0, 1).flatten(1, 2) if which == "w" else b.flatten(0, 1)
        settings = Settings.decode(key)
        key = settings._replace(groups=settings.groups * int(batch)).encode()  # a compiler may have a symbol for it
        if which == "w":
            out = Bilinear.apply(which, a, b, (batch * size[0], *size[1:]), key)
            return out.unflatten(0, (batch, size[0])), 0
        folded = (size[0], batch * size[1], *size[2:]) if which == "x" else size
        out = Bilinear.apply(which, a, b, folded, key)
        return out.unflatten(1, (batch, out.shape[1] // batch)), 1
