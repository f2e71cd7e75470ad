"""Counts what the planner predicts: bytes, sectors, instructions, registers and shared memory, without a GPU.

    python -m gpuconv.bench.calibrate --gpu h100 --gpu a100     # predicted beside counted, for the thirty-layer list
    python -m gpuconv.bench.calibrate --fit                     # the costs of the kernels, for backends/constants.py

Kernels are compiled, and run on the virtual GPU on small images (`reduced`), which the same formula must hold for.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from gpuconv import backends
from gpuconv.backends import Backend, constants
from gpuconv.backends.base import Tile, contiguous_operands
from gpuconv.backends.roofline import SECTOR, Prediction
from gpuconv.bench import suites
from gpuconv.gpu import Gpu, named
from gpuconv.inspection.kernels import BACKENDS, Kernel, inspect_kernels
from gpuconv.planning.ranking import ranked
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

# Files whose loads are not the loop's: of the epilogue, and of the last program of a tile, which adds partial sums.
_BESIDE = ("epilogue", "last_block", "last_program", "sum_partials")
_USUAL = 0.05  # weight of the usual costs beside a row's
_SIDE = 16  # pixels of a reduced image's side at most, if the filter does not need more


class Counted(NamedTuple):
    """What the first kernel of a call counted, where `Prediction` has a field of the same name."""

    bytes: int
    sectors: int
    instructions: int


def reduced(problem: ConvProblem, batch: int = 2, side: int = _SIDE) -> ConvProblem:
    """The layer with fewer and smaller images."""
    needed = ((r - 1) * d + 1 for r, d in zip(problem.filter_size, problem.dilation, strict=True))
    size = tuple(min(h, max(side, least)) for h, least in zip(problem.input_size, needed, strict=True))
    return dataclasses.replace(problem, batch=min(problem.batch, batch), input_size=size)


def counted(kernel: Kernel) -> Counted:
    """What a kernel that was run has counted. Bytes that several lanes of an instruction want count once."""
    if kernel.counters is None:
        raise ValueError(f"{kernel.name} was not run")
    bytes_ = sectors = 0
    for line, row in zip(kernel.counters.lines, kernel.counters.table, strict=True):
        stores = line.opcode.startswith(("st.", "red.")) or ".global.shared" in line.opcode
        if not stores and not (line.source or "").startswith(_BESIDE):
            bytes_ += int(row["tma_bytes"]) + SECTOR * int(row["sectors_least"])
            sectors += int(row["tma_bytes"]) // SECTOR + int(row["sectors"])
    return Counted(bytes_, sectors, kernel.counters.instructions)


def error(predicted: float, found: float) -> float:
    """How far apart they are, as a fraction of what was counted."""
    return abs(predicted - found) / max(1.0, found)


def tiles_of(
    problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool, whole: ConvProblem | None = None
) -> Iterator[tuple[str, Tile]]:
    """The backends' tiles for a problem. whole: of each backend only the one that is most like what is planned for the
    layer before it was reduced."""
    for name in BACKENDS:
        backend = backends.get(name)
        if backend.refuses_gpu(gpu) is None:
            found = _ranked(backend, problem, direction, gpu, tf32)
            if whole is not None:
                planned = _ranked(backend, whole, direction, gpu, tf32)[0]
                found = sorted(found, key=lambda tile: _alike(tile) != _alike(planned))[:1]
            yield from ((name, tile) for tile in found)


def _ranked(backend: Backend, problem: ConvProblem, direction: Direction, gpu: Gpu, tf32: bool) -> list[Tile]:
    operands = contiguous_operands(problem, direction, problem.memory_format)._replace(tf32=tf32)
    tiles = backend.tiles(problem, direction, gpu, operands)
    return [tile for tile, _ in ranked(backend, tiles, problem, direction, gpu, tf32)]


def _alike(tile: Tile) -> tuple[object, ...]:
    return tile.kernel, tile.rows, tile.columns, tile.depth, tile.warps


# ---- the costs -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A kernel with one tile: predicted and counted."""

    name: str
    key: tuple[str, str, str]  # of `constants.COSTS`
    features: tuple[float, ...]  # the instructions of a cost of 1 in each place alone
    predicted: Prediction
    counted: Counted
    beside: float  # registers of a thread beside those that `Cost.registers` stands for
    registers: int
    assumed: int  # programs on a multiprocessor
    blocks: int  # that fit


def run(problem: ConvProblem, direction: Direction, backend: str, gpu: Gpu, tile: Tile, tf32: bool = False) -> Row:
    """The row of a tile, run once."""
    kernels = inspect_kernels(problem, direction, backend, gpu, tf32, run=True, tile=tile, bias=False)
    return row_of(next(kernel for kernel in kernels if kernel.prediction))  # not one that packs, or adds


def row_of(kernel: Kernel) -> Row:
    """The row of a kernel that was run."""
    backend, tile, prediction = backends.get(kernel.backend), kernel.tile, kernel.prediction
    if prediction is None:
        raise ValueError(f"{kernel.name} has no prediction")
    arguments = kernel.problem, kernel.direction, tile, kernel.gpu, kernel.operands.tf32
    asked: list[tuple[str, str, str]] = []
    kept = constants.cost_of
    features = []
    try:
        for place in range(len(constants.PLACES)):
            only = constants.Cost._make((*(float(i == place) for i in range(len(constants.PLACES))), 0))
            constants.cost_of = lambda *key, only=only: asked.append(key) or only  # type: ignore[func-returns-value]
            features.append(backend.predict(*arguments).instructions)
    finally:
        constants.cost_of = kept
    step, _, _, left, right, element, start, result = features
    beside = result / start + constants.REGISTERS_A_FETCH * (left + right + element) / max(1.0, step)
    if tile.kernel in ("depthwise", "taps"):
        beside = constants.REGISTERS_A_TAP * kernel.problem.taps * (tile.kernel == "taps")
    return Row(
        f"{kernel.backend} {kernel.direction} {tile} {kernel.problem}", asked[0], tuple(features), prediction,
        counted(kernel), beside,
        kernel.code.registers, prediction.together, kernel.blocks,
    )  # fmt: skip


def fit(rows: list[Row]) -> dict[tuple[str, str, str], constants.Cost]:
    """The costs that come nearest to what was counted, relatively, of those that are not negative."""
    found = {}
    for key in sorted({row.key for row in rows}):
        of_key = [row for row in rows if row.key == key]
        a = np.array([np.array(row.features) / row.counted.instructions for row in of_key])
        usual = np.array(constants.UNKNOWN[:-1])  # where the rows leave a choice
        a = np.vstack([a, np.diag(_USUAL / usual)])
        wanted = np.concatenate([np.ones(len(of_key)), np.full(len(usual), _USUAL)])
        places, x = list(range(len(usual))), np.zeros(len(usual))
        while True:
            x[:] = 0
            x[places] = np.linalg.lstsq(a[:, places], wanted, rcond=None)[0]
            if (x >= 0).all():
                break
            places.remove(int(x.argmin()))
        registers = max(row.registers - row.beside for row in of_key)
        found[key] = constants.Cost._make((*(round(float(value), 2) for value in x), int(np.ceil(registers))))
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gpuconv.bench.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="append", help="GPUs to predict for and to emulate; h100 and a100")
    parser.add_argument("--layer", action="append", help="of the thirty; all")
    parser.add_argument("--dtype", default="float16", choices=("float16", "tf32", "float32"))
    parser.add_argument("--layout", default="channels_last", choices=("channels_last", "contiguous"))
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--all", action="store_true", help="every tile, not the one that would be chosen")
    parser.add_argument("--fit", action="store_true", help="print the costs that would be nearest; of every tile")
    chosen = parser.parse_args(arguments)
    dtype = torch.float16 if chosen.dtype == "float16" else torch.float32
    memory_format = torch.channels_last if chosen.layout == "channels_last" else torch.contiguous_format
    every = chosen.all or chosen.fit
    tf32, rows, seen = chosen.dtype == "tf32", [], set()
    for name in chosen.layer or suites.SUITES["thirty"].layers:
        whole = suites.layer(f"thirty.{name}", dtype=dtype, memory_format=memory_format)
        problem = reduced(whole)
        for gpu in map(named, chosen.gpu or ("h100", "a100")):
            for direction in DIRECTIONS:
                for backend, tile in tiles_of(problem, direction, gpu, tf32, None if every else whole):
                    of_layer = (problem.taps, problem.stride, problem.group_channels % 8, problem.groups > 1)
                    alike = (gpu.name, direction, backend, dataclasses.replace(tile, splits=1, windows=0), *of_layer)
                    if (chosen.backend and backend not in chosen.backend) or (chosen.fit and alike in seen):
                        continue
                    seen.add(alike)
                    row = run(problem, direction, backend, gpu, tile, tf32)
                    rows.append(row)
                    if not chosen.fit:
                        print(_line(f"{name} {gpu.name} {backend} {direction} {tile}", row), flush=True)
    if chosen.fit:
        for key, cost in fit(rows).items():
            print(f"    {key!r}: Cost({', '.join(f'{value:g}' for value in cost)}),".replace("'", '"'))
    return 0


def _line(name: str, row: Row) -> str:
    pairs = (
        f"{p:>13,.0f}{c:>13,} {p / max(1, c) - 1:+6.0%}" for p, c in zip(row.predicted[7:10], row.counted, strict=True)
    )
    return f"{name:95}{''.join(pairs)}  {row.assumed} of {row.blocks} programs, {row.registers} registers"


if __name__ == "__main__":
    sys.exit(main())
