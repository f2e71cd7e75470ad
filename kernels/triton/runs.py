"""Convolution of few channels (the stem of a network, C ≤ 4) whose filters meet runs of memory; one, two or three axes:

    y[m, k] = Σ_ρ Σ_i x[start(m) + at(ρ) + i] · w[k, ρ·RUN + i]         ρ counts runs, i = 0 … RUN − 1

The input that an output pixel meets lies in a few runs of neighbouring elements: the S pixels of a filter row, with all
their channels (channels last), or without (contiguous: a run for each channel). If no tap falls outside the image, and
all runs begin at multiples of a vector, they are fetched in vectors without a mask: the overlapping windows of the
convolution are a matrix [pixels, runs · RUN] whose rows overlap in memory. So

    patches       are that as they are: stride = filter, no padding, as in ViT and ConvNeXt
    other stems   after `pack_runs` has written x with four channels, the last ones zero, and with the padding as zeros;
                  and the filters likewise: a row of 7 taps is 28 elements of a run of 32, and one begins every 16 bytes

    forward       program  →  a tile of BM pixels × BN filters; loops over BJ elements of runs at a time
    grad_weight   program  →  split, then a tile of BM filters × BJ elements; loops over the split's pixels
    masks         →  beyond the last run, if BJ does not divide; in grad_weight beyond the split's last pixel; at the
                     store what is beyond the last pixel, filter, tap, channel

Elements of a run beyond the filter's last tap (or before its first) are multiplied by zeros: where the image is not
finite, NaN may so spread to a neighbouring output. Sums of grad_weight for them are not stored.
"""

import triton
import triton.language as tl

from .common import (
    Axes,
    Operand,
    block_indices,
    carry,
    kernel,
    load_tile,
    multiply,
    offset_of,
    split_pixel,
    store_tile,
    tile_of_program,
    wide,
)
from .epilogue import epilogue
from .grad_bias import sum_bias
from .last_program import sum_of_splits


@triton.jit
def run_offset(o_j, outer_step, inner_step, inner, RUN: tl.constexpr, OUTER: tl.constexpr):
    """Offsets of these elements of runs from the first. steps: from run to run; inner: runs of that axis."""
    o_run = o_j // RUN
    o = o_run % inner * inner_step + o_run // inner * outer_step if OUTER else o_run * inner_step
    return o + o_j % RUN


@triton.jit
def pixel_at(o_pixel, Z, P, Q, VOLUME: tl.constexpr):
    """(images, coordinates) of flat numbers of output pixels."""
    b_line = o_pixel // Q
    b_n = b_line // P
    b_z = tl.zeros_like(b_n)
    if VOLUME:
        b_n, b_z = b_n // Z, b_n % Z
    return b_n, Axes(b_z, b_line % P, o_pixel % Q)


@triton.jit
def wrapped(b_digit, b_next, o, size, step, next_step):
    """(digit, next digit, offset): where a digit has reached its size, the next one is counted on."""
    m_over = b_digit >= size
    b_digit, b_next = carry(b_digit, b_next, size)
    return b_digit, b_next, tl.where(m_over, o + (next_step - size * step), o)


@kernel
def runs_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    pixels, K,
    runs, inner,  # runs of a filter; those of its inner axis
    Z, P, Q,
    x_n, x_z, x_p, x_q,  # from image to image, from output pixel to output pixel, in vectors
    x_outer, x_inner,  # from run to run, in vectors
    w_k,  # in vectors
    y_n, y_k, y_pixel,  # the pixels of an image of y are evenly spaced; in Y vectors, where they are neighbours
    residual_n, residual_k, residual_z, residual_p, residual_q,
    BM: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, BAND: tl.constexpr,
    RUN: tl.constexpr, VECTOR: tl.constexpr,  # elements of a run, and of a vector
    VOLUME: tl.constexpr, OUTER: tl.constexpr,  # the result has a third axis; there is an outer axis of runs
    EVEN: tl.constexpr,  # BJ divides all runs together
    Y_ROWS_FAST: tl.constexpr, RESIDUAL_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels
    Y_VECTOR: tl.constexpr,  # elements that lie together in y
    WIDE: tl.constexpr,  # offsets need 64 bits
    ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    x = Operand(p_x, x_n * VECTOR, 1, Axes(x_z * VECTOR, x_p * VECTOR, x_q * VECTOR))
    residual = Operand(p_residual, residual_n, residual_k, Axes(residual_z, residual_p, residual_q))

    # ---- which tile, and where the first run of each pixel is
    row_block, column_block = tile_of_program(tl.program_id(0), tl.cdiv(pixels, BM), tl.cdiv(K, BN), BAND)
    o_pixel = wide(row_block, WIDE) * BM + tl.arange(0, BM)  # [BM]
    o_filter, o_filter_safe = block_indices(column_block, BN, K, WIDE)  # [BN]
    image = wide(Z, WIDE) * P * Q
    b_n, b_out = pixel_at(tl.minimum(o_pixel, pixels - 1), Z, P, Q, VOLUME)  # [BM] each
    o_x = offset_of(b_n, b_out, x)  # [BM]
    o_w = o_filter_safe * (w_k * VECTOR)  # [BN]

    # ---- the sum
    terms = runs * RUN
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for j0 in range(0, terms, BJ):
        o_j = j0 + tl.arange(0, BJ)  # [BJ]
        m_j = o_j < terms
        o_xj = run_offset(wide(o_j, WIDE), x_outer * VECTOR, x_inner * VECTOR, inner, RUN, OUTER)
        b_x = load_tile(p_x, o_x, o_xj, m_j, m_j, False, not EVEN, False)  # [BM, BJ]
        b_w = load_tile(p_w, o_w, o_j, m_j, m_j, False, not EVEN, False)  # [BN, BJ]
        b_acc = multiply(b_x, b_w.T, b_acc, PRECISION, EMULATE_BF16)

    # ---- bias, residual, activation; one rounding; store
    b_y = epilogue(
        b_acc, p_bias, residual.p, o_filter_safe,
        offset_of(b_n, b_out, residual), o_filter_safe * residual.channel,
        RESIDUAL_ROWS_FAST, ACTIVATION, SLOPE, EMULATE_BF16,
    )  # fmt: skip
    if Y_ROWS_FAST:  # vectors of pixels, which lie in one image
        image = image // Y_VECTOR * Y_VECTOR
        count, filters = pixels // Y_VECTOR * Y_VECTOR, K
        o_y = (o_pixel // image) * (y_n * Y_VECTOR) + o_pixel % image
        o_yk = o_filter * (y_k * Y_VECTOR)
    else:
        count, filters = pixels, K // Y_VECTOR * Y_VECTOR
        o_y = o_pixel * (y_pixel * Y_VECTOR)
        o_yk = o_filter
    store_tile(p_y, o_y, o_yk, o_pixel < count, o_filter < filters, b_y, Y_ROWS_FAST, EMULATE_BF16)


@kernel
def runs_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    pixels, K, C,
    runs, inner, S,
    Z, P, Q,
    gy_n, gy_k, gy_z, gy_p, gy_q,  # in GY vectors, but for the axis whose neighbours they have
    x_n, x_z, x_p, x_q, x_outer, x_inner,  # as in forward
    lead,  # taps of zeros at the begin of a run
    gw_split, gw_k, gw_c, gw_tap, gb_split,  # strides of the result; the taps of a filter are evenly spaced
    splits,
    BM: tl.constexpr, BJ: tl.constexpr, BC: tl.constexpr,
    RUN: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS: tl.constexpr,  # of a pixel in a run: 1 if there is a run for each channel, the outer axis
    VOLUME: tl.constexpr, OUTER: tl.constexpr, EVEN: tl.constexpr,
    GY_DENSE: tl.constexpr,  # the pixels of an image are evenly spaced: of all images, if not GY_PIXELS_FAST
    GY_PIXELS_FAST: tl.constexpr, GY_VECTOR: tl.constexpr,
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """gw[k, j] = Σ_m gy[m, k] · x[start(m) + at(j)]      gb[k] = Σ_m gy[m, k]"""
    if GY_PIXELS_FAST:
        gy = Operand(p_gy, gy_n * GY_VECTOR, gy_k * GY_VECTOR, Axes(gy_z, gy_p, gy_q))
    elif GY_VECTOR > 1:
        gy = Operand(p_gy, gy_n * GY_VECTOR, 1, Axes(gy_z * GY_VECTOR, gy_p * GY_VECTOR, gy_q * GY_VECTOR))
    else:
        gy = Operand(p_gy, gy_n, gy_k, Axes(gy_z, gy_p, gy_q))
    x = Operand(p_x, x_n, 1, Axes(x_z, x_p, x_q))
    out = Axes(Z, P, Q)

    # ---- which split and tile; the terms, which stay
    terms = runs * RUN
    column_blocks = tl.cdiv(terms, BJ)
    tiles = tl.cdiv(K, BM) * column_blocks
    program = tl.program_id(0)
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= tiles * splits:
            sum_bias(
                gy, p_gb, gb_split, p_workspace, p_arrived, tiles, BM * BJ,
                program - tiles * splits, splits, pixels, K, out,
                not GY_PIXELS_FAST, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16, 2,
            )  # fmt: skip
            return
    tile = program % tiles
    split = wide(program // tiles, WIDE)
    o_filter = tile // column_blocks * BM + tl.arange(0, BM)  # [BM]
    o_j = tile % column_blocks * BJ + tl.arange(0, BJ)  # [BJ]
    o_filter_safe = wide(o_filter, WIDE) % (K if GY_PIXELS_FAST else K // GY_VECTOR * GY_VECTOR)
    o_xj = run_offset(wide(o_j, WIDE), x_outer * VECTOR, x_inner * VECTOR, inner, RUN, OUTER)
    m_xj = o_j < terms

    # ---- the first pixels, and the digits of BC
    per_split = tl.cdiv(tl.cdiv(pixels, BC), splits) * BC
    first = split * per_split
    last = tl.minimum(first + per_split, pixels)
    image = wide(Z, WIDE) * P * Q
    b_n, b_at = pixel_at(first + tl.arange(0, BC), Z, P, Q, VOLUME)  # [BC] each
    o_x = offset_of(b_n, b_at, x)  # in vectors, which a choice between two would hide
    b_z, b_p, b_q = b_at.d, b_at.h, b_at.w
    add_n, add = BC // image, split_pixel(BC % image, P, Q)
    add_x = offset_of(add_n, add, x)
    if GY_PIXELS_FAST and GY_DENSE:
        image = image // GY_VECTOR * GY_VECTOR
        last = last // GY_VECTOR * GY_VECTOR

    # ---- the sum
    tl.assume(per_split > 0)
    b_acc = tl.zeros((BM, BJ), ACCUMULATE)
    for m0 in range(0, per_split, BC):
        o_m = first + m0 + tl.arange(0, BC)  # [BC]
        m_pixel = o_m < last
        if not GY_DENSE:
            b_n, b_at = pixel_at(o_m, Z, P, Q, VOLUME)
            o_gy = offset_of(b_n, b_at, gy)
        elif GY_PIXELS_FAST:
            o_gy = o_m // image * gy.row + o_m % image
        else:
            o_gy = o_m * gy.axis.w
        b_gy = load_tile(
            p_gy, o_filter_safe * gy.channel, o_gy, m_pixel, m_pixel, False, True, not GY_PIXELS_FAST and GY_VECTOR == 1
        )  # [BM, BC]
        b_x = load_tile(p_x, o_x * VECTOR, o_xj, m_pixel, m_xj, True, not EVEN, False)  # [BC, BJ]
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        # ---- count on
        b_q, b_p, o_x = wrapped(b_q + add.w, b_p + add.h, o_x + add_x, Q, x_q, x_p)
        b_p, b_z, o_x = wrapped(b_p, b_z + add.d, o_x, P, x_p, x_z if VOLUME else x_n)
        if VOLUME:
            b_z, b_n, o_x = wrapped(b_z, b_n, o_x, Z, x_z, x_n)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    b_run, b_i = o_j // RUN, o_j % RUN
    if CHANNELS == 1:
        b_c, b_tap, m_j = b_run // inner, b_run % inner * S + b_i, m_xj
    else:
        b_s = b_i // CHANNELS - lead
        b_c, b_tap = b_i % CHANNELS, b_run * S + b_s
        m_j = m_xj & (b_s >= 0) & (b_s < S) & (b_c < C)
    o_gw = wide(b_tap, WIDE) * gw_tap + wide(b_c, WIDE) * gw_c
    m_filter = o_filter < K
    if p_arrived is not None:
        b_acc, adds = sum_of_splits(b_acc, p_workspace, p_arrived, tile, program // tiles, splits)
        m_filter &= adds
    store_tile(p_gw + split * gw_split, o_filter * gw_k, o_gw, m_filter, m_j, b_acc, False, OUT_BF16)
