"""Family `hopper` of the Triton backend: persistent kernels in Gluon for sm_90, where one warp fetches and the others
multiply (`gpuconv.kernels.gluon.hopper_conv`). Forward and grad_input of channels-last tensors, two and three axes.

Which problems it takes, which tiles there are, what is launched and how long that takes.
"""

import dataclasses
import itertools
import math
from contextlib import suppress
from typing import NamedTuple

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import constants
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import axes
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import SECTOR, Prediction, Work, fetched, predicted, read_from_shared, results_of
from gpuconv.backends.triton.launch import BAND, INTERPRETING, Described, Launch, dtypes_of_forward, epilogue_of
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.gluon.hopper_conv import hopper_conv

_MOST_PIXELS = 2**31 - 2**20  # on an axis, by blocks that may reach beyond the last
_MOST_BOX = 256  # elements on an axis of what one instruction copies
# Warp groups that multiply, pixels of each, channels of a tile.
_TILES = (
    (2, 128, 128), (2, 64, 256), (3, 64, 128), (2, 64, 128), (3, 128, 64), (2, 128, 64), (3, 64, 64), (2, 64, 64),
)  # fmt: skip
_BARRIERS = 1024  # bytes of shared memory, at most, for what is not tiles
_SLOTS = 2  # of rows that several taps are taken from
_STEP = 13  # instructions of a warp in a step, beside those of products; counted


class Window(NamedTuple):
    """The pixels of a tile, images × planes × rows × columns, and how many windows there are along each."""

    sizes: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]

    @property
    def number(self) -> int:
        return math.prod(self.blocks)


# ---- which problems --------------------------------------------------------------------------------------------------


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot do it; None if they can."""
    if gpu.capability != (9, 0) or INTERPRETING:
        return "its kernels are for sm_90"
    if direction == "grad_weight":
        return "it has no grad_weight"
    size = problem.dtype.itemsize
    if size != 2 and not operands.tf32:
        return "it multiplies 16-bit numbers and TF32 on tensor cores, not float32 or float64"
    if not all(map(math.prod, (problem.input_shape, problem.output_shape, problem.weight_shape))):
        return "there is nothing to multiply"
    if max(problem.batch, *problem.input_size, *problem.output_size) > _MOST_PIXELS:
        return "it counts along an axis in 32 bits, and here is a longer one"
    strides, unit = problem.stride, 16 // size
    if direction == "grad_input" and math.prod(strides) > 1:
        return "it has grad_input at stride 1"
    if math.prod(strides) > 1 and (
        problem.ndim != 2 or any(h % u for h, u in zip(problem.input_size, strides, strict=True))
    ):
        return "it has strides of two axes that divide the image"
    view = problem.view(direction)
    counted = {"in": problem.group_channels, "out": problem.group_filters}
    for name, count in counted.items():
        if count % unit:
            return f"rows of {count} channels {name} of {size} bytes do not begin at multiples of 16 bytes"
    image, name = (problem.input_shape, "input") if direction == "forward" else (problem.output_shape, "grad_output")
    reason = not_described(name, image, operands.strides[0], unit)
    if reason is None and _taps(problem, direction, operands) is None:
        reason = "weight is not channels last, with evenly spaced taps"
    if reason is None:
        reason = not_described("result", view.shape, _fresh(problem, direction), unit)
    if reason is None and operands.residual is not None:
        reason = not_described("residual", view.shape, operands.residual, unit)
    if reason is None and problem.groups > 1 and not _shapes(problem, direction):
        reason = f"groups of {counted['in']} channels in and {counted['out']} out do not fill its tiles"
    return reason


def not_described(name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> str | None:
    """Why the copy engine cannot fetch or store a tensor; None if it can."""
    (n, c, *pixels), sizes = strides, (shape[0], *shape[2:])
    if c != 1 and shape[1] > 1:
        return f"{name} is not channels last (of a model, model.to(memory_format=torch.channels_last))"
    if any(stride % unit or stride <= 0 for stride, size in zip((n, *pixels), sizes, strict=True) if size > 1):
        return f"{name} has strides {strides}, not multiples of 16 bytes"
    if any(0 < stride < shape[1] for stride, size in zip(pixels, sizes[1:], strict=True) if size > 1):
        return f"{name} has pixels that overlap"
    return None


class Filters(NamedTuple):
    """How a weight lies: the strides of its rows, whose columns are neighbours, and of its taps."""

    row: int
    tap: int
    turned: bool  # rows are channels, columns filters


def _taps(problem: ConvProblem, direction: Direction, operands: Operands) -> Filters | None:
    """How the weight lies; None where no descriptor describes that, or no product reads it."""
    shape, (k, c, *pixels) = problem.weight_shape, operands.strides[1]
    unit = problem.vector_unit
    tap, count = 0, 1
    for size, stride in zip(reversed(shape[2:]), reversed(pixels), strict=True):
        if size == 1:
            continue
        if tap and stride != tap * count:
            return None
        tap, count = tap or stride, count * size
    turned = k == 1 and shape[0] > 1 and (c != 1 or shape[1] == 1)
    row, inner, rows, columns = (c, k, shape[1], shape[0]) if turned else (k, c, shape[0], shape[1])
    if inner != 1 and columns > 1:
        return None
    row, tap = row if rows > 1 else unit, tap or unit
    if row % unit or tap % unit or row <= 0 or tap <= 0:
        return None
    # Rows of what is multiplied must lie along its terms, which 16-bit numbers need not.
    if turned if direction == "forward" else (problem.dtype.itemsize == 4 and not turned):
        return None
    return Filters(row, tap, turned)


# ---- which tiles there are -------------------------------------------------------------------------------------------


def window_of(problem: ConvProblem, direction: Direction, pixels: int, rows: int = 0) -> Window:
    """The window of `pixels` pixels that wastes least; among equals that of the fewest images, and the squarest.

    rows: if not 0, it is one of so many rows of as many pixels each.
    """
    sizes = (problem.batch, *axes(problem.view(direction).shape[2:], 1))
    powers = [2**i for i in range(9) if 2**i <= pixels]
    found = []
    for d, h, w in itertools.product(powers, [1] if rows else powers, powers):
        n = pixels // (d * h * w)
        if n and all(of == 1 or of < 2 * size for of, size in zip((d, h, w), sizes[1:], strict=True)):
            shape = n, d, rows or h, w
            window = Window(shape, tuple(math.ceil(a / b) for a, b in zip(sizes, shape, strict=True)))
            found.append((window.number, n, d + h + w, window))
    return min(found)[-1]


def halo_rows(problem: ConvProblem, groups: int) -> int:
    """Rows of a slot from which all taps below each other are taken, where a tile is a row for each warp group."""
    return groups + (problem.filter_size[-2] - 1) * problem.dilation[-2]


def _depth(problem: ConvProblem, direction: Direction) -> int:
    """Terms of a step: 128 bytes of channels, fewer where there are not as many, or where they must divide them."""
    depth, terms = 128 // problem.dtype.itemsize, problem.view(direction).terms
    divides = problem.groups > 1 or math.prod(problem.stride) > 1
    while depth > 16 and (terms <= depth // 2 or (divides and terms % depth)):
        depth //= 2
    return depth


def _shapes(problem: ConvProblem, direction: Direction) -> list[tuple[int, int, int]]:
    """Shapes of tiles that are not mostly idle. In groups, blocks of channels must not reach into the next group."""
    view, depth = problem.view(direction), _depth(problem, direction)
    if (problem.groups > 1 or math.prod(problem.stride) > 1) and view.terms % depth:
        return []
    return [
        (groups, pixels, columns)
        for groups, pixels, columns in _TILES
        if (columns <= 64 or columns < 2 * view.columns)
        and (problem.groups == 1 or view.columns % columns == 0)
        and not (problem.dtype.itemsize == 4 and groups * pixels * columns > 128 * 128)
    ]


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`: few, since each is a kernel to compile."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    size, depth, found = problem.dtype.itemsize, _depth(problem, direction), []
    slices = problem.ndim >= 2 and problem.filter_size[-2] > 1 and math.prod(problem.stride) == 1
    for (groups, pixels, columns), halo in itertools.product(_shapes(problem, direction), (False, True)):
        rows, fixed = groups * pixels, groups * pixels * columns * size + _BARRIERS
        x_rows = halo_rows(problem, groups) if halo else groups
        if halo:
            fixed += _SLOTS * x_rows * pixels * depth * size
        stages = min(8, (gpu.shared_memory - fixed) // (((0 if halo else rows) + columns) * depth * size))
        if halo and (not slices or stages < 3 or columns > 128 or x_rows >= groups * problem.filter_size[-2]):
            continue  # (of 256 channels' sums some would be spilled)
        if stages < 2:
            continue
        window = window_of(problem, direction, pixels, groups if halo else 0)
        blocks = window.number if halo else math.ceil(window.number / groups)
        held, at_once = x_rows * pixels if halo else 0, gpu.multiprocessors
        tile = Tile(rows, columns, depth, 4 * groups, stages, 1, "hopper", blocks, held, persistent=at_once)
        found.append(tile)
    return found


# ---- what is launched ------------------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches. Needs no GPU."""
    forward, view = direction == "forward", problem.view(direction)
    workers = tile.warps // 4
    pixels = tile.rows // workers
    window = window_of(problem, direction, pixels, workers if tile.halo else 0)
    n, d, h, w = window.sizes
    column_blocks = math.ceil(view.columns / tile.columns)
    windows = window.number if tile.halo else math.ceil(window.number / workers)
    count = windows * column_blocks * problem.groups
    u, v = (1, 1) if problem.ndim != 2 else problem.stride
    weight = _taps(problem, direction, operands)
    assert weight is not None
    image = problem.input_shape if forward else problem.output_shape
    strides = _of_axes(image, operands.strides[0], problem.vector_unit)
    result = _of_axes(view.shape, _fresh(problem, direction), problem.vector_unit)
    along_terms = forward or weight.turned
    block = (1, tile.columns, tile.depth) if along_terms else (1, tile.depth, tile.columns)
    rows, columns = (
        (problem.group_channels, problem.out_channels)
        if weight.turned
        else (problem.out_channels, problem.group_channels)
    )
    box = (1 if tile.halo else h, n, d, w)
    described = {
        0: _image(image, strides, (*box, tile.depth), (u, v)),
        1: Described((problem.taps, rows, columns), (weight.tap, weight.row, 1), block),
        4: _image(view.shape, result, (*box, tile.columns)),
    }
    if operands.residual is not None:
        residual = _of_axes(view.shape, operands.residual, problem.vector_unit)
        described[3] = _image(view.shape, residual, (*box, tile.columns))
    low_d, low_h, low_w = axes(tuple(low for low, _ in problem.padding), 0)
    step, up = axes(problem.dilation, 1), (0, 0)
    if forward:
        up = (math.ceil(low_h / u), math.ceil(low_w / v))
        start = (-low_d, up[0] * u - low_h, up[1] * v - low_w)
    else:
        start, step = (low_d, low_h, low_w), tuple(-by for by in step)
        if tile.halo:  # a slot begins with the last tap's row
            start = (low_d, low_h + (problem.filter_size[-2] - 1) * step[1], low_w)
    scalars = (
        view.terms, view.columns, problem.groups * view.columns, strides[3],
        count, window.number, *window.blocks[1:], column_blocks, *axes(problem.filter_size, 1), *start, *step, *up,
    )  # fmt: skip
    constants_ = {
        "TN": n, "TD": d, "TH": h, "TW": w, "BK": tile.columns, "BC": tile.depth,
        "WORKERS": workers, "STAGES": _SLOTS if tile.halo else tile.stages, "BAND": BAND,
        "FOLD_H": u, "FOLD_W": v,
        "WEIGHTS": "plain" if forward else "turned" if weight.turned else "transposed",
        "FILTERS_LEFT": _filters_left(tile),
        "HALO": problem.filter_size[-2] if tile.halo else 1, "APART": step[1] if tile.halo else 0,
        "W_STAGES": tile.stages,
        **epilogue_of(activation),
    }  # fmt: skip
    dtypes = dtypes_of_forward(problem, operands if forward else operands._replace(bias=False, residual=None))
    programs = min(tile.persistent, count)
    one = dataclasses.replace(tile, warps=4)  # what the kernel begins with; it divides its tasks among groups
    return (Launch(hopper_conv, programs, dtypes, scalars, constants_, one, described=described),)


def _fresh(problem: ConvProblem, direction: Direction) -> tuple[int, ...]:
    """Strides of the result."""
    return torch.empty(problem.view(direction).shape, device="meta", memory_format=problem.memory_format).stride()


def _filters_left(tile: Tile) -> bool:
    """Whether filters are on the left of the product: of the right operand, there should be more."""
    return tile.columns < 4 * tile.rows // tile.warps


def _of_axes(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> tuple[int, int, int, int]:
    """Strides of images, planes, rows and pixels; for an axis of size 1, any that a descriptor takes."""
    n, _, *pixels = (unit if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    d, h, w = axes(tuple(pixels), unit)
    return n, d, h, w


def _image(
    shape: tuple[int, ...], strides: tuple[int, int, int, int], block: tuple[int, ...], fold: tuple[int, int] = (1, 1)
) -> Described:
    """The descriptor of an image, [rows, images, planes, columns, channels].

    fold: with a stride, rows and columns are every so-manieth one. The rows between are in place of the planes, which
    there are none of, the columns between behind the channels.
    """
    batch, c, *size = shape
    depth, height, width = axes(tuple(size), 1)
    (n, d, h, w), (u, v) = strides, fold
    planes, plane = (depth, d) if u == 1 else (u, h)
    return Described(
        (height // u, batch, planes, width // v, (v - 1) * w + c), (u * h, n, plane, v * w, 1), block
    )  # fmt: skip


# ---- how long it takes -----------------------------------------------------------------------------------------------


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of a kernel one of whose warps fetches ahead while the others multiply."""
    size, view = problem.dtype.itemsize, problem.view(direction)
    count = tile.windows * math.ceil(view.columns / tile.columns) * problem.groups
    steps = problem.taps * math.ceil(view.terms / tile.depth)
    # Of a window, what a tap takes by itself of rows that several share.
    share = tile.halo / (problem.filter_size[-2] * tile.rows) if tile.halo else 1.0
    box = (share * tile.rows + tile.columns) * tile.depth * size
    held = (_SLOTS * tile.halo + tile.stages * tile.columns) * tile.depth * size if tile.halo else box * tile.stages
    image, filters = fetched(problem, direction, tile)
    cost = constants.cost_of("window", direction, "wgmma")
    left = tile  # pixels; or filters
    if _filters_left(tile):
        left = dataclasses.replace(tile, rows=tile.columns, columns=tile.rows)
    loaded, stored = count * steps * box, tile.rows * tile.columns * size
    work = Work(
        count,
        steps,
        2 * tile.rows * tile.columns * tile.depth,
        gpu.rate(problem.dtype, tf32),
        box + read_from_shared(left, size, "wgmma"),
        loaded,
        loaded / SECTOR,
        stored,
        _STEP + 4.0,
        cost.tile + cost.result * results_of(tile),
        168,
        math.ceil(held) + stored,
        from_l2=(share * image + filters) * size / loaded,
        ahead=True,
    )
    return predicted(problem, direction, tile, gpu, work)


FAMILY = Family("hopper", refuses, tiles, launches, predict, turns=True, needs_alignment=True)
