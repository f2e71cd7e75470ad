"""Family `taps` of the Triton kernels: depthwise filters up to 7 × 7, in one or two axes, at strides 1 and 2.

A window of pixels is loaded anew for each tap, mostly from the L1 cache; `kernels/triton/depthwise.py` says how. What
the numbers of a `Tile` mean here, `gpuconv.backends.depthwise` says.
"""

import math
from contextlib import suppress

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import depthwise
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import accumulator, axes, overflows, splits_of, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction
from gpuconv.backends.triton.launch import (
    Launch,
    Layout,
    arithmetic_of,
    dtypes_of_forward,
    epilogue_of,
    layout,
    ordered_sum,
    residual_layout,
    result_strides,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.depthwise_forward import depthwise_forward
    from gpuconv.kernels.triton.depthwise_grad_input import depthwise_grad_input
    from gpuconv.kernels.triton.depthwise_grad_weight import depthwise_grad_weight

_MOST_TAPS = 7  # on an axis
_WARPS = 4
_BLOCK = 2048  # results of a program; half as many where each has an address of its own
_SUMS = 8192  # of a program of grad_weight


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot, or should not, do it; None if they can."""
    return depthwise.refuses(problem, _MOST_TAPS)


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    first, second, vector = _operands(problem, direction, operands)
    members, filters, channels = problem.group_filters, problem.out_channels, problem.groups
    extents = [first.extent, second.extent, math.prod(problem.output_shape), math.prod(problem.input_shape)]
    size = (*axes(problem.input_size, 1)[1:], *axes(problem.output_size, 1)[1:])
    pads = axes(tuple(low for low, _ in problem.padding), 0)[1:]
    numbers = arithmetic_of(problem, operands)
    del numbers["PRECISION"]
    constants = {
        **dict(zip("RS", axes(problem.filter_size, 1)[1:], strict=True)),
        **dict(zip(("STRIDE_H", "STRIDE_W"), axes(problem.stride, 1)[1:], strict=True)),
        **dict(zip(("DILATION_H", "DILATION_W"), axes(problem.dilation, 1)[1:], strict=True)),
        "MEMBERS": members,
        "BH": tile.rows // tile.width, "BW": tile.width, "BC": tile.columns,
        "LAST": first.channels_fast, "VECTOR": vector,
        "WIDE": False, **numbers,
    }  # fmt: skip
    blocks = math.ceil((channels if direction == "grad_input" else filters) / tile.columns)
    tiles_of_all = problem.batch * _count(problem, direction, tile)
    dtype = problem.dtype
    if direction == "grad_weight":
        return _grad_weight(
            problem, tile, with_bias, constants, (filters // vector, *size, *pads),
            (*_strides(first, vector), *_strides(second, vector)), tiles_of_all, blocks, extents,
        )  # fmt: skip
    w_k, _, _, w_r, w_s = second.strides
    result = problem.view(direction).shape
    r_n, r_k, r_pixel = result_strides(result, problem)
    scalars = (
        (filters if direction == "forward" else channels) // vector, *size, *pads, *_strides(first, vector),
        w_k, w_r, w_s, r_n // vector, r_k, r_pixel // vector,
    )  # fmt: skip
    if direction == "grad_input":
        constants["WIDE"] = overflows(*extents)
        return (Launch(depthwise_grad_input, tiles_of_all * blocks, (dtype,) * 3, scalars, constants, tile),)
    residual = residual_layout(problem, operands)
    constants |= {"WIDE": overflows(*extents, residual.extent), **epilogue_of(activation)}
    dtypes = dtypes_of_forward(problem, operands)
    scalars = (*scalars, *_strides(residual, 1))
    return (Launch(depthwise_forward, tiles_of_all * blocks, dtypes, scalars, constants, tile),)


def _grad_weight(
    problem: ConvProblem,
    tile: Tile,
    with_bias: bool,
    constants: dict[str, object],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    tiles_of_all: int,
    blocks: int,
    extents: list[int],
) -> tuple[Launch, ...]:
    splits, size = splits_of(problem, tile), math.prod(problem.weight_shape)
    fresh_k, _, fresh_tap = result_strides(problem.weight_shape, problem)
    # The workspace holds [taps, K] for each split.
    gw_split, gw_k, gw_tap = (size, 1, problem.out_channels) if splits > 1 else (0, fresh_k, fresh_tap)
    scalars = (
        *sizes, *strides, gw_split, gw_k, gw_tap, problem.out_channels, tiles_of_all, math.ceil(tiles_of_all / splits),
    )  # fmt: skip
    constants |= {"TAPS": _power_of_two(problem.taps), "WIDE": overflows(*extents, splits * size)}
    ordered = ("R", "S", "STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W", "MEMBERS", "TAPS")
    constants = {name: constants[name] for name in ordered} | constants
    dtype = problem.dtype
    written = accumulator(dtype) if splits > 1 else dtype
    dtypes = (dtype, dtype, written, written if with_bias else None)
    product = Launch(depthwise_grad_weight, splits * blocks, dtypes, scalars, constants, tile)
    return (product,) if splits == 1 else (product, ordered_sum(problem, splits, with_bias))


def _operands(problem: ConvProblem, direction: Direction, operands: Operands) -> tuple[Layout, Layout, int]:
    """The layouts of the two tensors that `direction` multiplies, and the VECTOR of the kernels."""
    shapes, unit = problem.operand_shapes(direction), problem.vector_unit
    first, second = (layout(shape, strides, problem) for shape, strides in zip(shapes, operands.strides, strict=True))
    read = (first, second) if direction == "grad_weight" else (first,)
    together = first.channels_fast and all(tensor.vectors(unit) for tensor in read)
    together = together and problem.out_channels == problem.groups and problem.groups % unit == 0
    return first, second, unit if together and problem.memory_format is not torch.contiguous_format else 1


def _strides(tensor: Layout, vector: int) -> tuple[int, ...]:
    """Strides of images, channels, rows and columns, as the kernels take them."""
    n, c, _, h, w = tensor.divided(vector)
    return n, c, h, w


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _count(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """How many tiles the results of a channel fall into."""
    results = problem.input_size if direction == "grad_input" else problem.output_size
    _, height, width = axes(results, 1)
    return math.ceil(height * tile.width / tile.rows) * math.ceil(width / tile.width)


# ---- which tiles there are -------------------------------------------------------------------------------------------


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason.

    16 results a thread, or 8, in windows of different shapes; in grad_weight 64 sums a thread.
    """
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    results = problem.input_size if direction == "grad_input" else problem.output_size
    _, height, width = axes(results, 1)
    (first, _, vector), size = _operands(problem, direction, operands), problem.dtype.itemsize
    last = first.channels_fast
    block = _BLOCK if size < 8 and vector > 1 else _BLOCK // 2
    if direction == "grad_weight":
        block = (_SUMS if size < 8 else _SUMS // 2) // _power_of_two(problem.taps)
    most = _power_of_two(problem.groups if direction == "grad_input" else problem.out_channels)
    wanted = [64 // size, 128 // size] if last else [1, 4, 16]
    chosen = []
    for channels in dict.fromkeys(min(n, most, block) for n in wanted):
        pixels = block // channels
        for w in dict.fromkeys(min(n, pixels, _power_of_two(width)) for n in ((4, 8, 16) if last else (32, 64, 128))):
            h = min(pixels // w, _power_of_two(height))
            tile = Tile(
                h * w, channels, 1, _WARPS, stages=1, kernel="taps", halo=_halo(problem, h, w), width=w,
                addressed=h * w * channels if vector == 1 else 0,
            )  # fmt: skip
            if direction != "grad_weight":
                chosen.append(tile)
                continue
            programs = math.ceil(problem.out_channels / channels)
            most = problem.batch * _count(problem, direction, tile)
            chosen += with_splits(tile, problem, gpu, programs, most, each=(2, 4))
    return list(dict.fromkeys(chosen))


def _halo(problem: ConvProblem, height: int, width: int) -> int:
    """Pixels of a window with its margin."""
    reach = [(r - 1) * d for r, d in zip(problem.filter_size, problem.dilation, strict=True)]
    _, down, across = axes(tuple(reach), 0)
    return (height + down) * (width + across)


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of kernels that load a window anew for each tap."""
    return depthwise.predict(problem, direction, tile, gpu, tf32, reloads=True)


FAMILY = Family("taps", refuses, tiles, launches, predict)
