"""What was measured on this machine: for a problem on a GPU, how long each backend took, and with which tile.

`gpuconv tune` records, the planner looks up. One JSON file in the user's cache directory (`path`), replaced whole and
merged with what others wrote meanwhile, so that processes may tune at once and an interrupted one loses nothing that it
recorded. A file that cannot be read, or that another version wrote, is ignored with one warning and kept aside when
something new is recorded.
"""

import dataclasses
import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpuconv.backends.base import Operands, Tile, contiguous_operands, numbers
from gpuconv.files import alone, cache_folder, write_atomically
from gpuconv.problem import ConvProblem, Direction

VERSION = 1  # of the file; another one is not read


class Measured(NamedTuple):
    """The best time of a backend, and the tile that it took (None for a backend that offers none)."""

    seconds: float
    tile: Tile | None


Winners = dict[str, Measured]  # by backend
_tables: dict[Path, dict[str, Winners]] = {}
_reading = threading.Lock()


def path() -> Path:
    """Where the table is."""
    return cache_folder() / "tuned.json"


def key_of(problem: ConvProblem, direction: Direction, device: str, operands: Operands) -> str | None:
    """What a time depends on, as text: device, number type, direction, layout and every field of the problem.

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
    """What was recorded for this problem on a device of this name; empty where nothing was."""
    table = _table(path())
    key = key_of(problem, direction, device, operands) if table else None
    return table.get(key, {}) if key is not None else {}


def record(found: Mapping[str, Winners]) -> None:
    """Add to the table, by `key_of`: of two times of a backend for the same key the new one stays.

    Raises OSError where the file cannot be written; then it is as it was.
    """
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.with_suffix(".lock")):
        try:
            table = _read(file)
        except (OSError, ValueError) as error:
            aside = file.with_suffix(".damaged.json")
            os.replace(file, aside)
            warnings.warn(f"{file} could not be used ({error}); it is kept as {aside}", stacklevel=2)
            table = {}
        for key, winners in found.items():
            table[key] = {**table.get(key, {}), **winners}
        text = json.dumps({"version": VERSION, "problems": _plain(table)}, indent=0, sort_keys=True)
        write_atomically(file, text.encode())
    with _reading:
        _tables[file] = table


def forget() -> None:
    """Read the table again when it is next needed."""
    with _reading:
        _tables.clear()


def _table(file: Path) -> dict[str, Winners]:
    table = _tables.get(file)
    if table is None:
        with _reading:
            try:
                table = _read(file)
            except (OSError, ValueError) as error:
                warnings.warn(f"{file} is ignored: {error}", stacklevel=2)
                table = {}
            _tables[file] = table
    return table


def _read(file: Path) -> dict[str, Winners]:
    """The table in `file`, empty if there is no file. Raises ValueError for what is not such a table."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"it is not a tuning table of version {VERSION}")
    try:
        return {
            key: {
                backend: Measured(float(m["seconds"]), None if m["tile"] is None else Tile(**m["tile"]))
                for backend, m in winners.items()
            }
            for key, winners in content["problems"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an entry is not as it should be ({type(error).__name__}: {error})") from error


def _plain(table: dict[str, Winners]) -> dict[str, Any]:
    return {
        key: {
            backend: {"seconds": m.seconds, "tile": m.tile and dataclasses.asdict(m.tile)}
            for backend, m in winners.items()
        }
        for key, winners in table.items()
    }
