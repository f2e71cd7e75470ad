"""Backend `cuda`: kernels in CUDA C (`gpuconv.kernels.cuda`), in families, compiled by NVRTC and launched through CuPy.

This module says which problems the backend takes and which families it has, and makes the functions of tensors: each
allocates a result and calls the launches of the tile's family (`launches`, which needs no GPU).
Compiling and launching is left to a `Runtime`, one for each type of device; while a GPU is emulated, the emulator's
takes CPU tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from gpuconv import gpu as gpus
from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import packing
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import (
    act_backward,
    banded,
    depthwise,
    grouped,
    grouped_halo,
    halo,
    pack,
    planes,
    simt,
    tensor,
)
from gpuconv.backends.cuda.cupy_runtime import CupyRuntime
from gpuconv.backends.cuda.launch import Launch, Runtime
from gpuconv.backends.derived import accumulator, all_aligned
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.backends.family import FamilyBackend, by_name
from gpuconv.backends.last_program import counters_on
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction, allocate

FAMILIES = by_name(
    simt.FAMILY,
    halo.FAMILY,
    tensor.FAMILY,
    planes.FAMILY,
    grouped_halo.FAMILY,
    grouped.FAMILY,
    depthwise.FAMILY,
    banded.FAMILY,
)


class CudaBackend(FamilyBackend[Launch]):
    """Hand-written CUDA C kernels on GPUs from sm_75."""

    name = "cuda"
    families = FAMILIES

    def __init__(self) -> None:
        self.runtimes: dict[str, Runtime] = {"cuda": CupyRuntime()}  # by type of device

    def unavailable(self) -> str | None:
        reasons = [runtime.unavailable() for runtime in self._runtimes()]
        return None if None in reasons else reasons[0]

    def _runtimes(self) -> list[Runtime]:
        """All runtimes, an emulated GPU's first."""
        return [*([] if gpus.emulation is None else [gpus.emulation.cuda]), *self.runtimes.values()]

    def _runtime(self, device: torch.device) -> Runtime | None:
        if device.type == "cpu" and gpus.emulation is not None:
            return gpus.emulation.cuda
        return self.runtimes.get(device.type)

    def _call(self, device: torch.device) -> "_Call":
        runtime = self._runtime(device)
        assert runtime is not None, f"it refuses tensors on {device}"
        return _Call(runtime, device)

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        runtime = self._runtime(device)
        if runtime is None:
            return f"its kernels run on GPUs, and the tensors are on {device}"
        reason = runtime.unavailable() or self.refuses_dtype(problem.dtype)
        if reason is not None:
            return reason
        reason = None if (gpu := Gpu.of(device)) is gpus.INTERPRETER else self.refuses_gpu(gpu)
        if reason is not None:
            return reason
        if max(map(math.prod, (problem.input_size, problem.output_size))) >= 2**31:
            return "it counts the pixels of an image in 32 bits, and here are more"
        return None

    def refuses_gpu(self, gpu: Gpu) -> str | None:
        major, minor = gpu.capability
        return None if (major, minor) >= (7, 5) else f"it needs sm_75 or newer, and this is sm_{major}{minor}"

    def bind_tile(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands,
        tile: Tile,
    ) -> Callable[..., Any]:
        call = self._call(device)
        if tile.packs:
            copied, tile_of_copies = packing.packed(problem, direction, operands, tile.packs), tile.without_packs
            computed = packing.problem_of_copies(problem, tile.packs)
            run = self.bind_tile(computed, direction, device, activation, copied, tile_of_copies)
            run = _pack_first(packing.sources(problem, direction, operands, tile.packs), problem.dtype, run, call)
            return run if computed is problem else _copy_result(problem, run, call)
        if direction == "forward":
            return _bind_forward(problem, activation, operands, tile, call)
        if direction == "grad_input":
            return _bind_grad_input(problem, operands, tile, call)
        return _bind_grad_weight(problem, operands, tile, device, call)

    def cannot_build(self, error: Exception) -> bool:
        return any(runtime.cannot_build(error) for runtime in self._runtimes())

    def bind_act_backward(self, elementwise: Elementwise, device: torch.device) -> Run:
        return act_backward.bind(elementwise, Gpu.of(device), self._call(device))


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
    first: tuple[Launch, ...] = ()
    last: tuple[Launch, ...] = ()
    if tile.packs:
        sources = packing.sources(problem, direction, operands, tile.packs)
        if any(sources):
            first = (pack.launch(sources, problem.dtype, aligned),)
        computed = packing.problem_of_copies(problem, tile.packs)
        if computed is not problem:
            last = (pack.launch((packing.source_of_result(problem), None), problem.dtype),)
        operands, problem = packing.packed(problem, direction, operands, tile.packs), computed
        tile = tile.without_packs
    launched = FAMILIES[tile.kernel].launches(problem, direction, operands, tile, activation, with_bias, aligned)
    return (*first, *launched, *last)


# ---- from launches to functions of tensors ---------------------------------------------------------------------------


class _Call:
    """Calls launches on one device."""

    def __init__(self, runtime: Runtime, device: torch.device) -> None:
        self.runtime, self.device = runtime, device

    def __call__(self, launch: Launch, *tensors: torch.Tensor | None) -> None:
        if launch.blocks:
            self.runtime.launch(launch, self.device, tensors)


def _pack_first(
    sources: packing.Sources, dtype: torch.dtype, run: Callable[..., Any], call: _Call
) -> Callable[..., Any]:
    """`run`, called with copies of the operands that are to be packed."""
    if not any(sources):
        return run
    by_alignment = [pack.launch(sources, dtype, aligned) for aligned in (False, True)]
    memory = packing.memory_for(sources)

    def packed(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> Any:
        copy_a, copy_b = memory(a, b)
        given = None if copy_a is None else a, None if copy_b is None else b
        call(by_alignment[all_aligned(*given)], *given, copy_a, copy_b)
        return run(a if copy_a is None else copy_a, b if copy_b is None else copy_b, *rest)

    return packed


def _copy_result(problem: ConvProblem, run: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    """`run`, which computes a grad_input channels last, and a copy of that as the problem says."""
    launch = pack.launch((packing.source_of_result(problem), None), problem.dtype)
    return packing.result_copied(problem, run, lambda computed, gx: call(launch, computed, None, gx, None))


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
        launch = by_alignment[all_aligned(input, weight, bias, residual)]
        call(launch, input, weight, bias, residual, y)
        return y

    return forward


def _bind_grad_input(problem: ConvProblem, operands: Operands, tile: Tile, call: _Call) -> Callable[..., Any]:
    by_alignment = [launches(problem, "grad_input", operands, tile, aligned=b)[0] for b in (False, True)]
    shape, memory_format = problem.input_shape, problem.memory_format

    def grad_input(grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gx = allocate(shape, grad_output, memory_format)
        call(by_alignment[all_aligned(grad_output, weight)], grad_output, weight, gx)
        return gx

    return grad_input


def _bind_grad_weight(
    problem: ConvProblem, operands: Operands, tile: Tile, device: torch.device, call: _Call
) -> Callable[..., Any]:
    prepared = {
        (with_bias, aligned): launches(
            problem, "grad_weight", operands, tile, with_bias=with_bias, aligned=aligned
        )
        for with_bias in (False, True)
        for aligned in (False, True)
    }  # fmt: skip
    shape, memory_format, filters = problem.weight_shape, problem.memory_format, problem.out_channels
    splits = FAMILIES[tile.kernel].splits_of(problem, tile)
    size, accumulate = math.prod(shape), accumulator(problem.dtype)
    not_added = () if prepared[False, True][0].workspace is None else (None, None)
    counters = counters_on(device)

    def grad_weight(
        grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gw = allocate(shape, grad_output, memory_format)
        gb = grad_output.new_empty(filters) if with_bias else None
        product, *add = prepared[with_bias, all_aligned(grad_output, input)]
        workspace = product.workspace
        if workspace is not None and workspace.counters:
            partials = grad_output.new_empty(workspace.partials, dtype=accumulate)
            call(product, grad_output, input, gw, gb, partials, counters(workspace.counters))
            return gw, gb
        if not add:
            call(product, grad_output, input, gw, gb, *not_added)
            return gw, gb
        partials = grad_output.new_empty(splits * (size + filters), dtype=accumulate)
        of_weight, of_bias = partials[: splits * size], partials[splits * size :]
        call(product, grad_output, input, of_weight, of_bias if with_bias else None, *not_added)
        call(add[0], partials, gw, gb)
        return gw, gb

    return grad_weight
