"""The kernels that faults are planted in: which, with what tile, on what problem."""

import dataclasses
import functools
from typing import NamedTuple

import pytest
import torch
from planted_ptx import Kernel

from gpuconv import backends, emulator
from gpuconv.backends.cuda import compiler as cuda_compile
from gpuconv.backends.triton import launch as triton_launch
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem, Direction

runs_here = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(triton_launch.INTERPRETING, reason="what is interpreted is not compiled"),
]


class Planned(NamedTuple):
    """A kernel, its tile the smallest of a family that it is offered."""

    backend: str
    gpu: str
    direction: Direction
    family: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    settings: dict[str, object]
    tile: dict[str, int] = {}  # what is different in the tile  # noqa: RUF012
    contiguous: bool = False
    least: int = 0  # synchronising instructions that run
    also: str = ""  # the kernel of the same text that runs the others
    dtype: torch.dtype = torch.bfloat16


# Small, none of a tile's sizes whole; more steps than stages, so that each stage is filled again, and phases flip; one
# program of the window kernel, which takes two tiles.
KERNELS = {
    "window forward": Planned(
        "triton", "H100", "forward", "window", (2, 72, 5, 7), (72, 72, 3, 1), {"padding": (1, 0)},
        {"stages": 3, "persistent": 1}, least=30,
    ),
    "window grad_weight": Planned(
        "triton", "H100", "grad_weight", "window", (2, 40, 17, 13), (40, 40, 3, 1), {"padding": (1, 0), "stride": 2},
        {"stages": 3}, least=40,
    ),
    "tensor forward": Planned(
        "cuda", "A100", "forward", "tensor", (1, 72, 3, 5, 5), (24, 72, 3, 1, 3), {"padding": (1, 0, 1)}, least=10
    ),
    "halo forward": Planned("cuda", "A100", "forward", "halo", (1, 72, 9, 8), (24, 72, 3, 3), {"padding": 1}, least=10),
    "depthwise forward": Planned(
        "cuda", "A100", "forward", "depthwise", (1, 40, 9, 7), (40, 1, 3, 3), {"padding": 1, "groups": 40},
        {"warps": 2}, least=3,
    ),
    "banded forward": Planned(
        "cuda", "A100", "forward", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, contiguous=True, least=5
    ),
    "banded grad_weight": Planned(
        "cuda", "A100", "grad_weight", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, contiguous=True, least=8,
        also="banded grad_weight in splits",
    ),
    "banded grad_weight in splits": Planned(
        "cuda", "A100", "grad_weight", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, {"splits": 2}, True, 8,
        "banded grad_weight",
    ),
}  # fmt: skip
WINDOWS, TILED = ("window forward", "window grad_weight"), ("tensor forward", "halo forward")
COPYING = tuple(name for name in KERNELS if name not in WINDOWS)


@functools.cache
def kernel(name: str, poisoned: bool = False) -> Kernel:
    """`poisoned`: the first elements of its tensors are NaN."""
    return planned(name, KERNELS[name], poisoned)


def planned(name: str, p: Planned, poisoned: bool = False) -> Kernel:
    compiler = {"cuda": cuda_compile.why_not, "triton": triton_launch.why_no_compiler}[p.backend]
    if (reason := compiler()) is not None:
        pytest.skip(f"{name} cannot be compiled here: {reason}")
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[len(p.input) - 2]
    memory_format = torch.contiguous_format if p.contiguous else last
    problem = ConvProblem.of(p.input, p.weight, dtype=p.dtype, memory_format=memory_format, **p.settings)
    operands = plan.contiguous_operands(problem, p.direction, memory_format)
    menu = backends.get(p.backend).tiles(problem, p.direction, KNOWN[p.gpu], operands)
    warps = p.tile.get("warps")
    offered = [tile for tile in menu if tile.kernel == p.family and warps in (None, tile.warps)]
    if not offered:
        pytest.skip(f"on this release of Triton there is no {name} kernel in bfloat16")
    tile = min(offered, key=lambda t: (t.splits, t.persistent, t.rows * t.columns, t.depth, t.warps))
    tile = dataclasses.replace(tile, **p.tile)
    return Kernel(name, problem, p.direction, p.backend, p.gpu, tile, poisoned)
