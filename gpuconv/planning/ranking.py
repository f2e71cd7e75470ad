"""Which tile is predicted to be quickest: the backends say what there is and how long it takes, and this compares."""

from collections.abc import Iterable
from typing import NamedTuple

from gpuconv import backends
from gpuconv.backends import Backend
from gpuconv.backends.base import Operands, Tile, numbers
from gpuconv.backends.roofline import Prediction
from gpuconv.gpu import Gpu
from gpuconv.planning import distrust
from gpuconv.problem import ConvProblem, Direction


def ranked(
    backend: Backend, tiles: Iterable[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool
) -> list[tuple[Tile, Prediction]]:
    """Tiles of a backend, those that it predicts to be quickest first.

    Among equals the one that fetches least, of those the one of fewest instructions, then the smallest, the most
    oblong, and the first one listed.
    """
    predicted = [(tile, backend.predict(problem, direction, tile, gpu, tf32)) for tile in tiles]

    def order(pair: tuple[Tile, Prediction]) -> tuple[float, ...]:
        tile, prediction = pair
        size = tile.rows * tile.columns, tile.depth, -(tile.rows + tile.columns)
        return prediction.seconds, tile.splits, prediction.bytes, prediction.instructions, *size

    return sorted(predicted, key=order)


def best_tile(
    backend: Backend, tiles: Iterable[Tile], problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool
) -> Tile | None:
    """The first of `ranked`; None if there is none to choose."""
    return next((tile for tile, _ in ranked(backend, tiles, problem, direction, gpu, tf32)), None)


class Candidate(NamedTuple):
    """A way to compute a problem on a GPU, and how long it is predicted to take."""

    backend: str
    tile: Tile
    prediction: Prediction


def candidates(
    problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands
) -> tuple[list[Candidate], dict[str, str]]:
    """All that gpuconv's kernels could do on `gpu`, quickest first, and why others cannot, or are not trusted.

    `auto` takes the first (backends that users have registered aside). Needs no GPU.
    """
    found, refused = [], {}
    of, failed = numbers(problem.dtype, operands.tf32), distrust.failed(gpu.name)
    for name in backends.names():
        backend = backends.get(name)
        reason = backend.refuses_gpu(gpu)
        if reason is not None:
            refused[name] = reason
            continue
        menu = backend.tiles(problem, direction, gpu, operands)
        tiles, failures = distrust.sift(menu, name, direction, of, failed, {})
        found += [Candidate(name, *pair) for pair in ranked(backend, tiles, problem, direction, gpu, operands.tf32)]
        families = backend.refused_families(problem, direction, gpu, operands) | failures
        refused |= {f"{name} {family}".rstrip(): reason for family, reason in families.items()}
    return sorted(found, key=lambda candidate: candidate.prediction.seconds), refused
