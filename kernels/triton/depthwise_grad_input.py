"""Gradient of the input of a depthwise convolution; two axes; any layout:

    gx[n, c, i, j] = Σ_m Σ_{r,s} gy[n, c·MEMBERS + m, (i + pad − r·d) / u, (j + pad − s·d) / u] · w[c·MEMBERS + m, r, s]

over the taps for which both quotients are whole.

    program  →  image, a tile of BH × BW pixels, BC channels; channels vary fastest
    masks    →  taps that meet no output, channels ≥ C; at the store pixels beyond the last
"""

import triton.language as tl

from .common import HW, Operand, kernel, moved, vectors, wide
from .depthwise import store_block, tap_sum, tile_pixels


@kernel
def depthwise_grad_input(
    p_gy, p_w, p_gx,
    C,
    H, W, P, Q,
    pad_h, pad_w,
    gy_n, gy_k, gy_p, gy_q,  # strides
    w_k, w_r, w_s,
    gx_n, gx_c, gx_pixel,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, MEMBERS: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, VECTOR: tl.constexpr,  # C and the strides of gy and gx are divided by VECTOR
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    C = C * VECTOR
    gy = vectors(Operand(p_gy, gy_n, gy_k, HW(gy_p, gy_q)), VECTOR)
    w = Operand(p_w, w_k, 0, HW(w_r, w_s))  # a filter has one channel
    gx_n, gx_pixel = gx_n * VECTOR, gx_pixel * VECTOR
    if VECTOR > 1:
        gx_c = 1
    size, out, pad = HW(H, W), HW(P, Q), HW(pad_h, pad_w)

    blocks = tl.cdiv(C, BC)
    o_c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)  # [BC]
    m_c = o_c < C
    n, b_in = tile_pixels(tl.program_id(0) // blocks, tl.cdiv(W, BW), tl.cdiv(H, BH), BH, BW)
    n, b_in, o_c = wide(n, WIDE), HW(wide(b_in.h, WIDE), wide(b_in.w, WIDE)), wide(o_c, WIDE)

    b_acc = tl.zeros((BH * BW, BC), ACCUMULATE) if LAST else tl.zeros((BC, BH * BW), ACCUMULATE)
    for m in range(0, MEMBERS):
        o_k = o_c * MEMBERS + m
        b_acc = tap_sum(
            b_acc, moved(gy, n * gy.row), b_in, o_k * gy.channel, m_c, moved(w, o_k * w.row), out, pad,
            R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, True, LAST, EMULATE_BF16,
        )  # fmt: skip
    store_block(p_gx + n * gx_n, b_in, o_c * gx_c, m_c, size, gx_pixel, b_acc, WIDE, LAST, EMULATE_BF16)
