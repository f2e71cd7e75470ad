"""What the families `window` and `pointwise` of the Triton kernels launch.

`window` says which problems they take and which tiles there are, `window_shape` which pixels a tile has.
"""

import dataclasses
import math
from contextlib import suppress
from typing import Any

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
    Described,
    Launch,
    adds_apart,
    arithmetic_of,
    epilogue_of,
    grad_weight_launches,
    layouts,
    vectors_of_sums,
)
from gpuconv.backends.triton.window_shape import (
    Window,
    descriptor_strides,
    divides,
    folds,
    fresh_strides,
    placed,
    weight_window,
    window_of,
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
    window = window_of(problem, direction, tile.rows // tile.phases, tile.phases)
    column_blocks = math.ceil(columns / tile.columns)
    tiles = window.number * column_blocks * problem.groups
    alike = tile.splits * (phases_of(problem) // tile.phases if direction == "grad_input" else 1)
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


def _summed(
    shape: tuple[int, ...], strides: tuple[int, int, int], window: Window, channels: int,
    stride: tuple[int, ...] = (1, 1),
) -> Described:  # fmt: skip
    """The descriptor of an image whose pixels a grad_weight sums over, which it fetches by row or whole: with images
    last but the channels where a window has one column, and without an axis of remainders where there are none."""
    found = _image(shape, strides, window._replace(rows=1 if window.by_row else window.rows), channels, stride)
    order = [1, 2, 3, 0, 4] if window.columns == 1 else [0, 1, 2, 3, 4]
    if stride == (1, 1):
        order.remove(2)
    return Described(*(tuple(part[axis] for axis in order) for part in found))


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
    gx = placed(problem, "grad_input", images, split=split, phases=tile.phases)
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
    programs *= phases_of(problem) // tile.phases * tile.splits
    dtypes = (dtype, dtype, torch.float32 if split else dtype)
    constants = _constants(problem, operands, tile, window)
    constants |= {"FLAT": images > 1, "GX_VECTOR": gx.vector, "WIDE": gx.wide, "PREFETCH": prefetches(tile)}
    constants |= {"PHASES": phases, "TOGETHER": tile.phases, "W_TURNED": turned}
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
    vector, gw = vectors_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    gy, _ = layouts(problem, "grad_weight", operands)
    numbers = arithmetic_of(problem, operands)
    of_gy = descriptor_strides(problem.output_shape, operands.strides[0], unit)
    of_x = descriptor_strides(problem.input_shape, operands.strides[1], unit)
    described = {0: _summed(problem.output_shape, of_gy, window, tile.rows)}
    view = "plain" if problem.stride == (1, 1) else "folded" if divides(problem) else "made"
    if view != "made":
        described[1] = _summed(problem.input_shape, of_x, window, tile.columns, problem.stride)
    constants = {
        "TN": window.images, "TH": window.rows, "TW": window.columns, "BK": tile.rows, "BC": tile.columns,
        "TAPS": tile.taps, "BY_ROW": window.by_row, "X_VIEW": view,
        "PRECISION": numbers["PRECISION"], "EMULATE_BF16": numbers["EMULATE_BF16"],
        "GW_VECTOR": vector, "WIDE": overflows(size, gy.extent),
    }  # fmt: skip
    scalars = (
        problem.batch, problem.in_channels, problem.out_channels, c, k, problem.groups, *_settings(problem),
        *of_gy, *of_x, *gw, window.number, *window.blocks[1:], splits,
    )  # fmt: skip
    return grad_weight_launches(
        window_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias, descriptors=view == "made",
        described=described,
    )  # fmt: skip
