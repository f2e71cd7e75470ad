"""A family of kernels: one way of computing convolutions, as a backend declares it. Nothing here needs a GPU.

To add one: a kernel file, a module here that ends in `FAMILY = Family(…)`, and one line in `FAMILIES` of its backend.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpuconv.backends import derived
from gpuconv.backends.base import Backend, Operands, Tile
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

Launch = TypeVar("Launch")  # the backend's own


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
    predict: Callable[[ConvProblem, Direction, Tile, Gpu, bool], Prediction] = implicit_gemm
    # How many programs share a sum of grad_weight: the tile's splits, or fewer.
    splits_of: Callable[[ConvProblem, Tile], int] = derived.splits_of
    needs_alignment: bool = False  # all tensors must begin at multiples of 16 bytes; another family does the call else


def by_name(*families: Family[Launch]) -> dict[str, Family[Launch]]:
    """A registry of families."""
    return {family.name: family for family in families}


class FamilyBackend(Backend, Generic[Launch]):
    """A backend whose kernels come in families. The tile that the planner has chosen names one."""

    families: Mapping[str, Family[Launch]]

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        found = (family.tiles(problem, direction, gpu, operands) for family in self.families.values())
        return tuple(tile for tiles in found for tile in tiles)

    def predict(self, problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
        return self.families[tile.kernel].predict(problem, direction, tile, gpu, tf32)

    def refused_families(
        self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands
    ) -> dict[str, str]:
        reasons = {}
        for name, family in self.families.items():
            reason = family.refuses(problem, direction, gpu, operands)
            if reason is None and not family.tiles(problem, direction, gpu, operands):
                reason = f"no tile fits {gpu.shared_memory >> 10} KiB of shared memory"
            if reason is not None:
                reasons[name] = reason
        return reasons
