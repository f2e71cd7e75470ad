"""Gradient of the input of a depthwise convolution; two axes; any layout:

    gx[n, c, i, j] = Σ_m Σ_{r,s} gy[n, c·MEMBERS + m, (i + pad − r·d) / u, (j + pad − s·d) / u] · w[c·MEMBERS + m, r, s]

over the taps for which both quotients are whole.

    program  →  image, a tile of BH × BW pixels, BC channels; channels vary fastest
    masks    →  taps that meet no output, channels ≥ C; at the store pixels beyond the last
"""

import triton.language as tl

from .common import kernel, wide
from .depthwise import store_block, tap_sum, tile_pixels


@kernel
def depthwise_grad_input(
    p_gy, p_w, p_gx,
    channels,
    H, W, P, Q,
    pad_h, pad_w,
    gy_n, gy_k, gy_p, gy_q,  # strides
    w_k, w_r, w_s,
    gx_n, gx_c, gx_pixel,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, MEMBERS: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, VECTOR: tl.constexpr,  # channels and the strides of gy and gx are divided by VECTOR
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    channels = channels * VECTOR
    gy_n, gy_p, gy_q, gx_n, gx_pixel = gy_n * VECTOR, gy_p * VECTOR, gy_q * VECTOR, gx_n * VECTOR, gx_pixel * VECTOR
    if VECTOR > 1:
        gy_k, gx_c = 1, 1

    blocks = tl.cdiv(channels, BC)
    o_c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)  # [BC]
    m_c = o_c < channels
    n, b_h, b_w = tile_pixels(tl.program_id(0) // blocks, tl.cdiv(W, BW), tl.cdiv(H, BH), BH, BW)
    n, b_h, b_w, o_c = wide(n, WIDE), wide(b_h, WIDE), wide(b_w, WIDE), wide(o_c, WIDE)

    b_acc = tl.zeros((BH * BW, BC), ACCUMULATE) if LAST else tl.zeros((BC, BH * BW), ACCUMULATE)
    for m in range(0, MEMBERS):
        o_k = o_c * MEMBERS + m
        b_acc = tap_sum(
            b_acc, p_gy + n * gy_n, b_h, b_w, o_k * gy_k, m_c, p_w + o_k * w_k, P, Q, gy_p, gy_q, w_r, w_s,
            pad_h, pad_w, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, True, LAST, EMULATE_BF16,
        )  # fmt: skip
    store_block(p_gx + n * gx_n, b_h, b_w, o_c * gx_c, m_c, H, W, gx_pixel, b_acc, WIDE, LAST, EMULATE_BF16)
