"""The verdict on a result: its largest error as a fraction of the bound of `gpuconv.reference`.

Results of small problems are compared with the oracle, those of larger ones with PyTorch's convolution in float64, some
images at a time, so that problems of any size can be judged on the device that computed them. A float64 result then has
twice the bound, since both may err.
"""

import math
from collections.abc import Iterator

import torch

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.bench.workloads import pytorch
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy

MOST_FLOPS_FOR_THE_ORACLE = 2e7
_ELEMENTS_AT_ONCE = 1 << 27
_KEEP = 1 << 28  # up to so many elements, exact values are kept for the next result

Part = tuple[slice, torch.Tensor, torch.Tensor]  # which images, exact values, sums of absolute values


class ExactResult:
    """The exact result of one direction of a problem on operands a and b, with which `error_of` compares results.

    bias: forward adds it, and ends with a ReLU.
    """

    def __init__(
        self,
        p: ConvProblem,
        direction: Direction,
        a: torch.Tensor,
        b: torch.Tensor,
        tf32: bool,
        bias: torch.Tensor | None = None,
    ) -> None:
        self.problem, self.direction, self.tf32, self._bias = p, direction, tf32, bias
        self._operands = (a, b)
        self._oracle = None
        self._parts: list[Part] | None = None
        self.computed_by = "oracle" if p.flops <= MOST_FLOPS_FOR_THE_ORACLE else "PyTorch in float64"
        if self.computed_by == "oracle":
            precision = reference.precision_for(p.dtype)
            x, y = as_numpy(a), as_numpy(b)
            if direction == "forward":
                row, activation = (None, "none") if bias is None else (as_numpy(bias), "relu")
                end = Activation(activation)
                self._oracle = reference.forward(p, x, y, row, activation=end, dtype=precision)
            else:
                self._oracle = getattr(reference, direction)(p, x, y, precision)

    def error_of(self, got: torch.Tensor) -> float:
        """The largest error over its bound; infinite for a wrong shape or type, or a NaN."""
        p = self.problem
        shapes = {"forward": p.output_shape, "grad_input": p.input_shape, "grad_weight": p.weight_shape}
        if tuple(got.shape) != shapes[self.direction] or got.dtype is not p.dtype:
            return math.inf
        if self._oracle is not None:
            return reference.worst_violation(got, self._oracle, tf32=self.tf32)[0]
        info, doubt = torch.finfo(got.dtype), 2 if got.dtype is torch.float64 else 1
        accumulator = reference.ONE_OUTPUT_ROUNDING[torch.float64 if got.dtype is torch.float64 else torch.float32]
        gamma = reference.BOUND_CONSTANT * accumulator * math.sqrt(p.products(self.direction))
        gamma += reference.TF32_OPERANDS if self.tf32 else 0.0
        worst = 0.0
        for images, exact, magnitude in self._exact():
            bound = reference.ONE_OUTPUT_ROUNDING[got.dtype] * exact.abs() + gamma * magnitude
            bound += info.smallest_normal * info.eps / 2
            ratio = (got[images].double() - exact).abs() / (bound * doubt)
            worst = max(worst, float(ratio.nan_to_num(nan=math.inf, posinf=math.inf).max()) if ratio.numel() else 0.0)
        return worst

    def _exact(self) -> Iterator[Part]:
        if self._parts is not None:
            yield from self._parts
            return
        keep: list[Part] = []
        kept = 0
        for part in self._compute():
            kept += part[1].numel()
            if kept <= _KEEP:
                keep.append(part)
            yield part
        if kept <= _KEEP:
            self._parts = keep

    def _compute(self) -> Iterator[Part]:
        p, (a, b) = self.problem, self._operands
        image = max(math.prod(p.input_shape[1:]), math.prod(p.output_shape[1:]), 1)
        step = max(1, _ELEMENTS_AT_ONCE // image)
        total: tuple[torch.Tensor, torch.Tensor] | None = None
        for first in range(0, p.batch, step):
            images = slice(first, min(first + step, p.batch))
            parts = [t[images] if i == 0 or self.direction == "grad_weight" else t for i, t in enumerate((a, b))]
            wide = [t.double() for t in parts]
            part = ConvProblem.of(
                (images.stop - first, *p.input_shape[1:]), p.weight_shape, p.stride, p.padding, p.dilation, p.groups,
                torch.float64,
            )  # fmt: skip
            run = pytorch(part, self.direction, wide[0])
            benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False  # float64 is slow enough
            sums = (run(*wide), run(*(t.abs_() for t in wide)))
            torch.backends.cudnn.benchmark = benchmark
            if self.direction != "grad_weight":
                if self._bias is not None:
                    row = self._bias.double().reshape(-1, *(1,) * p.ndim)
                    sums = sums[0].add_(row).relu_(), sums[1].add_(row.abs())
                yield images, sums[0], sums[1]
            else:
                total = sums if total is None else (total[0].add_(sums[0]), total[1].add_(sums[1]))
        if total is not None:
            yield slice(None), total[0], total[1]
