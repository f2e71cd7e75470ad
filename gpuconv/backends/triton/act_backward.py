"""`act_backward` in Triton: what is launched (to say that needs no GPU), and a function of tensors that launches it."""

import math
from collections.abc import Callable

import torch
import triton.language as tl

from gpuconv.backends.base import Tile
from gpuconv.backends.derived import Matrix, accumulator, matrix, steps
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.backends.triton.launch import INTERPRETING, Launch, epilogue_of, overflows
from gpuconv.gpu import Gpu
from gpuconv.kernels.triton.act_backward import act_backward, sum_channels
from gpuconv.problem import allocate

_TILE = 2048  # elements of a step, 16 for each thread
_SUMS = (128, 16)  # rows × channels of a step of sum_channels


def launches(e: Elementwise, gpu: Gpu) -> tuple[Launch, ...]:
    """What one call launches, in order: act_backward, and sum_channels where the bias wants its gradient."""
    m, accumulate = matrix(e), accumulator(e.dtype)
    columns = min(_TILE if m.rows == 1 else 128, 1 << max(4, (m.columns - 1).bit_length()))
    rows = 1 if m.rows == 1 else _TILE // columns
    across, along, each = steps(m, rows, columns, gpu.multiprocessors)
    unit = 16 // e.dtype.itemsize
    vector = unit if m.columns % unit == 0 else 1
    emulate = INTERPRETING and e.dtype is torch.bfloat16
    constants = {
        "BM": rows, "BN": columns, "SUM": m.sum, "DENSE": m.dense, "VECTOR": vector,
        "WIDE": overflows(m.extent, across * along * each * rows * columns),
        "ACCUMULATE": tl.float64 if e.dtype is torch.float64 else tl.float32,
        "EMULATE_BF16": emulate, **epilogue_of(e.activation),
    }  # fmt: skip
    scalars = (m.rows, m.columns // vector, *m.sizes, *m.strides, each)
    dtypes = (e.dtype, e.dtype, e.dtype, accumulate if e.with_bias else None)
    tile = Tile(rows, columns, 1, warps=4, stages=1)
    first = Launch(act_backward, across * along, dtypes, scalars, constants, tile)
    if not e.with_bias:
        return (first,)
    count, channels = sums_of(e, m, along)
    constants = {"BM": _SUMS[0], "BN": _SUMS[1], "WIDE": overflows(count * channels), "EMULATE_BF16": emulate}
    programs = math.ceil(channels / _SUMS[1])
    return first, Launch(sum_channels, programs, (accumulate, e.dtype), (count, channels), constants, tile)


def sums_of(e: Elementwise, m: Matrix, along: int) -> tuple[int, int]:
    """The shape of the workspace: sums that a channel has, channels."""
    return along * (e.shape[0] if m.sum == "rows" else 1), e.shape[1]


def bind(e: Elementwise, gpu: Gpu, call: Callable[..., None]) -> Run:
    """The function of tensors. `call` calls a Launch with them."""
    first, *add = launches(e, gpu)
    shape, memory_format, channels = e.shape, e.memory_format, e.shape[1]
    sums = int(add[0].rest[0]) * channels if add else 0

    def act_backward(grad_output: torch.Tensor, saved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        gz = allocate(shape, saved, memory_format)
        if not add:
            call(first, grad_output, saved, gz, None)
            return gz, None
        gb = grad_output.new_empty(channels)
        partial = grad_output.new_empty(sums, dtype=accumulator(e.dtype))
        call(first, grad_output, saved, gz, partial)
        call(add[0], partial, gb)
        return gz, gb

    return act_backward
