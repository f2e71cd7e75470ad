"""What the window kernels share: views of an image for the copy engine, a program's windows, the loop over taps.

A *descriptor* tells the GPU's copy engine (TMA, from sm_90) of a tensor: where it begins, its sizes, its strides. One
instruction then copies a block of it to shared memory, given the coordinates of its first element; what lies outside
the tensor, negative coordinates included, reads as zero and is not stored. So padding needs no mask, and no thread
computes an address.

A program owns a *window* of output pixels, TN images × TH rows × TW columns, and BK channels. For one filter tap and BC
channels the input that it needs is a window of the same shape, shifted: one copy.

    acc[k, pixel] += w[k, tap, c] · image[window shifted by tap, c]ᵀ

Weights are on the left: then both operands of the product are read from shared memory, where the copy put them. (On the
left, a window of more than one row would go through registers.)

A strided window. Pixels u apart are neighbours in a *view* of the image: [N, H, W, C] seen as [N, H/u, u, W/u, u·C],
the same memory. In it a window is a block again, whose place on the axes of size u is the remainder of the division of
its coordinates by u. That needs sizes that u divides; else there is one view for each remainder, made by moving the
first pixel and leaving the axis of size u at 1.

    b_ block of values   p_ pointer   CAPITALS  compile-time constants and sizes, as in `common`
"""

import triton
import triton.language as tl

from .common import multiply, tile_of_program


@triton.jit
def image_view(
    p, a_h, a_w, N, H, W, C, image_n, image_h, image_w, u_h, u_w, fold_h, fold_w,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The descriptor of the pixels (a_h + i·u_h, a_w + j·u_w) of an image with C channels in a row: [N, i, 1, j, C].

    With fold = u (and a = 0) it has all pixels: [N, i, remainder, j, remainder · image_w + C]. Strides in elements.
    Where there is no such pixel, nothing may be read through it.
    """
    rows, columns = tl.maximum(H - a_h + u_h - 1, u_h) // u_h, tl.maximum(W - a_w + u_w - 1, u_w) // u_w
    return tl.make_tensor_descriptor(
        p + a_h.to(tl.int64) * image_h + a_w.to(tl.int64) * image_w,
        [N, rows, fold_h, columns, (fold_w - 1) * image_w + C],
        [image_n, u_h * image_h, image_h, u_w * image_w, 1],
        [TN, TH, 1, TW, BC],
    )


@triton.jit
def window_of_tile(
    tile, row_blocks, column_blocks, windows_h, windows_w,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """(n, p, q) of the first pixel of a tile, its block of channels, and its group. Groups vary slowest."""
    tiles = row_blocks * column_blocks
    window, column_block = tile_of_program(tile % tiles, row_blocks, column_blocks, BAND)
    row = window // windows_w
    return row // windows_h * TN, row % windows_h * TH, window % windows_w * TW, column_block, tile // tiles


@triton.jit
def count_on(at, rest, step, step_rest, fold):
    """A coordinate in a view and its remainder, one tap further."""
    rest += step_rest
    over = rest >= fold
    return at + step + over.to(tl.int32), tl.where(over, rest - fold, rest)


@triton.jit
def window_product(
    image,  # descriptor of what the windows are taken from
    weight,  # descriptor of the filters, [taps, K, C/G]
    n, p, q,  # the first pixel of the window
    channel,  # the first channel of the group in the image
    begin, end,  # which steps of the sum, c fastest, then s, then r
    C,  # channels of the group in the image
    at_h, rest_h, step_h, step_rest_h, fold_h,  # where the first tap is, from p on; from there to the next
    at_w, rest_w, step_w, step_rest_w, fold_w,
    image_w,  # stride
    taps_w,  # taps on the axis W
    first_tap, tap_h, tap_w,  # which tap of the filter is the first; from there to the next on each axis
    w_row, w_column,  # in the filters: the first filter and channel
    b_acc,  # [BK, PIXELS] what to add to
    PIXELS: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # the sum runs over filters, not channels: weights are fetched lying on their side
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """acc[k, pixel] + Σ_{r,s} Σ_c w[k, (r,s), c] · image[n, p + r, q + s, c], with taps and channels counted on."""
    # ---- the first step: divided here, and nowhere in the loop
    blocks = tl.cdiv(C, BC)
    c = begin % blocks * BC
    r, s = begin // blocks // taps_w, begin // blocks % taps_w
    rest_r, rest_s = rest_h + r * step_rest_h, rest_w + s * step_rest_w
    h, rest_r = at_h + r * step_h + rest_r // fold_h, rest_r % fold_h
    w, rest_s = at_w + s * step_w + rest_s // fold_w, rest_s % fold_w
    tap = first_tap + r * tap_h + s * tap_w
    for _ in range(begin, end):
        b_x = image.load([n, p + h, rest_r, q + w, rest_s * image_w + channel + c])
        b_x = b_x.reshape(PIXELS, BC)
        if TRANSPOSED:
            b_w = weight.load([tap, w_row + c, w_column]).reshape(BC, BK).T
        else:
            b_w = weight.load([tap, w_row, w_column + c]).reshape(BK, BC)
        b_acc = multiply(b_w, b_x.T, b_acc, PRECISION, EMULATE_BF16)  # [BK, BC] · [BC, PIXELS]
        # ---- count on: c, then s, then r
        next_tap = c + BC >= C
        c = tl.where(next_tap, 0, c + BC)
        next_w, next_rest_w = count_on(w, rest_s, step_w, step_rest_w, fold_w)
        next_row = next_tap & (s + 1 == taps_w)
        s = tl.where(next_row, 0, tl.where(next_tap, s + 1, s))
        w = tl.where(next_row, at_w, tl.where(next_tap, next_w, w))
        rest_s = tl.where(next_row, rest_w, tl.where(next_tap, next_rest_w, rest_s))
        next_h, next_rest_h = count_on(h, rest_r, step_h, step_rest_h, fold_h)
        h = tl.where(next_row, next_h, h)
        rest_r = tl.where(next_row, next_rest_h, rest_r)
        tap += tl.where(next_row, tap_h - (taps_w - 1) * tap_w, tl.where(next_tap, tap_w, 0))
    return b_acc
