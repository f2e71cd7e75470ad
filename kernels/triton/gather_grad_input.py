"""Gradient of the input by gather: each pixel of gx collects the outputs it took part in. On one axis (all are alike):

    gx[n, c, i] = Σ_r Σ_k gy[n, k, p] · w[k, c, r]     over taps r for which p = (i + pad − r·d) / u is whole and inside

At stride u only some taps divide evenly, and which depends on i mod u alone, the pixel's *phase*. Let
φ = (i + pad) mod u and g = gcd(u, d). If g does not divide φ the phase has no tap and its gradient is zero. Else its
taps are

    r(m) = r0 + m·u/g,   r0 = (φ/g)·(d/g)⁻¹ mod u/g,     p(m) = (i + pad − r0·d)/u − m·d/g

so within a phase, where i = a + u·j, this is a convolution of gy at stride 1: tap m of pixel j is at j + base − m·d/g.
gy is never spread out with zeros. The columns are the channels c, the sum runs over the phase's taps and filters k.

    program  →  group, then phase (a_d, a_h, a_w), then a tile of BM pixels of the phase × BN channels
    masks    →  taps that fall outside gy, filters ≥ K; at the store pixels and channels beyond the last

Phases differ in size by at most one pixel an axis; a program beyond the last pixel of its phase ends at once. A phase
without taps takes no step of the loop and stores its zeros. A tap outside gy is multiplied as a zero, so a weight that
is not finite makes NaN of the pixels at the border for which it is such a tap.
"""

import triton
import triton.language as tl

from .common import block_indices, gather_product, kernel, split_pixel, store_tile, tile_of_program, valid_taps, wide


@triton.jit
def phase_of_axis(a, stride, pad, dilation, common, inverse, taps):
    """(taps of the phase, its first tap r0, base) of one axis, for the pixels i ≡ a mod stride."""
    phi = (a + pad) % stride
    step = stride // common
    first = phi // common * inverse % step
    count = tl.maximum(taps - first + step - 1, 0) // step
    count = tl.where(phi % common == 0, count, 0)
    return count, first, (a + pad - first * dilation) // stride  # exact where count > 0


@kernel
def gather_grad_input(
    p_gy, p_w, p_gx,
    N, channels, K,  # channels and filters in one group
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
    VECTOR: tl.constexpr,  # see common: channels, K and all strides are divided by it
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    channels, K = channels * VECTOR, K * VECTOR
    gy_n, gy_z, gy_p, gy_q = gy_n * VECTOR, gy_z * VECTOR, gy_p * VECTOR, gy_q * VECTOR
    w_k, w_t, w_r, w_s = w_k * VECTOR, w_t * VECTOR, w_r * VECTOR, w_s * VECTOR
    gx_n, gx_pixel = gx_n * VECTOR, gx_pixel * VECTOR
    if VECTOR > 1:
        gy_k, w_c, gx_c = 1, 1, 1

    # ---- which phase, which tile
    column_blocks = tl.cdiv(channels, BN)
    tiles = phase_blocks * column_blocks
    program = tl.program_id(0)
    row_block, column_block = tile_of_program(program % tiles, phase_blocks, column_blocks, BAND)
    phases_h = tl.minimum(stride_h, H).to(tl.int32)  # those that have pixels
    phases_w = tl.minimum(stride_w, W).to(tl.int32)
    phases = tl.minimum(stride_d, D).to(tl.int32) * phases_h * phases_w
    phase = program // tiles % phases
    group = wide(program // tiles // phases, WIDE)
    a_d, a_h, a_w = split_pixel(phase, phases_h, phases_w)
    size_d = (D - a_d + stride_d - 1) // stride_d  # pixels of the phase on each axis
    size_h = (H - a_h + stride_h - 1) // stride_h
    size_w = (W - a_w + stride_w - 1) // stride_w
    image = wide(size_d, WIDE) * size_h * size_w
    pixels = N * image
    if wide(row_block, WIDE) * BM < pixels:
        o_pixel, o_pixel_safe = block_indices(row_block, BM, pixels, WIDE)  # [BM]
        o_channel, o_channel_safe = block_indices(column_block, BN, channels, WIDE)  # [BN]
        t_count, t_first, base_d = phase_of_axis(a_d, stride_d, pad_d, dilation_d, common_d, inverse_d, T)
        r_count, r_first, base_h = phase_of_axis(a_h, stride_h, pad_h, dilation_h, common_h, inverse_h, R)
        s_count, s_first, base_w = phase_of_axis(a_w, stride_w, pad_w, dilation_w, common_w, inverse_w, S)

        # ---- where tap (0, 0, 0) of the phase falls in gy, for each pixel
        b_n = o_pixel_safe // image
        b_jd, b_jh, b_jw = split_pixel(o_pixel_safe % image, size_h, size_w)
        b_z, b_p, b_q = b_jd + base_d, b_jh + base_h, b_jw + base_w
        step_z, step_p, step_q = -(dilation_d // common_d), -(dilation_h // common_h), -(dilation_w // common_w)
        o_gy = b_n * gy_n + b_z * gy_z + b_p * gy_p + b_q * gy_q
        b_valid = o_gy
        if INSIDE == "bits":
            b_valid = valid_taps(b_z, b_p, b_q, step_z, step_p, step_q, Z, P, Q, t_count, r_count, s_count)

        # ---- the sum
        o_first = wide(t_first, WIDE) * w_t + wide(r_first, WIDE) * w_r + wide(s_first, WIDE) * w_s
        b_gx = gather_product(
            p_gy + group * K * gy_k, o_gy, b_valid, b_z, b_p, b_q, step_z, step_p, step_q, Z, P, Q,
            gy_k, gy_z, gy_p, gy_q,
            p_w + group * K * w_k + o_first, o_channel_safe * w_c, w_k,
            wide(stride_d // common_d, WIDE) * w_t,
            wide(stride_h // common_h, WIDE) * w_r,
            wide(stride_w // common_w, WIDE) * w_s,
            t_count, r_count, s_count, K,
            tl.zeros((BM, BN), ACCUMULATE),
            BC, INSIDE, EVEN_K, GY_ROWS_FAST, False, WIDE, PRECISION, EMULATE_BF16,
        )  # fmt: skip

        # ---- one rounding; store
        b_d, b_h, b_w = a_d + b_jd * stride_d, a_h + b_jh * stride_h, a_w + b_jw * stride_w
        o_gx_pixel = b_n * gx_n + ((b_d * H + b_h) * W + b_w) * gx_pixel
        p_tile = p_gx + group * channels * gx_c
        m_pixel, m_channel = o_pixel < pixels, o_channel < channels
        store_tile(p_tile, o_gx_pixel, o_channel * gx_c, m_pixel, m_channel, b_gx, GX_ROWS_FAST, EMULATE_BF16)
