"""A family: one way of computing convolutions, as a backend declares it. Its parts are functions, and none needs a GPU.

To add one: a kernel file, a module here that ends in `FAMILY = Family(…)`, and one line in `FAMILIES` of its backend.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import splits_of
from gpuconv.backends.roofline import Prediction
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

Launch = TypeVar("Launch")  # of the backend


@dataclass(frozen=True)
class Family(Generic[Launch]):
    """Which problems a kind of kernels takes, with which tiles, what is launched, and how long that should take."""

    name: str  # the `kernel` of its tiles
    # Why it cannot, or should not, do a direction of a problem on a GPU with these operands; None if it can.
    refuses: Callable[[ConvProblem, Direction, Gpu, Operands], str | None]
    # The tiles to choose from; none where it refuses, or where none fits the GPU's shared memory.
    tiles: Callable[[ConvProblem, Direction, Gpu, Operands], Sequence[Tile]]
    # What one call launches, in order: (problem, direction, operands, tile, activation, with_bias), and what else its
    # backend's launches depend on.
    launches: Callable[..., tuple[Launch, ...]]
    # How long that takes, and why: (problem, direction, tile, gpu, tf32).
    predict: Callable[[ConvProblem, Direction, Tile, Gpu, bool], Prediction]
    # The splits that grad_weight makes of `tile.splits`: none of them empty.
    splits_of: Callable[[ConvProblem, Tile], int] = splits_of
    needs_alignment: bool = False  # all tensors must begin at multiples of 16 bytes
