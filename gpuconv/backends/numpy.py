"""Backend `numpy`: im2col and BLAS, a few images at a time so that the columns stay in cache.

    cols[(c, r), p] = x[n, c, p·u + r·d − low]

    forward      y = w · cols
    grad_input   gx[windows] += wᵀ · gy, tap by tap
    grad_weight  gw = Σ_n gy · colsᵀ

The same structure as the oracle in `gpuconv.reference` (windows of the padded input, one for each tap), in the
precision that a user expects: float64 for float64, else float32, rounded once to the output's type.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from gpuconv.activations import Activation, Array, activate
from gpuconv.backends.base import Backend
from gpuconv.problem import ConvProblem, Direction, allocate
from gpuconv.reference import as_numpy, crop, grouped, last_axes, pad, tap_windows

_COLUMN_BYTES = 2 << 20  # columns of one step: about an L2 cache
_quiet = np.errstate(invalid="ignore", over="ignore")  # NaN and infinity pass through without a warning, as in PyTorch


class NumpyBackend(Backend):
    """Plain NumPy on CPU tensors: float16, bfloat16, float32, float64; any problem."""

    name = "numpy"

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it computes on the CPU, and the tensors are on {device}"
        if problem.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return (
                f"it computes float16, bfloat16, float32 and float64, not {str(problem.dtype).removeprefix('torch.')}"
            )
        return None

    @_quiet
    def forward(
        self,
        problem: ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation,
    ) -> torch.Tensor:
        w = _filters(problem, _wide(weight))
        padded = pad(_wide(input), problem)
        out = np.empty((problem.batch, problem.groups, w.shape[1], math.prod(problem.output_size)), w.dtype)
        for images, cols in _columns(problem, padded):
            np.matmul(w, cols, out=out[images])
        y = out.reshape(problem.output_shape)
        if bias is not None:
            y += _wide(bias).reshape(-1, *(1,) * problem.ndim)
        if residual is not None:
            y += _wide(residual)
        return _round(activate(activation, y), input, problem)

    @_quiet
    def grad_input(self, problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        w = _filters(problem, _wide(weight)).swapaxes(1, 2)  # [G, C/G·taps, K/G]
        gy = grouped(_wide(grad_output), problem.groups)
        size = [h + low + high for h, (low, high) in zip(problem.input_size, problem.padding, strict=True)]
        padded = np.zeros((problem.batch, problem.in_channels, *size), w.dtype)
        for images in _steps(problem, w.dtype):
            part = padded[images]
            cols = np.matmul(w, gy[images])
            cols = cols.reshape(len(part), problem.in_channels, problem.taps, *problem.output_size)
            for i, (_, window) in enumerate(tap_windows(problem)):
                part[last_axes(window)] += cols[:, :, i]
        return _round(crop(padded, problem), grad_output, problem)

    @_quiet
    def grad_weight(
        self, problem: ConvProblem, grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gy = grouped(_wide(grad_output), problem.groups)
        padded = pad(_wide(input), problem)
        gw = np.zeros((problem.groups, gy.shape[2], math.prod(problem.weight_shape[1:])), gy.dtype)
        for images, cols in _columns(problem, padded):
            gw += np.matmul(gy[images], cols.swapaxes(2, 3)).sum(0)
        grad_weight = _round(gw.reshape(problem.weight_shape), grad_output, problem)
        if not with_bias:
            return grad_weight, None
        gb = gy.sum(3).sum(0).reshape(-1)  # pixels first: NumPy adds contiguous numbers pairwise, so nearly exactly
        return grad_weight, torch.from_numpy(gb).to(grad_output.dtype)


def _wide(t: torch.Tensor) -> Array:
    """The values of t in the type they are computed in."""
    array = as_numpy(t)
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _round(result: Array, like: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """`result` as a fresh tensor of like's type, in the problem's memory format."""
    out = allocate(result.shape, like, problem.memory_format)
    return out.copy_(torch.from_numpy(np.ascontiguousarray(result)))


def _filters(problem: ConvProblem, w: Array) -> Array:
    """[K, C/G, *filter] as [G, K/G, C/G·taps]."""
    return w.reshape(problem.groups, problem.group_filters, math.prod(w.shape[1:]))


def _steps(problem: ConvProblem, dtype: np.dtype) -> Iterator[slice]:
    """The batch in slices whose columns take about _COLUMN_BYTES."""
    image = problem.in_channels * problem.taps * math.prod(problem.output_size) * dtype.itemsize
    step = max(1, _COLUMN_BYTES // max(image, 1))
    for start in range(0, problem.batch, step):
        yield slice(start, min(start + step, problem.batch))


def _columns(problem: ConvProblem, padded: Array) -> Iterator[tuple[slice, Array]]:
    """Slices of the batch, each with its columns [n, G, C/G·taps, P]; the buffer is reused from step to step."""
    pixels = math.prod(problem.output_size)
    rows = problem.products("forward")
    strides = padded.strides[2:]
    windows = np.lib.stride_tricks.as_strided(  # [N, C, *filter, *output], a view; always inside `padded`
        padded,
        (problem.batch, problem.in_channels, *problem.filter_size, *problem.output_size),
        (
            *padded.strides[:2],
            *(s * d for s, d in zip(strides, problem.dilation, strict=True)),
            *(s * u for s, u in zip(strides, problem.stride, strict=True)),
        ),
        writeable=False,
    )
    buffer = None
    for images in _steps(problem, padded.dtype):
        view = windows[images]
        if buffer is None or len(buffer) != len(view):
            buffer = np.empty(view.shape, padded.dtype)
        np.copyto(buffer, view)
        yield images, buffer.reshape(len(view), problem.groups, rows, pixels)
