"""Gradient of the weight by gather, and of the bias in the same pass; then the ordered sum of partial results.

    gw[k, c, t, r, s] = Σ_m gy[m, k] · x[pixel(m, t, r, s), c]      gb[k] = Σ_m gy[m, k]      m counts output pixels

For one tap this is the matrix product gyᵀ · x, with a reduction as long as the batch has pixels and a result as small
as a filter. To keep a GPU busy the pixels are divided over `splits` programs, each of which writes its partial sum to
a workspace; `sum_partials.py` then adds them in order. No atomics, so the same inputs give the same bits.

    program  →  split, then group, tap, a tile of BM filters × BN channels; loops over the split's pixels, BC at a time
    masks    →  pixels beyond the split's last, taps outside the image; at the store filters, channels beyond the last

The pixels of a step are BC further than those of the step before: their (n, z, p, q) are carried on like the hands of a
clock, by adding BC's own digits and passing at most one carry from each to the next. Nothing is divided in the loop.
"""

import triton.language as tl

from .common import block_indices, carry, kernel, load_tile, multiply, split_pixel, store_tile, wide
from .grad_bias import sum_bias


@kernel
def gather_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or the workspace; gb may be None
    pixels,  # N·Z·P·Q
    filters, channels, groups,  # filters and channels in one group
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
    VECTOR: tl.constexpr,  # see common: filters, channels and all strides but gb's are divided by it
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    channels, filters = channels * VECTOR, filters * VECTOR
    gy_n, gy_z, gy_p, gy_q = gy_n * VECTOR, gy_z * VECTOR, gy_p * VECTOR, gy_q * VECTOR
    x_n, x_d, x_h, x_w = x_n * VECTOR, x_d * VECTOR, x_h * VECTOR, x_w * VECTOR
    gw_split, gw_k, gw_tap = gw_split * VECTOR, gw_k * VECTOR, gw_tap * VECTOR
    if VECTOR > 1:
        gy_k, x_c, gw_c = 1, 1, 1

    # ---- which split, group, tap, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
    column_blocks = tl.cdiv(channels, BN)
    tiles = tl.cdiv(filters, BM) * column_blocks
    program = tl.program_id(0)
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= tiles * T * R * S * groups * splits:
            sum_bias(
                p_gy, p_gb, program - tiles * T * R * S * groups * splits, splits, pixels, filters * groups, Z, P, Q,
                gy_n, gy_k, gy_z, gy_p, gy_q, gb_split,
                not GY_PIXELS_FAST, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    tap = program // tiles % (T * R * S)
    group = wide(program // tiles // (T * R * S) % groups, WIDE)
    split = wide(program // tiles // (T * R * S) // groups, WIDE)
    t, r, s = split_pixel(tap, R, S)
    o_filter, o_filter_safe = block_indices(tile // column_blocks, BM, filters, WIDE)  # [BM]
    o_channel, o_channel_safe = block_indices(tile % column_blocks, BN, channels, WIDE)  # [BN]
    per_split = tl.cdiv(tl.cdiv(pixels, BC), splits) * BC
    first = split * per_split
    last = tl.minimum(first + per_split, pixels)

    # ---- the first pixels, and the digits of BC
    image = wide(Z, WIDE) * P * Q
    b_m = first + tl.arange(0, BC)  # [BC]
    b_n = b_m // image
    b_z, b_p, b_q = split_pixel(b_m % image, P, Q)
    add_n = BC // image
    add_z, add_p, add_q = split_pixel(BC % image, P, Q)
    shift_d, shift_h, shift_w = t * dilation_d - pad_d, r * dilation_h - pad_h, s * dilation_w - pad_w

    o_gy_filter, o_x_channel = o_filter_safe * gy_k, o_channel_safe * x_c
    p_gy_group = p_gy + group * filters * gy_k
    p_x_group = p_x + group * channels * x_c

    GY_ON_SIDE: tl.constexpr = not GY_PIXELS_FAST and VECTOR == 1
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for m0 in range(0, per_split, BC):
        m_pixel = first + m0 + tl.arange(0, BC) < last  # [BC]
        b_d, b_h, b_w = b_z * stride_d + shift_d, b_p * stride_h + shift_h, b_q * stride_w + shift_w
        o_gy = b_n * gy_n + b_z * gy_z + b_p * gy_p + b_q * gy_q
        o_x = b_n * x_n + b_d * x_d + b_h * x_h + b_w * x_w
        m_inside = m_pixel
        if MASKED:
            m_inside &= (b_d >= 0) & (b_d < D) & (b_h >= 0) & (b_h < H) & (b_w >= 0) & (b_w < W)
        # Where filters are known to lie in vectors the compiler finds that itself: the tile need not lie on its side.
        b_gy = load_tile(p_gy_group, o_gy_filter, o_gy, m_pixel, m_pixel, False, True, GY_ON_SIDE)  # [BM, BC]
        b_x = load_tile(p_x_group, o_x, o_x_channel, m_inside, m_inside, True, False, X_PIXELS_FAST)  # [BC, BN]
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        b_q, b_p = carry(b_q + add_q, b_p + add_p, Q)
        b_p, b_z = carry(b_p, b_z + add_z, P)
        b_z, b_n = carry(b_z, b_n + add_n, Z)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter, m_channel = o_filter < filters, o_channel < channels
    p_tile = p_gw + split * gw_split + group * filters * gw_k + wide(tap, WIDE) * gw_tap
    store_tile(p_tile, o_filter * gw_k, o_channel * gw_c, m_filter, m_channel, b_acc, False, OUT_BF16)
