"""Family `grouped_halo` of the CUDA C kernels: packed groups as in `grouped`, and windows as in `halo`."""

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import grouped, windows
from gpuconv.backends.derived import packed
from gpuconv.backends.family import Family
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, compute `direction` on `gpu`; None if they can."""
    return grouped.refuses(problem, direction, gpu, operands) or windows.refuses(problem, direction)


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    shapes = grouped.shapes(packed(problem), direction, "grouped_halo")
    windowed = [windows.windowed(tile, problem, direction) for tile in shapes]
    return grouped.fitting(windowed, problem, direction, gpu, operands)


FAMILY = Family("grouped_halo", refuses, tiles, grouped.launches, grouped.predict)
