"""Convolution by gather, any layout, stride, padding, dilation, groups; one, two or three axes:

    y[n, k, z, p, q] = Σ_{t,r,s} Σ_c x[n, c, z·u − pad + t·d, p·u − pad + r·d, q·u − pad + s·d] · w[k, c, t, r, s]

(u stride, d dilation, each with a value for each axis). As a matrix product, for each group: rows are the output pixels
m = ((n·Z + z)·P + p)·Q + q, columns the filters k, and the sum runs over taps and channels; see `common`.

    program  →  group, then a tile of BM pixels × BN filters; tiles in bands, for the L2 cache
    masks    →  taps outside the image (padding), channels ≥ C; at the store pixels and filters beyond the last

An axis that the problem lacks has size 1, filter 1, stride 1. Sizes and strides are run-time values, so that a kernel
is compiled once for a kind of layer and not for every layer.
"""

import triton.language as tl

from .common import (
    Axes,
    Operand,
    block_indices,
    gather_product,
    kernel,
    moved,
    offset_of,
    split_pixel,
    store_tile,
    tile_of_program,
    valid_taps,
    vectors,
    wide,
)
from .epilogue import epilogue


@kernel
def gather_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    pixels,  # N·Z·P·Q
    K, C,  # in one group
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
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    INSIDE: tl.constexpr, EVEN_C: tl.constexpr,  # see gather_product
    X_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels, in x, y and residual
    Y_ROWS_FAST: tl.constexpr, RESIDUAL_ROWS_FAST: tl.constexpr,
    VECTOR: tl.constexpr,  # see common: C and the strides of x and w are divided by it
    Y_VECTOR: tl.constexpr,  # K and the strides of y are divided by it
    WIDE: tl.constexpr,  # offsets need 64 bits
    ACCUMULATE: tl.constexpr,  # the type to sum in
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    C, K = C * VECTOR, K * Y_VECTOR
    x = vectors(Operand(p_x, x_n, x_c, Axes(x_d, x_h, x_w)), VECTOR)
    w = vectors(Operand(p_w, w_k, w_c, Axes(w_t, w_r, w_s)), VECTOR)
    y_n, y_pixel = y_n * Y_VECTOR, y_pixel * Y_VECTOR
    if Y_VECTOR > 1:
        y_k = 1
    residual = Operand(p_residual, residual_n, residual_k, Axes(residual_z, residual_p, residual_q))
    size, taps = Axes(D, H, W), Axes(T, R, S)
    stride, pad = Axes(stride_d, stride_h, stride_w), Axes(pad_d, pad_h, pad_w)
    dilation = Axes(dilation_d, dilation_h, dilation_w)

    # ---- which tile
    row_blocks, column_blocks = tl.cdiv(pixels, BM), tl.cdiv(K, BN)
    tiles = row_blocks * column_blocks
    group = wide(tl.program_id(0) // tiles, WIDE)
    row_block, column_block = tile_of_program(tl.program_id(0) % tiles, row_blocks, column_blocks, BAND)
    o_pixel, o_pixel_safe = block_indices(row_block, BM, pixels, WIDE)  # [BM]
    o_filter, o_filter_safe = block_indices(column_block, BN, K, WIDE)  # [BN]

    # ---- where tap (0, 0, 0) of each pixel falls
    image = wide(Z, WIDE) * P * Q
    b_n = o_pixel_safe // image  # [BM]
    b_out = split_pixel(o_pixel_safe % image, P, Q)  # [BM] each
    b_start = Axes(b_out.d * stride.d - pad.d, b_out.h * stride.h - pad.h, b_out.w * stride.w - pad.w)
    o_x = offset_of(b_n, b_start, x)  # [BM]
    b_valid = o_x
    if INSIDE == "bits":
        b_valid = valid_taps(b_start, dilation, size, taps)

    # ---- the sum
    b_acc = gather_product(  # [BM, BN]
        moved(x, group * C * x.channel), o_x, b_valid, b_start, dilation, size,
        moved(w, group * K * w.row), o_filter_safe * w.row, taps, C,
        tl.zeros((BM, BN), ACCUMULATE),
        BC, INSIDE, EVEN_C, VECTOR, X_ROWS_FAST, True, WIDE, PRECISION, EMULATE_BF16,
    )  # fmt: skip

    # ---- bias, residual, activation; one rounding; store
    o_channel = group * K
    p_group_bias, p_group_residual = p_bias, residual.p
    if p_bias is not None:
        p_group_bias += o_channel
    if p_residual is not None:
        p_group_residual += o_channel * residual.channel
    b_y = epilogue(
        b_acc, p_group_bias, p_group_residual, o_filter_safe,
        offset_of(b_n, b_out, residual), o_filter_safe * residual.channel,
        RESIDUAL_ROWS_FAST, ACTIVATION, SLOPE, EMULATE_BF16,
    )  # fmt: skip
    o_y_pixel = (o_pixel // image) * y_n + (o_pixel % image) * y_pixel
    m_pixel, m_filter = o_pixel < pixels, o_filter < K
    store_tile(p_y + o_channel * y_k, o_y_pixel, o_filter * y_k, m_pixel, m_filter, b_y, Y_ROWS_FAST, EMULATE_BF16)
