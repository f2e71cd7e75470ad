"""What one implicit GEMM launches, on multiply-adds (`simt`) or on tensor cores (`tensor` and the families beside it).

This module fills in the struct that all of their kernels take, and counts their blocks. Nothing here needs a GPU.
"""

import math

import numpy as np

from gpuconv.backends import last_program
from gpuconv.backends.base import Tile
from gpuconv.backends.cuda import windows
from gpuconv.backends.cuda.launch import Instance, Launch, sum_partials
from gpuconv.backends.derived import axes, programs_of_grad_weight, splits_of
from gpuconv.backends.last_program import Workspace
from gpuconv.problem import ConvProblem, Direction


def launches(
    problem: ConvProblem,
    direction: Direction,
    tile: Tile,
    instance: Instance,
    params: np.ndarray,
    with_bias: bool,
    merged: ConvProblem | None = None,
) -> tuple[Launch, ...]:
    """The launches of `instance` for one call of `direction`, in order.

    params: the struct of the problem. with_bias: grad_weight gives grad-bias too. merged: the problem with the groups
    of a pack taken as one.
    """
    merged = merged or problem
    if direction == "grad_weight":
        return _grad_weight(problem, merged, tile, instance, params, with_bias)
    params["K"], params["C"], params["groups"] = merged.group_filters, merged.group_channels, merged.groups
    params["phase_blocks"] = row_blocks = _row_blocks(problem, direction, tile)
    phases = 1 if direction == "forward" else math.prod(problem.stride)
    if tile.halo:
        params["window_h"], params["window_w"] = windows.window_of(problem, direction, tile.rows)
    column_blocks = math.ceil(merged.view(direction).columns / tile.columns)
    return (Launch(instance, row_blocks * column_blocks * phases * merged.groups, params),)


def _row_blocks(problem: ConvProblem, direction: Direction, tile: Tile) -> int:
    """Blocks of rows in one group: of forward, or of the largest phase of grad_input."""
    if tile.halo:
        return windows.blocks_of(problem, direction, tile.rows)
    if direction == "forward":
        return math.ceil(problem.output_pixels / tile.rows)
    phase = (math.ceil(h / u) for h, u in zip(problem.input_size, problem.stride, strict=True))
    return math.ceil(problem.batch * math.prod(phase) / tile.rows)


def _grad_weight(
    problem: ConvProblem, merged: ConvProblem, tile: Tile, instance: Instance, params: np.ndarray, with_bias: bool
) -> tuple[Launch, ...]:
    """The launches of grad_weight. `merged`: the problem with the groups of a pack taken as one."""
    k, c, pixels, _ = merged.view("grad_weight")
    splits, size, filters = splits_of(problem, tile), math.prod(problem.weight_shape), problem.out_channels
    params["splits"] = splits
    params["pixel_step"] = _digits(tile.depth, problem)
    params["per_split"] = math.ceil(math.ceil(pixels / tile.depth) / splits) * tile.depth
    of_bias = with_bias and instance.function == "tensor_grad_weight"  # it has blocks for the bias's sum
    tiles = programs_of_grad_weight(merged, tile)
    counters = tiles + of_bias * math.ceil(filters / tile.rows)
    product = params.copy()
    product["K"], product["C"], product["groups"] = k, c, merged.groups
    if not adds_apart(problem, merged, tile):
        part = tile.rows * (tile.columns + 1)  # of last_block.cuh
        workspace = Workspace(splits * tiles * part, counters) if splits > 1 else Workspace()
        return (Launch(instance, splits * counters, product, workspace),)
    # The workspace holds [taps, K, C/G] for each split, so that a tile of it lies together.
    _, height, width = (int(taps) for taps in params["filter"])
    tap = filters * problem.group_channels
    product["w"] = (problem.group_channels, 1, height * width * tap, width * tap, tap)
    product["gw_split"], product["gb_split"] = size, filters
    return (
        Launch(instance, splits * counters, product, Workspace()),
        sum_partials(instance, size + with_bias * filters, params),
    )


def adds_apart(problem: ConvProblem, merged: ConvProblem, tile: Tile) -> bool:
    """Whether a launch of its own adds the partial sums of a grad_weight, or the whole ones; else, where it is split,
    the last blocks of its product do."""
    counters = programs_of_grad_weight(merged, tile) + math.ceil(problem.out_channels / tile.rows)
    return last_program.apart(problem, tile, splits_of(problem, tile), counters)


def _digits(pixels: int, problem: ConvProblem) -> tuple[int, ...]:
    """A number of output pixels, written as images, planes, rows and single pixels."""
    _, height, width = axes(problem.output_size, 1)
    image = math.prod(problem.output_size)
    if not image:
        return (0, 0, 0, 0)
    rows = pixels % image // width
    return (pixels // image, rows // height, rows % height, pixels % width)
