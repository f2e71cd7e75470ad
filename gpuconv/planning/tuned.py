"""Times measured on this machine: for a problem on a GPU, how long each backend took, and with which tile.

`gpuconv tune` records, the planner looks up. It is a `gpuconv.planning.table.Table` in the user's cache directory
(`path`).
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpuconv.backends.base import Operands, Tile, contiguous_operands, numbers
from gpuconv.planning.table import Table
from gpuconv.problem import ConvProblem, Direction


class Measured(NamedTuple):
    """The best time of a backend, and the tile that it took (None for a backend that offers none)."""

    seconds: float
    tile: Tile | None


Winners = dict[str, Measured]  # by backend
_warned: set[Path] = set()  # of tiles that are no more; once for a file


def path() -> Path:
    """The file that the table is in."""
    return _table.path()


def key_of(problem: ConvProblem, direction: Direction, device: str, operands: Operands) -> str | None:
    """The key of a time in the table: device, number type, direction, layout and every field of the problem, as text.

    None where the tensors lie in no memory format: such calls are not tuned.
    """
    if operands.strides != contiguous_operands(problem, direction, problem.memory_format).strides:
        return None

    def by(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    return (
        f"{device} {direction} {numbers(problem.dtype, operands.tf32)} "
        f"{str(problem.memory_format).removeprefix('torch.')} "
        f"n{problem.batch} c{problem.in_channels} k{problem.out_channels} g{problem.groups} "
        f"in{by(problem.input_size)} filter{by(problem.filter_size)} stride{by(problem.stride)} "
        f"pad{','.join(f'{low}:{high}' for low, high in problem.padding)} dilation{by(problem.dilation)}"
    )


def look_up(problem: ConvProblem, direction: Direction, device: str, operands: Operands) -> Winners:
    """The times recorded for this problem on a device of this name; empty if there are none."""
    entries = _table.entries()
    key = key_of(problem, direction, device, operands) if entries else None
    return entries.get(key, {}) if key is not None else {}


def on_the_menu(measured: Measured | None, tiles: tuple[Tile, ...], backend: str) -> Tile | None:
    """The tile among `tiles` that was measured; None if none was.

    A measured tile that is not among them (of another version, or of a damaged file) is ignored, with one warning for
    the file. The result is from `tiles`: in a file 64 may have become 64.0, and kernels are compiled for integers.
    """
    if measured is None or measured.tile is None:
        return None
    found = next((tile for tile in tiles if tile == measured.tile), None)
    if found is None and path() not in _warned:
        _warned.add(path())
        warnings.warn(
            f"{path()} has tiles that backend {backend!r} does not offer today (the first: {measured.tile!r}); they "
            "are ignored, and gpuconv tune measures again",
            stacklevel=2,
        )
    return found


def record(found: Mapping[str, Winners]) -> None:
    """Add times to the table, by `key_of`; a backend's new time for a key takes the place of its old one.

    Raises OSError where the file cannot be written; then it is as it was.
    """
    _table.record(found)


def forget() -> None:
    """Read the table again when it is next needed."""
    _table.forget()


def _parse(winners: dict[str, Any]) -> Winners:
    return {backend: _measured(m) for backend, m in winners.items()}


def _measured(m: dict[str, Any]) -> Measured:
    seconds = float(m["seconds"])
    if not 0 < seconds < math.inf:
        raise ValueError(f"{seconds} seconds")
    return Measured(seconds, None if m["tile"] is None else Tile(**m["tile"]))


def _plain(winners: Winners) -> dict[str, Any]:
    return {
        backend: {"seconds": m.seconds, "tile": m.tile and dataclasses.asdict(m.tile)} for backend, m in winners.items()
    }


_table: Table[Winners] = Table("tuned.json", "problems", _parse, _plain, lambda old, new: {**old, **new})
