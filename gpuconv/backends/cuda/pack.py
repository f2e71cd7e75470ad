"""The launch that packs operands in CUDA C (`gpuconv.backends.packing`); to say what it is needs no GPU."""

import math
from typing import NamedTuple

import numpy as np
import torch

from gpuconv.backends.cuda.launch import TYPES, Instance, Launch
from gpuconv.backends.packing import Source, Sources

# `struct Source` and `struct Pack` of pack.cu, field for field; what the fields mean is said there.
_SOURCE = np.dtype(
    [(name, "i8") for name in ("n", "c", "d", "h", "w")]
    + [(name, "i4") for name in ("groups", "groups_of_image", "pixels", "height", "width", "many")]
)
_PACK = np.dtype([("of", _SOURCE, 2), ("blocks_of_a", "i8")])
_THREADS = 256
_GROUPS = 8  # of a tile: 128 bytes of channels
_ROW = 256  # bytes of a channel's pixels in a tile
_FLAT = 1024  # vectors of a block whose rows lie together, where that is as many groups as are written side by side
_SHARED = 48 << 10  # bytes that a block may have without asking


class _Way(NamedTuple):
    """How an operand is copied: the macros of pack.cu, and what goes with them."""

    how: str = "NONE"
    run: int = 1  # elements that are read as one
    group: int = 1  # … written as one
    together: int = 1
    many: int = 0
    blocks: int = 0
    shared: int = 0


def launch(sources: Sources, dtype: torch.dtype, aligned: bool = True) -> Launch:
    """The launch that copies these operands, called with the two and with their copies, or None for those that stay.

    aligned: the operands begin at multiples of 16 bytes. (Their copies always do.)
    """
    unit = 16 // dtype.itemsize
    params, macros, ways = np.zeros((), _PACK), {"TYPE": TYPES[dtype], "WIDE": 1}, []
    for i, source in enumerate(sources):
        way = _Way() if source is None else _way(source, unit, aligned)
        ways.append(way)
        macros |= {f"{'AB'[i]}_{key.upper()}": value for key, value in zip(_Way._fields[:4], way[:4], strict=True)}
        if source is not None:
            of_image = source.channels // way.group
            numbers = source.images * of_image, of_image, source.pixels, *source.sizes[1:], way.many
            params["of"][i] = (*source.strides, *numbers)
    params["blocks_of_a"] = ways[0].blocks
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    instance = Instance("pack.cu", "pack", options, _THREADS, max(way.shared for way in ways))
    return Launch(instance, sum(way.blocks for way in ways), params)


def _way(source: Source, unit: int, aligned: bool) -> _Way:
    n, c, *_ = source.strides
    group = math.gcd(unit, source.channels)  # less than a unit where pixels of a result are written
    groups, pixels = source.channels // group, source.pixels
    row = 16 * unit  # pixels of a tile
    run = 1
    if aligned and source.in_rows:
        run = next(
            run
            for run in (unit, unit // 2, unit // 4, 1)
            if 0 < run <= group and not any(s % run for s in (n, c, pixels))
        )
    pitch = 16 * (pixels | 1)  # bytes of a group in shared memory
    together = next((t for t in (_GROUPS, _GROUPS // 2, _GROUPS // 4) if t * pitch <= _SHARED), 0)
    if source.dense and together and group == unit and (pixels < row or run < unit // 2):
        many = max(1, _FLAT // (together * pixels)) * together
        blocks = math.ceil(source.images * groups / many)
        return _Way("FLAT", unit if aligned else 1, unit, together, many, blocks, many * pitch)
    how = "ROWS" if source.in_rows else "CHANNELS" if c == 1 else "PIXELS"
    blocks = source.images * math.ceil(groups * group / (_GROUPS * unit)) * math.ceil(pixels / row)
    return _Way(how, run, group, 1, 0, blocks, _GROUPS * 16 * (row + 1))
