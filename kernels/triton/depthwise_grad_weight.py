"""Gradient of the weight of a depthwise convolution, and of the bias in the same launch; two axes; any layout:

    gw[k, r, s] = Σ_{n,p,q} gy[n, k, p, q] · x[n, k // MEMBERS, p·u + r·d − pad, q·u + s·d − pad]
    gb[k]       = Σ_{n,p,q} gy[n, k, p, q]

A program goes from tile to tile of a split of all images, with sums for every tap, pixel of a tile and filter in
registers: blocks have one axis more, of TAPS ≥ R·S taps, along which gy is the same. In the end the pixels are added
up. Splits are added in order by `sum_partials`. No atomics, so the same inputs give the same bits.

    program  →  BC filters, a split of the tiles; filters vary fastest
    masks    →  pixels beyond the image or the split, taps outside the image, filters ≥ K, taps ≥ R·S
"""

import triton.language as tl

from .common import HW, Operand, kernel, rounded, store_tile, vectors, wide, widened
from .depthwise import both, spread, tile_pixels


@kernel
def depthwise_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or the workspace; gb may be None
    K,
    H, W, P, Q,
    pad_h, pad_w,
    gy_n, gy_k, gy_p, gy_q,  # strides
    x_n, x_c, x_h, x_w,
    gw_split, gw_k, gw_tap, gb_split,
    tiles, per_split,  # tiles of all images, and of a split
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, MEMBERS: tl.constexpr, TAPS: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, VECTOR: tl.constexpr,  # K and the strides of gy and x are divided by VECTOR
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    K = K * VECTOR
    gy = vectors(Operand(p_gy, gy_n, gy_k, HW(gy_p, gy_q)), VECTOR)
    x = vectors(Operand(p_x, x_n, x_c, HW(x_h, x_w)), VECTOR)

    blocks = tl.cdiv(K, BC)
    o_k = tl.program_id(0) % blocks * BC + tl.arange(0, BC)  # [BC]
    split = tl.program_id(0) // blocks
    m_k = o_k < K
    o_k = wide(o_k, WIDE)
    o_c = o_k // MEMBERS if MEMBERS > 1 else o_k
    b_tap = tl.arange(0, TAPS)  # [TAPS]
    b_r, b_s = b_tap // S, b_tap % S
    m_tap = b_tap < R * S
    across, high = tl.cdiv(Q, BW), tl.cdiv(P, BH)

    BP: tl.constexpr = BH * BW
    if LAST:  # [TAPS, BP, BC], [BP, BC]
        b_acc, b_bias = tl.zeros((TAPS, BP, BC), ACCUMULATE), tl.zeros((BP, BC), ACCUMULATE)
    else:  # [TAPS, BC, BP], [BC, BP]
        b_acc, b_bias = tl.zeros((TAPS, BC, BP), ACCUMULATE), tl.zeros((BC, BP), ACCUMULATE)
    for i in range(0, per_split):
        tile = split * per_split + i
        n, b_out = tile_pixels(tile, across, high, BH, BW)
        m_pixel = (tile < tiles) & (b_out.h < P) & (b_out.w < Q)  # [BP]
        n, b_p, b_q = wide(n, WIDE), wide(b_out.h, WIDE), wide(b_out.w, WIDE)
        p = gy.p + n * gy.row + spread(b_p * gy.axis.h + b_q * gy.axis.w, o_k * gy.channel, LAST)
        b_gy = widened(tl.load(p, mask=both(m_pixel, m_k, LAST), other=0.0), ACCUMULATE, EMULATE_BF16)
        b_h = (b_p * STRIDE_H - pad_h)[None, :] + (b_r * DILATION_H)[:, None]  # [TAPS, BP]
        b_w = (b_q * STRIDE_W - pad_w)[None, :] + (b_s * DILATION_W)[:, None]
        m_inside = (b_h >= 0) & (b_h < H) & (b_w >= 0) & (b_w < W) & m_pixel[None, :] & m_tap[:, None]
        o_pixel = b_h * x.axis.h + b_w * x.axis.w  # [TAPS, BP]
        if LAST:
            o_x, m_x = o_pixel[:, :, None] + (o_c * x.channel)[None, None, :], m_inside[:, :, None] & m_k[None, None, :]
        else:
            o_x, m_x = o_pixel[:, None, :] + (o_c * x.channel)[None, :, None], m_inside[:, None, :] & m_k[None, :, None]
        b_x = widened(tl.load(x.p + n * x.row + o_x, mask=m_x, other=0.0), ACCUMULATE, EMULATE_BF16)
        b_acc += b_x * b_gy[None, :, :]
        b_bias += b_gy

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    PIXELS: tl.constexpr = 1 if LAST else 2
    p = p_gw + wide(split, WIDE) * gw_split
    store_tile(p, b_tap * gw_tap, o_k * gw_k, m_tap, m_k, tl.sum(b_acc, PIXELS), False, OUT_BF16)
    if p_gb is not None:
        b_gb = rounded(tl.sum(b_bias, PIXELS - 1), p_gb.dtype.element_ty, OUT_BF16)
        tl.store(p_gb + wide(split, WIDE) * gb_split + o_k, b_gb, mask=m_k)
