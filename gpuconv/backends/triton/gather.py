"""Family `gather` of the Triton kernels: implicit GEMM by pointer gather, for any layout, stride, dilation, groups."""

import math
from contextlib import suppress

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.derived import (
    axes,
    overflows,
    phase_steps,
    phases_of,
    programs_of_grad_weight,
    splits_of,
    with_splits,
)
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction, fetched, implicit_gemm
from gpuconv.backends.triton.launch import (
    BAND,
    Launch,
    Layout,
    adds_apart,
    arithmetic_of,
    axis_scalars,
    dtypes_of_forward,
    epilogue_of,
    grad_weight_launches,
    layouts,
    residual_layout,
    result_strides,
    vectors_of_sums,
)
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.gather_forward import gather_forward
    from gpuconv.kernels.triton.gather_grad_input import gather_grad_input
    from gpuconv.kernels.triton.gather_grad_weight import gather_grad_weight


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot do it: they always can."""
    return None


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. `with_bias`: grad_weight gives grad-bias too. Needs no GPU."""
    if direction == "forward":
        return (_forward(problem, activation, operands, tile),)
    if direction == "grad_input":
        return (_grad_input(problem, operands, tile),)
    return _grad_weight(problem, operands, tile, with_bias)


def _operands(problem: ConvProblem, direction: Direction, operands: Operands) -> tuple[Layout, Layout, int]:
    """The layouts of the tensors that `direction` multiplies, and their VECTOR (`gpuconv.kernels.triton.common`)."""
    a, b = layouts(problem, direction, operands)
    unit = problem.vector_unit
    channels = problem.group_channels, *(() if direction == "forward" else (problem.group_filters,))
    together = a.vectors(unit) and b.vectors(unit) and not any(count % unit for count in channels)
    return a, b, unit if together else 1


def _vector_of_result(problem: ConvProblem, vector: int) -> int:
    """The VECTOR of a result, where that of the operands is `vector`."""
    return 1 if problem.memory_format is torch.contiguous_format else vector


def _masks_show(problem: ConvProblem, operands: Operands, vector: int) -> bool:
    """Whether masks would cost time: tiles are fetched in vectors and multiplied on tensor cores.

    Elsewhere one kernel, with all its masks, serves layers that need them and layers that do not.
    """
    return vector > 1 and (problem.dtype.itemsize == 2 or operands.tf32)


def _inside(problem: ConvProblem, always: bool) -> str:
    """How a kernel finds which taps are inside the image; see `gather_product`. `always`: they all are."""
    if always:
        return "always"
    return "bits" if max(problem.filter_size) <= 10 else "compare"


def _reads_inside(problem: ConvProblem) -> bool:
    """Whether every tap of every output is inside the input: no padding is ever read."""
    return all(
        low == 0 and (p - 1) * u + (r - 1) * d < h
        for (low, _), p, u, r, d, h in zip(
            problem.padding, problem.output_size, problem.stride, problem.filter_size, problem.dilation,
            problem.input_size, strict=True,
        )
    )  # fmt: skip


def _scatters_inside(problem: ConvProblem) -> bool:
    """Whether every tap of every input pixel's phase is an output: grad_input needs no mask."""
    for (low, _), p, u, r, d, h in zip(
        problem.padding, problem.output_size, problem.stride, problem.filter_size, problem.dilation,
        problem.input_size, strict=True,
    ):  # fmt: skip
        for tap in range(r):
            at = low - tap * d
            first = -at % u  # the first pixel of the phase, and the last
            last = h - 1 - (h - 1 + at) % u
            if first <= last and (first + at < 0 or (last + at) // u >= p):
                return False
    return True


def _forward(problem: ConvProblem, activation: Activation, operands: Operands, tile: Tile) -> Launch:
    k, c = problem.group_filters, problem.group_channels
    x, w, vector = _operands(problem, "forward", operands)
    quick = _masks_show(problem, operands, vector)
    y_n, y_k, y_pixel = result_strides(problem.output_shape, problem)
    y_vector = 1 if k % vector else _vector_of_result(problem, vector)
    channels_last = problem.memory_format is not torch.contiguous_format
    residual = residual_layout(problem, operands)
    pixels = problem.output_pixels
    programs = math.ceil(pixels / tile.rows) * math.ceil(k / tile.columns) * problem.groups
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "BAND": BAND,
        "INSIDE": _inside(problem, quick and _reads_inside(problem)),
        "EVEN_C": quick and c % tile.depth == 0,
        "X_ROWS_FAST": not x.channels_fast, "Y_ROWS_FAST": not channels_last,
        "RESIDUAL_ROWS_FAST": not residual.channels_fast,
        "VECTOR": vector, "Y_VECTOR": y_vector,
        "WIDE": overflows(x.extent, w.extent, residual.extent, math.prod(problem.output_shape)),
        **arithmetic_of(problem, operands),
        **epilogue_of(activation),
    }  # fmt: skip
    scalars = (
        pixels, k // y_vector, c // vector, *axis_scalars(problem), *x.divided(vector), *w.divided(vector),
        y_n // y_vector, y_k, y_pixel // y_vector, *residual.strides,
    )  # fmt: skip
    dtypes = dtypes_of_forward(problem, operands)
    return Launch(gather_forward, programs, dtypes, scalars, constants, tile)


def _grad_input(problem: ConvProblem, operands: Operands, tile: Tile) -> Launch:
    k, c = problem.group_filters, problem.group_channels
    gy, w, vector = _operands(problem, "grad_input", operands)
    quick = _masks_show(problem, operands, vector)
    gx_n, gx_c, gx_pixel = result_strides(problem.input_shape, problem)
    gx_vector = _vector_of_result(problem, vector)
    common, inverse = phase_steps(problem)
    phase = [math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True)]  # the largest
    phase_blocks = math.ceil(problem.batch * math.prod(phase) / tile.rows)
    programs = phase_blocks * math.ceil(c / tile.columns) * phases_of(problem) * problem.groups
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth, "BAND": BAND,
        "INSIDE": _inside(problem, quick and _scatters_inside(problem)),
        "EVEN_K": quick and k % tile.depth == 0,
        "GY_ROWS_FAST": not gy.channels_fast, "GX_ROWS_FAST": problem.memory_format is torch.contiguous_format,
        "VECTOR": vector, "GX_VECTOR": gx_vector,
        "WIDE": overflows(gy.extent, w.extent, math.prod(problem.input_shape)),
        **arithmetic_of(problem, operands),
    }  # fmt: skip
    scalars = (
        problem.batch, c // vector, k // vector, *axis_scalars(problem), *axes(common, 1), *axes(inverse, 0),
        *gy.divided(vector), *w.divided(vector), gx_n // gx_vector, gx_c, gx_pixel // gx_vector, phase_blocks,
    )  # fmt: skip
    return Launch(gather_grad_input, programs, (problem.dtype,) * 3, scalars, constants, tile)


def _grad_weight(problem: ConvProblem, operands: Operands, tile: Tile, with_bias: bool) -> tuple[Launch, ...]:
    k, c = problem.group_filters, problem.group_channels
    gy, x, vector = _operands(problem, "grad_weight", operands)
    size = math.prod(problem.weight_shape)
    pixels = problem.output_pixels
    splits, tiles = splits_of(problem, tile), programs_of_grad_weight(problem, tile)
    gw_vector, gw = vectors_of_sums(problem, adds_apart(problem, tile, splits, tiles))
    constants = {
        "BM": tile.rows, "BN": tile.columns, "BC": tile.depth,
        "MASKED": not (_masks_show(problem, operands, vector) and _reads_inside(problem)),
        "GY_PIXELS_FAST": not gy.channels_fast, "X_PIXELS_FAST": not x.channels_fast,
        "VECTOR": vector, "GW_VECTOR": gw_vector,
        "WIDE": overflows(gy.extent, x.extent, size, pixels),
        **arithmetic_of(problem, operands),
    }  # fmt: skip
    scalars = (
        pixels, k // vector, c // vector, problem.groups, *axis_scalars(problem), *gy.divided(vector),
        *x.divided(vector), *gw, splits,
    )  # fmt: skip
    return grad_weight_launches(gather_grad_weight, tiles, problem, splits, scalars, constants, tile, with_bias)


# ---- which tiles there are -------------------------------------------------------------------------------------------

# rows, columns, warps: small enough to keep a sum in registers, without spills, on all GPUs that the tests compile for.
_NARROW = (64, 16, 4)  # for groups with few channels
_TENSOR_CORES = ((128, 128, 8), (128, 64, 4), _NARROW)
_BY_ELEMENT = ((64, 64, 8), _NARROW)  # each element loaded by itself, with an address of its own in registers
_FMA = ((64, 64, 8), _NARROW)
_DOUBLE = ((64, 32, 4), _NARROW)
_INTERPRETED = ((1024, 64, 4), (128, 64, 4), (64, 64, 4), (128, 16, 4), (16, 16, 4))


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`.

    A short list, since every tile is one more kernel to compile. Steps are as deep as 128 bytes where tiles are fetched
    in vectors, else half that; no deeper than there are terms to sum.
    """
    size = problem.dtype.itemsize
    _, columns, terms, _ = problem.view(direction)
    vector = _operands(problem, direction, operands)[2]
    quick = _masks_show(problem, operands, vector)
    shapes: tuple[tuple[int, int, int], ...]
    if gpu.capability == (0, 0):
        shapes, depth = _INTERPRETED, 64 if direction != "grad_weight" else 128 if terms <= 4096 else 1024
    elif size == 8:
        shapes, depth = _DOUBLE, 16
    elif size == 4 and not operands.tf32:
        shapes, depth = _FMA, 16
    elif quick:
        shapes, depth = _TENSOR_CORES, 128 // size
    else:
        shapes, depth = _BY_ELEMENT, 64 // size
    while depth > 16 and terms <= depth // 2:
        depth //= 2
    chosen = []
    for shape in shapes:
        rows, width, warps = shape
        if width > 16 and width >= 2 * columns:
            continue  # more than half of it idle
        if shape is _NARROW:
            depth = min(depth, 32 if quick and direction != "grad_weight" else 16)
        # Where the loop has many addresses to keep, or multiplies without tensor cores, more stages would spill.
        few = size == 8 or (size == 4 and not operands.tf32) or (shape is _NARROW and direction == "grad_weight")
        stages = min(2 if few else 4, gpu.shared_memory // ((rows + width) * depth * size))
        tile = Tile(rows, width, depth, warps, stages, addressed=(rows + width) * depth if vector == 1 else 0)
        if direction == "grad_weight":
            chosen += with_splits(tile, problem, gpu, programs_of_grad_weight(problem, tile))
        else:
            chosen.append(tile)
    return chosen


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The roofline of an implicit GEMM, which reads rows beyond the last pixel too."""
    return implicit_gemm(problem, direction, tile, gpu, tf32, elements=_fetched)


def _fetched(problem: ConvProblem, direction: Direction, tile: Tile) -> tuple[float, float]:
    left, right = fetched(problem, direction, tile)
    if direction == "grad_weight":
        return left, right
    phase = problem.output_size
    if direction == "grad_input":
        phase = tuple(math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
    pixels = max(1, problem.batch * math.prod(phase))
    return left * math.ceil(pixels / tile.rows) * tile.rows / pixels, right


FAMILY = Family("gather", refuses, tiles, launches, predict)
