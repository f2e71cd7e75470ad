"""Backend `triton`: hand-written Triton kernels, in families.

Which problems it takes, which families it has, and functions of tensors that allocate a result and call the launches of
the tile's family.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from gpuconv import gpu as gpus
from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import packing
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import accumulator
from gpuconv.backends.elementwise import Elementwise, Run
from gpuconv.backends.family import FamilyBackend, by_name
from gpuconv.backends.last_program import counters_on
from gpuconv.backends.triton import (
    cells,
    depthwise,
    gather,
    hopper,
    hopper_grad_weight,
    pack,
    planes,
    pointwise,
    runs,
    stem,
    window,
)
from gpuconv.backends.triton.alignment import by_alignment
from gpuconv.backends.triton.launch import INTERPRETING, Launch, bias_offset, why_not
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction, allocate

FAMILIES = by_name(
    gather.FAMILY,
    planes.FAMILY,
    pointwise.FAMILY,
    runs.PATCHES,
    runs.PACKED,
    stem.FAMILY,
    cells.FAMILY,
    depthwise.FAMILY,
    window.FAMILY,
    hopper.FAMILY,
    hopper_grad_weight.FAMILY,
)

# RuntimeErrors that say so: of the compiler's passes, and of the driver where it loads a module or asks for resources.
_CANNOT_BUILD = (
    "PassManager::run failed",
    "failed to translate module",
    "Triton Error [CUDA]: too many resources requested for launch",
    "Triton Error [CUDA]: device kernel image is invalid",
    "Triton Error [CUDA]: no kernel image is available",
    "Triton Error [CUDA]: a PTX JIT compilation failed",
    "Triton Error [CUDA]: invalid argument",
)


class TritonBackend(FamilyBackend[Launch]):
    """Hand-written Triton kernels on GPUs from sm_80, emulated ones too; on CPU tensors under Triton's interpreter."""

    name = "triton"
    families = FAMILIES

    def unavailable(self) -> str | None:
        reason = why_not()
        return reason if reason is None or gpus.emulation is None else gpus.emulation.triton.unavailable()

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        reason = self.refuses_dtype(problem.dtype)
        if reason is not None:
            return reason
        if device.type == "cpu" and gpus.emulation is not None:
            return gpus.emulation.triton.unavailable() or self.refuses_gpu(Gpu.of(device))
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

    def bind_tile(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands,
        tile: Tile,
    ) -> Callable[..., Any]:
        call = _on(device)
        if tile.packs:
            copied, tile_of_copies = packing.packed(problem, direction, operands, tile.packs), tile.without_packs
            computed = packing.problem_of_copies(problem, tile.packs)
            run = self.bind_tile(computed, direction, device, activation, copied, tile_of_copies)
            run = _pack_first(packing.sources(problem, direction, operands, tile.packs), problem.dtype, run, call)
            return run if computed is problem else _copy_result(problem, run, call)

        def bind() -> Callable[..., Any]:
            if direction == "forward":
                return _bind_forward(problem, activation, operands, tile, call)
            if direction == "grad_input":
                return _bind_grad_input(problem, operands, tile, call)
            return _bind_grad_weight(problem, operands, tile, device, call)

        if not FAMILIES[tile.kernel].needs_alignment:
            return bind()
        aligned, gpu, fit = bind(), Gpu.of(device), packing.all_that_fit(problem, direction).split("+")

        def ways(which: str) -> Iterator[Callable[[], Callable[..., Any]]]:
            if not which:
                yield lambda: aligned
            others = list(gather.tiles(problem, direction, gpu, operands))
            if which and {*which.split("+")} <= {*fit}:
                others.append(dataclasses.replace(tile, packs=which))  # copies are aligned
            others.sort(key=lambda t: self.predict(problem, direction, t, gpu, operands.tf32).seconds)
            for other in others:
                yield functools.partial(self.bind_tile, problem, direction, device, activation, operands, other)

        return by_alignment(packing.NAMES[direction], ways, self.cannot_build)

    def cannot_build(self, error: Exception) -> bool:
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import InterpreterError, OutOfResources, PTXASError

        if isinstance(error, (CompilationError, InterpreterError, OutOfResources, PTXASError)):
            return True
        if gpus.emulation is not None and gpus.emulation.triton.cannot_build(error):
            return True
        return isinstance(error, RuntimeError) and any(words in str(error) for words in _CANNOT_BUILD)

    def bind_act_backward(self, elementwise: Elementwise, device: torch.device) -> Run:
        from gpuconv.backends.triton import act_backward  # imports Triton

        return act_backward.bind(elementwise, Gpu.of(device), _on(device))


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    first: tuple[Launch, ...] = ()
    last: tuple[Launch, ...] = ()
    if tile.packs:
        sources = packing.sources(problem, direction, operands, tile.packs)
        if any(sources):
            first = (pack.launch(sources, problem.dtype),)
        computed = packing.problem_of_copies(problem, tile.packs)
        if computed is not problem:
            last = (pack.launch((packing.source_of_result(problem), None), problem.dtype),)
        operands, problem = packing.packed(problem, direction, operands, tile.packs), computed
        tile = tile.without_packs
    launched = FAMILIES[tile.kernel].launches(problem, direction, operands, tile, activation, with_bias)
    return (*first, *launched, *last)


# ---- from launches to functions of tensors ---------------------------------------------------------------------------


def _on(device: torch.device) -> Callable[..., None]:
    """A function that calls a Launch with its tensors, on PyTorch's current stream of `device`."""
    if device.type == "cpu" and gpus.emulation is not None:
        run = gpus.emulation.triton.launch
        return lambda launch, *tensors: run(launch, device, tensors) if launch.programs else None
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


def _pack_first(
    sources: packing.Sources, dtype: torch.dtype, run: Callable[..., Any], call: Callable[..., None]
) -> Callable[..., Any]:
    """`run`, called with copies of the operands that are to be packed."""
    if not any(sources):
        return run
    launch, memory = pack.launch(sources, dtype), packing.memory_for(sources)

    def packed(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> Any:
        copy_a, copy_b = memory(a, b)
        call(launch, None if copy_a is None else a, None if copy_b is None else b, copy_a, copy_b)
        return run(a if copy_a is None else copy_a, b if copy_b is None else copy_b, *rest)

    return packed


def _copy_result(problem: ConvProblem, run: Callable[..., Any], call: Callable[..., None]) -> Callable[..., Any]:
    """`run`, which computes a grad_input channels last, and a copy of that as the problem says."""
    launch = pack.launch((packing.source_of_result(problem), None), problem.dtype)
    return packing.result_copied(problem, run, lambda computed, gx: call(launch, computed, None, gx, None))


def _with_pack(found: tuple[Launch, ...]) -> tuple[Any, ...]:
    """The launches of a call, and before them the one that packs, or None."""
    return found if isinstance(found[0], runs.Pack) else (None, *found)


def _packed(
    launch: runs.Pack, call: Callable[..., None], input: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the product reads in the place of input (where that is packed: grad_output) and weight."""
    if not launch.rows:
        filters = input.new_empty(launch.filters)
        call(launch, weight, filters)
        return input, filters
    rows, filters = input.new_empty(launch.rows), input.new_empty(launch.filters)
    call(launch, input, weight, rows, filters if weight is not None else None)
    return rows, filters


def _bind_forward(
    problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile, call: Callable[..., None]
) -> Callable[..., Any]:
    packs, launch, *add = _with_pack(launches(problem, "forward", operands, tile, activation))
    shape, memory_format = problem.output_shape, problem.memory_format

    def forward(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        y = allocate(shape, input, memory_format)
        if bias is not None and bias.stride(0) != 1:  # one gradient that is expanded, in a second derivative
            bias = bias.contiguous()
        if packs is not None:
            input, weight = _packed(packs, call, input, weight)
        if not add:
            call(launch, input, weight, bias, residual, y)
            return y
        partials = y.new_empty(tile.splits * y.numel(), dtype=torch.float32)
        call(launch, input, weight, None, None, partials)
        call(add[0], partials, bias, residual, y)
        return y

    return forward


def _bind_grad_input(
    problem: ConvProblem, operands: Operands, tile: Tile, call: Callable[..., None]
) -> Callable[..., Any]:
    packs, launch, *add = _with_pack(launches(problem, "grad_input", operands, tile))
    shape, memory_format = problem.input_shape, problem.memory_format
    epilogue = (None,) * (len(launch.dtypes) - 3)  # no bias and no residual, where the kernel of forward serves

    def grad_input(grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gx = allocate(shape, grad_output, memory_format)
        if packs is not None:
            grad_output, weight = _packed(packs, call, grad_output, weight)
        if not add:
            call(launch, grad_output, weight, *epilogue, gx)
            return gx
        partials = gx.new_empty(tile.splits * gx.numel(), dtype=torch.float32)
        call(launch, grad_output, weight, partials)
        call(add[0], partials, None, None, gx)
        return gx

    return grad_input


def _bind_grad_weight(
    problem: ConvProblem, operands: Operands, tile: Tile, device: torch.device, call: Callable[..., None]
) -> Callable[..., Any]:
    without, with_ = (
        _with_pack(launches(problem, "grad_weight", operands, tile, with_bias=with_bias)) for with_bias in (False, True)
    )
    shape, memory_format = problem.weight_shape, problem.memory_format
    filters, accumulate = problem.out_channels, accumulator(problem.dtype)
    splits = FAMILIES[tile.kernel].splits_of(problem, tile)
    # What is left to a launch of its own to add: by default as many sums as there are weights, in each split.
    bias_at = bias_offset(1, without[1].workspace.partials) or bias_offset(splits, math.prod(shape))
    apart = len(without[1].dtypes) > 4  # what the product's kernel needs for the bias's programs, and for its last ones
    described = apart and bool(without[1].described)  # then the bias's programs are given gy as it is
    not_added = (None,) * (len(without[1].dtypes) - 4 - described)  # no workspace, where the last programs do not add
    counters = counters_on(device)

    def grad_weight(
        grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gw = allocate(shape, grad_output, memory_format)
        gb = grad_output.new_empty(filters) if with_bias else None
        packs, product, *add = with_ if with_bias else without
        again = ((grad_output if with_bias else None),) if described else ()
        if packs is not None:
            input, _ = _packed(packs, call, input, None)
        if product.workspace.counters:
            partials = grad_output.new_empty(product.workspace.partials, dtype=accumulate)
            call(product, grad_output, input, gw, gb, partials, counters(product.workspace.counters), *again)
            return gw, gb
        if not add:
            call(product, grad_output, input, gw, gb, *not_added, *again)
            return gw, gb
        partials = grad_output.new_empty(bias_at + splits * filters, dtype=accumulate)
        call(product, grad_output, input, partials, partials[bias_at:] if with_bias else None, *not_added, *again)
        call(add[0], partials, gw, gb)
        return gw, gb

    return grad_weight
