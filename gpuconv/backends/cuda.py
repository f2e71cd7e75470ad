"""Backend `cuda`: implicit GEMM in CUDA C (`gpuconv.kernels.cuda`), compiled by NVRTC and launched through CuPy.

This module knows which kernel and tile there are for a problem, how many blocks compute it and what they are told
(`launches`, which needs no GPU), and makes of that a function of tensors. It neither compiles nor launches: a `Runtime`
does, one for each type of device.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpuconv.backends import cuda_act, cuda_tensor
from gpuconv.backends.base import Backend, Operands, Tile
from gpuconv.backends.cuda_cupy import CupyRuntime
from gpuconv.backends.cuda_launch import (
    ACTIVATIONS,
    TYPES,
    Instance,
    Launch,
    Runtime,
    Strides,
    conv,
    wide,
)
from gpuconv.backends.derived import accumulator, axes, programs_of_grad_weight, splits_of, splits_to_choose
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction, allocate
from gpuconv.reference import IDENTITY, Activation

_SUM_THREADS = 256  # of sum_partials.cuh


class CudaBackend(Backend):
    """Hand-written CUDA C kernels on GPUs from sm_75."""

    name = "cuda"

    def __init__(self) -> None:
        self.runtimes: dict[str, Runtime] = {"cuda": CupyRuntime()}  # by type of device

    def unavailable(self) -> str | None:
        reasons = [runtime.unavailable() for runtime in self.runtimes.values()]
        return None if None in reasons else reasons[0]

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        runtime = self.runtimes.get(device.type)
        if runtime is None:
            return f"its kernels run on GPUs, and the tensors are on {device}"
        reason = runtime.unavailable()
        if reason is not None:
            return reason
        if problem.dtype not in TYPES:
            return (
                f"it computes float16, bfloat16, float32 and float64, not {str(problem.dtype).removeprefix('torch.')}"
            )
        reason = self.refuses_gpu(Gpu.of(device)) if device.type == "cuda" else None
        if reason is not None:
            return reason
        if max(math.prod(problem.input_size), math.prod(problem.output_size)) >= 2**31:
            return "it counts the pixels of an image in 32 bits, and here are more"
        return None

    def refuses_gpu(self, gpu: Gpu) -> str | None:
        major, minor = gpu.capability
        return None if (major, minor) >= (7, 5) else f"it needs sm_75 or newer, and this is sm_{major}{minor}"

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        return tuple(cuda_tensor.tiles(problem, direction, gpu, operands) or simt_tiles(problem, direction, gpu))

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
            raise TypeError("backend 'cuda' is bound to the operands and the tile that the planner chose")
        call = _Call(self.runtimes[device.type], device)
        if direction == "forward":
            return _bind_forward(problem, activation, operands, tile, call)
        if direction == "grad_input":
            return _bind_grad_input(problem, operands, tile, call)
        return _bind_grad_weight(problem, operands, tile, call)

    def bind_act_backward(self, elementwise: Elementwise, device: torch.device) -> Run:
        call = _Call(self.runtimes[device.type], device)
        return cuda_act.bind(elementwise, Gpu.of(device), call, _all_aligned)


# ---- from a problem to launches --------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    aligned: bool = True,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. Needs no GPU.

    with_bias: grad_weight gives grad-bias too. aligned: all tensors begin at multiples of 16 bytes.
    """
    strides = Strides.of(problem, direction, operands)
    told = conv(problem, direction, strides, activation)
    if tile.kernel == "simt":
        instance = _simt(problem, direction, operands, strides, tile, activation, aligned)
    else:
        instance = cuda_tensor.instance(problem, direction, operands, tile, wide(problem, strides), aligned, activation)
    if direction == "grad_weight":
        return _grad_weight(problem, tile, instance, told, with_bias)
    told["phase_blocks"] = row_blocks = cuda_tensor.row_blocks(problem, direction, tile)
    phases, columns = 1, problem.out_channels // problem.groups
    if direction == "grad_input":
        phases, columns = math.prod(problem.stride), problem.in_channels // problem.groups
    if tile.kernel == "halo":
        told["window_h"], told["window_w"] = cuda_tensor.window_of(problem, direction, tile.rows)
    blocks = row_blocks * math.ceil(columns / tile.columns) * phases * problem.groups
    return (Launch(instance, blocks, told),)


def _grad_weight(
    problem: ConvProblem, tile: Tile, instance: Instance, told: np.ndarray, with_bias: bool
) -> tuple[Launch, ...]:
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    pixels = problem.batch * math.prod(problem.output_size)
    size = math.prod(problem.weight_shape)
    splits = splits_of(problem, tile)
    told["splits"] = splits
    told["by"] = _digits(tile.depth, problem)
    told["per_split"] = math.ceil(math.ceil(pixels / tile.depth) / splits) * tile.depth
    blocks = splits * problem.groups * problem.taps * math.ceil(k / tile.rows) * math.ceil(c / tile.columns)
    if splits == 1:
        return (Launch(instance, blocks, told),)
    partial = told.copy()  # the workspace holds [taps, K, C/G] for each split, so that a tile of it lies together
    _, height, width = (int(taps) for taps in told["filter"])
    tap = problem.out_channels * c
    partial["w"] = (c, 1, height * width * tap, width * tap, tap)
    partial["gw_split"], partial["gb_split"] = size, problem.out_channels
    summed = size + (problem.out_channels if with_bias else 0)
    add = dataclasses.replace(instance, function="sum_partials", threads=_SUM_THREADS, shared=0)
    return Launch(instance, blocks, partial), Launch(add, math.ceil(summed / _SUM_THREADS), told)


def _digits(pixels: int, problem: ConvProblem) -> tuple[int, ...]:
    """A number of output pixels as images, planes, rows and single ones."""
    _, height, width = axes(problem.output_size, 1)
    image = math.prod(problem.output_size)
    if not image:
        return (0, 0, 0, 0)
    rows = pixels % image // width
    return (pixels // image, rows // height, rows % height, pixels % width)


def _simt(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    strides: Strides,
    tile: Tile,
    activation: Activation,
    aligned: bool,
) -> Instance:
    """The kernel of multiply-adds with this tile."""
    k, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    dtype = problem.dtype
    threads = 32 * tile.warps
    rows, columns = _OWNED[tile.rows * tile.columns // threads]
    row_vector, column_vector = {
        "forward": (_vectors(strides.x, c, dtype), _vectors(strides.w, c, dtype)),
        "grad_input": (_vectors(strides.y, k, dtype), False),
        "grad_weight": (_vectors(strides.y, k, dtype), _vectors(strides.x, c, dtype)),
    }[direction]
    macros = {
        "TYPE": TYPES[dtype], "BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "TM": rows, "TN": columns,
        "ROW_VECTOR": int(aligned and row_vector), "COLUMN_VECTOR": int(aligned and column_vector),
        "WIDE": int(wide(problem, strides)),
    }  # fmt: skip
    if direction == "forward":
        macros["ACTIVATION"] = ACTIVATIONS.index(activation.name)
        macros["BIAS"], macros["RESIDUAL"] = int(operands.bias), int(operands.residual is not None)
    size = 8 if dtype is torch.float64 else 4  # of a number in shared memory, each row with 16 bytes more
    shared = 2 * tile.depth * ((tile.rows + tile.columns) * size + 32)
    name = f"simt_{direction}"
    return Instance(f"{name}.cu", name, tuple(f"-D{key}={value}" for key, value in macros.items()), threads, shared)


_OWNED = {64: (8, 8), 32: (8, 4), 16: (4, 4)}  # rows × columns of a thread, by how many outputs it has


def _vectors(strides: tuple[int, ...], channels: int, dtype: torch.dtype) -> bool:
    """Whether channels lie one after the other, and all else in multiples of 16 bytes."""
    unit = 16 // dtype.itemsize
    first, channel, *pixel = strides
    return channel == 1 and not any(value % unit for value in (channels, first, *pixel))


# ---- from launches to functions of tensors ---------------------------------------------------------------------------


class _Call:
    """Calls launches on a device, those for aligned tensors where they are aligned."""

    def __init__(self, runtime: Runtime, device: torch.device) -> None:
        self.runtime, self.device = runtime, device

    def __call__(self, launch: Launch, *tensors: torch.Tensor | None) -> None:
        if launch.blocks:
            self.runtime.launch(launch, self.device, tensors)


def _all_aligned(*tensors: torch.Tensor | None) -> bool:
    return not any(t.data_ptr() % 16 for t in tensors if t is not None)


def _bind_forward(
    problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile, call: _Call
) -> Callable[..., Any]:
    by_alignment = [launches(problem, "forward", operands, tile, activation, aligned=b)[0] for b in (False, True)]
    shape, memory_format = problem.output_shape, problem.memory_format

    def forward(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        if bias is not None:
            bias = bias.contiguous()  # it may be an expanded number
        y = allocate(shape, input, memory_format)
        launch = by_alignment[_all_aligned(input, weight, bias, residual)]
        call(launch, input, weight, bias, residual, y)
        return y

    return forward


def _bind_grad_input(problem: ConvProblem, operands: Operands, tile: Tile, call: _Call) -> Callable[..., Any]:
    by_alignment = [launches(problem, "grad_input", operands, tile, aligned=b)[0] for b in (False, True)]
    shape, memory_format = problem.input_shape, problem.memory_format

    def grad_input(grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gx = allocate(shape, grad_output, memory_format)
        call(by_alignment[_all_aligned(grad_output, weight)], grad_output, weight, gx)
        return gx

    return grad_input


def _bind_grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, call: _Call) -> Callable[..., Any]:
    prepared = {
        (with_bias, aligned): launches(
            problem, "grad_weight", operands, tile, with_bias=with_bias, aligned=aligned
        )
        for with_bias in (False, True)
        for aligned in (False, True)
    }  # fmt: skip
    shape, memory_format, filters = problem.weight_shape, problem.memory_format, problem.out_channels
    splits, size, accumulate = splits_of(problem, tile), math.prod(shape), accumulator(problem.dtype)

    def grad_weight(
        grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gw = allocate(shape, grad_output, memory_format)
        gb = grad_output.new_empty(filters) if with_bias else None
        product, *add = prepared[with_bias, _all_aligned(grad_output, input)]
        if not add:
            call(product, grad_output, input, gw, gb)
            return gw, gb
        partials = grad_output.new_empty(splits * (size + filters), dtype=accumulate)
        of_weight, of_bias = partials[: splits * size], partials[splits * size :]
        call(product, grad_output, input, of_weight, of_bias if with_bias else None)
        call(add[0], partials, gw, gb)
        return gw, gb

    return grad_weight


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, depth, warps, by the size of an element: sums of a thread stay in registers, tiles fit 48 KiB. In
# grad_weight what a thread fetches of the largest tile of 16-bit numbers would not fit beside its sums.
_SIMT = {
    2: ((128, 128, 16, 8), (128, 64, 16, 4), (64, 16, 16, 2)),
    4: ((128, 128, 8, 8), (128, 64, 8, 4), (64, 16, 16, 2)),
    8: ((64, 64, 8, 4), (64, 16, 8, 2)),
}


def simt_tiles(problem: ConvProblem, direction: Direction, gpu: Gpu) -> list[Tile]:
    """The tiles of the kernels of multiply-adds for `direction` of `problem` on `gpu`."""
    columns = (problem.out_channels if direction == "forward" else problem.in_channels) // problem.groups
    chosen = []
    for rows, width, depth, warps in _SIMT[problem.dtype.itemsize]:
        if width > 16 and width >= 2 * columns:
            continue  # more than half of it idle
        if direction == "grad_weight" and problem.dtype.itemsize == 2 and width == 128:
            continue
        tile = Tile(rows, width, depth, warps, stages=2, kernel="simt")
        if direction == "grad_weight":
            chosen += [
                dataclasses.replace(tile, splits=splits)
                for splits in splits_to_choose(problem, tile, gpu, programs_of_grad_weight(problem, tile))
            ]
        else:
            chosen.append(tile)
    return chosen
