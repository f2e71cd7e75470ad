"""What the window kernels share: views of an image for the copy engine, a program's windows, the loop over taps.

A *descriptor* describes a tensor to the GPU's copy engine (TMA, from sm_90): its beginning, sizes and strides. One
instruction then copies a block of it to shared memory, given the coordinates of its first element; what lies outside
the tensor, negative coordinates included, reads as zero and is not stored. So padding needs no mask, and no thread
computes an address.

A program owns a *window* of output pixels, TN images × TH rows × TW columns, and BK channels. For one filter tap and BC
channels the input that it needs is a window of the same shape, shifted: one copy.

    acc[k, pixel] += w[k, tap, c] · image[window shifted by tap, c]ᵀ

Weights are on the left: then both operands of the product are read from shared memory, where the copy put them. (On the
left, a window of more than one row would go through registers.)

Results. acc is stored by the copy engine where channels lie one after the other. Elsewhere, as in contiguous tensors,
threads store it, neighbours to neighbouring pixels: it is [filters, pixels] already.

A strided window. Pixels u apart are neighbours in a *view* of the image: [N, H, W, C] seen as [N, H/u, u, W/u, u·C],
the same memory. In it a window is a block again, whose place on the axes of size u is the remainder of the division of
its coordinates by u. That needs sizes that u divides; else there is one view for each remainder, made by moving the
first pixel and leaving the axis of size u at 1.

    b_ block of values   p_ pointer   CAPITALS  compile-time constants and sizes, as in `common`
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .common import HW, multiply, store_tile, tile_of_program, wide


class Walk(NamedTuple):
    """How a window moves along one axis of a view, from tap to tap. Rests are remainders of the division by u."""

    start: Any  # of the first tap, counted from the window's pixel
    rest: Any
    step: Any  # from one tap to the next
    step_rest: Any
    fold: Any  # what remainders are below: u, or 1


class Taps(NamedTuple):
    """Which taps of the filters a sum has, as numbers r·S + s."""

    first: Any
    h: Any  # from one to the next, on each axis
    w: Any
    count_w: Any  # how many on the axis W


@triton.jit
def image_view(
    image,  # its channels lie one after the other
    a, N, size, C,
    u, fold,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The descriptor of an image's pixels (a.h + i·u.h, a.w + j·u.w), with C channels: [N, i, 1, j, C].

    With fold = u (and a = 0) it has all pixels: [N, i, remainder, j, remainder · stride of W + C]. Blocks are
    [TN, TH, 1, TW, BC]. Where there is no such pixel, nothing may be read through it.
    """
    rows = tl.maximum(size.h - a.h + u.h - 1, u.h) // u.h
    columns = tl.maximum(size.w - a.w + u.w - 1, u.w) // u.w
    return tl.make_tensor_descriptor(
        image.p + a.h.to(tl.int64) * image.axis.h + a.w.to(tl.int64) * image.axis.w,
        [N, rows, fold.h, columns, (fold.w - 1) * image.axis.w + C],
        [image.row, u.h * image.axis.h, image.axis.h, u.w * image.axis.w, 1],
        [TN, TH, 1, TW, BC],
    )


@triton.jit
def window_of_tile(
    tile, row_blocks, column_blocks, windows,  # windows: of an image, on each axis
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """(image, coordinates) of the first pixel of a tile, its block of channels, and its group. Groups vary slowest."""
    tiles = row_blocks * column_blocks
    window, column_block = tile_of_program(tile % tiles, row_blocks, column_blocks, BAND)
    row = window // windows.w
    n, at = row // windows.h * TN, HW(row % windows.h * TH, window % windows.w * TW)
    return n, at, column_block, tile // tiles


@triton.jit
def pixels_of_window(
    first,  # pixels of the window that come before
    n, at,  # the first pixel of the window
    y,  # strides, divided by VECTOR; that of neighbouring pixels is 1 if VECTOR > 1
    a, u,  # pixels are (a.h + i·u.h, a.w + j·u.w) of y
    N, size, image,  # image: pixels of one image, if FLAT
    COUNT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    FLAT: tl.constexpr,  # all images lie in one row
    VECTOR: tl.constexpr,  # pixels that one thread can load or store at once: all strides and widths are multiples
    WIDE: tl.constexpr,
):  # fmt: skip
    """(offsets, which are inside) of COUNT pixels of a window. [COUNT]"""
    b_i = first + tl.arange(0, COUNT)
    b_n, b_h, b_w = n + b_i // (TH * TW), at.h + b_i // TW % TH, at.w + b_i % TW
    b_h = b_h * u.h + a.h
    if VECTOR == 1:
        b_w = b_w * u.w + a.w
    m_pixel = (b_n < N) & (b_h < size.h) & (b_w < size.w // VECTOR * VECTOR)
    if FLAT:
        b_n, b_w = b_w // (image // VECTOR * VECTOR), b_w % (image // VECTOR * VECTOR)
    o_pixel = wide(b_n, WIDE) * (y.row * VECTOR) + wide(b_h, WIDE) * (y.axis.h * VECTOR)
    if VECTOR == 1:
        o_pixel += wide(b_w, WIDE) * y.axis.w
    else:
        o_pixel += b_w
    return o_pixel, m_pixel


@triton.jit
def channels_of_block(first, y, count, BK: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr):
    """(offsets, which there are) of a block of channels; see `pixels_of_window`. [BK]"""
    b_k = first + tl.arange(0, BK)
    return wide(b_k, WIDE) * (y.channel * VECTOR), b_k < count


@triton.jit
def store_window(
    b_y,  # [BK, COUNT]
    k, K,  # the first channel, and how many there are
    first, n, at, y, a, u, N, size, image,  # see `pixels_of_window`
    COUNT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr,
    FLAT: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store a window from its pixel `first` on, each thread its elements; a large one half by half, for want
    of registers for addresses."""
    if COUNT * BK * (2 if VECTOR == 1 else 1) > 8192 and COUNT > 16:
        b_left, b_right = b_y.reshape(BK, 2, COUNT // 2).permute(0, 2, 1).split()
        store_window(b_left, k, K, first, n, at, y, a, u, N, size, image, COUNT // 2, TH, TW, BK, FLAT, VECTOR, WIDE)
        first += COUNT // 2
        store_window(b_right, k, K, first, n, at, y, a, u, N, size, image, COUNT // 2, TH, TW, BK, FLAT, VECTOR, WIDE)
    else:
        o_pixel, m_pixel = pixels_of_window(first, n, at, y, a, u, N, size, image, COUNT, TH, TW, FLAT, VECTOR, WIDE)
        o_k, m_k = channels_of_block(k, y, K, BK, VECTOR, WIDE)
        store_tile(y.p, o_k, o_pixel, m_k, m_pixel, b_y, False, False)


@triton.jit
def count_on(at, rest, walk):
    """A coordinate in a view and its remainder, one tap further."""
    rest += walk.step_rest
    over = rest >= walk.fold
    return at + walk.step + over.to(tl.int32), tl.where(over, rest - walk.fold, rest)


@triton.jit
def window_product(
    image,  # descriptor of what the windows are taken from
    weight,  # descriptor of the filters, [taps, K, C/G]; if turned, [C/G, taps · K]
    n, at,  # the first pixel of the window
    channel,  # the first channel of the group in the image
    begin, end,  # which steps of the sum, c fastest, then s, then r
    C,  # channels of the group in the image
    walk_h, walk_w,  # from p, q on
    image_w,  # stride
    taps,
    w_row, w_column, filters,  # in the filters: the first filter and channel, and how many filters there are
    b_acc,  # [BK, PIXELS] what to add to
    PIXELS: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    WEIGHTS: tl.constexpr,  # "plain"; where the sum runs over filters "transposed" in the loop, or "turned" before
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """acc[k, pixel] + Σ_{r,s} Σ_c w[k, (r,s), c] · image[n, p + r, q + s, c], with taps and channels counted on."""
    # ---- the first step: divided here, and nowhere in the loop
    blocks = tl.cdiv(C, BC)
    c = begin % blocks * BC
    r, s = begin // blocks // taps.count_w, begin // blocks % taps.count_w
    rest_h, rest_w = walk_h.rest + r * walk_h.step_rest, walk_w.rest + s * walk_w.step_rest
    h, rest_h = walk_h.start + r * walk_h.step + rest_h // walk_h.fold, rest_h % walk_h.fold
    w, rest_w = walk_w.start + s * walk_w.step + rest_w // walk_w.fold, rest_w % walk_w.fold
    tap = taps.first + r * taps.h + s * taps.w
    for _ in range(begin, end):
        b_x = image.load([n, at.h + h, rest_h, at.w + w, rest_w * image_w + channel + c])
        b_x = b_x.reshape(PIXELS, BC)  # [PIXELS, BC]
        if WEIGHTS == "transposed":
            b_w = weight.load([tap, w_row + c, w_column]).reshape(BC, BK).T  # [BK, BC]
        elif WEIGHTS == "turned":
            b_w = weight.load([w_column, tap * filters + w_row + c])
        else:
            b_w = weight.load([tap, w_row, w_column + c]).reshape(BK, BC)
        b_acc = multiply(b_w, b_x.T, b_acc, PRECISION, EMULATE_BF16)  # [BK, BC] · [BC, PIXELS]
        # ---- count on: c, then s, then r
        next_tap = c + BC >= C
        c = tl.where(next_tap, 0, c + BC)
        next_w, next_rest_w = count_on(w, rest_w, walk_w)
        next_row = next_tap & (s + 1 == taps.count_w)
        s = tl.where(next_row, 0, tl.where(next_tap, s + 1, s))
        w = tl.where(next_row, walk_w.start, tl.where(next_tap, next_w, w))
        rest_w = tl.where(next_row, walk_w.rest, tl.where(next_tap, next_rest_w, rest_w))
        next_h, next_rest_h = count_on(h, rest_h, walk_h)
        h = tl.where(next_row, next_h, h)
        rest_h = tl.where(next_row, next_rest_h, rest_h)
        tap += tl.where(next_row, taps.h - (taps.count_w - 1) * taps.w, tl.where(next_tap, taps.w, 0))
    return b_acc
