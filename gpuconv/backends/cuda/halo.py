"""Family `halo` of the CUDA C kernels: those of `tensor`, with a window that a block fetches once for all its taps.

For forward and grad_input at stride 1 with filters larger than 1 × 1; `windows` chooses the window. Nothing here needs
a GPU.
"""

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import tensor, windows
from gpuconv.backends.family import Family
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    return tensor.refuses(problem, direction, gpu, operands) or windows.refuses(problem, direction)


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    shapes = [windows.windowed(tile, problem, direction) for tile in tensor.shapes(problem, direction, "halo")]
    return tensor.fitting(shapes, problem, direction, gpu, operands)


FAMILY = Family("halo", refuses, tiles, tensor.launches, tensor.predict)
