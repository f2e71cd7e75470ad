"""Family `hopper_grad_weight` of the Triton backend: the gradient of the weight in Gluon for sm_90, where one warp
fetches and the others multiply (`gpuconv.kernels.gluon.hopper_grad_weight`). 16-bit channels-last tensors, one to three
axes.

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
from gpuconv.backends.derived import WORKSPACE, axes, overflows, tiles_of_weight, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.last_program import Workspace
from gpuconv.backends.roofline import SECTOR, Prediction, Work, added_apart, predicted, results_of
from gpuconv.backends.triton.launch import INTERPRETING, Described, Launch, vectors_of_sums
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.gluon.hopper_grad_weight import hopper_grad_weight
    from gpuconv.kernels.triton.sum_tiles import sum_tiles

_MOST_PIXELS = 2**31 - 2**20  # on an axis, or of a walk, by blocks that may reach beyond the last
# Filters, channels of a tile whose sums fit the registers of two warp groups; of three taps at once, or of one.
_TILES_OF_TAPS = ((128, 128), (128, 64), (64, 128), (64, 64))
_TILES = ((256, 128), (128, 256), *_TILES_OF_TAPS)
_WARPS = 8  # that multiply
_MOST_TAPS = 3  # at once
_DEPTHS = (64, 32, 16)  # pixels of a step
_MOST_STAGES = 12
_FEWEST_STEPS = 4  # of a split
_FEW = 1 << 18  # elements of partial sums, of which all multiprocessors shall add some
_MOST_TOGETHER = 32  # taps that a program adds
_KEPT = 4096  # bytes of shared memory, at most, for what is not tiles
_STEP, _A_PRODUCT = 40, 2.5  # instructions of a warp in a step, and for each of its products; counted


class Window(NamedTuple):
    """The pixels of a step, images × rows × columns of a plane, and how many windows there are: planes come second."""

    images: int
    rows: int
    columns: int
    blocks: tuple[int, int, int, int]

    @property
    def number(self) -> int:
        return math.prod(self.blocks)


class Image(NamedTuple):
    """A tensor as [N, D, H, W, C]: sizes, and strides in elements of all but the last."""

    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]


# ---- which problems --------------------------------------------------------------------------------------------------


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why its kernel cannot do it; None if it can."""
    if direction != "grad_weight":
        return "it has grad_weight alone"
    if gpu.capability != (9, 0) or INTERPRETING:
        return "its kernel is for sm_90"
    if problem.dtype.itemsize != 2:
        return f"it multiplies 16-bit numbers, not {problem.dtype}".replace("torch.", "")
    if not all(map(math.prod, (problem.input_shape, problem.output_shape, problem.weight_shape))):
        return "there is nothing to multiply"
    if max(problem.input_pixels, problem.output_pixels) > _MOST_PIXELS or overflows(math.prod(problem.weight_shape)):
        return "it counts pixels and weights in 32 bits, and here are more"
    unit = problem.vector_unit
    for name, count in (("in", problem.group_channels), ("out", problem.group_filters)):
        if count % unit:
            return f"rows of {count} channels {name} of 2 bytes do not begin at multiples of 16 bytes"
        if problem.groups > 1 and count < 32:
            return f"groups of {count} channels {name} do not fill its tiles"
    shapes = problem.operand_shapes(direction)
    for name, shape, strides in zip(("grad_output", "input"), shapes, operands.strides, strict=True):
        reason = _not_described(name, shape, strides, unit)
        if reason is not None:
            return reason
    for size, u, used in zip(problem.input_size, problem.stride, _remainders(problem), strict=True):
        counts = {math.ceil((size - a) / u) for a in used}
        if len(counts) > 1 or counts == {0}:
            return "the stride leaves its taps unequal numbers of pixels, or none"
    _, x = _images(problem, operands)
    if _apart(problem, x) > _MOST_PIXELS:
        return "rows that the stride joins are too long to count in 32 bits"
    return None


def _not_described(name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> str | None:
    """Why the copy engine cannot fetch a tensor; None if it can."""
    n, c, *pixels = strides
    if c != 1 and shape[1] > 1:
        return f"{name} is not channels last (of a model, model.to(memory_format=torch.channels_last))"
    used = [s for s, size in zip((n, *pixels), (shape[0], *shape[2:]), strict=True) if size > 1]
    if any(stride % unit or stride <= 0 for stride in used):
        return f"{name} has strides {strides}, not multiples of 16 bytes"
    if any(stride < shape[1] for stride in used):
        return f"{name} has pixels that overlap"
    return None


# ---- what is fetched -------------------------------------------------------------------------------------------------


def _images(problem: ConvProblem, operands: Operands) -> tuple[Image, Image]:
    """gy and x. Where one tap reads evenly spaced pixels in their order, all lie in one row, with none to waste."""
    shapes = problem.operand_shapes("grad_weight")
    gy, x = (_image(shape, at, problem.vector_unit) for shape, at in zip(shapes, operands.strides, strict=True))
    in_order = {*problem.stride} == {1} and not any(low or high for low, high in problem.padding)
    if problem.taps == 1 and in_order:
        flat = _flat(gy), _flat(x)
        if None not in flat:
            return flat  # type: ignore[return-value]  # no None
    return gy, x


def _image(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> Image:
    """A tensor; for an axis of size 1, any stride that a descriptor takes."""
    batch, _, *size = shape
    n, _, *pixels = (unit if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    return Image((batch, *axes(tuple(size), 1)), (n, *axes(tuple(pixels), unit)))  # type: ignore[arg-type]  # three axes


def _flat(image: Image) -> Image | None:
    """The image as one row; None if its pixels are not evenly spaced."""
    spacing, pixels = 0, 1
    for size, stride in zip(reversed(image.sizes), reversed(image.strides), strict=True):
        if size == 1:
            continue
        if spacing and stride != spacing * pixels:
            return None
        spacing, pixels = spacing or stride, pixels * size
    spacing = spacing or image.strides[-1]
    return Image((1, 1, 1, pixels), (spacing, spacing, spacing, spacing))


def _window(image: Image, depth: int, taps: int) -> Window:
    """The window of `depth` pixels of gy that wastes least; among equals the one of the longest rows. Of several taps
    at once, one row."""
    batch, planes, height, width = image.sizes
    powers = [2**i for i in range(9) if 2**i <= depth]
    found = []
    for rows, columns in itertools.product(powers if taps == 1 else [1], powers):
        if images := depth // (rows * columns):
            blocks = math.ceil(batch / images), planes, math.ceil(height / rows), math.ceil(width / columns)
            found.append((math.prod(blocks), -columns, Window(images, rows, columns, blocks)))
    return min(found)[-1]


def _remainders(problem: ConvProblem) -> list[set[int]]:
    """For each axis, which of the pixels that the stride joins the taps meet."""
    settings = zip(problem.filter_size, problem.stride, problem.padding, problem.dilation, strict=True)
    return [{(r * d - low) % u for r in range(taps)} for taps, u, (low, _), d in settings]


def _described(
    image: Image, window: Window, channels: int, block: int, strides: tuple[int, ...], last: tuple[int, ...]
) -> Described:
    """The descriptor of an image of which every so-manieth pixel is summed; those between lie behind the channels, up
    to the last that a tap meets: beyond it memory may end."""
    joined = zip(image.sizes[1:], strides, last, strict=True)
    sizes = (image.sizes[0], *(math.ceil((size - a) / u) for size, u, a in joined))
    apart = tuple(u * stride for stride, u in zip(image.strides, (1, *strides), strict=True))
    behind = sum(a * stride for stride, a in zip(image.strides[1:], last, strict=True))
    box = (window.images, 1, window.rows, window.columns, block)
    return Described((*sizes, behind + channels), (*apart, 1), box)


def _apart(problem: ConvProblem, x: Image) -> int:
    """Elements of a row of x's descriptor."""
    last = axes(tuple(map(max, _remainders(problem))), 0)
    return problem.in_channels + sum(a * stride for stride, a in zip(x.strides[1:], last, strict=True))


# ---- which tiles there are -------------------------------------------------------------------------------------------


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`: few, since each is a kernel to compile."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    gy, _ = _images(problem, operands)
    joined = math.prod(problem.filter_size[-2:-1]) > 1 and {problem.stride[-2], problem.dilation[-2]} == {1}
    taps = min(problem.filter_size[-2], _MOST_TAPS) if problem.ndim > 1 and joined else 1
    found = []
    for count, shapes in {1: _TILES, taps: _TILES_OF_TAPS if taps > 1 else _TILES}.items():
        for rows, columns in shapes:
            if not all(
                n <= 64 or n < 2 * of for n, of in ((rows, problem.group_filters), (columns, problem.group_channels))
            ):
                continue
            depth = min(_DEPTHS, key=lambda pixels: _window(gy, pixels, count).number * (pixels + _FEWEST_STEPS))
            stages = min(_MOST_STAGES, (gpu.shared_memory - _KEPT) // _bytes(rows, columns, depth))
            number = _window(gy, depth, count).number
            tile = Tile(rows, columns, depth, _WARPS, stages, 1, "hopper_grad_weight", number, taps=count)
            programs = _programs(problem, tile)
            most = min(number // _FEWEST_STEPS, WORKSPACE // (4 * _partials(problem, tile)))
            found += with_splits(tile, problem, gpu, programs, most, (1,))
    return found


def _across(tile: Tile) -> int:
    """Warp groups that share the filters of a tile, and divide its channels."""
    return max(1, 16 * tile.warps // tile.rows)


def _bytes(rows: int, columns: int, depth: int) -> int:
    """Of a step's operands."""
    return 2 * (rows + columns) * depth


def _programs(problem: ConvProblem, tile: Tile) -> int:
    """How many compute the whole, if it is not split."""
    planes, rows, columns = axes(problem.filter_size, 1)
    runs = planes * math.ceil(rows / tile.taps) * columns
    return tiles_of_weight(problem, tile) * runs * problem.groups


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """How many programs share a sum: `tile.splits`, or fewer, so that each has a window."""
    return max(1, min(tile.splits, tile.windows))


# ---- what is launched ------------------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call launches, in order. `with_bias`: it gives grad-bias too. Needs no GPU."""
    splits, dtype = splits_of(problem, tile), problem.dtype
    gy, x = _images(problem, operands)
    window = _window(gy, tile.depth, tile.taps)
    stride, last = axes(problem.stride, 1), axes(tuple(map(max, _remainders(problem))), 0)
    _, planes, rows, columns = window.blocks
    vector, gw = vectors_of_sums(problem, apart=False)
    scalars = (
        problem.group_channels // 8, problem.group_filters, problem.groups, *stride,
        *axes(tuple(low for low, _ in problem.padding), 0), *axes(problem.dilation, 1), *x.strides[1:],
        *gw[1:4], window.number, rows, columns, planes, splits,
    )  # fmt: skip
    settings = {
        "TAPS": tile.taps, "STAGES": tile.stages, "ACROSS": _across(tile), "SPLIT": splits > 1,
        "STRIDED": max(stride) > 1, "GW_VECTOR": vector, **dict(zip("TRS", axes(problem.filter_size, 1), strict=True)),
    }  # fmt: skip
    described = {
        0: _described(gy, window, problem.out_channels, tile.rows, (1, 1, 1), (0, 0, 0)),
        1: _described(x, window, problem.in_channels, tile.columns, stride, last),
    }
    workspace = Workspace(splits * _partials(problem, tile) if splits > 1 else 0)
    written = torch.float32 if splits > 1 else dtype
    dtypes = (dtype, dtype, written, written if with_bias else None)
    programs = _programs(problem, tile) * splits
    product = Launch(
        hopper_grad_weight, programs, dtypes, scalars, settings, tile, workspace=workspace, described=described
    )  # fmt: skip
    return (product,) if splits == 1 else (product, _sum(problem, tile, splits, with_bias))


def _sum(problem: ConvProblem, tile: Tile, splits: int, with_bias: bool) -> Launch:
    """The launch that adds the partial sums; called with them, gw, and gb or None."""
    elements, dtype = _partials(problem, tile), problem.dtype
    filters, channels = problem.group_filters, problem.group_channels
    vector, gw = vectors_of_sums(problem, apart=False)
    few, together = elements <= _FEW, vector == 0 and 1 < problem.taps <= _MOST_TOGETHER
    block = 128 if together and not few else 256 if few else 1024
    all_taps = 2 ** math.ceil(math.log2(problem.taps)) if block == 128 else 0
    rows, columns = math.ceil(filters / tile.rows), math.ceil(channels / tile.columns)
    taken = rows * columns * problem.groups * tile.rows * tile.columns // block if all_taps else elements // block
    scalars = (
        splits, taken, elements // block, rows, columns, *axes(problem.filter_size, 1), problem.groups,
        filters, channels // 8, *gw[1:4],
    )  # fmt: skip
    settings = {
        "BK": tile.rows, "BC": tile.columns, "TAPS": tile.taps, "BLOCK": block, "LANES": 4 if few else 1,
        "GW_VECTOR": vector, "ALL_TAPS": all_taps,
    }  # fmt: skip
    programs = taken + (math.ceil(problem.out_channels / block) if with_bias else 0)
    dtypes = (torch.float32, dtype, dtype if with_bias else None)
    return Launch(sum_tiles, programs, dtypes, scalars, settings, Tile(0, 0, 0, warps=4, stages=3))


def _partials(problem: ConvProblem, tile: Tile) -> int:
    """Sums of all programs of a split."""
    return _programs(problem, tile) * tile.taps * tile.rows * tile.columns


# ---- how long it takes -----------------------------------------------------------------------------------------------


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of a kernel one of whose warps fetches ahead while the others multiply, and of the one that adds."""
    programs = _programs(problem, tile) * tile.splits
    steps, box = tile.windows / tile.splits, _bytes(tile.rows, tile.columns, tile.depth)
    rows = problem.output_size[-2] if tile.taps > 1 else 1
    strips = 1 + max(0.0, steps - 1) / rows  # that a program begins, each with a few rows of x alone
    fetched = steps * box + (tile.taps - 1) * strips * tile.columns * tile.depth * 2
    cost = constants.cost_of("window", direction, "wgmma")
    products = tile.taps * tile.depth // 16 * max(1, tile.rows // 128)
    work = Work(
        programs,
        steps,
        2 * tile.rows * tile.columns * tile.taps * tile.depth,
        gpu.rate(problem.dtype, tf32),
        box + tile.taps * 2 * tile.depth * (tile.rows * _across(tile) + tile.columns * max(1, tile.rows // 64)),
        programs * fetched,
        programs * fetched / SECTOR,
        tile.rows * tile.columns * tile.taps * (4 if tile.splits > 1 else 2),
        _STEP + _A_PRODUCT * products,
        cost.tile + cost.result * results_of(tile),
        168,
        box * tile.stages,
        ahead=True,
    )
    product = predicted(problem, direction, dataclasses.replace(tile, splits=1), gpu, work)
    if tile.splits == 1:
        return product
    return product._replace(seconds=product.seconds + added_apart(tile.splits, _partials(problem, tile), gpu))


FAMILY = Family("hopper_grad_weight", refuses, tiles, launches, predict, splits_of, needs_alignment=True)
