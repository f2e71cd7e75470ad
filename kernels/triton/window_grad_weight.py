"""Gradient of the weight by shifted windows, channels last, two axes, and of the bias in the same launch:

    gw[k, r, s, c] = Σ_pixels gy[pixel, k] · x[pixel · u − pad + (r, s) · d, c]        gb[k] = Σ_pixels gy[pixel, k]

For one tap this is the product gyᵀ · x, summed over windows of TN × TH × TW pixels: one of gy, and the one of x that is
shifted by the tap, taken from the view of the pixels u apart (see `window_common`). A result is as small as a filter,
so the windows are divided over `splits` programs, whose partial sums are added in order, by the last of a tile
(`last_program`) or by a launch of its own (`sum_partials`).

    program  →  split, then group, tap, a tile of BK filters × BC channels; loops over the split's windows
    masks    →  at the store filters and channels beyond the last; the copy engine reads zeros outside both images

A window that reaches beyond gy reads zeros there, and multiplies them with what x has: where that is not finite, the
sum of the window's tap becomes NaN even if no output pixel meets it.
"""

import triton.language as tl

from .common import HW, Axes, Operand, block_indices, kernel, multiply, store_tile, wide
from .grad_bias import sum_bias
from .last_program import sum_of_splits
from .window_common import image_view


@kernel
def window_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    N, C, K, group_channels, group_filters, G,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    gy_n, gy_p, gy_q, x_n, x_h, x_w,  # strides, in elements
    gw_split, gw_k, gw_c, gw_tap, gb_split,
    windows, windows_h, windows_w, splits,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    WIDE: tl.constexpr,  # offsets into gw, and the bias's into gy, need 64 bits
):  # fmt: skip
    PIXELS: tl.constexpr = TN * TH * TW
    zero = tl.full((), 0, tl.int32)
    zeros, ones = HW(zero, zero), HW(1, 1)
    gy = Operand(p_gy, gy_n, 1, HW(gy_p, gy_q))
    x = Operand(p_x, x_n, 1, HW(x_h, x_w))
    stride, pad, dilation = HW(stride_h, stride_w), HW(pad_h, pad_w), HW(dilation_h, dilation_w)

    # ---- which split, group, tap, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
    column_blocks = tl.cdiv(group_channels, BC)
    tiles = tl.cdiv(group_filters, BK) * column_blocks
    program, programs = tl.program_id(0), tiles * R * S * G  # of a split
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= programs * splits:
            # filters and strides are multiples of 16 bytes, which the compiler is to see
            UNIT: tl.constexpr = 128 // p_gy.dtype.element_ty.primitive_bitwidth
            beyond, pixels, filters = program - programs * splits, wide(N, WIDE) * P * Q, K // UNIT * UNIT
            gy_all = Operand(p_gy, gy_n // UNIT * UNIT, 1, Axes(0, gy_p // UNIT * UNIT, gy_q // UNIT * UNIT))
            sum_bias(
                gy_all, p_gb, gb_split, p_workspace, p_arrived, programs, BK * BC,
                beyond, splits, pixels, filters, Axes(1, P, Q), True, WIDE, tl.float32, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    tap = program // tiles % (R * S)
    group = program // tiles // (R * S) % G
    split = program // tiles // (R * S) // G
    o_filter, _ = block_indices(tile // column_blocks, BK, group_filters, WIDE)  # [BK]
    o_channel, _ = block_indices(tile % column_blocks, BC, group_channels, WIDE)  # [BC]
    k = group * group_filters + tile // column_blocks * BK
    c = group * group_channels + tile % column_blocks * BC

    # ---- where the tap finds the first pixel: pixel a of each stride, up further
    shift_h, shift_w = tap // S * dilation.h - pad.h, tap % S * dilation.w - pad.w
    lift_h, lift_w = (pad.h + stride.h - 1) // stride.h, (pad.w + stride.w - 1) // stride.w
    a_h, a_w = (shift_h + lift_h * stride.h) % stride.h, (shift_w + lift_w * stride.w) % stride.w
    up_h, up_w = (shift_h - a_h) // stride.h, (shift_w - a_w) // stride.w  # exact

    b_acc = tl.zeros((BK, BC), tl.float32)
    begin = (wide(windows, True) * split // splits).to(tl.int32)
    end = (wide(windows, True) * (split + 1) // splits).to(tl.int32)
    inside = (a_h < H) & (a_w < W)  # else the tap meets no pixel: x is read beyond its last image, as zeros
    gy_view = image_view(gy, zeros, N, HW(P, Q), K, ones, ones, TN, TH, TW, BK)
    a = HW(tl.where(inside, a_h, 0), tl.where(inside, a_w, 0))
    x_view = image_view(x, a, N, HW(H, W), C, stride, ones, TN, TH, TW, BC)
    n0 = tl.where(inside, 0, N)
    window_w, window_h, window_n = begin % windows_w, begin // windows_w % windows_h, begin // windows_w // windows_h
    for _ in range(begin, end):
        n, p, q = window_n * TN, window_h * TH, window_w * TW
        b_gy = gy_view.load([n, p, 0, q, k]).reshape(PIXELS, BK)
        b_x = x_view.load([n0 + n, up_h + p, 0, up_w + q, c]).reshape(PIXELS, BC)
        b_acc = multiply(b_gy.T, b_x, b_acc, PRECISION, EMULATE_BF16)  # [BK, PIXELS] · [PIXELS, BC]
        # ---- the next window
        next_row = window_w + 1 == windows_w
        next_image = next_row & (window_h + 1 == windows_h)
        window_w = tl.where(next_row, 0, window_w + 1)
        window_h = tl.where(next_image, 0, tl.where(next_row, window_h + 1, window_h))
        window_n = tl.where(next_image, window_n + 1, window_n)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter, m_channel = o_filter < group_filters, o_channel < group_channels
    if p_arrived is not None:
        b_acc, adds = sum_of_splits(b_acc, p_workspace, p_arrived, program % programs, split, splits)
        m_filter &= adds
    p_tile = p_gw + split.to(tl.int64) * gw_split + wide(group, WIDE) * group_filters * gw_k + wide(tap, WIDE) * gw_tap
    store_tile(p_tile, o_filter * gw_k, o_channel * gw_c, m_filter, m_channel, b_acc, False, OUT_BF16)
