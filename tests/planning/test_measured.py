"""The planner's formula, held to the times of tiles that were measured on an H100.

Left out are kernels that load or store otherwise now ("mended" in the file): what Triton 3.6 moved element by element,
and contiguous results of strided grad_input, and of grad_weight that is not split.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from gpuconv import backends
from gpuconv.backends.base import Tile
from gpuconv.bench.workloads import Workload
from gpuconv.gpu import KNOWN

FILE = Path(__file__).parents[2] / "bench/results/2026-11-26-h100-tiles.jsonl"


class Row(NamedTuple):
    """A tile of a problem: microseconds measured and predicted."""

    problem: tuple[str, ...]
    backend: str
    kernel: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """How many times too long or too short the prediction is."""
        return max(self.measured / self.predicted, self.predicted / self.measured)


def read() -> Iterator[Row]:
    _, *lines = FILE.read_text().splitlines()
    for line in lines:
        given: dict[str, Any] = json.loads(line)
        if given.get("mended"):
            continue
        direction, numbers, layout, backend = (given[n] for n in ("direction", "numbers", "layout", "backend"))
        problem = Workload(given["layer"], direction, numbers, given["batch"]).problem(layout)
        tile = Tile(*given["tile"])
        seconds = backends.get(backend).predict(problem, direction, tile, KNOWN["H100"], numbers == "tf32").seconds
        yield Row((given["layer"], direction, numbers, layout), backend, tile.family, 1e3 * given["ms"], seconds * 1e6)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(read())


def problems(rows: list[Row]) -> list[list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.problem, []).append(row)
    return list(found.values())


def measured(row: Row) -> float:
    return row.measured


def predicted(row: Row) -> float:
    return row.predicted


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def test_most_predictions_are_near_what_was_measured(rows: list[Row]) -> None:
    assert len(rows) > 1500
    assert sum(row.error <= 1.25 for row in rows) >= 0.77 * len(rows)
    assert sum(row.error <= 1.5 for row in rows) >= 0.93 * len(rows)
    assert 0.95 <= mean([row.measured / row.predicted for row in rows]) <= 1.1


def test_the_tile_that_is_taken_is_near_the_quickest(rows: list[Row]) -> None:
    lost = [min(tiles, key=predicted).measured / min(map(measured, tiles)) for tiles in problems(rows)]
    assert mean(lost) <= 1.06 and max(lost) <= 1.65


def test_the_kernels_that_are_taken_are_mostly_the_quickest(rows: list[Row]) -> None:
    """A family may be another that is as quick: within 5 %."""
    right = 0
    for tiles in problems(rows):
        taken = min(tiles, key=predicted)
        of_family = min(row.measured for row in tiles if (row.backend, row.kernel) == (taken.backend, taken.kernel))
        right += of_family <= 1.05 * min(map(measured, tiles))
    assert right >= 0.85 * len(problems(rows))
