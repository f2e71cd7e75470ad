"""The families `simt`, `tensor` and `halo` of the CUDA C kernels: implicit GEMM, for any layout, stride and dilation.

Each product runs on multiply-adds (`simt`) or on tensor cores (`tensor`; `grouped` packs several groups into a tile).
This module fills in the struct that all of them take, and counts their blocks.
"""

import math

import numpy as np

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import simt, tensor
from gpuconv.backends.cuda.launch import Instance, Launch, Strides, needs_64_bits, struct_of, sum_partials
from gpuconv.backends.derived import axes, packed, splits_of
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these families cannot compute `direction`: they always can, so None."""
    return None


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from: for tensor cores, and for multiply-adds where those cannot or should not do it."""
    return tensor.tiles(problem, direction, gpu, operands) or simt.tiles(problem, direction, gpu)


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
    aligned: bool = True,
) -> tuple[Launch, ...]:
    """What one call of `direction` launches, in order. Needs no GPU.

    with_bias: grad_weight gives grad-bias too. aligned: all tensors begin at multiples of 16 bytes.
    """
    strides = Strides.of(problem, direction, operands)
    params = struct_of(problem, direction, strides, activation)
    if tile.kernel == "simt":
        instance = simt.instance(problem, direction, operands, strides, tile, activation, aligned)
    else:
        wide = needs_64_bits(problem, strides)
        instance = tensor.instance(problem, direction, operands, tile, wide, aligned, activation)
    merged = packed(problem) if tile.kernel.startswith("grouped") else problem
    if direction == "grad_weight":
        return _grad_weight(problem, merged, tile, instance, params, with_bias)
    params["K"], params["C"], params["groups"] = merged.group_filters, merged.group_channels, merged.groups
    params["phase_blocks"] = row_blocks = tensor.row_blocks(problem, direction, tile)
    phases = 1 if direction == "forward" else math.prod(problem.stride)
    if tensor.has_halo(tile):
        params["window_h"], params["window_w"] = tensor.window_of(problem, direction, tile.rows)
    column_blocks = math.ceil(merged.view(direction).columns / tile.columns)
    return (Launch(instance, row_blocks * column_blocks * phases * merged.groups, params),)


def _grad_weight(
    problem: ConvProblem, merged: ConvProblem, tile: Tile, instance: Instance, params: np.ndarray, with_bias: bool
) -> tuple[Launch, ...]:
    """The launches of grad_weight. `merged`: the problem with the groups of a pack taken as one."""
    k, c, pixels, _ = merged.view("grad_weight")
    splits, size, filters = splits_of(problem, tile), math.prod(problem.weight_shape), problem.out_channels
    params["splits"] = splits
    params["pixel_step"] = _digits(tile.depth, problem)
    params["per_split"] = math.ceil(math.ceil(pixels / tile.depth) / splits) * tile.depth
    blocks = splits * merged.groups * problem.taps * math.ceil(k / tile.rows) * math.ceil(c / tile.columns)
    product = params.copy()
    product["K"], product["C"], product["groups"] = k, c, merged.groups
    if splits == 1:
        return (Launch(instance, blocks, product),)
    # The workspace holds [taps, K, C/G] for each split, so that a tile of it lies together.
    _, height, width = (int(taps) for taps in params["filter"])
    tap = filters * problem.group_channels
    product["w"] = (problem.group_channels, 1, height * width * tap, width * tap, tap)
    product["gw_split"], product["gb_split"] = size, filters
    return Launch(instance, blocks, product), sum_partials(instance, size + with_bias * filters, params)


def _digits(pixels: int, problem: ConvProblem) -> tuple[int, ...]:
    """A number of output pixels, written as images, planes, rows and single pixels."""
    _, height, width = axes(problem.output_size, 1)
    image = math.prod(problem.output_size)
    if not image:
        return (0, 0, 0, 0)
    rows = pixels % image // width
    return (pixels // image, rows // height, rows % height, pixels % width)
