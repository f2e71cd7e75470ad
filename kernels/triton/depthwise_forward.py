"""Depthwise convolution: every filter has one channel, every channel MEMBERS filters; two axes; any layout:

    y[n, k, p, q] = Σ_{r,s} x[n, k // MEMBERS, p·u − pad + r·d, q·u − pad + s·d] · w[k, r, s]

    program  →  image, a tile of BH × BW pixels, BC filters; filters vary fastest
    masks    →  taps outside the image (padding), filters ≥ K; at the store pixels beyond the last

See `depthwise` for the sum.
"""

import triton.language as tl

from .common import HW, Operand, kernel, moved, vectors, wide, widened
from .depthwise import by_channel, spread, store_block, tap_sum, tile_pixels
from .epilogue import activate


@kernel
def depthwise_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    K,
    H, W, P, Q,
    pad_h, pad_w,
    x_n, x_c, x_h, x_w,  # strides
    w_k, w_r, w_s,
    y_n, y_k, y_pixel,
    residual_n, residual_k, residual_p, residual_q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, MEMBERS: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, VECTOR: tl.constexpr,  # K and the strides of x and y are divided by VECTOR
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    K = K * VECTOR
    x = vectors(Operand(p_x, x_n, x_c, HW(x_h, x_w)), VECTOR)
    w = Operand(p_w, w_k, 0, HW(w_r, w_s))  # a filter has one channel
    y_n, y_pixel = y_n * VECTOR, y_pixel * VECTOR
    if VECTOR > 1:
        y_k = 1
    size, out, pad = HW(H, W), HW(P, Q), HW(pad_h, pad_w)

    blocks = tl.cdiv(K, BC)
    o_k = tl.program_id(0) % blocks * BC + tl.arange(0, BC)  # [BC]
    m_k = o_k < K
    n, b_out = tile_pixels(tl.program_id(0) // blocks, tl.cdiv(Q, BW), tl.cdiv(P, BH), BH, BW)
    n, b_out, o_k = wide(n, WIDE), HW(wide(b_out.h, WIDE), wide(b_out.w, WIDE)), wide(o_k, WIDE)
    o_c = o_k // MEMBERS if MEMBERS > 1 else o_k

    b_acc = tl.zeros((BH * BW, BC), ACCUMULATE) if LAST else tl.zeros((BC, BH * BW), ACCUMULATE)
    b_acc = tap_sum(
        b_acc, moved(x, n * x.row), b_out, o_c * x.channel, m_k, moved(w, o_k * w.row), size, pad,
        R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, False, LAST, EMULATE_BF16,
    )  # fmt: skip
    if p_bias is not None:
        b_acc += by_channel(widened(tl.load(p_bias + o_k, mask=m_k, other=0.0), ACCUMULATE, EMULATE_BF16), LAST)
    if p_residual is not None:
        # Beyond the image or the last filter, where nothing is stored, the last element is read.
        o = tl.minimum(b_out.h, P - 1) * residual_p + tl.minimum(b_out.w, Q - 1) * residual_q
        p = p_residual + n * residual_n + spread(o, tl.minimum(o_k, K - 1) * residual_k, LAST)
        b_acc += widened(tl.load(p), ACCUMULATE, EMULATE_BF16)
    b_y = activate(b_acc, ACTIVATION, SLOPE)
    store_block(p_y + n * y_n, b_out, o_k * y_k, m_k, out, y_pixel, b_y, WIDE, LAST, EMULATE_BF16)
