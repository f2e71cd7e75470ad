"""An activation's backward pass: as a value, and by PyTorch's own functions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gpuconv.activations import Activation, backward_tensor
from gpuconv.problem import allocate

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


class Elementwise(NamedTuple):
    """An `act_backward`: gz = gy · act'(s), and gb, its sum over batch and pixels, if `with_bias`.

    s is dense in `memory_format`, and so will gz be; gy lies in any way.
    """

    shape: tuple[int, ...]  # [N, K, *size]
    dtype: torch.dtype
    memory_format: torch.memory_format
    grad_strides: tuple[int, ...]
    with_bias: bool
    activation: Activation


def by_pytorch(e: Elementwise) -> Run:
    """The backward pass by PyTorch's own functions, 16-bit types in float32 and rounded once."""
    axes_of_bias = (0, *range(2, len(e.shape)))

    def act_backward(grad_output: Tensor, saved: Tensor) -> tuple[Tensor, Tensor | None]:
        wide = torch.float32 if e.dtype.itemsize == 2 else e.dtype
        gz = backward_tensor(e.activation, grad_output.to(wide), saved.to(wide))
        gb = gz.sum(axes_of_bias).to(e.dtype) if e.with_bias else None
        return allocate(e.shape, saved, e.memory_format).copy_(gz), gb

    return act_backward
