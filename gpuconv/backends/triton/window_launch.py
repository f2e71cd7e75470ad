"""What the families `window` and `pointwise` of the Triton kernels launch: the window of a tile, and the launches.

`window` says which problems they take and which tiles there are.
"""

import dataclasses
import math
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import (
    overflows,
    phase_steps,
    phases_of,
    programs_of_grad_weight,
)
from gpuconv.backends.triton.launch import (
    BAND,
    INTERPRETING,
    RELEASE,
    Described,
    Launch,
    adds_apart,
    arithmetic_of,
    epilogue_of,
    grad_weight_launches,
    layouts,
    strides_of_sums,
)
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.window_forward import window_forward
    from gpuconv.kernels.triton.window_grad_input import window_grad_input
    from gpuconv.kernels.triton.window_grad_weight import window_grad_weight
    from gpuconv.kernels.triton.window_sum import window_sum

_SUM_BLOCK = 1024
_WITHOUT_EXPONENTIALS = ("none", "relu", "relu6", "leaky_relu", "hardswish")
# Descriptors take global memory for as long as a launch runs, whether its program does or not: at most 512 bytes for
# each program, which the tests hold every kernel to, and so 64 MiB in all.
SCRATCH = 512
MOST_PROGRAMS = (64 << 20) // SCRATCH
# TH, TW of a window; as many images as fill it up. Squares share most of their rows from one tap to the next; long ones
# fill sectors of 32 bytes where threads store the result along its rows.
_SHAPES = ((8, 8), (4, 4), (2, 2), (1, 8), (1, 1))
_LONG = ((8, 16), (4, 32), (4, 16), (2, 32), (2, 16), (1, 64), (1, 32), (1, 16), (4, 8), (2, 8), (2, 4))
_COLUMNS = 128  # of a tile, about
_SHORTEST_RUN = 32  # bytes of pixels that a product of a grad_weight sums at least
# Times as long as a step whose left operand is read from shared memory; a guess. On sm_90 Triton before 3.8 overwrites
# registers that products still read.
_THROUGH_REGISTERS = 1.2 if RELEASE >= (3, 8) else math.inf
_MANY_ROWS = 128  # the square of so many rows doubles a step's time, each waiting for the product before; a guess


class Window(NamedTuple):
    """The pixels of a tile, images × rows × columns, and how many windows the batch has along each of the three."""

    images: int
    rows: int
    columns: int
    blocks: tuple[int, int, int]
    by_row: bool = False  # each row of it is fetched by itself (`gpuconv.kernels.triton.window_grad_weight`)

    @property
    def number(self) -> int:
        return math.prod(self.blocks)


def phase_size(problem: ConvProblem, direction: Direction) -> tuple[int, int]:
    """Rows and columns of the pixels that windows cover: outputs, or the largest phase of grad_input."""
    if direction == "grad_input":
        h, w = (math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
        return h, w
    return problem.output_size[0], problem.output_size[1]


def window_of(problem: ConvProblem, direction: Direction, pixels: int) -> Window:
    """The window of `pixels` pixels that wastes least, and among equals the one of the fewest images.

    Where threads store the result along its rows, it is the one that moves the fewest bytes: of operands to the
    product, and of sectors that are stored.
    """
    size = phase_size(problem, direction)

    def blocks(rows: int, columns: int) -> Window:
        images = pixels // (rows * columns)
        counts = (math.ceil(n / of) for n, of in zip((problem.batch, *size), (images, rows, columns), strict=True))
        return Window(images, rows, columns, tuple(counts))  # type: ignore[arg-type]  # three of them

    shapes = [(1, pixels), *_SHAPES] if size[0] == 1 else [*_SHAPES, (1, pixels)]
    if direction == "grad_weight" or placed(problem, direction).vector == 0:
        return min((blocks(*s) for s in shapes if math.prod(s) <= pixels), key=lambda window: window.number)
    strided = direction == "grad_input"
    apart = problem.dtype.itemsize * (problem.stride[1] if strided else 1)
    fetched = 2 * problem.products(direction) * problem.dtype.itemsize // (phases_of(problem) if strided else 1)
    return min(
        (blocks(*s) for s in (*shapes, *_LONG) if math.prod(s) <= pixels),
        key=lambda window: window.number * (fetched + _COLUMNS * max(apart, 32 // window.columns)),
    )


class Placed(NamedTuple):
    """Where the pixels of a result, or of a residual, are."""

    strides: tuple[int, int, int, int]  # of images, channels, rows, pixels; divided by `vector`, if that is not 0
    vector: int  # pixels that a thread loads or stores at once; 0: the copy engine does
    wide: bool = False  # offsets need 64 bits

    @property
    def pixels(self) -> tuple[int, int, int]:
        """The strides without that of channels."""
        n, _, h, w = self.strides
        return n, h, w


def placed(
    problem: ConvProblem,
    direction: Direction,
    images: int = 1,
    strides: tuple[int, ...] | None = None,
    split: bool = False,
) -> Placed:
    """Where the result of forward or grad_input is (or its partial sums, if `split`), or a residual with these strides.

    images: how many lie in the one row of a problem of `pointwise`. Then strides are those of images, channels, any,
    and pixels.
    """
    _, c, height, width = problem.view(direction).shape
    n, k, h, w = fresh_strides(problem, direction, images) if strides is None else strides
    pixels, unit = width // images, 4 if split else problem.vector_unit
    if images > 1 and pixels == 1:
        w = n
    row = (1, c, 1, width) if images > 1 else problem.view(direction).shape
    if (images == 1 or n == pixels * w) and not_described("", row, (n, k, h, w), unit) is None:
        n, h, w = descriptor_strides(row, (n, k, h, w), unit)
        return Placed((n, 1, h, w), 0)
    n, h = (n if max(images, problem.batch) > 1 else 0), (h if height > 1 and images == 1 else 0)
    k, w = (k if c > 1 else 0), (w if width > 1 else 0)
    alone = direction == "grad_input" and problem.stride != (1, 1)
    vector = math.gcd(unit, n, k, h, pixels) if w == 1 and not alone else 1
    extent = images * problem.batch * n + c * k + height * h + width * w
    return Placed((n // vector, k // vector, h // vector, w), vector, overflows(extent))


def fresh_strides(problem: ConvProblem, direction: Direction, images: int = 1) -> tuple[int, ...]:
    """Strides of the result of forward or grad_input."""
    n, c, h, w = problem.view(direction).shape
    return torch.empty((n * images, c, h, w // images), device="meta", memory_format=problem.memory_format).stride()


def not_described(name: str, shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> str | None:
    """Why a descriptor cannot describe a tensor, None if it can. The taps of a weight must be evenly spaced."""
    n, c, h, w = strides
    of_one = [size == 1 for size in shape]
    if c != 1 and not of_one[1]:
        return f"{name} is not channels last (of a model, model.to(memory_format=torch.channels_last))"
    others = [stride for stride, one in zip((n, h, w), (of_one[0], *of_one[2:]), strict=True) if not one]
    if any(stride % unit or stride <= 0 for stride in others):
        return f"{name} has strides {strides}, not multiples of 16 bytes"
    if not of_one[3] and w < shape[1]:
        return f"{name} has pixels that overlap"
    if name == "weight" and not of_one[2] and not of_one[3] and h != shape[3] * w:
        return f"{name} has taps that are not evenly spaced"
    return None


def weight_window(problem: ConvProblem, tile: Tile) -> Window:
    """The window of `tile.depth` pixels with which a grad_weight takes least time, by what its steps fetch.

    Best are those of one image or one column, row by row; unless they waste too much.
    """
    sizes = (problem.batch, *problem.output_size)
    whole = window_of(problem, "grad_weight", tile.depth)
    through = _THROUGH_REGISTERS if problem.dtype.itemsize == 2 else 1.0  # TF32's go through them in any case
    found = [(through * whole.number * step_bytes(problem, tile, whole), whole)]
    rows = 1
    while (run := tile.depth // rows) * problem.dtype.itemsize >= _SHORTEST_RUN:
        for images, columns in ((run, 1), (1, run)):
            counts = (math.ceil(n / of) for n, of in zip(sizes, (images, rows, columns), strict=True))
            window = Window(images, rows, columns, tuple(counts), True)  # type: ignore[arg-type]  # three of them
            slower = 1 + rows**2 / _MANY_ROWS
            found.append((slower * window.number * step_bytes(problem, tile, window), window))
        rows *= 2
    return min(found, key=lambda each: each[0])[1]


def step_bytes(problem: ConvProblem, tile: Tile, window: Window) -> int:
    """Bytes that a step of a grad_weight fetches: of gy a window, of x one for each tap, or all their rows once."""
    row, by_row = tile.depth // window.rows, window.by_row
    of_x = row * (window.rows + tile.taps - 1) if by_row else tile.depth * tile.taps
    return (tile.rows * tile.depth + tile.columns * of_x) * problem.dtype.itemsize


def folds(problem: ConvProblem, tile: Tile) -> bool:
    """Whether one view of the input has the pixels of all remainders (`gpuconv.kernels.triton.window_common`), and no
    block of channels reaches into the next pixel."""
    if all(u == 1 for u in problem.stride):
        return True
    even = not any(h % u for h, u in zip(problem.input_size, problem.stride, strict=True))
    return even and problem.group_channels % tile.depth == 0


# ---- launches --------------------------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    images: int = 1,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too; images: how many
    lie in the one row of a problem of `pointwise`. Needs no GPU."""
    if direction == "forward":
        return _forward(problem, activation, operands, tile, images)
    if direction == "grad_input":
        return _grad_input(problem, operands, tile, images)
    return _grad_weight(problem, operands, tile, with_bias)


def is_turned(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the filters of a weight are its innermost axis, and not its channels."""
    return strides[0] == 1 and shape[0] > 1 and (strides[1] != 1 or shape[1] == 1)


def splits_of(problem: ConvProblem, tile: Tile) -> int:
    """How many programs share a sum of grad_weight: `tile.splits`, or fewer, so that each has a window."""
    return max(1, min(tile.splits, weight_window(problem, tile).number))


def descriptor_strides(shape: tuple[int, ...], strides: tuple[int, ...] | None, unit: int) -> tuple[int, int, int]:
    """Strides of images, rows and pixels; for an axis of size 1, any stride that a descriptor takes."""
    n, _, h, w = (
        unit if size == 1 else stride for size, stride in zip(shape, strides or (unit,) * 4, strict=True)
    )  # fmt: skip
    return n, h, w


def _settings(problem: ConvProblem) -> tuple[int, ...]:
    """H, W, P, Q, R, S, and stride, padding, dilation of both axes."""
    return (
        *problem.input_size, *problem.output_size, *problem.filter_size, *problem.stride,
        *(low for low, _ in problem.padding), *problem.dilation,
    )  # fmt: skip


def _weight(problem: ConvProblem, strides: tuple[int, ...], unit: int) -> tuple[int, int]:
    """Strides of a weight's filters, or channels where it is turned, and of its taps."""
    shape = problem.weight_shape
    k, h, w = descriptor_strides(shape, strides, unit)
    if is_turned(shape, strides):
        k = strides[1] if shape[1] > 1 else unit
    return k, w if problem.filter_size[1] > 1 else h


def _walk(problem: ConvProblem, direction: Direction, tile: Tile, columns: int) -> tuple[int, tuple[int, ...], Window]:
    """Programs of one split of one phase, which take its tiles in turn; the scalars that count tiles; the window."""
    window = window_of(problem, direction, tile.rows)
    column_blocks = math.ceil(columns / tile.columns)
    tiles = window.number * column_blocks * problem.groups
    alike = tile.splits * (phases_of(problem) if direction == "grad_input" else 1)
    step = min(tile.persistent or tiles, tiles, max(1, MOST_PROGRAMS // alike))
    return step, (window.number, *window.blocks[1:], column_blocks, tiles, step, tile.splits), window


def _image(
    shape: tuple[int, ...], strides: tuple[int, int, int], window: Window, channels: int,
    stride: tuple[int, ...] = (1, 1), split: tuple[int, int] | None = None,
) -> Described:  # fmt: skip
    """The descriptor of an image with these strides of images, rows and pixels, as `image_view` makes it in a kernel.

    split: how many results lie one after the other, along the axis that has no use then, and how far apart.
    """
    (batch, c, height, width), (n, h, w), (u, v) = shape, strides, stride
    axis, apart = split or (u, h)
    return Described(
        (batch, math.ceil(height / u), axis, math.ceil(width / v), (v - 1) * w + c),
        (n, u * h, apart, v * w, 1),
        (window.images, window.rows, 1, window.columns, channels),
    )


def _filters(problem: ConvProblem, strides: tuple[int, int], filters: int, channels: int) -> Described:
    """The descriptor of the filters, [taps, K, C/G], with these strides of filters and taps."""
    k, tap = strides
    shape = (problem.taps, problem.out_channels, problem.group_channels)
    return Described(shape, (tap, k, 1), (1, filters, channels))


def _turned(problem: ConvProblem, strides: tuple[int, int], tile: Tile) -> Described:
    """The descriptor of turned filters, [C/G, taps · K]: no block goes beyond the last filter, where the next tap
    begins."""
    shape = (problem.group_channels, problem.taps * problem.out_channels)
    return Described(shape, (strides[0], 1), (tile.columns, tile.depth))


def _constants(problem: ConvProblem, operands: Operands, tile: Tile, window: Window) -> dict[str, Any]:
    numbers = arithmetic_of(problem, operands)
    return {
        "TN": window.images, "TH": window.rows, "TW": window.columns, "BK": tile.columns, "BC": tile.depth,
        "BAND": BAND, "PRECISION": numbers["PRECISION"], "EMULATE_BF16": numbers["EMULATE_BF16"],
    }  # fmt: skip


def prefetches(tile: Tile) -> bool:
    """Whether a program fetches for its next tile while it finishes one. That takes some 45 instructions a step more;
    where two blocks share a multiprocessor, one's products hide the other's waiting instead."""
    return tile.persistent > 0 and tile.warps == 8


def _with_registers_for(activation: Activation, tile: Tile) -> Tile:
    """The tile, or half of it where an exponential of each of its elements would spill registers."""
    if tile.rows * tile.columns <= 128 * 128 or activation.name in _WITHOUT_EXPONENTIALS:
        return tile
    return dataclasses.replace(tile, rows=min(tile.rows, 128), columns=min(tile.columns, 128))


def _forward(
    problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile, images: int
) -> tuple[Launch, ...]:
    unit, dtype = problem.vector_unit, problem.dtype
    k, c = problem.group_filters, problem.group_channels
    tile = _with_registers_for(activation, tile)
    programs, walk, window = _walk(problem, "forward", tile, k)
    split = tile.splits > 1
    common, inverse = phase_steps(problem)
    y = placed(problem, "forward", images, split=split)
    residual = placed(problem, "forward", images, operands.residual)
    views, shape = not folds(problem, tile), problem.output_shape
    of_x = descriptor_strides(problem.input_shape, operands.strides[0], unit)
    of_w = _weight(problem, operands.strides[1], unit)
    described = {1: _filters(problem, of_w, tile.columns, tile.depth)}
    if not views:
        described[0] = _image(problem.input_shape, of_x, window, tile.depth, problem.stride)
    if y.vector == 0:
        described[4] = _image(shape, y.pixels, window, tile.columns, split=(tile.splits, math.prod(shape)))
    if operands.residual is not None and residual.vector == 0 and not split:
        described[3] = _image(shape, residual.pixels, window, tile.columns)
    constants = _constants(problem, operands, tile, window) | {"VIEWS": views}
    constants |= {"FLAT": images > 1, "Y_VECTOR": y.vector, "RESIDUAL_VECTOR": residual.vector}
    constants |= {"WIDE": y.wide or residual.wide, "PREFETCH": prefetches(tile)}
    constants |= epilogue_of(IDENTITY if split else activation)
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, *_settings(problem), *common, *inverse,
        *of_x, *of_w, *y.strides, *residual.strides, math.prod(problem.output_shape) // max(1, y.vector),
        problem.output_size[1] // images, *walk,
    )  # fmt: skip
    of_bias, of_residual = dtype if operands.bias else None, dtype if operands.residual else None
    if not split:
        dtypes = (dtype, dtype, of_bias, of_residual, dtype)
        return (Launch(window_forward, programs, dtypes, scalars, constants, tile, views, described=described),)
    dtypes = (dtype, dtype, None, None, torch.float32)  # the epilogue is the sum's
    programs *= tile.splits
    product = Launch(window_forward, programs, dtypes, scalars, constants, tile, views, described=described)
    return product, _sum(problem, "forward", images, (of_bias, of_residual), activation, tile)


def _grad_input(problem: ConvProblem, operands: Operands, tile: Tile, images: int) -> tuple[Launch, ...]:
    unit, dtype = problem.vector_unit, problem.dtype
    k, c = problem.group_filters, problem.group_channels
    programs, walk, window = _walk(problem, "grad_input", tile, c)
    common, inverse = phase_steps(problem)
    split = tile.splits > 1
    gx = placed(problem, "grad_input", images, split=split)
    of_gy = descriptor_strides(problem.output_shape, operands.strides[0], unit)
    of_w, shape, phases = _weight(problem, operands.strides[1], unit), problem.input_shape, problem.stride != (1, 1)
    turned = is_turned(problem.weight_shape, operands.strides[1])
    described = {
        0: _image(problem.output_shape, of_gy, window, tile.depth),
        1: _turned(problem, of_w, tile) if turned else _filters(problem, of_w, tile.depth, tile.columns),
    }
    if gx.vector == 0 and not phases:
        described[2] = _image(shape, gx.pixels, window, tile.columns, split=(tile.splits, math.prod(shape)))
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, *_settings(problem), *common, *inverse,
        *of_gy, *of_w, *gx.strides, math.prod(shape) // max(1, gx.vector), problem.input_size[1] // images, *walk,
    )  # fmt: skip
    programs *= phases_of(problem) * tile.splits
    dtypes = (dtype, dtype, torch.float32 if split else dtype)
    constants = _constants(problem, operands, tile, window)
    constants |= {"FLAT": images > 1, "GX_VECTOR": gx.vector, "WIDE": gx.wide, "PREFETCH": prefetches(tile)}
    constants |= {"PHASES": phases, "W_TURNED": turned}
    makes = gx.vector == 0 and phases
    product = Launch(window_grad_input, programs, dtypes, scalars, constants, tile, makes, described=described)
    if not split:
        return (product,)
    return product, _sum(problem, "grad_input", images, (None, None), IDENTITY, tile)


def _sum(
    problem: ConvProblem,
    direction: Direction,
    images: int,
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    activation: Activation,
    tile: Tile,
) -> Launch:
    """The launch that adds partial sums, each of which lies as the result does, and does the epilogue; called with
    them, bias, residual and result."""
    shape = problem.view(direction).shape
    size = math.prod(shape)
    return Launch(
        window_sum,
        math.ceil(size / _SUM_BLOCK),
        (torch.float32, *dtypes, problem.dtype),
        (tile.splits, size // 4, shape[1], fresh_strides(problem, direction, images)[1]),
        {
            "BLOCK": _SUM_BLOCK,
            "WIDE": overflows(tile.splits * size),
            "EMULATE_BF16": INTERPRETING and problem.dtype is torch.bfloat16,
            **epilogue_of(activation),
        },
        Tile(0, 0, 0, warps=4, stages=3),
    )


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    unit, k, c = problem.vector_unit, problem.group_filters, problem.group_channels
    size, splits = math.prod(problem.weight_shape), splits_of(problem, tile)
    window = weight_window(problem, tile)
    tiles = programs_of_grad_weight(problem, tile)
    gw = strides_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    gy, _ = layouts(problem, "grad_weight", operands)
    numbers = arithmetic_of(problem, operands)
    constants = {
        "TN": window.images, "TH": window.rows, "TW": window.columns, "BK": tile.rows, "BC": tile.columns,
        "TAPS": tile.taps, "BY_ROW": window.by_row,
        "PRECISION": numbers["PRECISION"], "EMULATE_BF16": numbers["EMULATE_BF16"],
        "WIDE": overflows(size, gy.extent),
    }  # fmt: skip
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, problem.groups, *_settings(problem),
        *descriptor_strides(problem.output_shape, operands.strides[0], unit),
        *descriptor_strides(problem.input_shape, operands.strides[1], unit),
        *gw, window.number, *window.blocks[1:], splits,
    )  # fmt: skip
    return grad_weight_launches(
        window_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias, descriptors=True
    )
