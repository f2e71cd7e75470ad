"""Convolution of few channels (the stem of a network, C ≤ 4), any layout; one, two or three axes:

    y[m, k] = Σ_j x[pixel(m, j), c(j)] · w[k, j]              j = ((t·R + r)·S + s)·C + c  counts taps and channels

An implicit GEMM that goes tap by tap would multiply C channels padded to the 16 of a tensor core: with three, 81 % of
its work would be with zeros. Here the sum runs over taps and channels flattened into one axis, BJ of them in each step,
whichever tap they belong to: a 7×7 filter of three channels takes 147 terms in five steps of 32. Nothing is padded in
memory. Each element of x has an address of its own and is loaded by itself; so the masks cost little beside it.

    forward       program  →  a tile of BM pixels × BN filters; loops over j
    grad_weight   program  →  split, then a tile of BM filters × BJ terms j; loops over the split's pixels
    masks         →  taps outside the image, j ≥ taps·C; at the store what is beyond the last pixel, filter, term

The (t, r, s, c) of a step's terms are digits: BJ's own are added to those of the step before, with at most one carry
from each to the next. In grad_weight the terms stay, and the pixels of a step are counted on like this.
"""

import triton
import triton.language as tl

from .common import (
    Axes,
    Operand,
    advance,
    block_indices,
    carry,
    kernel,
    load_tile,
    multiply,
    offset_of,
    scattered,
    split_pixel,
    store_tile,
    tile_of_program,
    wide,
)
from .epilogue import epilogue
from .grad_bias import sum_bias
from .last_program import sum_of_splits


@triton.jit
def split_term(j, taps, C):
    """(t, r, s, c) of flat numbers of terms, c fastest."""
    tap = split_pixel(j // C, taps.h, taps.w)
    return tap.d, tap.h, tap.w, j % C


@triton.jit
def inside_axis(b_rows, b_columns, SIZE):
    """Whether rows[i] + columns[j] is 0 … SIZE − 1, [I, J]: as unsigned numbers, negative ones are large."""
    return (b_rows[:, None] + b_columns[None, :]).to(tl.uint32) < SIZE.to(tl.uint32)


@triton.jit
def narrow(b_at):
    """Coordinates as 32-bit integers."""
    return Axes(b_at.d.to(tl.int32), b_at.h.to(tl.int32), b_at.w.to(tl.int32))


@triton.jit
def load_patches(
    p_x, o_rows, o_columns, b_at, b_move, m_rows, m_columns, size, VOLUME: tl.constexpr, ROWS_FAST: tl.constexpr
):
    """The tile of im2col whose rows are the pixels at coordinates at, and whose columns are terms, moved by move: zero
    outside the image and where either mask is 0. ROWS_FAST: loaded transposed."""
    if ROWS_FAST:
        m = inside_axis(b_move.h, b_at.h, size.h) & inside_axis(b_move.w, b_at.w, size.w)  # [columns, rows]
        m = m & m_columns[:, None] & m_rows[None, :]
        if VOLUME:
            m &= inside_axis(b_move.d, b_at.d, size.d)
        b_x = tl.trans(tl.load(scattered(p_x, o_columns, o_rows), mask=m, other=0.0))
    else:
        m = inside_axis(b_at.h, b_move.h, size.h) & inside_axis(b_at.w, b_move.w, size.w)  # [rows, columns]
        m = m & m_rows[:, None] & m_columns[None, :]
        if VOLUME:
            m &= inside_axis(b_at.d, b_move.d, size.d)
        b_x = tl.load(scattered(p_x, o_rows, o_columns), mask=m, other=0.0)
    return b_x


@kernel
def stem_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    pixels,  # N·Z·P·Q
    K, C,
    D, H, W,
    Z, P, Q,
    T, R, S,
    stride_d, stride_h, stride_w,
    pad_d, pad_h, pad_w,  # on the low side
    dilation_d, dilation_h, dilation_w,
    x_n, x_c, x_d, x_h, x_w,  # strides, in elements
    w_k, w_c, w_t, w_r, w_s,
    y_n, y_k, y_pixel,  # the pixels of an image of y are evenly spaced
    residual_n, residual_k, residual_z, residual_p, residual_q,
    BM: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, BAND: tl.constexpr,
    VOLUME: tl.constexpr,  # there is a third axis
    X_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels, in x, y and residual
    Y_ROWS_FAST: tl.constexpr, RESIDUAL_ROWS_FAST: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    ACCUMULATE: tl.constexpr,  # the type to sum in
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    x = Operand(p_x, x_n, x_c, Axes(x_d, x_h, x_w))
    w = Operand(p_w, w_k, w_c, Axes(w_t, w_r, w_s))
    residual = Operand(p_residual, residual_n, residual_k, Axes(residual_z, residual_p, residual_q))
    size, taps = Axes(D, H, W), Axes(T, R, S)
    stride, pad = Axes(stride_d, stride_h, stride_w), Axes(pad_d, pad_h, pad_w)
    dilation = Axes(dilation_d, dilation_h, dilation_w)

    # ---- which tile, and where the first term of each pixel is
    row_blocks, column_blocks = tl.cdiv(pixels, BM), tl.cdiv(K, BN)
    row_block, column_block = tile_of_program(tl.program_id(0), row_blocks, column_blocks, BAND)
    o_pixel, o_pixel_safe = block_indices(row_block, BM, pixels, WIDE)  # [BM]
    o_filter, o_filter_safe = block_indices(column_block, BN, K, WIDE)  # [BN]
    image = wide(Z, WIDE) * P * Q
    b_n = o_pixel_safe // image  # [BM]
    b_out = split_pixel(o_pixel_safe % image, P, Q)  # [BM] each
    b_start = Axes(b_out.d * stride.d - pad.d, b_out.h * stride.h - pad.h, b_out.w * stride.w - pad.w)
    o_x = offset_of(b_n, b_start, x)  # [BM]
    b_start = narrow(b_start)

    # ---- the sum
    terms = T * R * S * C
    b_t, b_r, b_s, b_c = split_term(tl.arange(0, BJ), taps, C)  # [BJ] each
    add_t, add_r, add_s, add_c = split_term(tl.full((), BJ, tl.int32), taps, C)
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for j0 in range(0, terms, BJ):
        m_j = j0 + tl.arange(0, BJ) < terms  # [BJ]
        b_move = Axes(b_t * dilation.d, b_r * dilation.h, b_s * dilation.w)
        o_xj = wide(b_move.d, WIDE) * x.axis.d + wide(b_move.h, WIDE) * x.axis.h + wide(b_move.w, WIDE) * x.axis.w
        o_xj += wide(b_c, WIDE) * x.channel
        o_wj = wide(b_t, WIDE) * w.axis.d + wide(b_r, WIDE) * w.axis.h + wide(b_s, WIDE) * w.axis.w
        o_wj += wide(b_c, WIDE) * w.channel
        b_x = load_patches(
            x.p, o_x, o_xj, b_start, b_move, o_pixel_safe >= 0, m_j, size, VOLUME, X_ROWS_FAST
        )  # [BM, BJ]
        b_w = load_tile(w.p, o_wj, o_filter_safe * w.row, m_j, m_j, True, False, True, True)  # [BJ, BN]
        b_acc = multiply(b_x, b_w, b_acc, PRECISION, EMULATE_BF16)
        b_c, b_s = carry(b_c + add_c, b_s + add_s, C)
        b_s, b_r = carry(b_s, b_r + add_r, S)
        b_r, b_t = carry(b_r, b_t + add_t, R)

    # ---- bias, residual, activation; one rounding; store
    b_y = epilogue(
        b_acc, p_bias, residual.p, o_filter_safe,
        offset_of(b_n, b_out, residual), o_filter_safe * residual.channel,
        RESIDUAL_ROWS_FAST, ACTIVATION, SLOPE, EMULATE_BF16,
    )  # fmt: skip
    o_y_pixel = (o_pixel // image) * y_n + (o_pixel % image) * y_pixel
    store_tile(p_y, o_y_pixel, o_filter * y_k, o_pixel < pixels, o_filter < K, b_y, Y_ROWS_FAST, EMULATE_BF16)


@kernel
def stem_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    pixels,  # N·Z·P·Q
    K, C,
    D, H, W,
    Z, P, Q,
    T, R, S,
    stride_d, stride_h, stride_w,
    pad_d, pad_h, pad_w,
    dilation_d, dilation_h, dilation_w,
    gy_n, gy_k, gy_z, gy_p, gy_q,
    x_n, x_c, x_d, x_h, x_w,
    gw_split, gw_k, gw_c, gw_tap, gb_split,  # strides of the result; the taps of a filter are evenly spaced
    splits,
    BM: tl.constexpr, BJ: tl.constexpr, BC: tl.constexpr,
    VOLUME: tl.constexpr,
    GY_PIXELS_FAST: tl.constexpr, X_PIXELS_FAST: tl.constexpr,
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """gw[k, j] = Σ_m gy[m, k] · x[pixel(m, j), c(j)]      gb[k] = Σ_m gy[m, k]"""
    gy = Operand(p_gy, gy_n, gy_k, Axes(gy_z, gy_p, gy_q))
    x = Operand(p_x, x_n, x_c, Axes(x_d, x_h, x_w))
    size, out, taps = Axes(D, H, W), Axes(Z, P, Q), Axes(T, R, S)
    stride, pad = Axes(stride_d, stride_h, stride_w), Axes(pad_d, pad_h, pad_w)
    dilation = Axes(dilation_d, dilation_h, dilation_w)

    # ---- which split and tile; the terms, which stay
    terms = T * R * S * C
    column_blocks = tl.cdiv(terms, BJ)
    tiles = tl.cdiv(K, BM) * column_blocks
    program = tl.program_id(0)
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= tiles * splits:
            sum_bias(
                gy, p_gb, gb_split, p_workspace, p_arrived, tiles, BM * BJ,
                program - tiles * splits, splits, pixels, K, out,
                not GY_PIXELS_FAST, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    split = wide(program // tiles, WIDE)
    o_filter, o_filter_safe = block_indices(tile // column_blocks, BM, K, WIDE)  # [BM]
    o_j, o_j_safe = block_indices(tile % column_blocks, BJ, terms, WIDE)  # [BJ]
    b_t, b_r, b_s, b_c = split_term(o_j_safe, taps, C)  # [BJ] each
    b_move = Axes(b_t * dilation.d - pad.d, b_r * dilation.h - pad.h, b_s * dilation.w - pad.w)
    o_xj = b_move.d * x.axis.d + b_move.h * x.axis.h + b_move.w * x.axis.w + b_c * x.channel
    b_move = narrow(b_move)

    # ---- the first pixels, and the digits of BC
    per_split = tl.cdiv(tl.cdiv(pixels, BC), splits) * BC
    first = split * per_split
    last = tl.minimum(first + per_split, pixels)
    image = wide(Z, WIDE) * P * Q
    b_m = first + tl.arange(0, BC)  # [BC]
    b_n = b_m // image
    b_out = split_pixel(b_m % image, P, Q)  # [BC] each
    add_n = BC // image
    add = split_pixel(BC % image, P, Q)

    # ---- the sum
    b_acc = tl.zeros((BM, BJ), ACCUMULATE)
    for m0 in range(0, per_split, BC):
        m_pixel = first + m0 + tl.arange(0, BC) < last  # [BC]
        b_at = Axes(b_out.d * stride.d, b_out.h * stride.h, b_out.w * stride.w)
        o_gy = offset_of(b_n, b_out, gy)
        o_x = offset_of(b_n, b_at, x)
        b_gy = load_tile(
            gy.p, o_filter_safe * gy.channel, o_gy, m_pixel, m_pixel, False, True, not GY_PIXELS_FAST, True
        )  # [BM, BC]
        b_x = load_patches(
            x.p, o_x, o_xj, narrow(b_at), b_move, m_pixel, o_j_safe >= 0, size, VOLUME, X_PIXELS_FAST
        )  # [BC, BJ]
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        b_n, b_out = advance(b_n, b_out, add_n, add, out)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter = o_filter < K
    if p_arrived is not None:
        b_acc, adds = sum_of_splits(b_acc, p_workspace, p_arrived, tile, program // tiles, splits)
        m_filter &= adds
    o_gw = (o_j // C) * gw_tap + o_j % C * gw_c
    store_tile(p_gw + split * gw_split, o_filter * gw_k, o_gw, m_filter, o_j < terms, b_acc, False, OUT_BF16)
