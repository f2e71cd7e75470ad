"""`act_backward` in CUDA C: its launches, which need no GPU, and a function of tensors that launches them."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from gpuconv.backends.cuda.launch import ACTIVATIONS, TYPES, Instance, Launch
from gpuconv.backends.derived import accumulator, all_aligned, matrix, overflows, steps
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.gpu import Gpu
from gpuconv.problem import allocate

# `struct Act` of act_backward.cu, field for field; what the fields mean is said there.
ACT = np.dtype(
    [("rows", "i8"), ("columns", "i8"), ("gy", "i8", 7), ("slope", "f8"), ("size", "i4", 5)]
    + [(name, "i4") for name in ("steps", "across", "count", "channels", "unused")],
    align=True,
)
_THREADS = 256


def launches(e: Elementwise, multiprocessors: int, aligned: bool = True) -> tuple[Launch, ...]:
    """What one call launches, in order: act_backward, and sum_channels where the bias wants its gradient.

    aligned: all tensors begin at multiples of 16 bytes.
    """
    m = matrix(e)
    run = 16 // e.dtype.itemsize
    run = run if aligned and m.columns % run == 0 else 1
    width = 1 << max(0, (math.ceil(m.columns / run) - 1).bit_length())
    columns = _THREADS if m.rows == 1 else min(32, width)
    rows = _THREADS // columns
    across, along, each = steps(m, rows, columns * run, multiprocessors)
    macros = {
        "TYPE": TYPES[e.dtype], "BM": rows, "BN": columns, "VECTOR": int(run > 1), "DENSE": int(m.dense),
        "SUM_ROWS": int(m.sum == "rows"),
        "WIDE": int(overflows(m.extent, across * along * each * rows * columns * run)),
        "ACTIVATION": ACTIVATIONS.index(e.activation.name),
    }  # fmt: skip
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    params = np.zeros((), ACT)
    for name, value in {
        "rows": m.rows, "columns": m.columns, "gy": m.strides, "slope": e.activation.slope, "size": m.sizes,
        "steps": each, "across": across, "count": along * (e.shape[0] if m.sum == "rows" else 1),
        "channels": e.shape[1],
    }.items():  # fmt: skip
        params[name] = value
    shared = _THREADS * accumulator(e.dtype).itemsize  # bytes of one sum for each thread
    instance = Instance("act_backward.cu", "act_backward", options, _THREADS, shared * run if e.with_bias else 0)
    first = Launch(instance, across * along, params)
    if not e.with_bias:
        return (first,)
    add = dataclasses.replace(instance, function="sum_channels", shared=shared)
    return first, Launch(add, math.ceil(e.shape[1] / 32), params)


def bind(e: Elementwise, gpu: Gpu, call: Callable[..., None]) -> Run:
    """The function of tensors that computes `e`. `call` calls a Launch with tensors."""
    by_alignment = [launches(e, gpu.multiprocessors, aligned) for aligned in (False, True)]
    shape, memory_format, channels = e.shape, e.memory_format, e.shape[1]
    accumulate = accumulator(e.dtype)

    def act_backward(grad_output: torch.Tensor, saved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        gz = allocate(shape, saved, memory_format)
        first, *add = by_alignment[all_aligned(grad_output, saved)]
        if not add:
            call(first, grad_output, saved, gz, None)
            return gz, None
        gb = grad_output.new_empty(channels)
        partial = grad_output.new_empty(int(first.conv["count"]) * channels, dtype=accumulate)
        call(first, grad_output, saved, gz, partial)
        call(add[0], partial, gb)
        return gz, gb

    return act_backward
