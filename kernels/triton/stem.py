"""Convolution of few channels (the stem of a network, C ≤ 4), any layout; one, two or three axes:

    y[m, k] = Σ_j x[pixel(m, j), c(j)] · w[k, j]              j = ((t·R + r)·S + s)·C + c  counts taps and channels

An implicit GEMM that goes tap by tap would multiply C channels padded to the 16 of a tensor core: with three, 81 % of
its work would be with zeros. Here the sum runs over taps and channels flattened into one axis, BJ of them in each step,
whichever tap they belong to: a 7×7 filter of three channels takes 147 terms in five steps of 32. Nothing is padded in
memory. Each element of x has an address of its own and is loaded by itself; so the masks cost little beside it.

    forward       program  →  a tile of BM pixels × BN filters; loops over j
    grad_weight   program  →  split, then a tile of BM filters × BJ terms j; loops over the split's pixels
    masks         →  taps outside the image, j ≥ taps·C; at the store what is beyond the last pixel, filter, term

(t, r, s, c) of the terms of a step are those of the step before carried on by BJ, like the hands of a clock; in
grad_weight, where the terms stay, the pixels are.
"""

import triton
import triton.language as tl

from .common import (
    block_indices,
    carry,
    kernel,
    load_tile,
    multiply,
    split_pixel,
    store_tile,
    tile_of_program,
    wide,
)
from .epilogue import epilogue
from .grad_bias import sum_bias


@triton.jit
def split_term(j, R, S, C):
    """(t, r, s, c) of flat numbers of terms, c fastest."""
    t, r, s = split_pixel(j // C, R, S)
    return t, r, s, j % C


@triton.jit
def inside(b_rows, b_columns, SIZE):
    """Whether rows[i] + columns[j] is 0 … SIZE − 1, [I, J]: as unsigned numbers, negative ones are large."""
    return (b_rows[:, None] + b_columns[None, :]).to(tl.uint32) < SIZE.to(tl.uint32)


@triton.jit
def load_patches(
    p_x, o_rows, o_columns, b_d, b_h, b_w, b_dj, b_hj, b_wj, m_rows, m_columns, D, H, W,
    VOLUME: tl.constexpr, ROWS_FAST: tl.constexpr,
):  # fmt: skip
    """The tile of im2col whose rows are pixels, at coordinates b_d, b_h, b_w, and whose columns are terms, moved by
    b_dj, b_hj, b_wj: zero outside the image and where either mask is 0. ROWS_FAST: loaded lying on its side."""
    if ROWS_FAST:
        m = inside(b_hj, b_h, H) & inside(b_wj, b_w, W) & m_columns[:, None] & m_rows[None, :]
        if VOLUME:
            m &= inside(b_dj, b_d, D)
        b_x = tl.trans(tl.load(p_x + (o_columns[:, None] + o_rows[None, :]), mask=m, other=0.0))
    else:
        m = inside(b_h, b_hj, H) & inside(b_w, b_wj, W) & m_rows[:, None] & m_columns[None, :]
        if VOLUME:
            m &= inside(b_d, b_dj, D)
        b_x = tl.load(p_x + (o_rows[:, None] + o_columns[None, :]), mask=m, other=0.0)
    return b_x


@kernel
def stem_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    pixels,  # N·Z·P·Q
    filters, C,
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
    # ---- which tile, and where the first term of each pixel is
    row_blocks, column_blocks = tl.cdiv(pixels, BM), tl.cdiv(filters, BN)
    row_block, column_block = tile_of_program(tl.program_id(0), row_blocks, column_blocks, BAND)
    o_pixel, o_pixel_safe = block_indices(row_block, BM, pixels, WIDE)  # [BM]
    o_filter, o_filter_safe = block_indices(column_block, BN, filters, WIDE)  # [BN]
    image = wide(Z, WIDE) * P * Q
    b_n = o_pixel_safe // image
    b_z, b_p, b_q = split_pixel(o_pixel_safe % image, P, Q)
    b_d, b_h, b_w = b_z * stride_d - pad_d, b_p * stride_h - pad_h, b_q * stride_w - pad_w
    o_x = b_n * x_n + b_d * x_d + b_h * x_h + b_w * x_w
    b_d, b_h, b_w = b_d.to(tl.int32), b_h.to(tl.int32), b_w.to(tl.int32)

    # ---- the sum
    terms = T * R * S * C
    b_t, b_r, b_s, b_c = split_term(tl.arange(0, BJ), R, S, C)  # [BJ]
    add_t, add_r, add_s, add_c = split_term(tl.full((), BJ, tl.int32), R, S, C)
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for j0 in range(0, terms, BJ):
        m_j = j0 + tl.arange(0, BJ) < terms  # [BJ]
        b_dj, b_hj, b_wj = b_t * dilation_d, b_r * dilation_h, b_s * dilation_w
        o_xj = wide(b_dj, WIDE) * x_d + wide(b_hj, WIDE) * x_h + wide(b_wj, WIDE) * x_w + wide(b_c, WIDE) * x_c
        o_wj = wide(b_t, WIDE) * w_t + wide(b_r, WIDE) * w_r + wide(b_s, WIDE) * w_s + wide(b_c, WIDE) * w_c
        b_x = load_patches(
            p_x, o_x, o_xj, b_d, b_h, b_w, b_dj, b_hj, b_wj, o_pixel_safe >= 0, m_j, D, H, W, VOLUME, X_ROWS_FAST
        )  # [BM, BJ]
        b_wt = load_tile(p_w, o_wj, o_filter_safe * w_k, m_j, m_j, True, False, True)  # [BJ, BN]
        b_acc = multiply(b_x, b_wt, b_acc, PRECISION, EMULATE_BF16)
        b_c, b_s = carry(b_c + add_c, b_s + add_s, C)
        b_s, b_r = carry(b_s, b_r + add_r, S)
        b_r, b_t = carry(b_r, b_t + add_t, R)

    # ---- bias, residual, activation; one rounding; store
    b_y = epilogue(
        b_acc, p_bias, p_residual, o_filter_safe,
        b_n * residual_n + b_z * residual_z + b_p * residual_p + b_q * residual_q, o_filter_safe * residual_k,
        RESIDUAL_ROWS_FAST, ACTIVATION, SLOPE, EMULATE_BF16,
    )  # fmt: skip
    o_y_pixel = (o_pixel // image) * y_n + (o_pixel % image) * y_pixel
    store_tile(p_y, o_y_pixel, o_filter * y_k, o_pixel < pixels, o_filter < filters, b_y, Y_ROWS_FAST, EMULATE_BF16)


@kernel
def stem_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or the workspace; gb may be None
    pixels,  # N·Z·P·Q
    filters, C,
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
    # ---- which split and tile; the terms, which stay
    terms = T * R * S * C
    column_blocks = tl.cdiv(terms, BJ)
    tiles = tl.cdiv(filters, BM) * column_blocks
    program = tl.program_id(0)
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= tiles * splits:
            sum_bias(
                p_gy, p_gb, program - tiles * splits, splits, pixels, filters, Z, P, Q,
                gy_n, gy_k, gy_z, gy_p, gy_q, gb_split,
                not GY_PIXELS_FAST, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    split = wide(program // tiles, WIDE)
    o_filter, o_filter_safe = block_indices(tile // column_blocks, BM, filters, WIDE)  # [BM]
    o_j, o_j_safe = block_indices(tile % column_blocks, BJ, terms, WIDE)  # [BJ]
    b_t, b_r, b_s, b_c = split_term(o_j_safe, R, S, C)
    b_dj, b_hj, b_wj = b_t * dilation_d - pad_d, b_r * dilation_h - pad_h, b_s * dilation_w - pad_w
    o_xj = b_dj * x_d + b_hj * x_h + b_wj * x_w + b_c * x_c
    b_dj, b_hj, b_wj = b_dj.to(tl.int32), b_hj.to(tl.int32), b_wj.to(tl.int32)

    # ---- the first pixels, and the digits of BC
    per_split = tl.cdiv(tl.cdiv(pixels, BC), splits) * BC
    first = split * per_split
    last = tl.minimum(first + per_split, pixels)
    image = wide(Z, WIDE) * P * Q
    b_m = first + tl.arange(0, BC)  # [BC]
    b_n = b_m // image
    b_z, b_p, b_q = split_pixel(b_m % image, P, Q)
    add_n = BC // image
    add_z, add_p, add_q = split_pixel(BC % image, P, Q)

    # ---- the sum
    b_acc = tl.zeros((BM, BJ), ACCUMULATE)
    for m0 in range(0, per_split, BC):
        m_pixel = first + m0 + tl.arange(0, BC) < last  # [BC]
        b_d, b_h, b_w = b_z * stride_d, b_p * stride_h, b_q * stride_w
        o_gy = b_n * gy_n + b_z * gy_z + b_p * gy_p + b_q * gy_q
        o_x = b_n * x_n + b_d * x_d + b_h * x_h + b_w * x_w
        b_gy = load_tile(
            p_gy, o_filter_safe * gy_k, o_gy, m_pixel, m_pixel, False, True, not GY_PIXELS_FAST
        )  # [BM, BC]
        b_x = load_patches(
            p_x, o_x, o_xj, b_d.to(tl.int32), b_h.to(tl.int32), b_w.to(tl.int32), b_dj, b_hj, b_wj, m_pixel,
            o_j_safe >= 0, D, H, W, VOLUME, X_PIXELS_FAST,
        )  # [BC, BJ]  # fmt: skip
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        b_q, b_p = carry(b_q + add_q, b_p + add_p, Q)
        b_p, b_z = carry(b_p, b_z + add_z, P)
        b_z, b_n = carry(b_z, b_n + add_n, Z)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter = o_filter < filters
    o_gw = (o_j // C) * gw_tap + o_j % C * gw_c
    store_tile(p_gw + split * gw_split, o_filter * gw_k, o_gw, m_filter, o_j < terms, b_acc, False, OUT_BF16)
