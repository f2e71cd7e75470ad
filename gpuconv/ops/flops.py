"""Formulas for `torch.utils.flop_counter`: it counts for the three ops what it counts for PyTorch's own convolution.

Importing the counter imports Triton, so the formulas are registered when a counter meets one of the ops, not before.
The counter first calls the op's `decompose`, and looks for a formula when that gives nothing: `decompose` registers
them.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gpuconv import ops  # noqa: F401  # defines the ops

_OPS = (
    torch.ops.gpuconv.conv_forward.default,
    torch.ops.gpuconv.conv_grad_input.default,
    torch.ops.gpuconv.conv_grad_weight.default,
)


@functools.cache
def _formulas(counter: ModuleType) -> dict[Any, Callable[..., int]]:
    """The formulas by op, registered with the module torch.utils.flop_counter for all counters made from now on."""

    def forward(x: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return counter.conv_flop(x, w, None, None, None, None, False, out_val=out_shape)

    def grad_input(gy: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return counter.conv_flop(gy, w, None, None, None, None, True, out_val=out_shape)

    def grad_weight(gy: Any, x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        shapes = (None, out_shape[0], None)
        return counter.conv_backward_flop(
            gy, x, None, None, None, None, None, False, None, None, [False, True, False], out_val=shapes
        )

    formulas: tuple[Callable[..., int], ...] = (forward, grad_input, grad_weight)
    packets = [op.overloadpacket for op in _OPS]
    for packet, formula in zip(packets, formulas, strict=True):
        counter.register_flop_formula(packet)(formula)
    return {packet: counter.flop_registry[packet] for packet in packets}


def _registering(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """An op's `decompose` that first registers the formulas, with the counter that calls it too."""

    @functools.wraps(decompose)
    def registering(*args: Any, **kwargs: Any) -> Any:
        counter = sys.modules.get("torch.utils.flop_counter")
        if counter is not None:
            formulas = _formulas(counter)
            mode = _get_current_dispatch_mode()
            if isinstance(mode, counter._FlopCounterMode):  # whose table was copied when it was made
                for op, formula in formulas.items():
                    mode.counter.flop_registry.setdefault(op, formula)
        return decompose(*args, **kwargs)

    return registering


for _op in _OPS:
    _op.decompose = _registering(_op.decompose)  # type: ignore[method-assign]
