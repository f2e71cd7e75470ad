"""The three PyTorch ops, `forward`, `grad_input` and `grad_weight`: fakes, derivatives, vmap and operation counts."""

from gpuconv.ops.convolution import forward, grad_input, grad_weight

__all__ = ["forward", "grad_input", "grad_weight"]
