"""A family of kernels: one way of computing convolutions, as a backend declares it. Nothing here needs a GPU.

To add one: a kernel file, a module here that ends in `FAMILY = Family(…)`, and one line in `FAMILIES` of its backend.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from gpuconv.activations import Activation
from gpuconv.backends import derived, packing
from gpuconv.backends.base import Backend, Operands, Tile
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

Launch = TypeVar("Launch")  # the backend's own
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    turns: bool = False  # grad_input reads weights whose filters are innermost, too
    # Tensors must begin at multiples of 16 bytes; else the call is done on copies of them.
    needs_alignment: bool = False


def by_name(*families: Family[Launch]) -> dict[str, Family[Launch]]:
    """A registry of families."""
    return {family.name: family for family in families}


class FamilyBackend(Backend, Generic[Launch]):
    """A backend whose kernels come in families. The tile that the planner has chosen names one.

    Where operands are such that kernels would fetch them element by element, it offers the families' tiles for copies
    of them instead, and where they would write the result so, tiles for a result channels last that is copied then
    (`gpuconv.backends.packing`).
    """

    families: Mapping[str, Family[Launch]]

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        tiles = self._for_result(problem, direction, gpu, operands)
        if not packing.worth_packing_result(problem, direction, gpu, operands):
            return tiles
        last = self._for_result(packing.problem_of_copies(problem, packing.RESULT), direction, gpu, operands)
        return (*tiles, *(replace(tile, packs=packing.with_result(tile.packs)) for tile in last if not tile.addressed))

    def _for_result(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        """The tiles whose kernels write the result as the problem says."""
        as_they_lie = self._tiles(problem, direction, gpu, operands)
        packs = packing.worth_packing(problem, direction, gpu, operands)
        turned = self._turned(problem, direction, gpu, operands, packs)
        if not packs:
            return (*as_they_lie, *turned)
        copied = packing.packed(problem, direction, operands, packs)
        better = [tile for tile in self._tiles(problem, direction, gpu, copied) if tile not in as_they_lie]
        if not all(tile.addressed for tile in better):
            as_they_lie = tuple(tile for tile in as_they_lie if not tile.addressed)
        return (*as_they_lie, *(replace(tile, packs=packs) for tile in better), *turned)

    def _turned(
        self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands, packs: str
    ) -> list[Tile]:
        """The tiles that read a turned weight, and copies of the other operands that `packs` names."""
        packs = packing.turning(problem, direction, gpu, operands, packs)
        if not packs:
            return []
        copied = packing.packed(problem, direction, operands, packs)
        families = (family for family in self.families.values() if family.turns)
        found = (family.tiles(problem, direction, gpu, copied) for family in families)
        return [replace(tile, packs=packs) for tiles in found for tile in tiles]

    def _tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        """The tiles of all families for operands that lie so."""
        found = (family.tiles(problem, direction, gpu, operands) for family in self.families.values())
        return tuple(tile for tiles in found for tile in tiles)

    def predict(self, problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
        computed = packing.problem_of_copies(problem, tile.packs)
        prediction = self.families[tile.kernel].predict(computed, direction, tile, gpu, tf32)
        prediction = packing.with_parts(prediction, computed, direction, tile, gpu)
        return packing.with_copies(prediction, problem, direction, tile, gpu) if tile.packs else prediction

    def bind(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands | None = None,
        tile: Tile | None = None,
    ) -> Callable[..., Any]:
        if operands is None or tile is None:
            raise TypeError(f"backend {self.name!r} is bound to the operands and the tile that the planner chose")
        return self.bind_tile(problem, direction, device, activation, operands, tile)

    def bind_tile(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands,
        tile: Tile,
    ) -> Callable[..., Any]:
        """What `bind` gives, for the tile that the planner chose."""
        raise NotImplementedError

    def refuses_dtype(self, dtype: torch.dtype) -> str | None:
        """Why no kernel multiplies numbers of this type; None if some do."""
        if dtype in _DTYPES:
            return None
        *others, last = map(str, _DTYPES)
        return f"it computes {', '.join(others)} and {last}, not {dtype}".replace("torch.", "")

    def refused_families(
        self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands
    ) -> dict[str, str]:
        reasons: dict[str, str] = {}
        offered = {tile.kernel for tile in self.tiles(problem, direction, gpu, operands)}
        for name, family in self.families.items():
            if name in offered:
                continue
            reason = family.refuses(problem, direction, gpu, operands)
            if reason is None and not family.tiles(problem, direction, gpu, operands):
                reason = f"no tile fits {gpu.shared_memory >> 10} KiB of shared memory"
            if reason is not None:
                reasons[name] = reason
        return reasons
