"""Gradient of the input by gather: each pixel of gx collects the outputs it took part in. On one axis (all are alike):

    gx[n, c, i] = Σ_r Σ_k gy[n, k, p] · w[k, c, r]     over taps r for which p = (i + pad − r·d) / u is whole and inside

At stride u only some taps divide evenly, and which depends on i mod u alone, the pixel's *phase*. Let
φ = (i + pad) mod u and g = gcd(u, d). If g does not divide φ the phase has no tap and its gradient is zero. Else its
taps are

    r(m) = r0 + m·u/g,   r0 = (φ/g)·(d/g)⁻¹ mod u/g,     p(m) = (i + pad − r0·d)/u − m·d/g

so within a phase, where i = a + u·j, this is a convolution of gy at stride 1: tap m of pixel j is at j + base − m·d/g.
gy is never spread out with zeros. The columns are the channels c, the sum runs over the phase's taps and filters k.

    program  →  group, then a tile of BM pixels of a phase × BN channels, then phase (a_d, a_h, a_w): programs that run
                at the same time read the same gy, and write what lies between each other's while the L2 cache has both
    masks    →  taps that fall outside gy, filters ≥ K; at the store pixels and channels beyond the last

Phases differ in size by at most one pixel an axis; a program beyond the last pixel of its phase ends at once. A phase
without taps takes no step of the loop and stores its zeros. A tap outside gy is multiplied as a zero, so a weight that
is not finite makes NaN of the pixels at the border for which it is such a tap.
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
    phase_of_axis,
    split_pixel,
    store_tile,
    tile_of_program,
    valid_taps,
    vectors,
    wide,
)


@kernel
def gather_grad_input(
    p_gy, p_w, p_gx,
    N, C, K,  # channels and filters in one group
    D, H, W,
    Z, P, Q,
    T, R, S,
    stride_d, stride_h, stride_w,
    pad_d, pad_h, pad_w,
    dilation_d, dilation_h, dilation_w,
    common_d, common_h, common_w,  # gcd(stride, dilation)
    inverse_d, inverse_h, inverse_w,  # of dilation / common modulo stride / common
    gy_n, gy_k, gy_z, gy_p, gy_q,
    w_k, w_c, w_t, w_r, w_s,
    gx_n, gx_c, gx_pixel,  # the pixels of an image of gx are evenly spaced
    phase_blocks,  # blocks of BM pixels in the largest phase
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    INSIDE: tl.constexpr, EVEN_K: tl.constexpr,  # see gather_product
    GY_ROWS_FAST: tl.constexpr, GX_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels
    VECTOR: tl.constexpr,  # see common: C, K and the strides of gy and w are divided by it
    GX_VECTOR: tl.constexpr,  # the strides of gx are
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    C, K = C * VECTOR, K * VECTOR
    gy = vectors(Operand(p_gy, gy_n, gy_k, Axes(gy_z, gy_p, gy_q)), VECTOR)
    w = vectors(Operand(p_w, w_k, w_c, Axes(w_t, w_r, w_s)), VECTOR)
    gx_n, gx_pixel = gx_n * GX_VECTOR, gx_pixel * GX_VECTOR
    if GX_VECTOR > 1:
        gx_c = 1
    stride, pad = Axes(stride_d, stride_h, stride_w), Axes(pad_d, pad_h, pad_w)
    dilation = Axes(dilation_d, dilation_h, dilation_w)
    common, inverse = Axes(common_d, common_h, common_w), Axes(inverse_d, inverse_h, inverse_w)

    # ---- which phase, which tile
    column_blocks = tl.cdiv(C, BN)
    tiles = phase_blocks * column_blocks
    program = tl.program_id(0)
    phases_h = tl.minimum(stride.h, H).to(tl.int32)  # those that have pixels
    phases_w = tl.minimum(stride.w, W).to(tl.int32)
    phases = tl.minimum(stride.d, D).to(tl.int32) * phases_h * phases_w
    phase = program % phases
    row_block, column_block = tile_of_program(program // phases % tiles, phase_blocks, column_blocks, BAND)
    group = wide(program // phases // tiles, WIDE)
    a = split_pixel(phase, phases_h, phases_w)
    size_d = (D - a.d + stride.d - 1) // stride.d  # pixels of the phase on each axis
    size_h = (H - a.h + stride.h - 1) // stride.h
    size_w = (W - a.w + stride.w - 1) // stride.w
    image = wide(size_d, WIDE) * size_h * size_w
    pixels = N * image
    if wide(row_block, WIDE) * BM < pixels:
        o_pixel, o_pixel_safe = block_indices(row_block, BM, pixels, WIDE)  # [BM]
        o_channel, o_channel_safe = block_indices(column_block, BN, C, WIDE)  # [BN]
        t_count, t_first, base_d = phase_of_axis(a.d, stride.d, pad.d, dilation.d, common.d, inverse.d, T)
        r_count, r_first, base_h = phase_of_axis(a.h, stride.h, pad.h, dilation.h, common.h, inverse.h, R)
        s_count, s_first, base_w = phase_of_axis(a.w, stride.w, pad.w, dilation.w, common.w, inverse.w, S)
        taps = Axes(t_count, r_count, s_count)

        # ---- where tap (0, 0, 0) of the phase falls in gy, for each pixel
        b_n = o_pixel_safe // image  # [BM]
        b_j = split_pixel(o_pixel_safe % image, size_h, size_w)  # [BM] each
        b_start = Axes(b_j.d + base_d, b_j.h + base_h, b_j.w + base_w)
        step = Axes(-(dilation.d // common.d), -(dilation.h // common.h), -(dilation.w // common.w))
        o_gy = offset_of(b_n, b_start, gy)  # [BM]
        b_valid = o_gy
        if INSIDE == "bits":
            b_valid = valid_taps(b_start, step, Axes(Z, P, Q), taps)

        # ---- the sum, over filters: here they are the channels of w, and its channels the columns
        o_first = wide(t_first, WIDE) * w.axis.d + wide(r_first, WIDE) * w.axis.h + wide(s_first, WIDE) * w.axis.w
        gy_group = moved(gy, group * K * gy.channel)
        p_w_first, o_column = w.p + group * K * w.row + o_first, o_channel_safe * w.channel
        w_step = Axes(
            wide(stride.d // common.d, WIDE) * w.axis.d,
            wide(stride.h // common.h, WIDE) * w.axis.h,
            wide(stride.w // common.w, WIDE) * w.axis.w,
        )
        b_gx = gather_product(  # [BM, BN]
            gy_group, o_gy, b_valid, b_start, step, Axes(Z, P, Q),
            Operand(p_w_first, w.channel, w.row, w_step), o_column, taps, K,
            tl.zeros((BM, BN), ACCUMULATE),
            BC, INSIDE, EVEN_K, VECTOR, GY_ROWS_FAST, False, WIDE, PRECISION, EMULATE_BF16,
        )  # fmt: skip

        # ---- one rounding; store
        b_d, b_h, b_w = a.d + b_j.d * stride.d, a.h + b_j.h * stride.h, a.w + b_j.w * stride.w
        o_gx_pixel = b_n * gx_n + ((b_d * H + b_h) * W + b_w) * gx_pixel
        p_tile = p_gx + group * C * gx_c
        m_pixel, m_channel = o_pixel < pixels, o_channel < C
        store_tile(p_tile, o_gx_pixel, o_channel * gx_c, m_pixel, m_channel, b_gx, GX_ROWS_FAST, EMULATE_BF16)
