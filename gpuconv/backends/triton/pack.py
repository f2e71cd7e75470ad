"""The launch that packs operands in Triton (`gpuconv.backends.packing`); to say what it is needs no GPU."""

import math
from contextlib import suppress
from typing import Any

import torch

from gpuconv.backends.base import Tile
from gpuconv.backends.derived import overflows
from gpuconv.backends.packing import Source, Sources
from gpuconv.backends.triton.launch import Launch

with suppress(ImportError):  # no Triton: `launch.why_not` says so
    from gpuconv.kernels.triton.pack import pack

_CHANNELS = 128  # bytes of channels of a tile
_ROW = 256  # bytes of a channel's pixels in a tile
_SECTOR = 32  # bytes of channels of a tile at least
_FLAT = 32768  # bytes of a tile, or of several, whose rows lie together, with what is masked off
_WARPS = 8


def launch(sources: Sources, dtype: torch.dtype) -> Launch:
    """The launch that copies these operands, called with the two and with their copies, or None for those that stay."""
    kept = [source for source in sources if source is not None]
    constants: dict[str, Any] = {}
    scalars: list[int] = []
    programs = []
    for name, source in zip("AB", sources, strict=True):
        tile, numbers, count = _tiled(source, dtype)
        constants |= {f"{name}_{key}": value for key, value in tile.items()}
        scalars += numbers
        programs.append(count)
    constants |= {
        "WIDE": overflows(*(n for source in kept for n in (source.extent, source.numel))),
    }
    dtypes = tuple(None if source is None else dtype for source in sources)
    return Launch(
        pack, sum(programs), (*dtypes, *dtypes), (programs[0], *scalars), constants, Tile(0, 0, 0, _WARPS, stages=1)
    )


def _tiled(source: Source | None, dtype: torch.dtype) -> tuple[dict[str, int | str], list[int], int]:
    """The constants, the numbers and the programs of an operand."""
    if source is None:
        return {"BP": 1, "BC": 1, "MANY": 0, "NEIGHBOURS": "nothing", "ROW": 1, "VECTOR": 1}, [0] * 12, 0
    source, copied = _in_rows(source)
    unit, channels, pixels = 16 // dtype.itemsize, source.channels, source.pixels
    vector = math.gcd(unit, channels)  # less than a unit where pixels of a result are written
    n, c, *pixel = source.strides
    neighbours = "pixels" if source.in_rows else "channels" if c == 1 else "nothing"
    row = next(v for v in (unit, unit // 2, 1) if v == 1 or (source.in_rows and not any(s % v for s in (n, c, pixels))))
    width = min(_CHANNELS // dtype.itemsize, 1 << (channels - 1).bit_length())
    rows = 1 << (pixels - 1).bit_length()
    many = 0
    if source.dense and row < unit // 2:
        fitting = _FLAT // dtype.itemsize // rows
        if fitting >= min(width, _SECTOR // dtype.itemsize):
            row, width = 1, min(width, fitting)
            many = max(1, fitting // (2 * width)) if channels % width == 0 else 1
    if many:
        count = math.ceil(source.images * math.ceil(channels / width) / many)
    else:
        rows = min(rows, _ROW // dtype.itemsize)
        count = source.images * math.ceil(channels / width) * math.ceil(pixels / rows)
    sizes = source.images, channels // vector, pixels // row, *source.sizes[1:]
    return (
        {"BP": rows, "BC": width, "MANY": many, "NEIGHBOURS": neighbours, "ROW": row, "VECTOR": vector},
        [*sizes, n // row, c // row, *pixel, *copied],
        count,
    )


def _in_rows(source: Source) -> tuple[Source, tuple[int, int]]:
    """The source with pixels of a channel side by side, if one of its axes is so, and the strides of its images and
    pixels in the copy, counted in pixels. A turned weight's channels are such: its taps are images then."""
    depth, height, width = source.sizes
    _, c, _, h, w = source.strides
    if source.images > 1 or depth > 1 or h != 1 or width == 1:
        return source, (source.pixels, 1)
    return Source(width, source.channels, (1, 1, height), (w, c, 0, 0, h)), (1, width)
