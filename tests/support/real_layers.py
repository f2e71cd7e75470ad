"""What `auto` launches for the layers of real networks, on problems that have less of everything but the row length."""

import itertools
from collections.abc import Iterator

import sweep
import torch
from emulated import lane_of
from sweep import Case

from gpuconv import backends
from gpuconv.activations import IDENTITY
from gpuconv.bench import suites
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.emulator import Counters
from gpuconv.gpu import KNOWN
from gpuconv.planning.ranking import candidates
from gpuconv.problem import ConvProblem, Direction

NETWORKS = ("resnet50", "vgg16", "mobilenetv2")
GPUS = ("A100", "H100")
LAYOUTS = ("contiguous", "channels_last")
_MOST_CHANNELS, _MOST_ROWS = 128, 8


def chosen(gpu: str, direction: Direction, numbers: tuple[str, ...]) -> Iterator[Case]:
    """The kernel and tile that is predicted to be quickest, for each layer, number type and layout."""
    for network in NETWORKS:
        for name in suites.SUITES[network].layers:
            plain = suites.layer(f"{network}.{name}")
            for number, layout in itertools.product(numbers, LAYOUTS):
                problem, operands = sweep.as_planned(plain, direction, number, layout)
                best = candidates(problem, direction, KNOWN[gpu], operands)[0][0]
                yield Case(best.backend, gpu, direction, number, layout, f"{network}.{name}", plain, best.tile)


def reduced(case: Case) -> Case:
    """The case with fewer images, rows, channels, filters and groups, and the like tile of those offered for that."""
    less = case._replace(plain=_reduced(case.plain))
    menu = backends.get(case.backend).tiles(less.problem, case.direction, KNOWN[case.gpu], less.operands)
    return less._replace(tile=max(menu, key=lambda tile: _likeness(tile, case.tile)))


def _likeness(tile: sweep.Tile, other: sweep.Tile) -> tuple[int, ...]:
    sizes, wanted = sweep.sizes_of(tile), sweep.sizes_of(other)
    same = sum(a == b for a, b in zip(sizes, wanted, strict=True))
    return (
        tile.kernel == other.kernel,
        tile.packs == other.packs,
        same,
        (tile.splits > 1) == (other.splits > 1),
        -tile.splits,
    )


def _reduced(plain: ConvProblem) -> ConvProblem:
    height, *rest = plain.input_size
    settings = plain.stride, plain.padding, plain.dilation
    reach = plain.dilation[0] * (plain.filter_size[0] - 1) + 1
    size = (min(height, max(_MOST_ROWS * plain.stride[0], reach)), *rest)
    groups = min(plain.groups, 32)
    c, k = (n if n <= 2 * _MOST_CHANNELS else n % _MOST_CHANNELS + _MOST_CHANNELS
            for n in (plain.group_channels, plain.group_filters))  # fmt: skip
    return ConvProblem.of((2, groups * c, *size), (groups * k, c, *plain.filter_size), *settings, groups)


def counters(case: Case) -> list[Counters]:
    """The counters of one call."""
    problem = case.problem
    given = tensors(problem, case.name, problem.dtype, "cpu", case.layout)
    a, b = (given[name] for name in OPERANDS[case.direction])
    rest = {"forward": (given["bias"], None), "grad_input": (), "grad_weight": (True,)}[case.direction]
    with lane_of(case.backend, case.gpu).emulated() as gpu:
        run = backends.get(case.backend).bind(
            problem, case.direction, torch.device("cpu"), IDENTITY, case.operands, case.tile
        )
        run(a, b, *rest)
    return gpu.counters()


def stored_sectors(of: Counters) -> tuple[int, int]:
    """The sectors that threads store to, and those that their bytes would fill."""
    rows = [row for line, row in zip(of.lines, of.table, strict=True) if line.opcode.startswith("st.global")]
    return sum(int(row["sectors"]) for row in rows), sum(int(row["sectors_least"]) for row in rows)


def kind(case: Case) -> tuple[object, ...]:
    """What a case stands for: a family on a GPU, for a direction, a size of number and a layout; strided gradients of
    inputs, which are stored otherwise, apart."""
    depthwise, strided = case.plain.groups > 1, case.direction == "grad_input" and max(case.plain.stride) > 1
    size = case.dtype.itemsize
    return case.backend, case.gpu, case.tile.family, case.direction, size, case.layout, depthwise, strided
