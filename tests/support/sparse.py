"""Tensors whose elements lie gigabytes apart, in memory that is allocated where it is touched only.

An offset that is cut off to 32 bits lands elsewhere in the same buffer, which reaches as far before a tensor as behind
it, and finds a zero there: a wrong result, not a crash.
"""

import math
import mmap

import pytest
import torch

_REACH = 1 << 31  # elements: as far as a signed 32-bit offset goes
_AROUND = 3 * _REACH  # as far as several of them go, which a kernel adds to a pointer one after the other
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # of Linux; Python names it from 3.13 on


def empty_strided(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros, and zeros around it as far as offsets of 32 bits may stray."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    try:
        memory = mmap.mmap(-1, (extent + 2 * _AROUND) * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"this machine gives no sparse memory ({error})")
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides, _AROUND)


def apart(t: torch.Tensor, axis: int, order: tuple[int, ...]) -> torch.Tensor:
    """The values of t with a last element of `axis` 2³¹ elements and more behind the first, by a stride that 32 bits
    hold; the other axes dense, in `order` from the innermost to the outermost."""
    strides, dense = [0] * t.dim(), 1
    for other in order:
        if other != axis:
            strides[other] = dense
            dense *= t.shape[other]
    strides[axis] = math.ceil(_REACH / (t.shape[axis] - 1) / 1024 + 1) * 1024
    assert dense < strides[axis] < _REACH < (t.shape[axis] - 1) * strides[axis]
    return empty_strided(tuple(t.shape), tuple(strides), t.dtype).copy_(t)


CONTIGUOUS, CHANNELS_LAST = (3, 2, 1, 0), (1, 3, 2, 0)  # orders of four axes
