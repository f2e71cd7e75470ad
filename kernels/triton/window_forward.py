"""Convolution by shifted windows, two axes, images and weights channels last:

    y[n, p, q, k] = Σ_{r,s} Σ_c x[n, p·u − pad + r·d, q·u − pad + s·d, c] · w[k, r, s, c]

As a matrix product: filters times pixels. A program owns a window of TN × TH × TW pixels and BK filters, and loops over
taps and blocks of channels; see `window_common`, where padding, stride and dilation are dealt with.

    program  →  split of the sum, then tiles first, first + step, …; tiles in bands, for the L2 cache
    masks    →  none: the copy engine reads zeros outside the image and stores nothing outside y. A y or a residual
                that is not channels last is addressed by threads, and masked

Programs are as many as fit on the GPU at once where there are more tiles (`step` of them), so that fetches for the next
tile overlap the end of this one; one for each tile, or several that split its sum, where there are fewer. A split's sum
goes to a workspace, float32, that lies as y does; `window_sum` adds them up. Only coordinates have to fit into 32 bits.
"""

import triton.language as tl

from .common import HW, Operand, kernel, load_tile, moved, phase_of_axis, rounded, widened
from .epilogue import activate
from .window_common import (
    Taps,
    Walk,
    channels_of_block,
    image_view,
    pixels_of_window,
    store_window,
    window_of_tile,
    window_product,
)


@kernel
def window_forward(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None; y, or the workspace. Descriptors: w, x unless
    # VIEWS, residual and y where VECTOR is 0
    N, C, K, group_channels, group_filters,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    common_h, common_w, inverse_h, inverse_w,  # see `gather_grad_input`
    x_n, x_h, x_w, w_k, w_tap,  # strides, in elements
    y_n, y_k, y_p, y_q, residual_n, residual_k, residual_p, residual_q,  # these divided by VECTOR, if that is not 0
    y_split,  # elements of the workspace for one split, divided likewise
    image,  # pixels of one, if FLAT
    windows, windows_h, windows_w, column_blocks, tiles, step, splits,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    VIEWS: tl.constexpr,  # the stride does not divide the image: one view for each remainder
    FLAT: tl.constexpr, Y_VECTOR: tl.constexpr, RESIDUAL_VECTOR: tl.constexpr,  # `pixels_of_window`; 0: channels last
    WIDE: tl.constexpr,
    PREFETCH: tl.constexpr,  # fetch for the next tile while one is finished: both loops become one
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = TN * TH * TW
    OUT: tl.constexpr = p_y.dtype if Y_VECTOR == 0 else p_y.dtype.element_ty
    OUT_BF16: tl.constexpr = EMULATE_BF16 and OUT.is_bf16()
    split, first = tl.program_id(0) // step, tl.program_id(0) % step
    zero = tl.full((), 0, tl.int32)
    zeros, ones = HW(zero, zero), HW(1, 1)
    size, out, windows_of = HW(H, W), HW(P, Q), HW(windows_h, windows_w)
    stride, pad, dilation = HW(stride_h, stride_w), HW(pad_h, pad_w), HW(dilation_h, dilation_w)
    common, inverse = HW(common_h, common_w), HW(inverse_h, inverse_w)

    if Y_VECTOR != 0:
        y = moved(Operand(p_y, y_n, y_k, HW(y_p, y_q)), split.to(tl.int64) * y_split * Y_VECTOR)
    if p_residual is not None and RESIDUAL_VECTOR != 0:
        residual = Operand(p_residual, residual_n, residual_k, HW(residual_p, residual_q))
    if VIEWS:
        x = Operand(p_x, x_n, 1, HW(x_h, x_w))
    else:
        up_h, up_w = (pad.h + stride.h - 1) // stride.h, (pad.w + stride.w - 1) // stride.w
        steps = R * S * tl.cdiv(group_channels, BC)
        begin, end = steps * split // splits, steps * (split + 1) // splits

    for tile in tl.range(first, tiles, step, flatten=PREFETCH):
        n, at, column_block, group = window_of_tile(tile, windows, column_blocks, windows_of, TN, TH, TW, BAND)
        k = group * group_filters + column_block * BK
        b_acc = tl.zeros((BK, PIXELS), tl.float32)
        if VIEWS:
            for view in range(0, stride.h * stride.w):
                a = HW(view // stride.w, view % stride.w)
                r_count, r_first, back_h = phase_of_axis(a.h, stride.h, pad.h, dilation.h, common.h, inverse.h, R)
                s_count, s_first, back_w = phase_of_axis(a.w, stride.w, pad.w, dilation.w, common.w, inverse.w, S)
                x_view = image_view(x, a, N, size, C, stride, ones, TN, TH, TW, BC)
                steps = r_count * s_count * tl.cdiv(group_channels, BC)
                steps = tl.where((a.h < H) & (a.w < W), steps, 0)
                b_acc = window_product(
                    x_view, p_w, n, at, group * group_channels,
                    steps * split // splits, steps * (split + 1) // splits, group_channels,
                    Walk(-back_h, 0, dilation.h // common.h, 0, 1), Walk(-back_w, 0, dilation.w // common.w, 0, 1),
                    x_w, Taps(r_first * S + s_first, stride.h // common.h * S, stride.w // common.w, s_count), k, 0, K,
                    b_acc, PIXELS, BK, BC, "plain", PRECISION, EMULATE_BF16,
                )  # fmt: skip
        else:
            b_acc = window_product(
                p_x, p_w, n, at, group * group_channels, begin, end, group_channels,
                Walk(-up_h, up_h * stride.h - pad.h, dilation.h // stride.h, dilation.h % stride.h, stride.h),
                Walk(-up_w, up_w * stride.w - pad.w, dilation.w // stride.w, dilation.w % stride.w, stride.w),
                x_w, Taps(0, S, 1, S), k, 0, K,
                b_acc, PIXELS, BK, BC, "plain", PRECISION, EMULATE_BF16,
            )  # fmt: skip

        # ---- bias, residual, activation; one rounding; store
        if p_bias is not None:
            o_k = k + tl.arange(0, BK)  # [BK]
            b_acc += widened(tl.load(p_bias + o_k, mask=o_k < K, other=0.0), tl.float32, EMULATE_BF16)[:, None]
        if p_residual is not None:
            if RESIDUAL_VECTOR == 0:
                b_residual = p_residual.load([n, at.h, 0, at.w, k]).reshape(PIXELS, BK).T  # [BK, PIXELS]
            else:
                o_pixel, m_pixel = pixels_of_window(
                    0, n, at, residual, zeros, ones, N, out, image, PIXELS, TH, TW, FLAT, RESIDUAL_VECTOR, WIDE
                )
                o_k, m_k = channels_of_block(k, residual, K, BK, RESIDUAL_VECTOR, WIDE)
                b_residual = load_tile(residual.p, o_k, o_pixel, m_k, m_pixel, True, True, False)  # [BK, PIXELS]
            b_acc += widened(b_residual, tl.float32, EMULATE_BF16)
        b_y = rounded(activate(b_acc, ACTIVATION, SLOPE), OUT, OUT_BF16)
        if Y_VECTOR == 0:
            p_y.store([n, at.h, split, at.w, k], b_y.T.reshape(TN, TH, 1, TW, BK))
        else:
            store_window(b_y, k, K, 0, n, at, y, zeros, ones, N, out, image, PIXELS, TH, TW, BK, FLAT, Y_VECTOR, WIDE)
