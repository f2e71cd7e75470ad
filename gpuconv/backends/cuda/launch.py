"""Launches of `gpuconv.kernels.cuda`: a compiled instance, a grid, and the one struct that all kernels take.

Nothing here needs a GPU, and nothing here launches. A `Runtime` does: the package holds the one that goes through CuPy
(`gpuconv.backends.cuda.cupy_runtime`); the tests hold one that runs the same kernels on the CPU from the same launches.
"""

import ctypes
import dataclasses
import functools
import importlib.resources
import math
import re
from typing import Protocol

import numpy as np
import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands
from gpuconv.backends.derived import axes, overflows, phase_steps
from gpuconv.backends.last_program import Workspace
from gpuconv.problem import ConvProblem, Direction, allocate

# `struct Conv` of common.cuh, field for field; what the fields mean is said there.
CONV = np.dtype(
    [(name, "i4") for name in ("N", "C", "K", "groups")]
    + [(name, "i4", 3) for name in ("in", "out", "filter", "stride", "pad", "dilation", "common", "inverse")]
    + [(name, "i4") for name in ("splits", "activation", "phase_blocks", "window_h", "window_w")]
    + [("step", "i4", 3), ("pixel_step", "i4", 4)]
    + [("slope", "f8"), ("per_split", "i8")]
    + [(name, "i8", 5) for name in ("x", "w", "y", "residual")]
    + [("w_tap", "i8", 3)]
    + [(name, "i8") for name in ("gw_split", "gb_split")],
    align=True,
)
ACTIVATIONS = (  # as numbered in epilogue.cuh
    "none", "relu", "leaky_relu", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh",
)  # fmt: skip
TYPES = {torch.float32: "float", torch.float64: "double", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_SUM_THREADS = 256  # threads of a block of sum_partials.cuh


@dataclasses.dataclass(frozen=True)
class Instance:
    """One kernel compiled with its number type and tile: `function` of `file`, under `options` (macros)."""

    file: str
    function: str
    options: tuple[str, ...]
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block


class Launch:
    """An instance, the number of blocks, and the struct: everything but the tensors."""

    def __init__(self, instance: Instance, blocks: int, conv: np.ndarray, workspace: Workspace | None = None) -> None:
        self.instance = instance
        self.blocks = blocks
        self.conv = conv
        self.workspace = workspace  # of a sum that its last blocks add; None: of a kernel that takes none
        self._conv_address = conv.ctypes.data

    def parameters(self, tensors: tuple[torch.Tensor | None, ...]) -> tuple[ctypes.Array, ctypes.Array]:
        """What cuLaunchKernel takes: the addresses of all parameters' values; and the values, to be kept meanwhile."""
        values = (ctypes.c_void_p * len(tensors))(*[0 if t is None else t.data_ptr() for t in tensors])
        first = ctypes.addressof(values)
        addresses = [first + i * ctypes.sizeof(ctypes.c_void_p) for i in range(len(tensors))]
        return (ctypes.c_void_p * (len(tensors) + 1))(*addresses, self._conv_address), values


class Runtime(Protocol):
    """Compiles and launches instances on one type of device."""

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None."""

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        """Start the kernel with these tensors, on PyTorch's current stream of `device`."""

    def cannot_build(self, error: Exception) -> bool:
        """Whether `error`, which `launch` has raised, says that the kernel cannot be compiled or launched here."""


@functools.cache
def source(file: str) -> str:
    """The text of a kernel file with the files that it includes in place, each once.

    This one text is all that a compiler reads, and all that a cache on disk has to compare.
    """
    return _expanded(file, set())


def _expanded(file: str, seen: set[str]) -> str:
    seen.add(file)
    text = (importlib.resources.files("gpuconv.kernels.cuda") / file).read_text(encoding="utf-8")
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(text.splitlines(), 1):
        included = re.fullmatch(r'#include "([\w.]+)"', line)
        if included is None:
            lines.append(line)
        elif included[1] not in seen:
            lines += [_expanded(included[1], seen), f'#line {number + 1} "{file}"']
        else:
            lines.append("")
    return "\n".join(lines)


# ---- the struct of a problem -----------------------------------------------------------------------------------------


def strides_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor as the struct holds them: five axes, and 0 for an axis of size 1."""
    first, second, *pixel = (0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    return (first, second, *axes(tuple(pixel), 0))


def fresh_strides(shape: tuple[int, ...], problem: ConvProblem) -> tuple[int, ...]:
    """The strides, as in `strides_of`, of a result that is about to be allocated."""
    return strides_of(shape, allocate(shape, torch.empty(0, device="meta"), problem.memory_format).stride())


@dataclasses.dataclass(frozen=True)
class Strides:
    """The strides of x, w, y and the residual, whether they are operands or results."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    residual: tuple[int, ...]

    @classmethod
    def of(cls, problem: ConvProblem, direction: Direction, operands: Operands) -> "Strides":
        shapes = {"x": problem.input_shape, "w": problem.weight_shape, "y": problem.output_shape}
        given = {"forward": "xw", "grad_input": "yw", "grad_weight": "yx"}[direction]
        found = {name: fresh_strides(shape, problem) for name, shape in shapes.items()}
        for name, strides in zip(given, operands.strides, strict=True):
            found[name] = strides_of(shapes[name], strides)
        return cls(**found, residual=strides_of(shapes["y"], operands.residual or (0,) * (2 + problem.ndim)))


def come_in_vectors(strides: tuple[int, ...], channels: int, unit: int) -> bool:
    """Whether the channels of every pixel are aligned vectors of `unit` elements, given an aligned pointer."""
    first, channel, *pixel = strides
    return channel == 1 and not any(value % unit for value in (channels, first, *pixel))


def needs_64_bits(problem: ConvProblem, strides: Strides) -> bool:
    """Whether an offset in some tensor, or the number of its pixels, could overflow 32 bits."""

    def last(shape: tuple[int, ...], of: tuple[int, ...]) -> int:
        sizes = (*shape[:2], *axes(shape[2:], 1))
        return sum((size - 1) * stride for size, stride in zip(sizes, of, strict=True) if size)

    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    lasts = last(x, strides.x), last(w, strides.w), last(y, strides.y), last(y, strides.residual)
    return overflows(*lasts, problem.input_pixels, problem.output_pixels)


def struct_of(
    problem: ConvProblem, direction: Direction, strides: Strides, activation: Activation = IDENTITY
) -> np.ndarray:
    """The struct of a problem, without the fields that depend on a tile."""
    struct = np.zeros((), CONV)
    backward = direction == "grad_input"
    common, inverse = phase_steps(problem)
    for name, value in {
        "N": problem.batch,
        "C": problem.group_channels,
        "K": problem.group_filters,
        "groups": problem.groups,
        "in": axes(problem.input_size, 1),
        "out": axes(problem.output_size, 1),
        "filter": axes(problem.filter_size, 1),
        "stride": axes(problem.stride, 1),
        "pad": axes(tuple(low for low, _ in problem.padding), 0),
        "dilation": axes(problem.dilation, 1),
        "common": axes(common, 1),
        "inverse": axes(inverse, 0),
        "splits": 1,
        "step": axes(tuple(-d // q if backward else d for d, q in zip(problem.dilation, common, strict=True)), 1),
        "w_tap": tuple(
            stride * (u // q if backward else 1)
            for stride, u, q in zip(strides.w[2:], axes(problem.stride, 1), axes(common, 1), strict=True)
        ),
        "activation": ACTIVATIONS.index(activation.name),
        "slope": activation.slope,
        **{field.name: getattr(strides, field.name) for field in dataclasses.fields(strides)},
    }.items():
        struct[name] = value
    return struct


def sum_partials(instance: Instance, elements: int, params: np.ndarray) -> Launch:
    """The second launch of grad_weight, after `instance`: it adds the partial sums of `elements` results."""
    add = dataclasses.replace(instance, function="sum_partials", threads=_SUM_THREADS, shared=0)
    return Launch(add, math.ceil(elements / _SUM_THREADS), params)
