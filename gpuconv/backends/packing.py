"""Packing: copies of a call's operands that lie channels last, so that kernels can fetch them in vectors; and of its
result, where kernels would write it element by element.

"Pack, then the fast kernel" is a candidate like any other: a tile of some family, for operands that lie like the copies
(`packed`), with what is copied (`Tile.packs`) and the time that copying takes (`with_copies`). One launch copies all
operands that a call needs, into memory of PyTorch's allocator. Where the result is packed too, the kernel computes it
channels last (`problem_of_copies`), and another launch copies it to where the problem says.

A kernel sees an operand as images × channels × pixels (`Source`); a weight's filters are images, its taps are pixels,
and in a result that is copied back channels and pixels have changed places. Nothing here needs a GPU.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from gpuconv.backends import constants
from gpuconv.backends.base import Operands
from gpuconv.backends.derived import axes
from gpuconv.backends.roofline import SECTOR, Prediction, copying
from gpuconv.backends.tile import Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import CHANNELS_LAST, ConvProblem, Direction, allocate

NAMES: dict[Direction, tuple[str, str]] = {
    "forward": ("input", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "input"),
}  # fmt: skip
TURNED_WEIGHT = "turned weight"  # a copy of the weight whose filters are innermost, not its channels
RESULT = "result"  # in `Tile.packs`: computed channels last, and copied from there
_TERMS = 32  # of a step of the kernels that read it: what it must have of filters, or a multiple
_FEWEST_CHANNELS = 8  # with no more, vectors of channels would be mostly zeros in the kernels' tiles


# ---- which operands --------------------------------------------------------------------------------------------------


def worth_packing(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str:
    """The operands that kernels would fetch element by element as they lie, and in vectors if they were copied, as in
    `Tile.packs`; "" if there are none, or where the numbers are not those of tensor cores."""
    shapes, unit = problem.operand_shapes(direction), problem.vector_unit
    if not _on_tensor_cores(problem, gpu, operands) or not all(map(math.prod, shapes)):
        return ""
    given = zip(NAMES[direction], shapes, operands.strides, strict=True)
    return "+".join(
        name
        for name, shape, strides in given
        if shape[1] > _FEWEST_CHANNELS and shape[1] % unit == 0 and not _in_vectors(shape, strides, unit)
    )


def _on_tensor_cores(problem: ConvProblem, gpu: Gpu, operands: Operands) -> bool:
    """Whether tensor cores multiply it. (Depthwise kernels, which have none, read and write any layout.)"""
    numbers = gpu.capability >= (7, 5) and (problem.dtype.itemsize == 2 or operands.tf32)
    return numbers and problem.in_channels != problem.groups


def _in_parts(problem: ConvProblem, direction: Direction) -> int:
    """How many phases write the rows of the result, each element by element what lies between the others' (of a
    contiguous grad_input at a stride); 1 where they are written in one piece."""
    strided = direction == "grad_input" and problem.memory_format is torch.contiguous_format
    if not strided or problem.in_channels <= _FEWEST_CHANNELS or problem.in_channels == problem.groups:
        return 1  # of few channels, or of each by itself, there are kernels that compute all phases at once
    return max(1, min(problem.stride[-1], problem.input_size[-1], SECTOR // problem.dtype.itemsize))


def worth_packing_result(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> bool:
    """Whether kernels would write the result element by element as it is to lie, and in vectors channels last."""
    return (
        _in_parts(problem, direction) > 1
        and problem.ndim + 2 in CHANNELS_LAST
        and problem.in_channels % problem.vector_unit == 0
        and problem.input_pixels > 0
        and _on_tensor_cores(problem, gpu, operands)
    )


def with_result(packs: str) -> str:
    """What is copied, as in `Tile.packs`, and the result."""
    return f"{packs}+{RESULT}".removeprefix("+")


def problem_of_copies(problem: ConvProblem, packs: str) -> ConvProblem:
    """The problem whose result is what the kernels compute, before it is copied."""
    if RESULT not in packs.split("+"):
        return problem
    return dataclasses.replace(problem, memory_format=CHANNELS_LAST[problem.ndim + 2])


def turning(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands, packs: str) -> str:
    """What is packed where the weight is turned too, beside `packs`; "" where that gains nothing.

    grad_input sums over filters, and what wgmma multiplies as TF32 must have them innermost.
    """
    wanted = direction == "grad_input" and operands.tf32 and gpu.capability[0] in (9, 10)
    if not wanted or problem.out_channels % _TERMS or problem.in_channels == problem.groups:
        return ""
    if not math.prod(problem.weight_shape) or not problem.output_pixels:
        return ""
    return "+".join((*(name for name in packs.split("+") if name == "grad_output"), TURNED_WEIGHT))


def all_that_fit(problem: ConvProblem, direction: Direction) -> str:
    """Both operands, as in `Tile.packs`, if their channels fill vectors; else ""."""
    fit = not any(shape[1] % problem.vector_unit for shape in problem.operand_shapes(direction))
    return "+".join(NAMES[direction]) if fit else ""


def _in_vectors(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> bool:
    """Whether the channels of each pixel are vectors of `unit` elements, and no two pixels share any."""
    _, channels, *_ = shape
    n, c, *pixel = (None if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    return c == 1 and all(stride is None or (stride % unit == 0 and stride >= channels) for stride in (n, *pixel))


def packed(problem: ConvProblem, direction: Direction, operands: Operands, packs: str) -> Operands:
    """The operands after packing: with the strides of the copies."""
    given = zip(NAMES[direction], problem.operand_shapes(direction), operands.strides, strict=True)
    first, second = (_packed(name, shape, packs) or strides for name, shape, strides in given)
    return operands._replace(strides=(first, second))


def _packed(name: str, shape: tuple[int, ...], packs: str) -> tuple[int, ...] | None:
    """The strides of an operand's copy; None if it is not copied."""
    if name in packs.split("+"):
        return _strides(shape)
    if name == "weight" and TURNED_WEIGHT in packs.split("+"):
        return _strides((1, *shape))[1:]  # of [channels, taps, filters]
    return None


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense tensor whose channels are innermost."""
    _, channels, *pixels = shape
    inner = [channels * math.prod(pixels[i:]) for i in range(len(pixels) + 1)]
    return (inner[0], 1, *inner[1:])


def bytes_of(problem: ConvProblem, direction: Direction, packs: str) -> dict[str, int]:
    """The bytes of each copy, by the operand's name."""
    named = zip(NAMES[direction], problem.operand_shapes(direction), strict=True)
    copied = {name: math.prod(shape) for name, shape in named if _packed(name, shape, packs)}
    if RESULT in packs.split("+"):
        copied[RESULT] = math.prod(problem.input_shape)
    return {name: count * problem.dtype.itemsize for name, count in copied.items()}


def seconds(problem: ConvProblem, direction: Direction, packs: str, gpu: Gpu) -> float:
    """How long packing is predicted to take: a launch for the operands, and one for the result."""
    sizes = bytes_of(problem, direction, packs)
    result = sizes.pop(RESULT, 0)
    return sum(copying(size, gpu) for size in (sum(sizes.values()), result) if size)


def with_copies(prediction: Prediction, problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu) -> Prediction:
    """The prediction for the kernels of a tile, with the copies that are made first."""
    more = seconds(problem, direction, tile.packs, gpu)
    return prediction._replace(seconds=prediction.seconds + more, parts=(*prediction.parts, ("packing", more)))


def with_parts(prediction: Prediction, problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu) -> Prediction:
    """The prediction for kernels that write a result in parts of sectors: what has left the L2 cache before the next
    part comes is read from memory again, and written once more."""
    parts = _in_parts(problem, direction)
    if parts <= tile.phases:
        return prediction
    size = math.prod(problem.input_shape) * problem.dtype.itemsize
    more = (2 * parts - 1) * size * min(1.0, 2 * size / gpu.l2) / (constants.MEMORY * gpu.bandwidth)
    return prediction._replace(seconds=prediction.seconds + more, parts=(*prediction.parts, ("parts of sectors", more)))


# ---- what is copied --------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """A tensor that is copied: how many images of how many channels it has, and how they lie."""

    images: int
    channels: int
    sizes: tuple[int, int, int]  # of its pixels; axes that lie as one are one
    strides: tuple[int, int, int, int, int]  # of images, channels and the three axes; 0 for an axis of size 1

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return math.prod(self.sizes)

    @property
    def numel(self) -> int:
        return self.images * self.channels * self.pixels

    @property
    def extent(self) -> int:
        """One more than the largest offset of an element."""
        counts = (self.images, self.channels, *self.sizes)
        return 1 + sum((count - 1) * stride for count, stride in zip(counts, self.strides, strict=True))

    @property
    def in_rows(self) -> bool:
        """Whether the pixels of a channel lie side by side."""
        return self.pixels == 1 or (self.sizes[:2] == (1, 1) and self.strides[4] == 1)

    @property
    def dense(self) -> bool:
        """Whether it is contiguous: pixels side by side, then channels, then images."""
        dense = (self.channels * self.pixels, self.pixels)  # strides of images and channels, where there are several
        both = zip((self.images, self.channels), self.strides[:2], dense, strict=True)
        return self.in_rows and all(count == 1 or stride == wanted for count, stride, wanted in both)


Sources = tuple[Source | None, Source | None]  # of two operands, in their order; None of one that is read as it lies


def sources(problem: ConvProblem, direction: Direction, operands: Operands, packs: str) -> Sources:
    """What is copied of the two operands."""
    given = zip(NAMES[direction], problem.operand_shapes(direction), operands.strides, strict=True)
    first, second = (_source(name, shape, strides, packs) for name, shape, strides in given)
    return first, second


def source_of_result(problem: ConvProblem) -> Source:
    """The result of grad_input, computed channels last: what follows each other in the copy are its pixels."""
    images, channels, *pixels = problem.input_shape
    count = math.prod(pixels)
    strides = (count * channels * (images > 1), channels * (count > 1), 0, 0, int(channels > 1))
    return Source(images, count, (1, 1, channels), strides)


def _source(name: str, shape: tuple[int, ...], strides: tuple[int, ...], packs: str) -> Source | None:
    if _packed(name, shape, packs) is None:
        return None
    if name in packs.split("+"):
        return source(shape, strides)
    return source((1, *shape), (0, *strides))  # one image: filters are channels, and channels the outer axis of pixels


def source(shape: tuple[int, ...], strides: tuple[int, ...]) -> Source:
    """A tensor of this shape and these strides, to be copied."""
    n, c, *pixel = (0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    merged: list[tuple[int, int]] = []  # size and stride of an axis, outermost first
    for size, stride in zip(shape[2:], pixel, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            size *= merged.pop()[0]
        merged.append((size, stride))
    sizes, steps = (tuple(axis[i] for axis in merged) for i in (0, 1))
    return Source(shape[0], shape[1], axes(sizes, 1), (n, c, *axes(steps, 0)))  # type: ignore[arg-type]  # three axes


Copies = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]


def memory_for(of: Sources) -> Copies:
    """A function that allocates the copies of two operands; None for one that is not copied."""
    first, second = (None if one is None else one.numel for one in of)

    def allocate(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None if first is None else a.new_empty(first), None if second is None else b.new_empty(second)

    return allocate


def result_copied(
    problem: ConvProblem, run: Callable[..., torch.Tensor], copy: Callable[[torch.Tensor, torch.Tensor], None]
) -> Callable[..., torch.Tensor]:
    """`run`, which computes a grad_input channels last, and a copy of that as the problem says: copy(computed, gx)."""
    shape, memory_format = problem.input_shape, problem.memory_format

    def copied(*operands: torch.Tensor) -> torch.Tensor:
        computed = run(*operands)
        gx = allocate(shape, computed, memory_format)
        copy(computed, gx)
        return gx

    return copied
