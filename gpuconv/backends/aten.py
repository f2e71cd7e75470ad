"""Backend `aten`: PyTorch's own convolution, the baseline.

`gpuconv.functional` calls PyTorch directly where this backend is chosen, so this module serves the ops themselves: an
op called by hand with `backend=aten`, and a problem that no other backend supports.
"""

import torch
import torch.nn.functional as F

from gpuconv.activations import Activation, activate_tensor
from gpuconv.backends.base import Backend
from gpuconv.problem import ConvProblem


class AtenBackend(Backend):
    """PyTorch's convolution on any device; it refuses nothing."""

    name = "aten"

    def forward(
        self,
        problem: ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation,
    ) -> torch.Tensor:
        dtype = input.dtype
        if dtype.itemsize == 2 and (residual is not None or activation.name != "none"):  # round once, at the end
            input, weight = input.float(), weight.float()
            bias = None if bias is None else bias.float()
        y = torch.ops.aten.convolution(_padded(problem, input), weight, bias, *_settings(problem))
        if residual is not None:
            y = y + residual
        return _formatted(activate_tensor(activation, y).to(dtype), problem)

    def grad_input(self, problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = _padded(problem, grad_output.new_empty(1).expand(problem.input_shape))
        gx = _backward(problem, grad_output, x, weight, None, [True, False, False])[0]
        if not _symmetric(problem):
            for axis, ((low, _), h) in enumerate(zip(problem.padding, problem.input_size, strict=True), start=2):
                gx = gx.narrow(axis, low, h)
        return _formatted(gx, problem)

    def grad_weight(
        self, problem: ConvProblem, grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        w = input.new_empty(1).expand(problem.weight_shape)
        x = _padded(problem, input)
        gw, gb = _backward(problem, grad_output, x, w, [problem.out_channels], [False, True, with_bias])[1:]
        return _formatted(gw, problem), gb


def _symmetric(problem: ConvProblem) -> bool:
    return all(low == high for low, high in problem.padding)


def _padded(problem: ConvProblem, x: torch.Tensor) -> torch.Tensor:
    """x with its zeros where PyTorch's convolution cannot add them itself (more on one side than on the other)."""
    if _symmetric(problem):
        return x
    return F.pad(x, [side for low, high in reversed(problem.padding) for side in (low, high)])


def _settings(problem: ConvProblem) -> tuple[object, ...]:
    """stride, padding, dilation, transposed, output_padding, groups as aten.convolution takes them."""
    padding = [low for low, _ in problem.padding] if _symmetric(problem) else [0] * problem.ndim
    return (problem.stride, padding, problem.dilation, False, [0] * problem.ndim, problem.groups)


def _backward(
    problem: ConvProblem,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias_size: list[int] | None,
    which: list[bool],
) -> tuple[torch.Tensor, ...]:
    return torch.ops.aten.convolution_backward(grad_output, input, weight, bias_size, *_settings(problem), which)


def _formatted(t: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """t in the memory format that the ops promise; PyTorch gives that already but for corner cases."""
    return t.contiguous(memory_format=problem.memory_format)
