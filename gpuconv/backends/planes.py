"""1×1 convolutions of contiguous tensors, for the Triton and the CUDA C kernels alike: planes of pixels."""

import itertools
import math

from gpuconv.backends.base import Operands
from gpuconv.problem import ConvProblem, Direction


def is_pointwise(problem: ConvProblem) -> bool:
    """Whether filters are 1×1, at stride 1 and without padding: the pixels of the result are those of the input."""
    return problem.taps == 1 and {*problem.stride} == {1} and not any(map(sum, problem.padding))


def planes(problem: ConvProblem, direction: Direction, operands: Operands) -> list[tuple[int, int]] | None:
    """Strides of images and channels (0 for an axis of size 1) of the tensors that have pixels; None if a plane's
    pixels are not neighbours."""
    count = 2 if direction == "grad_weight" else 1
    tensors = list(zip(problem.operand_shapes(direction), operands.strides, strict=True))[:count]
    if operands.residual is not None:
        tensors.append((problem.output_shape, operands.residual))
    found = []
    for shape, strides in tensors:
        dense = 1
        for size, stride in zip(reversed(shape[2:]), reversed(strides[2:]), strict=True):
            if size > 1 and stride != dense:
                return None
            dense *= size
        found.append((strides[0] * (shape[0] > 1), strides[1] * (shape[1] > 1)))
    return found


def vector_of_planes(problem: ConvProblem, direction: Direction, operands: Operands) -> int:
    """How many pixels can always be fetched together, 16 bytes at most; 0 where they are not neighbours."""
    strides = planes(problem, direction, operands)
    if strides is None:
        return 0
    return math.gcd(problem.vector_unit, math.prod(problem.input_size), *itertools.chain(*strides))
