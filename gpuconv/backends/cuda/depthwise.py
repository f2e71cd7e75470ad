"""The family `depthwise` of the CUDA C kernels: filters of one channel, in one or two axes, at strides 1 and 2.

Tiles of an image with their margin in shared memory, strips of results in registers; `kernels/cuda/depthwise.cuh` says
how. A `Tile` of this family has as rows the pixels of its results, `width` of them side by side, as columns its
channels, and as `halo` the pixels that it fetches for each channel. This needs no GPU.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda.launch import ACTIVATIONS, TYPES, Instance, Launch, Strides, conv, fresh_strides, wide
from gpuconv.backends.derived import WORKSPACE, accumulator, axes, refuses_depthwise, splits_of
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction

_MOST_TAPS = 31  # on an axis
_THREADS = 256  # of a block at most
_BLOCKS = 2  # that a multiprocessor has room for
_OF_EACH = 3  # tiles for each number of channels
_SUM_THREADS = 256  # of sum_partials.cuh


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why these kernels cannot do it; None if they can."""
    return refuses_depthwise(problem, _MOST_TAPS)


# ---- geometry: what depthwise.cuh and depthwise_gather.cuh derive, for the launcher ----------------------------------


class _Plane(NamedTuple):
    """H and W of a problem."""

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
        """How many source pixels `results` neighbours need."""
        u, d = self.stride[axis], self.dilation[axis]
        if backward:
            return (results - 1) // u + (taps - 1) * d // u + 1
        return (results - 1) * u + (taps - 1) * d + 1

    def tiles_of(self, height: int, width: int, backward: bool) -> int:
        """How many tiles of height × width the results of a channel fall into."""
        before = [p % u if backward else 0 for p, u in zip(self.pad, self.stride, strict=True)]
        return math.prod(
            math.ceil((size + more) / tile)
            for size, more, tile in zip(self.results, before, (height, width), strict=True)
        )


def _row_is_packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the pixels of a plane follow each other."""
    _, height, width = axes(shape[2:], 1)
    return strides[4] in ((1,) if width > 1 else (0,)) and strides[3] in ((width,) if height > 1 else (0,))


def channels_together(problem: ConvProblem, direction: Direction, operands: Operands) -> bool:
    """Which kernels: those for channels last, or those for packed planes."""
    strides = Strides.of(problem, direction, operands)
    shapes = {"x": problem.input_shape, "y": problem.output_shape}
    return not all(_row_is_packed(shape, getattr(strides, name)) for name, shape in shapes.items())


def _vectors(strides: tuple[int, ...], channels: int, unit: int) -> bool:
    """Whether channels lie one after the other, and all else in multiples of 16 bytes."""
    first, channel, *pixel = strides
    return channel == 1 and not any(value % unit for value in (channels, first, *pixel))


def _strip(together: bool) -> int:
    """How many results of a row a thread owns."""
    return 4 if together else 8


def _taps_of_thread(problem: ConvProblem, together: bool) -> int:
    """How many taps of a filter row a thread of grad_weight sums: so many that its sums fit into registers."""
    width = problem.filter_size[-1]
    most = 4 if together and problem.dtype.itemsize == 2 else 8
    blocks = math.ceil(width / most)
    return most if blocks > 1 and not together else math.ceil(width / blocks)


def _bytes(problem: ConvProblem, direction: Direction, tile: Tile, together: bool) -> int:
    """Of shared memory."""
    plane, backward = _Plane.of(problem, direction), direction == "grad_input"
    height, width = tile.rows // tile.width, tile.width
    size, sum_size = problem.dtype.itemsize, accumulator(problem.dtype).itemsize
    unit, lane = 16 // size, 16 // sum_size
    chunks = tile.columns // unit if together else tile.columns
    taps_h, taps_w = plane.filter

    def padded(value: int, to: int) -> int:
        return math.ceil(value / to) * to

    def tiled(rows: int, columns: int, step: int) -> tuple[int, int]:
        """Bytes of a tile, and of what passes through shared memory on its way to it."""
        banks = 8 * (unit if together else lane)
        if together:
            wanted, least = max(1, chunks // step) * unit % banks, columns * tile.columns
        else:
            wanted, least = lane, padded(columns, lane)
        pitch = least + (wanted - least) % banks
        numbers = (1 if together else chunks) * rows * pitch
        raw = 0 if together else chunks * rows * (columns + 2 * unit) * size
        return padded(numbers * (size if together else sum_size), 16), raw

    rows = plane.extent(0, height, taps_h, backward)
    if direction != "grad_weight":
        tile_bytes, raw = tiled(rows, plane.extent(1, width, taps_w, backward), 1 if backward else plane.stride[0])
        results = 0 if together else chunks * height * (width + 2 * unit) * sum_size
        filters = taps_h * (taps_w * tile.columns if together else chunks * padded(taps_w, lane)) * sum_size
        return tile_bytes + padded(max(raw, results), 16) + filters
    taps = _taps_of_thread(problem, together)
    blocks = math.ceil(taps_w / taps)
    x, raw_x = tiled(rows, plane.extent(1, width, blocks * taps, False), plane.stride[0])
    gy, raw_gy = tiled(height, width, 1)
    sums = 32 * tile.warps * (unit if together else 1) * sum_size
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
    told = conv(problem, direction, strides, activation)
    instance = _instance(problem, direction, operands, strides, tile, activation, aligned)
    plane, backward = _Plane.of(problem, direction), direction == "grad_input"
    tiles_of_image = plane.tiles_of(tile.rows // tile.width, tile.width, backward)
    channel_blocks = math.ceil(problem.groups / tile.columns)
    if direction != "grad_weight":
        return (Launch(instance, problem.batch * tiles_of_image * channel_blocks, told),)
    splits = splits_of(problem, tile)
    told["splits"] = splits
    told["per_split"] = math.ceil(problem.batch * tiles_of_image / splits)
    blocks = splits * problem.out_channels // problem.groups * channel_blocks
    if splits == 1:
        return (Launch(instance, blocks, told),)
    partial = told.copy()  # the workspace holds [taps, K] for each split
    filters, size = problem.out_channels, math.prod(problem.weight_shape)
    partial["w"] = (1, 1, size, plane.filter[1] * filters, filters)
    partial["gw_split"], partial["gb_split"] = size, filters
    summed = size + (filters if with_bias else 0)
    add = dataclasses.replace(instance, function="sum_partials", threads=_SUM_THREADS, shared=0)
    return Launch(instance, blocks, partial), Launch(add, math.ceil(summed / _SUM_THREADS), told)


def _instance(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    strides: Strides,
    tile: Tile,
    activation: Activation,
    aligned: bool,
) -> Instance:
    together, plane = channels_together(problem, direction, operands), _Plane.of(problem, direction)
    unit, members = 16 // problem.dtype.itemsize, problem.out_channels // problem.groups
    one, channels = members == 1, problem.groups
    x = not together or _vectors(strides.x, channels, unit)
    y = not together or (one and _vectors(strides.y, channels, unit))
    source, result = {"forward": (x, y), "grad_input": (y, x), "grad_weight": (x and y, True)}[direction]
    macros = {
        "TYPE": TYPES[problem.dtype], "CHANNELS_LAST": int(together), "MEMBERS": members,
        "TAPS_H": plane.filter[0], "TAPS_W": plane.filter[1],
        "STRIDE_H": plane.stride[0], "STRIDE_W": plane.stride[1],
        "DILATION_H": plane.dilation[0], "DILATION_W": plane.dilation[1],
        "TH": tile.rows // tile.width, "TW": tile.width, "STRIP": _strip(together),
        "CHUNKS": tile.columns // unit if together else tile.columns,
        "THREADS": 32 * tile.warps, "BLOCKS": _BLOCKS,
        "X_VECTOR": int(aligned and source), "WIDE": int(wide(problem, strides)),
    }  # fmt: skip
    if direction == "grad_weight":
        macros |= {"TAPS": _taps_of_thread(problem, together), "ACTIVATION": 0}
    else:
        macros["Y_VECTOR"] = int(aligned and result)
    if direction == "forward":
        as_y = strides.residual == fresh_strides(problem.output_shape, problem)
        residual = y and _vectors(strides.residual, channels, unit) if together else as_y
        macros |= {
            "ACTIVATION": ACTIVATIONS.index(activation.name), "BIAS": int(operands.bias),
            "RESIDUAL": int(operands.residual is not None), "RESIDUAL_VECTOR": int(aligned and residual),
        }  # fmt: skip
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    shared = _bytes(problem, direction, tile, together)
    return Instance(f"depthwise_{direction}.cu", f"depthwise_{direction}", options, 32 * tile.warps, shared)


# ---- which tiles there are -------------------------------------------------------------------------------------------


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """The tiles to choose from for `direction` of `problem` on `gpu`; none where `refuses` gives a reason.

    Whole images, halves, quarters, …, the largest few that leave room for two blocks on a multiprocessor, for each of
    a few numbers of channels: whole 32-byte sectors with channels last.
    """
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    together, plane = channels_together(problem, direction, operands), _Plane.of(problem, direction)
    unit, strip = 16 // problem.dtype.itemsize, _strip(together)
    backward = direction == "grad_input"
    height, width = (
        size + (p % u if backward else 0) for size, p, u in zip(plane.results, plane.pad, plane.stride, strict=True)
    )
    phases = plane.stride[0] if backward else 1
    cuts = [
        (math.ceil(math.ceil(height / down) / phases) * phases, math.ceil(math.ceil(width / across) / strip) * strip)
        for across, down in _cuts(height, width, (64 if together else 256) if height > 1 else 512)
    ]

    def fitting(channels: int, blocks: int = _BLOCKS) -> Iterator[Tile]:
        room = gpu.shared_memory // blocks - 1024 if blocks > 1 else gpu.shared_memory
        for h, w in cuts:
            tile = _with_threads(problem, direction, together, h, w, channels)
            if tile is not None and _bytes(problem, direction, tile, together) <= room:
                yield tile

    numbers = [n * unit for n in (2, 4, 8)] if together else [1, 2, 4, 8, 16, 32]
    found = [t for n in numbers if n < 2 * problem.groups for t in itertools.islice(fitting(n), _OF_EACH)]
    for blocks in (_BLOCKS, 1):  # few channels, or windows so large that half a sector, or a single block, has to do
        found = found or list(itertools.islice(fitting(unit if together else 1, blocks), _OF_EACH))
    return list(dict.fromkeys(split for tile in found for split in _with_splits(problem, direction, plane, tile, gpu)))


def _cuts(height: int, width: int, most_width: int) -> list[tuple[int, int]]:
    """Into how many columns and rows of tiles to cut a plane, those of few tiles first."""
    least = math.ceil(width / most_width)
    across = [least * n for n in (1, 2, 4, 8) if n == 1 or width > 8 * least * n]
    down = [n for n in (1, 2, 3, 4, 7, 8, 14, 16, 28, 32, 56, 64, 128) if n == 1 or n <= height]
    return sorted(((a, d) for a in across for d in down), key=lambda cut: (cut[0] * cut[1], cut))


def _with_threads(
    problem: ConvProblem, direction: Direction, together: bool, height: int, width: int, channels: int
) -> Tile | None:
    """A tile with its threads; None where they would be too many, or most of them idle."""
    plane = _Plane.of(problem, direction)
    backward, unit = direction == "grad_input", 16 // problem.dtype.itemsize
    chunks = channels // unit if together else channels
    strips = chunks * height * width // _strip(together)
    if direction == "grad_weight":
        units = chunks * plane.filter[0] * math.ceil(plane.filter[1] / _taps_of_thread(problem, together))
        threads = min(_THREADS, math.ceil(units * height * width // _strip(together) / 32) * 32)
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


def _with_splits(problem: ConvProblem, direction: Direction, plane: _Plane, tile: Tile, gpu: Gpu) -> list[Tile]:
    """The tile, in grad_weight with numbers of splits that give each multiprocessor one block, two or four."""
    if direction != "grad_weight":
        return [tile]
    tiles_of_all = problem.batch * plane.tiles_of(tile.rows // tile.width, tile.width, False)
    programs = problem.out_channels // problem.groups * math.ceil(problem.groups / tile.columns)
    partial = (math.prod(problem.weight_shape) + problem.out_channels) * accumulator(problem.dtype).itemsize
    most = max(1, min(tiles_of_all, WORKSPACE // partial))
    wanted = {1, *(min(most, math.ceil(each * gpu.multiprocessors / programs)) for each in (1, 2, 4))}
    return [dataclasses.replace(tile, splits=splits) for splits in sorted(wanted)]
