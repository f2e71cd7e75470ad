"""Backend `triton`: implicit GEMM by pointer gather, in Triton.

Which problems it takes, which tiles the planner may choose from, and functions of tensors that allocate a result and
call what `triton_launch` says is launched.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpuconv.backends.base import Backend, Operands, Tile
from gpuconv.backends.derived import accumulator, programs_of_grad_weight, splits_of, splits_to_choose
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.backends.triton_launch import (
    INTERPRETING,
    Launch,
    bias_offset,
    launches,
    masks_show,
    why_not,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction, allocate
from gpuconv.reference import Activation


class TritonBackend(Backend):
    """Hand-written Triton kernels on GPUs from sm_80; on CPU tensors under Triton's interpreter."""

    name = "triton"

    def unavailable(self) -> str | None:
        return why_not()

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        if problem.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return (
                f"it computes float16, bfloat16, float32 and float64, not {str(problem.dtype).removeprefix('torch.')}"
            )
        if INTERPRETING:
            return None if device.type == "cpu" else f"TRITON_INTERPRET=1 is set, and the tensors are on {device}"
        if device.type != "cuda":
            return f"its kernels run on GPUs, and the tensors are on {device} (TRITON_INTERPRET=1 would interpret them)"
        return self.refuses_gpu(Gpu.of(device))

    def refuses_gpu(self, gpu: Gpu) -> str | None:
        major, minor = gpu.capability
        if major < 8:
            return f"sm_{major}{minor} has no tensor-core path in Triton (sm_80 and newer have); use cuda or aten"
        return None

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        return tuple(tiles(problem, direction, gpu, operands))

    def bind(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands | None = None,
        tile: Tile | None = None,
    ) -> Callable[..., Any]:
        if operands is None or tile is None:
            raise TypeError("backend 'triton' is bound to the operands and the tile that the planner chose")
        call = _on(device)
        if direction == "forward":
            return _bind_forward(problem, activation, operands, tile, call)
        if direction == "grad_input":
            return _bind_grad_input(problem, operands, tile, call)
        return _bind_grad_weight(problem, operands, tile, call)

    def bind_act_backward(self, elementwise: Elementwise, device: torch.device) -> Run:
        from gpuconv.backends import triton_act  # imports Triton

        return triton_act.bind(elementwise, Gpu.of(device), _on(device))


# ---- from launches to functions of tensors ---------------------------------------------------------------------------


def _on(device: torch.device) -> Callable[..., None]:
    """A function that calls a Launch with its tensors, on PyTorch's current stream of `device`."""
    if device.type != "cuda":
        return _interpret
    index = torch.cuda.current_device() if device.index is None else device.index
    current_device, current_stream = torch.cuda.current_device, torch._C._cuda_getCurrentRawStream

    def call(launch: Launch, *tensors: torch.Tensor | None) -> None:
        if current_device() == index:
            launch(current_stream(index), *tensors)
        else:
            with torch.cuda.device(index):
                launch(current_stream(index), *tensors)

    return call


def _interpret(launch: Launch, *tensors: torch.Tensor | None) -> None:
    """Call a Launch on CPU tensors: NumPy computes it, and would warn of every NaN and Inf that it meets."""
    with np.errstate(all="ignore"):
        launch(None, *tensors)


def _bind_forward(
    problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile, call: Callable[..., None]
) -> Callable[..., Any]:
    (launch,) = launches(problem, "forward", operands, tile, activation)
    shape, memory_format = problem.output_shape, problem.memory_format

    def forward(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        y = allocate(shape, input, memory_format)
        if bias is not None and bias.stride(0) != 1:  # one gradient that is expanded, in a second derivative
            bias = bias.contiguous()
        call(launch, input, weight, bias, residual, y)
        return y

    return forward


def _bind_grad_input(
    problem: ConvProblem, operands: Operands, tile: Tile, call: Callable[..., None]
) -> Callable[..., Any]:
    (launch,) = launches(problem, "grad_input", operands, tile)
    shape, memory_format = problem.input_shape, problem.memory_format

    def grad_input(grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gx = allocate(shape, grad_output, memory_format)
        call(launch, grad_output, weight, gx)
        return gx

    return grad_input


def _bind_grad_weight(
    problem: ConvProblem, operands: Operands, tile: Tile, call: Callable[..., None]
) -> Callable[..., Any]:
    without, with_ = (
        launches(problem, "grad_weight", operands, tile, with_bias=with_bias) for with_bias in (False, True)
    )
    shape, memory_format = problem.weight_shape, problem.memory_format
    filters, accumulate, splits = problem.out_channels, accumulator(problem.dtype), splits_of(problem, tile)
    bias_at = bias_offset(splits, math.prod(shape))

    def grad_weight(
        grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gw = allocate(shape, grad_output, memory_format)
        gb = grad_output.new_empty(filters) if with_bias else None
        gather, *add = with_ if with_bias else without
        if not add:
            call(gather, grad_output, input, gw, gb)
            return gw, gb
        partials = grad_output.new_empty(bias_at + splits * filters, dtype=accumulate)
        call(gather, grad_output, input, partials, partials[bias_at:] if with_bias else None)
        call(add[0], partials, gw, gb)
        return gw, gb

    return grad_weight


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, warps: small enough to keep a sum in registers, without spills, on all GPUs that the tests compile for.
_NARROW = (64, 16, 4)  # for groups with few channels
_TENSOR_CORES = ((128, 128, 8), (128, 64, 4), _NARROW)
_BY_ELEMENT = ((64, 64, 8), _NARROW)  # each element loaded by itself, with an address of its own in registers
_FMA = ((64, 64, 8), _NARROW)
_DOUBLE = ((64, 32, 4), _NARROW)
_INTERPRETED = ((1024, 64, 4), (128, 64, 4), (64, 64, 4), (128, 16, 4), (16, 16, 4))


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`.

    A short list, since every tile is one more kernel to compile. Steps are as deep as 128 bytes where tiles are fetched
    in vectors, else half that; no deeper than there are terms to sum.
    """
    size = problem.dtype.itemsize
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    columns = k if direction == "forward" else c
    terms = {"forward": c, "grad_input": k, "grad_weight": problem.batch * math.prod(problem.output_size)}[direction]
    quick = masks_show(problem, direction, operands)
    shapes: tuple[tuple[int, int, int], ...]
    if gpu.capability == (0, 0):
        shapes, depth = _INTERPRETED, 64 if direction != "grad_weight" else 128 if terms <= 4096 else 1024
    elif size == 8:
        shapes, depth = _DOUBLE, 16
    elif size == 4 and not operands.tf32:
        shapes, depth = _FMA, 16
    elif quick:
        shapes, depth = _TENSOR_CORES, 128 // size
    else:
        shapes, depth = _BY_ELEMENT, 64 // size
    while depth > 16 and terms <= depth // 2:
        depth //= 2
    chosen = []
    for shape in shapes:
        rows, width, warps = shape
        if width > 16 and width >= 2 * columns:
            continue  # more than half of it idle
        if shape is _NARROW:
            depth = min(depth, 32 if quick and direction != "grad_weight" else 16)
        # Where the loop has many addresses to keep, or multiplies without tensor cores, more stages would spill.
        few = size == 8 or (size == 4 and not operands.tf32) or (shape is _NARROW and direction == "grad_weight")
        stages = min(2 if few else 4, gpu.shared_memory // ((rows + width) * depth * size))
        tile = Tile(rows, width, depth, warps, stages)
        if direction == "grad_weight":
            chosen += [
                dataclasses.replace(tile, splits=splits)
                for splits in splits_to_choose(problem, tile, gpu, programs_of_grad_weight(problem, tile))
            ]
        else:
            chosen.append(tile)
    return chosen
