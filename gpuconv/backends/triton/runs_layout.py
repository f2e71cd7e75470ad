"""Where the kernels `runs` find a convolution's runs: in its tensors as they are, or in what `pack_runs` writes."""

import math
from typing import NamedTuple

from gpuconv.backends.base import Operands
from gpuconv.backends.derived import axes
from gpuconv.backends.triton.launch import Layout, layouts
from gpuconv.problem import ConvProblem, Direction

CHANNELS = 4  # channels of a packed pixel


class Runs(NamedTuple):
    """Where a convolution finds the runs of a filter in its input."""

    length: int  # elements of a run
    number: int  # of runs
    inner: int  # runs of the inner axis
    strides: tuple[int, int, int, int]  # from image to image, from output pixel to output pixel on each axis
    steps: tuple[int, int]  # from run to run, on the outer and the inner axis
    vector: int  # what all of these are multiples of
    channels: int  # of a pixel in a run; 1: each channel has runs of its own
    lead: int = 0  # taps of zeros at the begin of a run
    size: int = 0  # of what is packed, in elements

    @property
    def terms(self) -> int:
        """Elements of all runs together."""
        return self.number * self.length

    @property
    def in_vectors(self) -> tuple[int, ...]:
        """Strides and steps, in vectors."""
        return tuple(stride // self.vector for stride in (*self.strides, *self.steps))

    def extent(self, problem: ConvProblem) -> int:
        """One more than the largest offset into what they are fetched from."""
        sizes = (problem.batch, *axes(problem.output_size, 1), math.ceil(self.number / self.inner), self.inner)
        strides = (*self.strides, *self.steps)
        return self.length + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def as_they_are(problem: ConvProblem, direction: Direction, operands: Operands) -> Runs | None:
    """The runs of the tensors as they are; None if there are none that can be fetched in vectors."""
    if problem.ndim > 2 or any(map(sum, problem.padding)):
        return None
    first, second = layouts(problem, direction, operands)
    x = first if direction == "forward" else second
    n, c, _, h, w = x.strides
    channels, (_, r, s) = problem.in_channels, axes(problem.filter_size, 1)
    (_, u_h, u_w), (_, d_h, _) = axes(problem.stride, 1), axes(problem.dilation, 1)
    if w == 1:
        length, count, outer, dense, each = s, channels * r, c, (r * s, s, 1), 1
    elif c == 1 and w == channels:
        length, count, outer, dense, each = s * channels, r, 0, (1, s * channels, channels), channels
    else:
        return None
    vector = math.gcd(problem.vector_unit, length, n, outer, h, u_w * w)
    if direction == "forward":
        sizes, (k, *strides) = (channels, r, s), second.strides
        found = zip(sizes, (strides[0], *strides[2:]), dense, strict=True)
        if any(size > 1 and stride != wanted for size, stride, wanted in found):
            return None
        vector = math.gcd(vector, k)
    if vector * problem.dtype.itemsize < 8:
        return None
    return Runs(length, count, r, (n, 0, u_h * h, u_w * w), (outer, d_h * h), vector, each)


class Rows(NamedTuple):
    """The input as it is packed, [N, depth, height, width, 4]."""

    size: tuple[int, int, int]
    margin: tuple[int, int, int]  # of zeros before the image
    vector: int  # pixels that are read together


def packed_rows(problem: ConvProblem, x: Layout) -> Rows:
    *strides, w = x.strides
    size, unit = axes(problem.input_size, 1), max(1, 4 // problem.dtype.itemsize)
    vector = 1 if x.channels_fast or w != 1 else math.gcd(unit, size[-1], *strides)
    low_d, low_h, low_w = axes(tuple(low for low, _ in problem.padding), 0)
    margin = math.ceil(low_w / vector) * vector
    depth, height, _ = (
        (p - 1) * u + (r - 1) * d + 1
        for p, u, r, d in zip(
            axes(problem.output_size, 1), axes(problem.stride, 1), axes(problem.filter_size, 1),
            axes(problem.dilation, 1), strict=True,
        )
    )  # fmt: skip
    width = (problem.output_size[-1] - 1) * problem.stride[-1] + _length(problem, margin - low_w) // CHANNELS
    return Rows((depth, height, width + width % 2), (low_d, low_h, margin), vector)


def _length(problem: ConvProblem, lead: int) -> int:
    """Elements of a packed run: of a filter row, rounded up to 16 bytes of 16-bit numbers."""
    return math.ceil((lead + problem.filter_size[-1]) * CHANNELS / 8) * 8


def when_packed(problem: ConvProblem, x: Layout) -> Runs:
    """The runs of the input when it is packed."""
    (depth, height, width), (*_, margin), _ = packed_rows(problem, x)
    lead = margin - problem.padding[-1][0]
    t, r, _ = axes(problem.filter_size, 1)
    d_d, d_h, _ = axes(problem.dilation, 1)
    u_d, u_h, u_w = axes(problem.stride, 1)
    h = width * CHANNELS
    d, n = h * height, h * height * depth
    return Runs(
        _length(problem, lead), t * r, r, (n, u_d * d, u_h * h, u_w * CHANNELS), (d_d * d, d_h * h),
        math.gcd(problem.vector_unit, u_w * CHANNELS), CHANNELS, lead, problem.batch * n,
    )  # fmt: skip
