"""The families `simt`, `tensor` and `halo` of the CUDA C kernels: implicit GEMM, for any layout, stride and dilation.

Multiply-adds (`simt`) or tensor cores (`tensor`, with several groups in a tile `grouped`); what all are
told, and how many blocks compute it.
"""

import dataclasses
import math

import numpy as np

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda import simt, tensor
from gpuconv.backends.cuda.launch import Instance, Launch, Strides, conv, wide
from gpuconv.backends.derived import axes, packed, splits_of
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_SUM_THREADS = 256  # of sum_partials.cuh


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these families cannot do it: they always can."""
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
    told = conv(problem, direction, strides, activation)
    if tile.kernel == "simt":
        instance = simt.instance(problem, direction, operands, strides, tile, activation, aligned)
    else:
        instance = tensor.instance(problem, direction, operands, tile, wide(problem, strides), aligned, activation)
    view = packed(problem) if tile.kernel.startswith("grouped") else problem
    k, c = view.out_channels // view.groups, view.in_channels // view.groups
    if direction == "grad_weight":
        return _grad_weight(problem, view, tile, instance, told, with_bias)
    told["K"], told["C"], told["groups"] = k, c, view.groups
    told["phase_blocks"] = row_blocks = tensor.row_blocks(problem, direction, tile)
    phases, columns = (1, k) if direction == "forward" else (math.prod(problem.stride), c)
    if tensor.has_halo(tile):
        told["window_h"], told["window_w"] = tensor.window_of(problem, direction, tile.rows)
    blocks = row_blocks * math.ceil(columns / tile.columns) * phases * view.groups
    return (Launch(instance, blocks, told),)


def _grad_weight(
    problem: ConvProblem, view: ConvProblem, tile: Tile, instance: Instance, told: np.ndarray, with_bias: bool
) -> tuple[Launch, ...]:
    """`view`: the problem as the product sees it, with groups taken together."""
    k, c = view.out_channels // view.groups, view.in_channels // view.groups
    pixels = problem.batch * math.prod(problem.output_size)
    size = math.prod(problem.weight_shape)
    splits = splits_of(problem, tile)
    told["splits"] = splits
    told["by"] = _digits(tile.depth, problem)
    told["per_split"] = math.ceil(math.ceil(pixels / tile.depth) / splits) * tile.depth
    blocks = splits * view.groups * problem.taps * math.ceil(k / tile.rows) * math.ceil(c / tile.columns)
    product = told.copy()
    product["K"], product["C"], product["groups"] = k, c, view.groups
    if splits == 1:
        return (Launch(instance, blocks, product),)
    partial = product  # the workspace holds [taps, K, C/G] for each split, so that a tile of it lies together
    _, height, width = (int(taps) for taps in told["filter"])
    channels = problem.in_channels // problem.groups
    tap = problem.out_channels * channels
    partial["w"] = (channels, 1, height * width * tap, width * tap, tap)
    partial["gw_split"], partial["gb_split"] = size, problem.out_channels
    summed = size + (problem.out_channels if with_bias else 0)
    add = dataclasses.replace(instance, function="sum_partials", threads=_SUM_THREADS, shared=0)
    return Launch(instance, blocks, partial), Launch(add, math.ceil(summed / _SUM_THREADS), told)


def _digits(pixels: int, problem: ConvProblem) -> tuple[int, ...]:
    """A number of output pixels as images, planes, rows and single ones."""
    _, height, width = axes(problem.output_size, 1)
    image = math.prod(problem.output_size)
    if not image:
        return (0, 0, 0, 0)
    rows = pixels % image // width
    return (pixels // image, rows // height, rows % height, pixels % width)
