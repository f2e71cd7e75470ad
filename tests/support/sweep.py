"""The cases of the emulator's sweep: kernels, tiles and problems, chosen without compiling.

A lane is a backend on a GPU. A kind is what must be exercised: (backend, GPU, family, direction, number type, layout).
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.backends import packing
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import backend as cuda
from gpuconv.backends.cuda.launch import Launch as CudaLaunch
from gpuconv.backends.roofline import programs_and_steps
from gpuconv.backends.triton import backend as triton
from gpuconv.backends.triton.launch import Launch
from gpuconv.bench import suites
from gpuconv.checking import check
from gpuconv.checking.precision import NUMBERS
from gpuconv.checking.problems import CURATED, LAYOUTS, LONG_SUMS, OF_FAMILIES, laid_out, problem_called
from gpuconv.gpu import KNOWN
from gpuconv.planning.ranking import ranked
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction, memory_format_of

GPUS = {"triton": ("A100", "H100"), "cuda": ("T4", "A100", "H100")}
LANES = [(backend, gpu) for backend, gpus in GPUS.items() for gpu in gpus]
MODULES = {"triton": triton, "cuda": cuda}
SMALL = {name: p for name, p in (CURATED | OF_FAMILIES | LONG_SUMS).items() if p.batch}
LAYERS = {f"thirty.{name}": suites.layer(f"thirty.{name}") for name in suites.SUITES["thirty"].layers}
_ENOUGH = 3e6  # products, those beside the image included: some milliseconds for the emulator
Kind = tuple[str, str, str, str, str, str]


class Epilogue(NamedTuple):
    """The epilogue of a forward pass."""

    bias: bool = False
    residual: bool = False
    activation: str = "none"


NOTHING = Epilogue()
EPILOGUES = (
    NOTHING, Epilogue(True), Epilogue(True, True), Epilogue(False, True),
    *(Epilogue(True, True, activation) for activation in check.ACTIVATIONS),
)  # fmt: skip


class Case(NamedTuple):
    """One call: of a backend's kernels with a tile, compiled for a GPU."""

    backend: str
    gpu: str
    direction: Direction
    numbers: str
    layout: str
    name: str  # what random data are drawn from
    plain: ConvProblem  # without element type and layout
    tile: Tile
    epilogue: Epilogue = NOTHING

    @property
    def kind(self) -> Kind:
        return self.backend, self.gpu, self.tile.family, self.direction, self.numbers, self.layout

    @property
    def dtype(self) -> torch.dtype:
        return NUMBERS[self.numbers]

    @property
    def problem(self) -> ConvProblem:
        return _as_planned(self)[0]

    @property
    def operands(self) -> Operands:
        return _as_planned(self)[1]

    @property
    def launches(self) -> tuple[Launch | CudaLaunch, ...]:
        activation = Activation.parse(self.epilogue.activation)
        module = MODULES[self.backend]
        return module.launches(self.problem, self.direction, self.operands, self.tile, activation, with_bias=True)

    def __str__(self) -> str:
        e = self.epilogue
        extra = ["bias"] * e.bias + ["residual"] * e.residual + [e.activation] * (e.activation != "none")
        how = f"{self.backend} on {self.gpu}, {self.direction} {self.numbers} {self.layout}"
        return f"{self.name!r}, {how}, {self.tile}, {' + '.join(extra)}".rstrip(", ") + f" ({self.problem})"


def _as_planned(case: Case) -> tuple[ConvProblem, Operands]:
    return as_planned(case.plain, case.direction, case.numbers, case.layout, case.epilogue)


@functools.cache
def as_planned(
    plain: ConvProblem, direction: Direction, numbers: str, layout: str, epilogue: Epilogue = NOTHING
) -> tuple[ConvProblem, Operands]:
    """The problem and operands with which the planner would describe a call with such tensors to a backend."""

    def empty(shape: tuple[int, ...]) -> torch.Tensor:
        return laid_out(torch.empty(shape, dtype=NUMBERS[numbers], device="meta"), layout)

    a, b = map(empty, plain.operand_shapes(direction))
    problem = dataclasses.replace(plain, dtype=a.dtype, memory_format=memory_format_of(a, b))
    residual = empty(plain.output_shape).stride() if epilogue.residual else None
    return problem, Operands((a.stride(), b.stride()), residual, epilogue.bias, numbers == "tf32")


@functools.cache
def menu(
    backend: str, gpu: str, direction: Direction, numbers: str, layout: str, plain: ConvProblem
) -> tuple[Tile, ...]:
    """The tiles that the planner may choose from, what it predicts to be quickest first."""
    problem, operands = as_planned(plain, direction, numbers, layout)
    tiles = backends.get(backend).tiles(problem, direction, KNOWN[gpu], operands)
    return tuple(
        tile for tile, _ in ranked(backends.get(backend), tiles, problem, direction, KNOWN[gpu], operands.tf32)
    )


def _each(lane: tuple[str, str], problems: dict[str, ConvProblem], most: int | None = None) -> Iterator[Case]:
    """The first tiles of each menu: in each direction, number type and layout."""
    for direction, numbers, (name, plain) in itertools.product(DIRECTIONS, NUMBERS, problems.items()):
        for layout in LAYOUTS[: min(2, plain.ndim)]:
            for tile in menu(*lane, direction, numbers, layout, plain)[:most]:
                yield Case(*lane, direction, numbers, layout, name, plain, tile)


@functools.cache
def claimed(lane: tuple[str, str]) -> frozenset[Kind]:
    """The kinds of kernels that the families of a lane say they have, for real layers and for small problems."""
    return frozenset(case.kind for problems in (LAYERS, SMALL) for case in _each(lane, problems))


# ---- cases -----------------------------------------------------------------------------------------------------------


def chosen(lane: tuple[str, str], randoms: int, full: bool) -> list[Case]:
    """The planner's choices for the curated problems and for random ones, in each direction.

    Each for one GPU of the backend, in one number type and layout; if `full` in all.
    """
    found, gpus = [], GPUS[lane[0]]
    names = [*CURATED, *(f"random {seed}" for seed in range(randoms))]
    for (at, name), direction, (i, numbers) in itertools.product(enumerate(names), DIRECTIONS, enumerate(NUMBERS)):
        turn = at + DIRECTIONS.index(direction)
        if full or (turn % 5 == i and turn // 5 % len(gpus) == gpus.index(lane[1])):
            for layout in LAYOUTS if full else (LAYOUTS[turn % 2 if turn % 8 < 6 else 2 + turn % 2],):
                plain = problem_called(name)
                for tile in menu(*lane, direction, numbers, layout, plain)[:1]:
                    found.append(Case(*lane, direction, numbers, layout, name, plain, tile))
    return found


sizes_of = operator.attrgetter("kernel", "packs", "taps", "rows", "columns", "depth", "warps", "stages", "width")


def tiles_of_layers(backend: str, full: bool) -> list[Case]:
    """The tiles that the planner chooses for the thirty layers, each for one of the GPUs, number types and layouts that
    it is chosen for; if `full` for all of them. On the smallest problem that the same kernel is launched for."""
    by_tile: dict[object, dict[Kind, Case]] = {}
    for lane in LANES:
        for case in _each(lane, LAYERS, 1) if lane[0] == backend else ():
            if case.direction == "forward":
                case = case._replace(epilogue=Epilogue(bias=True))
            key = case.direction, sizes_of(case.tile), case.kind if full else None
            by_tile.setdefault(key, {}).setdefault(case.kind, case)
    kinds: set[Kind] = set()
    found = []
    for at, offers in enumerate(by_tile.values()):
        new = [kind for kind in offers if kind not in kinds]
        kind = (new or [*offers])[at % len(new or offers)]
        kinds.add(kind)
        found.append(offers[kind])
    return found


def smallest(case: Case) -> Case:
    """The case with the least problem that the same kernels are launched for, but for copies that are made first, with
    a tile that differs in how many programs share a sum, or take tiles in turn."""
    keys = keys_of(case)
    for plain in _smaller(case):
        if not _takes(case._replace(plain=plain)):
            continue
        if case.tile.persistent:  # few programs, so that each takes several tiles
            tiles = [dataclasses.replace(case.tile, splits=min(case.tile.splits, 2), persistent=3)]
        else:
            problem, operands = as_planned(plain, case.direction, case.numbers, case.layout)
            offered = backends.get(case.backend).tiles(problem, case.direction, KNOWN[case.gpu], operands)
            tiles = [tile for tile in offered if sizes_of(tile) == sizes_of(case.tile)]
            tiles.sort(key=lambda t: ((t.splits > 1) != (case.tile.splits > 1), t.splits))
            # The fewest splits; or as many as there are, so many that a launch of its own adds them.
            tiles = tiles[:1] + [dataclasses.replace(tile, splits=case.tile.splits) for tile in tiles[:1]]
        for tile in tiles:
            less = case._replace(plain=plain, tile=tile)
            if keys_of(less) == keys:
                return less
    return case


def _takes(case: Case) -> bool:
    """Whether the family of its tile takes the problem."""
    operands = packing.packed(case.problem, case.direction, case.operands, case.tile.packs)
    family = MODULES[case.backend].FAMILIES[case.tile.kernel]
    return family.refuses(case.problem, case.direction, KNOWN[case.gpu], operands) is None


def keys_of(case: Case) -> set[object]:
    """The keys of what is launched, but for copies."""
    return {key_of(launch) for launch in case.launches[case.tile.packs != "" :]}


def key_of(launch: Launch | CudaLaunch) -> object:
    """The key by which compiled kernels differ."""
    if isinstance(launch, CudaLaunch):
        return launch.instance
    return (launch.kernel, launch.dtypes, *launch.constants.items(), *launch.options.items())


def _smaller(case: Case) -> Iterator[ConvProblem]:
    """Its problem with fewer images, pixels, channels, filters and groups, the least work first."""
    plain = case.plain

    def few(n: int, *counts: int) -> list[int]:
        return [*(count for count in counts if count < n), n]

    c, k = plain.group_channels, plain.group_filters
    axes = zip(plain.filter_size, plain.dilation, plain.padding, strict=True)
    need = [d * (r - 1) + 1 - sum(p) for r, d, p in axes]
    found = []
    for groups, c_, k_ in itertools.product(few(plain.groups, 8, 32), few(c, 40, 64, 72, 144), few(k, 24, 64, 72, 144)):
        for size, n in itertools.product(few(plain.input_size[0], 7, 8, 10, 12, 14, 16, 24, 28, 40), (1, 2, 8, 16, 32)):
            sizes = (max(size, h) for h in need)
            found.append(((n, groups * c_, *sizes), (groups * k_, c_, *plain.filter_size), groups))
    found.sort(key=lambda shapes: math.prod(shapes[0]) * shapes[1][0] / shapes[2])
    settings = plain.stride, plain.padding, plain.dilation
    return (ConvProblem.of(x, w, *settings, groups) for x, w, groups in found)


def of_kinds(lane: tuple[str, str], covered: set[Kind]) -> list[Case]:
    """For each kind that a family claims and that is not covered, the largest problem that is still small."""
    best: dict[Kind, tuple[Case, float]] = {}
    for case in _each(lane, SMALL):
        if case.kind in covered:
            continue
        programs, steps = programs_and_steps(case.plain, case.direction, case.tile)
        work = programs * (steps + 1) * case.tile.rows * case.tile.columns * max(case.tile.depth, 8)
        _, before = best.get(case.kind, (case, math.inf))
        if work < before > _ENOUGH or before < work <= _ENOUGH:
            best[case.kind] = case, work
    return [case for case, _ in best.values()]


def with_epilogues(cases: Sequence[Case], full: bool) -> list[Case]:
    """The forward passes among them with a bias, but for some of each family, which have all epilogues among them; if
    `full` each with each."""
    found, left = [], {}
    for case in cases:
        if case.direction != "forward":
            found.append(case)
        elif full:
            found += [case._replace(epilogue=epilogue) for epilogue in EPILOGUES]
        else:
            left.setdefault(case.tile.family, []).append(case)
    for some in left.values():
        taken = [at * len(some) // len(EPILOGUES) for at in range(len(EPILOGUES))]  # far apart
        found += [some[at]._replace(epilogue=epilogue) for at, epilogue in zip(taken, EPILOGUES, strict=True)]
        found += [case._replace(epilogue=EPILOGUES[1]) for at, case in enumerate(some) if at not in taken]
    return found


@functools.cache
def cases(backend: str, randoms: int = 20, full: bool = False) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """All of a backend: on small problems, and those with the tiles of real layers (whose kernels take more time)."""
    lanes = [lane for lane in LANES if lane[0] == backend]
    tiles = tiles_of_layers(backend, full)
    small = [case for lane in lanes for case in chosen(lane, randoms, full)]
    families = {case.tile.family for case in small}  # what is left of these takes its epilogues from the others
    others = [case for case in tiles if case.direction != "forward" or case.tile.family in families]
    covered = {case.kind for case in (*small, *others)}
    small += [case for lane in lanes for case in of_kinds(lane, covered)]
    return tuple(with_epilogues(small, full)), tuple(tiles)
