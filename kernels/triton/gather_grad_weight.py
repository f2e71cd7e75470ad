"""Gradient of the weight by gather, any layout, and of the bias in the same launch:

    gw[k, c, t, r, s] = Σ_m gy[m, k] · x[pixel(m, t, r, s), c]      gb[k] = Σ_m gy[m, k]      m counts output pixels

For one tap this is the matrix product gyᵀ · x, with a reduction as long as the batch has pixels and a result as small
as a filter. To keep a GPU busy the pixels are divided over `splits` programs, each of which writes its partial sum to
a workspace. The program of a tile that comes last adds them in order (`last_program.py`), or, where there is more to
add, a launch of its own does (`sum_partials.py`); either way the same inputs give the same bits.

    program  →  split, then group, tap, a tile of BM filters × BN channels; loops over the split's pixels, BC at a time
    masks    →  pixels beyond the split's last, taps outside the image; at the store filters, channels beyond the last

The pixels of a step are BC further than those of the step before. Their (n, z, p, q) are the digits of a number: BC's
own digits are added, with at most one carry from each to the next. Nothing is divided in the loop.
"""

import triton.language as tl

from .common import (
    Axes,
    Operand,
    advance,
    block_indices,
    in_vectors,
    inside,
    kernel,
    load_tile,
    multiply,
    offset_of,
    split_pixel,
    store_tile,
    vectors,
    wide,
)
from .grad_bias import sum_bias
from .last_program import sum_of_splits


@kernel
def gather_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    pixels,  # N·Z·P·Q
    K, C, G,  # filters and channels in one group; groups
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
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    MASKED: tl.constexpr,  # some tap of some pixel is outside the image
    GY_PIXELS_FAST: tl.constexpr, X_PIXELS_FAST: tl.constexpr,
    VECTOR: tl.constexpr,  # see common: K, C and the strides of gy and x are divided by it
    GW_VECTOR: tl.constexpr,  # channels of gw that lie together, its strides in units of it; 0: they do not
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    C, K = C * VECTOR, K * VECTOR
    gy = vectors(Operand(p_gy, gy_n, gy_k, Axes(gy_z, gy_p, gy_q)), VECTOR)
    x = vectors(Operand(p_x, x_n, x_c, Axes(x_d, x_h, x_w)), VECTOR)
    if GW_VECTOR > 0:
        gw_split, gw_k, gw_c, gw_tap = gw_split * GW_VECTOR, gw_k * GW_VECTOR, 1, gw_tap * GW_VECTOR
    size, out = Axes(D, H, W), Axes(Z, P, Q)
    stride, dilation = Axes(stride_d, stride_h, stride_w), Axes(dilation_d, dilation_h, dilation_w)

    # ---- which split, group, tap, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
    column_blocks = tl.cdiv(C, BN)
    tiles = tl.cdiv(K, BM) * column_blocks
    program, programs = tl.program_id(0), tiles * T * R * S * G  # of a split
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= programs * splits:
            sum_bias(
                gy, p_gb, gb_split, p_workspace, p_arrived, programs, BM * BN,
                program - programs * splits, splits, pixels, K * G, out,
                not GY_PIXELS_FAST, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    tap = program // tiles % (T * R * S)
    group = wide(program // tiles // (T * R * S) % G, WIDE)
    split = wide(program // tiles // (T * R * S) // G, WIDE)
    at_tap = split_pixel(tap, R, S)
    o_filter, o_filter_safe = block_indices(tile // column_blocks, BM, K, WIDE)  # [BM]
    o_channel, o_channel_safe = block_indices(tile % column_blocks, BN, C, WIDE)  # [BN]
    per_split = tl.cdiv(tl.cdiv(pixels, BC), splits) * BC
    first = split * per_split
    last = tl.minimum(first + per_split, pixels)

    # ---- the first pixels, and the digits of BC
    image = wide(Z, WIDE) * P * Q
    b_m = first + tl.arange(0, BC)  # [BC]
    b_n = b_m // image
    b_out = split_pixel(b_m % image, P, Q)  # [BC] each
    add_n = BC // image
    add = split_pixel(BC % image, P, Q)
    shift_d = at_tap.d * dilation.d - pad_d
    shift_h = at_tap.h * dilation.h - pad_h
    shift_w = at_tap.w * dilation.w - pad_w

    # ---- the sum
    o_gy_filter, o_x_channel = o_filter_safe * gy.channel, o_channel_safe * x.channel
    p_gy_group, p_x_group = gy.p + group * K * gy.channel, x.p + group * C * x.channel
    GY_TRANSPOSED: tl.constexpr = not GY_PIXELS_FAST and VECTOR == 1
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for m0 in range(0, per_split, BC):
        m_pixel = first + m0 + tl.arange(0, BC) < last  # [BC]
        b_at = Axes(b_out.d * stride.d + shift_d, b_out.h * stride.h + shift_h, b_out.w * stride.w + shift_w)
        o_gy = offset_of(b_n, b_out, gy)  # [BC]
        o_x = offset_of(b_n, b_at, x)  # [BC]
        m_inside = m_pixel
        if MASKED:
            m_inside &= inside(b_at, size)
        # Where filters are known to lie in vectors the compiler finds that itself: the tile need not be transposed.
        b_gy = load_tile(
            p_gy_group, o_gy_filter, o_gy, m_pixel, m_pixel, False, True, GY_TRANSPOSED, VECTOR == 1
        )  # [BM, BC]
        b_x = load_tile(
            p_x_group, o_x, o_x_channel, m_inside, m_inside, True, False, X_PIXELS_FAST, VECTOR == 1
        )  # [BC, BN]
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        b_n, b_out = advance(b_n, b_out, add_n, add, out)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter, m_channel = o_filter < K, o_channel < in_vectors(C, GW_VECTOR)
    if p_arrived is not None:
        b_acc, adds = sum_of_splits(b_acc, p_workspace, p_arrived, program % programs, program // programs, splits)
        m_filter &= adds
    p_tile = p_gw + split * gw_split + group * K * gw_k + wide(tap, WIDE) * gw_tap
    store_tile(p_tile, o_filter * gw_k, o_channel * gw_c, m_filter, m_channel, b_acc, False, OUT_BF16)
