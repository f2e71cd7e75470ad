"""Options that name layers of `gpuconv.bench.suites`, and the problems that they stand for."""

from collections.abc import Iterator
from typing import Annotated

import typer

from gpuconv.bench import suites
from gpuconv.bench.workloads import LAYOUTS
from gpuconv.checking.precision import NUMBERS
from gpuconv.cli.options import checked, each_of, one_of
from gpuconv.errors import UserError
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

_LAYER = typer.Option("--layer", show_default=False, help="A layer, suite.name, or a whole suite. Repeatable.")
Layers = Annotated[list[str], _LAYER]
LayersOrNone = Annotated[list[str] | None, _LAYER]
Numbers = Annotated[str, typer.Option("--dtype", help=f"{', '.join(NUMBERS)}.")]
Layout = Annotated[str, typer.Option(help=f"{', '.join(LAYOUTS)}.")]
Batch = Annotated[int | None, typer.Option(show_default=False, help="Images. Default: the suite's.")]


def problems_of(
    names: list[str], directions: list[str] | None, dtype: str, layout: str, batch: int | None
) -> Iterator[tuple[str, ConvProblem, Direction]]:
    """Each layer that is named, alone or with its suite, in each direction: its name, problem and direction."""
    numbers = NUMBERS[one_of("dtype", dtype, NUMBERS)]
    memory_format = LAYOUTS[one_of("layout", layout, LAYOUTS)]
    wanted = each_of("direction", directions, DIRECTIONS)
    if batch is not None and batch < 1:
        raise UserError(f"batch must be at least 1, but got {batch}")
    for name in names:
        whole = name in suites.SUITES
        for one in [f"{name}.{layer}" for layer in suites.SUITES[name].layers] if whole else [name]:
            problem = checked(suites.layer, one, batch, numbers, memory_format)
            for direction in wanted:
                yield one, problem, direction
