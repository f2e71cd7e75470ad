"""Write the input of a convolution of few channels so that `runs` can fetch it in vectors, and the filters likewise:

    rows[n, d, h, w, c]      = x[n, c, d − margin_d, h − margin_h, w − margin_w]     c = 0 … 3, zero where there is none
    filters[k, t, r, s', c]  = w[k, c, t, r, s' − lead]                              s' = 0 … run/4 − 1, zero likewise

    program  →  BLOCK neighbouring pixels of rows; beyond those BLOCK neighbouring elements of filters
    masks    →  outside the image, beyond its channels; the last block of either

Memory-bound. Of contiguous tensors a thread reads VECTOR pixels of each channel, and writes them together; of channels
last neighbouring threads have neighbouring elements.
"""

import triton
import triton.language as tl

from .common import kernel, split_pixel, wide


@triton.jit
def plane(p_x, o_pixel, m_pixel, c, C, stride):
    """Channel c of these pixels, zeros if there is none."""
    return tl.load(p_x + (o_pixel + c * stride), mask=m_pixel & (c < C), other=0.0)


@kernel
def pack_runs(
    p_x, p_w, p_rows, p_filters,  # w and filters may be None
    K, C,
    D, H, W,  # of x: W in vectors
    T, R, S,
    depth, height, width,  # of rows: width in vectors
    margin_d, margin_h, margin_w,  # zeros before the image: margin_w in vectors
    pixels,  # of rows: vectors
    programs,  # that write rows
    run, lead,  # elements of a run, and taps of zeros at its begin
    x_n, x_c, x_d, x_h, x_w,  # strides, in elements; in vectors, but for x_w, where VECTOR > 1
    w_k, w_c, w_t, w_r, w_s,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_FAST: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
):  # fmt: skip
    program = tl.program_id(0)
    if p_w is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= programs:
            # One element a thread: masked as they are, several would be stored one by one, each to another sector.
            o = (program - programs) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), 1)  # [BLOCK]
            at = split_pixel(o // run % (T * R), T, R)
            b_s, b_c, b_k = o % run // 4 - lead, o % 4, o // run // (T * R)
            m = (b_s >= 0) & (b_s < S) & (b_c < C) & (b_k < K)
            o_w = wide(b_k, WIDE) * w_k + wide(b_c, WIDE) * w_c + wide(b_s, WIDE) * w_s
            o_w += wide(at.h, WIDE) * w_t + wide(at.w, WIDE) * w_r
            tl.store(p_filters + o, tl.load(p_w + o_w, mask=m, other=0.0), mask=b_k < K)
            return
    o = wide(program, WIDE) * (BLOCK // VECTOR) + tl.arange(0, BLOCK // VECTOR)  # [BLOCK / VECTOR] vectors of pixels
    image = wide(depth, WIDE) * height * width
    at = split_pixel(o % image, height, width)
    b_d, b_h, b_w = at.d - margin_d, at.h - margin_h, at.w - margin_w
    m = (b_d >= 0) & (b_d < D) & (b_h >= 0) & (b_h < H) & (b_w >= 0) & (b_w < W) & (o < pixels)
    o_x = o // image * x_n + b_d * x_d + b_h * x_h  # [BLOCK / VECTOR]
    if CHANNELS_FAST:
        b_c = tl.arange(0, 4)  # [4]
        p_pixel = p_x + (o_x + b_w * x_w)[:, None]
        b = tl.load(p_pixel + b_c[None, :] * x_c, mask=m[:, None] & (b_c < C)[None, :], other=0.0)
        tl.store(p_rows + (o[:, None] * 4 + b_c[None, :]), b, mask=(o < pixels)[:, None])
    else:
        if VECTOR > 1:
            o_x = ((o_x + b_w) * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]  # [BLOCK / VECTOR, VECTOR]
        else:
            o_x = (o_x + b_w * x_w)[:, None]
        m = m[:, None] & (tl.arange(0, VECTOR) >= 0)[None, :]
        b_even = tl.join(plane(p_x, o_x, m, 0, C, x_c * VECTOR), plane(p_x, o_x, m, 2, C, x_c * VECTOR))
        b_odd = tl.join(plane(p_x, o_x, m, 1, C, x_c * VECTOR), plane(p_x, o_x, m, 3, C, x_c * VECTOR))
        b = tl.join(b_even, b_odd).reshape(4 * BLOCK)  # channels 0 1 2 3 of a pixel, then of the next
        o_row = wide(program, WIDE) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        tl.store(p_rows + o_row, b, mask=o_row < wide(pixels, WIDE) * (4 * VECTOR))
