"""Families `patches` and `packed_runs` of the Triton kernels: few input channels, in runs of neighbouring elements.

`patches` are runs in memory as they are: filters that no padding and no misaligned stride parts from vectors. For the
other stems `packed_runs` first writes the input with four channels and with its padding, and the filters likewise, in
one more launch: some bytes once, where element by element each is fetched for every tap that meets it, by itself.
"""

import math
from contextlib import suppress
from functools import partial

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import constants
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import axes, overflows, splits_of, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, copying, implicit_gemm
from gpuconv.backends.triton.launch import (
    BAND,
    Launch,
    Layout,
    adds_apart,
    arithmetic_of,
    dtypes_of_forward,
    epilogue_of,
    grad_weight_launches,
    layouts,
    residual_layout,
    result_strides,
    strides_of_sums,
)
from gpuconv.backends.triton.runs_layout import CHANNELS, Runs, as_they_are, packed_rows, when_packed
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.pack_runs import pack_runs
    from gpuconv.kernels.triton.runs import runs_forward, runs_grad_weight

_MOST_CHANNELS = 4
_PACK_BLOCK = 512


class Pack(Launch):
    """The launch that writes what the next one reads in the place of input and weight."""

    rows: int  # elements of the packed input
    filters: int  # and of the packed weight


# ---- which problems --------------------------------------------------------------------------------------------------


def _refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """What both families refuse, and why."""
    if direction == "grad_input":
        return "grad_input sums over the filters: few input channels cost it nothing"
    if problem.groups != 1 or not 1 <= problem.in_channels <= _MOST_CHANNELS:
        return f"it is for 1 to {_MOST_CHANNELS} input channels in one group"
    if gpu.capability != (0, 0) and problem.dtype.itemsize != 2 and not operands.tf32:
        return "it multiplies 16-bit numbers and TF32 on tensor cores, not float32 or float64"
    if problem.dilation[-1] != 1 and problem.filter_size[-1] > 1:
        return "the taps of a filter row are not neighbours"
    if not problem.output_pixels:
        return "there are no pixels"
    return None


def refuses_patches(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why the tensors cannot be multiplied as they are; None if they can."""
    reason = _refuses(problem, direction, gpu, operands)
    if reason is None and as_they_are(problem, direction, operands) is None:
        return "padding, strides or sizes part filter rows from vectors of 8 bytes"
    return reason


# ---- what is launched ------------------------------------------------------------------------------------------------


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    packed: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    first, second = layouts(problem, direction, operands)
    x, w = (first, second) if direction == "forward" else (second, None)
    runs = when_packed(problem, x) if packed else as_they_are(problem, direction, operands)
    if runs is None:
        raise ValueError(f"the runs of {problem} do not lie in vectors")
    w_k = runs.terms if w is None or packed else w.strides[0]
    product = (
        (_forward(problem, activation, operands, tile, runs, w_k),)
        if direction == "forward"
        else _grad_weight(problem, operands, tile, runs, with_bias)
    )
    return (_pack(problem, x, w, runs), *product) if packed else product


def _pack(problem: ConvProblem, x: Layout, w: Layout | None, runs: Runs) -> Pack:
    (depth, height, width), (*margin, margin_w), vector = packed_rows(problem, x)
    k, c = problem.out_channels, problem.in_channels
    d, h, w_size = axes(problem.input_size, 1)
    pixels = problem.batch * depth * height * width
    programs = math.ceil(pixels / _PACK_BLOCK)
    filters = 0 if w is None else k * runs.terms
    *strides, x_w = x.strides
    scalars = (
        k, c, d, h, w_size // vector, *axes(problem.filter_size, 1), depth, height, width // vector,
        *margin, margin_w // vector, pixels // vector, programs, runs.length, runs.lead,
        *(stride // vector for stride in strides), x_w, *((0,) * 5 if w is None else w.strides),
    )  # fmt: skip
    constants = {
        "BLOCK": _PACK_BLOCK, "VECTOR": vector, "CHANNELS_FAST": x.channels_fast,
        "WIDE": overflows(x.extent, 4 * pixels, filters, 0 if w is None else w.extent),
    }  # fmt: skip
    dtype, of_w = problem.dtype, None if w is None else problem.dtype
    programs += math.ceil(filters / _PACK_BLOCK)
    pack = Pack(pack_runs, programs, (dtype, of_w, dtype, of_w), scalars, constants, Tile(0, 0, 0, warps=4, stages=2))
    pack.rows, pack.filters = runs.size, filters
    return pack


def _forward(
    problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile, runs: Runs, w_k: int
) -> Launch:
    k, pixels = problem.out_channels, problem.output_pixels
    residual = residual_layout(problem, operands)
    y_n, y_k, y_pixel = result_strides(problem.output_shape, problem)
    planes = problem.memory_format is torch.contiguous_format
    y_vector = math.gcd(problem.vector_unit, math.prod(problem.output_size) if planes else k)
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BJ": tile.depth, "BAND": BAND,
        "RUN": runs.length, "VECTOR": runs.vector,
        "VOLUME": problem.ndim == 3, "OUTER": runs.number > runs.inner, "EVEN": runs.terms % tile.depth == 0,
        "Y_ROWS_FAST": planes, "RESIDUAL_ROWS_FAST": not residual.channels_fast, "Y_VECTOR": y_vector,
        "WIDE": overflows(
            runs.extent(problem), k * w_k, residual.extent, math.prod(problem.output_shape)
        ),
        **arithmetic_of(problem, operands),
        **epilogue_of(activation),
    }  # fmt: skip
    scalars = (
        pixels, k, runs.number, runs.inner, *axes(problem.output_size, 1), *runs.in_vectors, w_k // runs.vector,
        y_n // y_vector, y_k // y_vector if planes else y_k, y_pixel if planes else y_pixel // y_vector,
        *residual.strides,
    )  # fmt: skip
    programs = math.ceil(pixels / tile.rows) * math.ceil(k / tile.columns)
    return Launch(runs_forward, programs, dtypes_of_forward(problem, operands), scalars, constants, tile)


def _grad_weight(
    problem: ConvProblem, operands: Operands, tile: Tile, runs: Runs, with_bias: bool
) -> tuple[Launch, ...]:
    k, c, pixels = problem.out_channels, problem.in_channels, problem.output_pixels
    gy, _ = layouts(problem, "grad_weight", operands)
    size, splits = math.prod(problem.weight_shape), splits_of(problem, tile)
    tiles = _tiles_of_result(problem, tile, runs.terms)
    gw = strides_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    n, filters, *of_pixels = gy.strides
    out = axes(problem.output_size, 1)
    if gy.channels_fast:
        # that of one pixel in a row, too
        of_pixels[-1] = next((stride for stride in (*reversed(of_pixels), n) if stride), 1)
        dense = _evenly((problem.batch, *out), (n, *of_pixels), of_pixels[-1])
        vector = math.gcd(problem.vector_unit, k, n, *of_pixels) if filters == 1 else 1
        strides = (n // vector, filters, *(stride // vector for stride in of_pixels))
    else:
        dense = _evenly(out, tuple(of_pixels), 1)
        vector = math.gcd(problem.vector_unit, math.prod(out), n, filters) if dense else 1
        strides = (n // vector, filters // vector, *of_pixels)
    constants = {
        "BM": tile.rows, "BJ": tile.columns, "BC": tile.depth,
        "RUN": runs.length, "VECTOR": runs.vector, "CHANNELS": runs.channels,
        "VOLUME": problem.ndim == 3, "OUTER": runs.number > runs.inner, "EVEN": runs.terms % tile.columns == 0,
        "GY_DENSE": dense, "GY_PIXELS_FAST": not gy.channels_fast, "GY_VECTOR": vector,
        "WIDE": overflows(gy.extent, runs.extent(problem), size, pixels),
        **arithmetic_of(problem, operands),
    }  # fmt: skip
    scalars = (
        pixels, k, c, runs.number, runs.inner, problem.filter_size[-1], *axes(problem.output_size, 1),
        *strides, *runs.in_vectors, runs.lead, *gw, splits,
    )  # fmt: skip
    return grad_weight_launches(runs_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias)


def _evenly(sizes: tuple[int, ...], strides: tuple[int, ...], each: int) -> bool:
    """Whether the elements of these axes are spaced by `each`."""
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != each:
            return False
        each *= size
    return True


def _tiles_of_result(problem: ConvProblem, tile: Tile, terms: int) -> int:
    """How many tiles of filters × terms grad_weight has."""
    return math.ceil(problem.out_channels / tile.rows) * math.ceil(terms / tile.columns)


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, depth of 16-bit numbers, warps, stages
_TENSOR_CORES = {
    "forward": (
        (256, 64, 32, 8, 4), (128, 64, 32, 4, 4), (128, 128, 64, 8, 3), (128, 32, 32, 4, 4), (128, 16, 32, 4, 4)
    ),
    "grad_weight": (
        (64, 256, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 64, 4, 3), (32, 64, 64, 4, 3), (16, 64, 64, 4, 3)
    ),
}  # fmt: skip
# As TF32 wgmma multiplies only what has the pixels innermost, and x has not: two warps multiply by mma.sync instead,
# which takes either, and keep all the sums of one tile in registers. (There are none left for a third stage.)
_TWO_WARPS = ((64, 128, 32, 2, 2), (64, 64, 32, 2, 4))
_INTERPRETED = {
    "forward": ((1024, 64, 64, 4, 2), (128, 16, 64, 4, 2)),
    "grad_weight": ((64, 64, 1024, 4, 2), (64, 64, 128, 4, 2)),
}


def _tiles(
    name: str, runs: Runs, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands
) -> list[Tile]:
    size, forward = problem.dtype.itemsize, direction == "forward"
    interpreted = gpu.capability == (0, 0)
    shapes: tuple[tuple[int, int, int, int, int], ...] = (_INTERPRETED if interpreted else _TENSOR_CORES)[direction]
    if not forward and operands.tf32 and gpu.capability[0] in (9, 10):
        shapes = (*_TWO_WARPS, *(shape for shape in shapes if shape[0] < 64))
    chosen = []
    for rows, columns, depth, warps, stages in shapes:
        filters = columns if forward else rows
        if not interpreted:
            depth = 2 * depth // size
            if filters > 16 and filters >= 2 * problem.out_channels:
                continue  # more than half of it idle
            if not forward and columns > 64 and columns >= 2 * runs.terms:
                continue
            if not forward and columns > 128 and runs.size:
                continue  # each run by itself, which reads more sectors than those of neighbouring pixels together
        while forward and depth > 16 and runs.terms <= depth // 2:
            depth //= 2
        if stages * (rows + columns) * depth * size > gpu.shared_memory:
            continue
        tile = Tile(rows, columns, depth, warps, stages, kernel=name, width=runs.length)
        if forward:
            chosen.append(tile)
        else:
            chosen += with_splits(tile, problem, gpu, _tiles_of_result(problem, tile, runs.terms))
    return chosen


def tiles_of_patches(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if refuses_patches(problem, direction, gpu, operands) is not None:
        return []
    runs = as_they_are(problem, direction, operands)
    return [] if runs is None else _tiles("patches", runs, problem, direction, gpu, operands)


def tiles_when_packed(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason."""
    if _refuses(problem, direction, gpu, operands) is not None:
        return []
    x = layouts(problem, direction, operands)[direction != "forward"]
    return _tiles("packed_runs", when_packed(problem, x), problem, direction, gpu, operands)


# ---- how long they take ----------------------------------------------------------------------------------------------


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM over flattened runs."""
    share = constants.MMA_SYNC.get(gpu.capability, 1.0) if tile.warps == 2 else 1.0
    return implicit_gemm(
        problem, direction, tile, gpu, tf32, rate=share * gpu.rate(problem.dtype, tf32),
        count=_programs_and_steps, elements=_fetched, costs="runs",
    )  # fmt: skip


def predict_when_packed(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The same after one more launch, which writes somewhat more than it reads."""
    product = predict(problem, direction, tile, gpu, tf32)
    *outer, (q, u, _, _) = zip(
        problem.output_size, problem.stride, problem.filter_size, problem.dilation, strict=True
    )  # fmt: skip
    lines = problem.batch * math.prod((p - 1) * u + (r - 1) * d + 1 for p, u, r, d in outer)
    written = lines * ((q - 1) * u * CHANNELS + tile.width) * problem.dtype.itemsize
    return product._replace(seconds=product.seconds + copying(written, gpu))


def _fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[float, float]:
    """Elements that all programs fetch of the left operand and of the right one.

    Packed runs of neighbouring pixels overlap, and what several lanes of an instruction want is fetched once.
    """
    k, pixels, terms = problem.out_channels, problem.output_pixels, _terms(problem, tile)
    forward = direction == "forward"
    across = tile.depth if forward else tile.columns  # elements of a pixel in a step
    run, together = min(across, tile.width), max(1, 512 // (across * problem.dtype.itemsize))  # of an instruction
    apart = run if tile.kernel == "patches" else min(run, CHANNELS * problem.stride[-1])
    of_x = pixels * terms * ((together - 1) * apart + run) / (together * run)
    if forward:
        return of_x * math.ceil(k / tile.columns), math.ceil(pixels / tile.rows) * terms * k
    return pixels * k * math.ceil(terms / tile.columns), of_x * math.ceil(k / tile.rows)


def _programs_and_steps(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[int, float]:
    pixels, terms = problem.output_pixels, _terms(problem, tile)
    if direction == "forward":
        programs = math.ceil(pixels / tile.rows) * math.ceil(problem.out_channels / tile.columns)
        return programs, math.ceil(terms / tile.depth)
    steps = math.ceil(pixels / tile.depth)
    return _tiles_of_result(problem, tile, terms) * tile.splits, math.ceil(steps / tile.splits)


def _terms(problem: ConvProblem, tile: Tile) -> int:
    """Elements of all runs of a filter, by tiles that `_tiles` made."""
    if tile.kernel == "patches":
        return problem.taps * problem.in_channels
    return problem.taps // problem.filter_size[-1] * tile.width


PATCHES = Family("patches", refuses_patches, tiles_of_patches, launches, predict)
PACKED = Family("packed_runs", _refuses, tiles_when_packed, partial(launches, packed=True), predict_when_packed)
