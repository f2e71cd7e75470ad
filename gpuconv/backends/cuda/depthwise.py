"""Family `depthwise` of the CUDA C kernels: filters of one channel, in one or two axes, at strides 1 and 2.

Tiles of an image with their margin in shared memory, strips of results in registers; `kernels/cuda/depthwise.cuh` says
how. What the numbers of a `Tile` mean here, `gpuconv.backends.depthwise` says. Nothing here needs a GPU.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends import depthwise
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda.launch import (
    ACTIVATIONS,
    TYPES,
    Instance,
    Launch,
    Strides,
    come_in_vectors,
    fresh_strides,
    needs_64_bits,
    struct_of,
    sum_partials,
)
from gpuconv.backends.derived import accumulator, axes, splits_of, with_splits
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_TAPS = 31  # on an axis
_THREADS = 256  # of a block at most
_BLOCKS = 2  # blocks that a multiprocessor has room for
_TILES_OF_EACH = 3  # tiles offered for each number of channels


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot compute `direction`; None if they can."""
    return depthwise.refuses(problem, _MOST_TAPS)


# ---- geometry, as in depthwise.cuh and depthwise_gather.cuh ----------------------------------------------------------


class _Plane(NamedTuple):
    """The settings of a problem on the axes H and W."""

    filter: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    results: tuple[int, int]  # pixels of y; of x in grad_input

    @classmethod
    def of(cls, problem: ConvProblem, direction: Direction) -> "_Plane":
        def two(values: tuple[int, ...], missing: int) -> tuple[int, int]:
            _, height, width = axes(values, missing)
            return height, width

        results = problem.input_size if direction == "grad_input" else problem.output_size
        return cls(
            two(problem.filter_size, 1), two(problem.stride, 1), two(problem.dilation, 1),
            two(tuple(low for low, _ in problem.padding), 0), two(results, 1),
        )  # fmt: skip

    def extent(self, axis: int, results: int, taps: int, backward: bool) -> int:
        """Source pixels that `results` neighbouring results need on an axis."""
        u, d = self.stride[axis], self.dilation[axis]
        if backward:
            return (results - 1) // u + (taps - 1) * d // u + 1
        return (results - 1) * u + (taps - 1) * d + 1

    def tiles_of(self, height: int, width: int, backward: bool) -> int:
        """Tiles of height × width that cover the results of a channel of an image."""
        before = [p % u if backward else 0 for p, u in zip(self.pad, self.stride, strict=True)]
        return math.prod(
            math.ceil((size + more) / tile)
            for size, more, tile in zip(self.results, before, (height, width), strict=True)
        )


def _row_is_packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the pixels of a plane follow each other in memory."""
    _, height, width = axes(shape[2:], 1)
    return strides[4] in ((1,) if width > 1 else (0,)) and strides[3] in ((width,) if height > 1 else (0,))


def for_channels_last(problem: ConvProblem, direction: Direction, operands: Operands) -> bool:
    """Whether the kernels for channels last compute `direction`, and not those for packed planes."""
    strides = Strides.of(problem, direction, operands)
    shapes = {"x": problem.input_shape, "y": problem.output_shape}
    return not all(_row_is_packed(shape, getattr(strides, name)) for name, shape in shapes.items())


def _strip(channels_last: bool) -> int:
    """Neighbouring results of a row that one thread owns."""
    return 4 if channels_last else 8


def _taps_of_thread(problem: ConvProblem, channels_last: bool) -> int:
    """Taps of a filter row that one thread of grad_weight sums: as many as fit into its registers."""
    width = problem.filter_size[-1]
    most = 4 if channels_last and problem.dtype.itemsize == 2 else 8
    blocks = math.ceil(width / most)
    return most if blocks > 1 and not channels_last else math.ceil(width / blocks)


def shared_memory(problem: ConvProblem, direction: Direction, tile: Tile, channels_last: bool) -> int:
    """Shared memory of one block, in bytes."""
    plane, backward = _Plane.of(problem, direction), direction == "grad_input"
    height, width = tile.rows // tile.width, tile.width
    size, sum_size = problem.dtype.itemsize, accumulator(problem.dtype).itemsize
    unit, lane = problem.vector_unit, 16 // sum_size
    chunks = tile.columns // unit if channels_last else tile.columns
    taps_h, taps_w = plane.filter

    def padded(value: int, to: int) -> int:
        return math.ceil(value / to) * to

    def tiled(rows: int, columns: int, step: int, following: int) -> tuple[int, int]:
        """Bytes of a tile, and of the runs that pass through shared memory on their way to it."""
        banks = 8 * (unit if channels_last else lane)
        if channels_last:
            wanted, least = max(1, chunks // step) * unit % banks, columns * tile.columns
        else:
            wanted, least = lane, padded(columns, lane) + (step - 1) * lane
        pitch = least + (wanted - least) % banks
        numbers = rows * pitch if channels_last else chunks * (rows * pitch + (following - rows) % 8 * lane)
        raw = 0 if channels_last else chunks * rows * (columns + 2 * unit) * size
        return padded(numbers * (size if channels_last else sum_size), 16), raw

    rows = plane.extent(0, height, taps_h, backward)
    if direction != "grad_weight":
        step = 1 if backward else plane.stride[0]
        following = height // plane.stride[0] if backward else height * step
        following += following // 8 % 2 * (step - 1)
        tile_bytes, raw = tiled(rows, plane.extent(1, width, taps_w, backward), step, following)
        results = 0 if channels_last else chunks * height * (width + 2 * unit) * sum_size
        filters = (
            taps_h * (taps_w * (tile.columns + lane) if channels_last else chunks * padded(taps_w, lane)) * sum_size
        )
        return tile_bytes + padded(max(raw, results), 16) + filters
    taps = _taps_of_thread(problem, channels_last)
    blocks = math.ceil(taps_w / taps)
    following = math.ceil(8 / chunks)
    x, raw_x = tiled(rows, plane.extent(1, width, blocks * taps, False), plane.stride[0], following)
    gy, raw_gy = tiled(height, width, 1, following)
    sums = 32 * tile.warps * (unit if channels_last else 1) * sum_size
    return max(x + gy + padded(raw_x, 16) + padded(raw_gy, 16), sums)


# ---- launches --------------------------------------------------------------------------------------------------------


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
    instance = _instance(problem, direction, operands, strides, tile, activation, aligned)
    plane, backward = _Plane.of(problem, direction), direction == "grad_input"
    tiles_of_image = plane.tiles_of(tile.rows // tile.width, tile.width, backward)
    channel_blocks = math.ceil(problem.groups / tile.columns)
    if direction != "grad_weight":
        return (Launch(instance, problem.batch * tiles_of_image * channel_blocks, params),)
    splits = splits_of(problem, tile)
    params["splits"] = splits
    params["per_split"] = math.ceil(problem.batch * tiles_of_image / splits)
    blocks = splits * problem.group_filters * channel_blocks
    if splits == 1:
        return (Launch(instance, blocks, params),)
    partial = params.copy()  # the workspace holds [taps, K] for each split
    filters, size = problem.out_channels, math.prod(problem.weight_shape)
    partial["w"] = (1, 1, size, plane.filter[1] * filters, filters)
    partial["gw_split"], partial["gb_split"] = size, filters
    return Launch(instance, blocks, partial), sum_partials(instance, size + with_bias * filters, params)


def _instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    strides: Strides,
    tile: Tile,
    activation: Activation,
    aligned: bool,
) -> Instance:
    channels_last, plane = for_channels_last(problem, direction, operands), _Plane.of(problem, direction)
    unit, members = problem.vector_unit, problem.group_filters
    one, channels = members == 1, problem.groups
    x = not channels_last or come_in_vectors(strides.x, channels, unit)
    y = not channels_last or (one and come_in_vectors(strides.y, channels, unit))
    source, result = {"forward": (x, y), "grad_input": (y, x), "grad_weight": (x and y, True)}[direction]
    macros = {
        "TYPE": TYPES[problem.dtype], "CHANNELS_LAST": int(channels_last), "MEMBERS": members,
        "TAPS_H": plane.filter[0], "TAPS_W": plane.filter[1],
        "STRIDE_H": plane.stride[0], "STRIDE_W": plane.stride[1],
        "DILATION_H": plane.dilation[0], "DILATION_W": plane.dilation[1],
        "TH": tile.rows // tile.width, "TW": tile.width, "STRIP": _strip(channels_last),
        "CHUNKS": tile.columns // unit if channels_last else tile.columns,
        "THREADS": 32 * tile.warps, "BLOCKS": _BLOCKS,
        "X_VECTOR": int(aligned and source), "WIDE": int(needs_64_bits(problem, strides)),
    }  # fmt: skip
    if direction == "grad_weight":
        macros |= {"TAPS": _taps_of_thread(problem, channels_last), "ACTIVATION": 0}
    else:
        macros["Y_VECTOR"] = int(aligned and result)
    if direction == "forward":
        as_y = strides.residual == fresh_strides(problem.output_shape, problem)
        residual = y and come_in_vectors(strides.residual, channels, unit) if channels_last else as_y
        macros |= {
            "ACTIVATION": ACTIVATIONS.index(activation.name), "BIAS": int(operands.bias),
            "RESIDUAL": int(operands.residual is not None), "RESIDUAL_VECTOR": int(aligned and residual),
        }  # fmt: skip
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    shared = shared_memory(problem, direction, tile, channels_last)
    return Instance(f"depthwise_{direction}.cu", f"depthwise_{direction}", options, 32 * tile.warps, shared)


# ---- which tiles there are -------------------------------------------------------------------------------------------


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason.

    For each of a few numbers of channels (with channels last, whole sectors of 32 bytes) a tile is a whole image, a
    half, a quarter, …: the largest few that leave room for two blocks on a multiprocessor.
    """
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    channels_last, plane = for_channels_last(problem, direction, operands), _Plane.of(problem, direction)
    unit, strip = problem.vector_unit, _strip(channels_last)
    backward = direction == "grad_input"
    height, width = (
        size + (p % u if backward else 0) for size, p, u in zip(plane.results, plane.pad, plane.stride, strict=True)
    )
    phases = plane.stride[0] if backward else 1
    cuts = [
        (math.ceil(math.ceil(height / down) / phases) * phases, math.ceil(math.ceil(width / across) / strip) * strip)
        for across, down in _cuts(height, width, (64 if channels_last else 256) if height > 1 else 512)
    ]

    def fitting(channels: int, blocks: int = _BLOCKS) -> Iterator[Tile]:
        room = gpu.shared_memory // blocks - 1024 if blocks > 1 else gpu.shared_memory
        for h, w in cuts:
            tile = _with_threads(problem, direction, channels_last, h, w, channels)
            if tile is not None and shared_memory(problem, direction, tile, channels_last) <= room:
                yield tile

    numbers = [n * unit for n in (2, 4, 8)] if channels_last else [1, 2, 4, 8, 16, 32]
    found = [t for n in numbers if n < 2 * problem.groups for t in itertools.islice(fitting(n), _TILES_OF_EACH)]
    for blocks in (_BLOCKS, 1):  # few channels, or so large a window that half a sector, or a single block, must do
        found = found or list(itertools.islice(fitting(unit if channels_last else 1, blocks), _TILES_OF_EACH))
    return list(dict.fromkeys(split for tile in found for split in _splits(problem, direction, plane, tile, gpu)))


def _cuts(height: int, width: int, most_width: int) -> list[tuple[int, int]]:
    """Numbers of columns and rows of tiles to cut a plane into, the fewest tiles first."""
    least = math.ceil(width / most_width)
    across = [least * n for n in (1, 2, 4, 8) if n == 1 or width > 8 * least * n]
    down = [n for n in (1, 2, 3, 4, 7, 8, 14, 16, 28, 32, 56, 64, 128) if n == 1 or n <= height]
    return sorted(((a, d) for a in across for d in down), key=lambda cut: (cut[0] * cut[1], cut))


def _with_threads(
    problem: ConvProblem, direction: Direction, channels_last: bool, height: int, width: int, channels: int
) -> Tile | None:
    """A tile with its threads; None where there are too few threads for its work."""
    plane = _Plane.of(problem, direction)
    backward, unit = direction == "grad_input", problem.vector_unit
    chunks = channels // unit if channels_last else channels
    strips = chunks * height * width // _strip(channels_last)
    if direction == "grad_weight":
        units = chunks * plane.filter[0] * math.ceil(plane.filter[1] / _taps_of_thread(problem, channels_last))
        threads = min(_THREADS, math.ceil(units * height * width // _strip(channels_last) / 32) * 32)
        if units > _THREADS:
            return None
        threads = max(threads, math.ceil(units / 32) * 32)
    else:
        threads = min(_THREADS, math.ceil(strips / 32) * 32)
        if backward and problem.out_channels > problem.groups and strips > threads:
            return None  # sums over several filters stay in registers
    halo = plane.extent(0, height, plane.filter[0], backward) * plane.extent(1, width, plane.filter[1], backward)
    return Tile(
        height * width, channels, 1, threads // 32, stages=1, kernel="depthwise", halo=halo, width=width
    )  # fmt: skip


def _splits(problem: ConvProblem, direction: Direction, plane: _Plane, tile: Tile, gpu: Gpu) -> list[Tile]:
    """The tile; in grad_weight once for each number of splits that gives a multiprocessor one, two or four blocks."""
    if direction != "grad_weight":
        return [tile]
    tiles_of_all = problem.batch * plane.tiles_of(tile.rows // tile.width, tile.width, False)
    programs = problem.group_filters * math.ceil(problem.groups / tile.columns)
    return with_splits(tile, problem, gpu, programs, most=tiles_of_all)


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """The time of kernels that keep a window in shared memory for all its taps."""
    held = shared_memory(problem, direction, tile, problem.memory_format is not torch.contiguous_format)
    return depthwise.predict(problem, direction, tile, gpu, tf32, held=held)


FAMILY = Family("depthwise", refuses, tiles, launches, predict)
