"""Gradient of the input by shifted windows, two axes, gradients of outputs and weights channels last:

    gx[n, i, j, c] = Σ_{r,s} Σ_k gy[n, p(i, r), q(j, s), k] · w[k, r, s, c]

`gather_grad_input` says which output pixels a pixel takes part in: pixels of one *phase*, apart by the stride, have the
same filter taps, and among them this is a convolution of gy at stride 1, with taps p = j + base − m·d/g. So a program
owns a window of one phase and BK channels of the input, and loops over the phase's taps and blocks of filters as
`window_forward` does over channels. It reads the weights transposed, but for TF32, which is multiplied with its terms
innermost: there the weights may have been turned before. gy is never spread out with zeros. A phase without taps takes
no step and stores its zeros.

    program  →  split of the sum, then tiles first, first + step, … in bands, then the phase (a_h, a_w) whose they are:
                programs that run at the same time read the same gy, and write what lies between each other's while the
                L2 cache has both
    masks    →  none: the copy engine reads zeros outside gy and stores nothing outside gx. A gx that is not channels
                last is addressed by threads, and masked

Phases differ in size by at most one pixel an axis: a window beyond a smaller one's last is stored nowhere.

Where rows of gx are stored by threads, each phase has but every second element of them. So a program may compute both
phases of a row (TOGETHER), one after the other, and store their windows as one: whole sectors.
"""

import triton.language as tl

from .common import HW, Operand, kernel, moved, phase_of_axis, rounded
from .window_common import (
    Taps,
    Walk,
    image_view,
    store_window,
    window_of_tile,
    window_product,
)


@kernel
def window_grad_input(
    p_gy, p_w, p_gx,  # gx, or the workspace. Descriptors: gy, w, and gx if GX_VECTOR is 0 and not PHASES
    N, C, K, group_channels, group_filters,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    common_h, common_w, inverse_h, inverse_w,  # see `gather_grad_input`
    gy_n, gy_p, gy_q, w_k, w_tap,  # strides, in elements; w_k is that of channels, if W_TURNED
    gx_n, gx_c, gx_h, gx_w,  # these divided by GX_VECTOR, if that is not 0
    gx_split,  # elements of the workspace for one split, divided likewise
    image,  # pixels of one, if FLAT
    windows, windows_h, windows_w, column_blocks, tiles, step, splits,  # of one phase
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    FLAT: tl.constexpr, GX_VECTOR: tl.constexpr, WIDE: tl.constexpr,  # `pixels_of_window`; 0: channels last
    PREFETCH: tl.constexpr,  # see `window_forward`
    PHASES: tl.constexpr,  # the stride is more than 1
    TOGETHER: tl.constexpr,  # phases of a row that a program computes: 1, or 2 of 2; then sums are not split
    W_TURNED: tl.constexpr,  # w is [C/G, taps, K], and BC divides K; else [taps, K, C/G]
):  # fmt: skip
    PIXELS: tl.constexpr = TN * TH * TW
    DESCRIBED: tl.constexpr = GX_VECTOR == 0 and not PHASES
    OUT: tl.constexpr = p_gx.dtype if DESCRIBED else p_gx.dtype.element_ty
    OUT_BF16: tl.constexpr = EMULATE_BF16 and OUT.is_bf16()
    stride, pad, dilation = HW(stride_h, stride_w), HW(pad_h, pad_w), HW(dilation_h, dilation_w)
    common, inverse = HW(common_h, common_w), HW(inverse_h, inverse_w)

    # ---- which phase, which steps of its sum
    phases_w = 1 if TOGETHER > 1 else tl.minimum(stride.w, W)  # those that have pixels, and programs of their own
    phases = tl.minimum(stride.h, H) * phases_w
    phase = tl.program_id(0) % phases
    first = tl.program_id(0) // phases % step
    split = tl.program_id(0) // phases // step
    a = HW(phase // phases_w, phase % phases_w)
    r_count, r_first, base_h = phase_of_axis(a.h, stride.h, pad.h, dilation.h, common.h, inverse.h, R)

    if not DESCRIBED:
        gx = moved(Operand(p_gx, gx_n, gx_c, HW(gx_h, gx_w)), split.to(tl.int64) * gx_split * max(GX_VECTOR, 1))
    if GX_VECTOR == 0 and PHASES:
        gx_view = image_view(gx, a, N, HW(H, W), C, stride, HW(1, 1), TN, TH, TW, BK)
    for tile in tl.range(first, tiles, step, flatten=PREFETCH):
        n, at, column_block, group = window_of_tile(
            tile, windows, column_blocks, HW(windows_h, windows_w), TN, TH, TW, BAND
        )
        rows = Walk(base_h, 0, -(dilation.h // common.h), 0, 1)
        for i in tl.static_range(TOGETHER):
            s_count, s_first, base_w = phase_of_axis(a.w + i, stride.w, pad.w, dilation.w, common.w, inverse.w, S)
            steps = r_count * s_count * tl.cdiv(group_filters, BC)
            b_phase = window_product(
                p_gy, p_w, n, at, group * group_filters, steps * split // splits, steps * (split + 1) // splits,
                group_filters, rows, Walk(base_w, 0, -(dilation.w // common.w), 0, 1),
                gy_q, Taps(r_first * S + s_first, stride.h // common.h * S, stride.w // common.w, s_count),
                group * group_filters, column_block * BK, K,
                tl.zeros((BK, PIXELS), tl.float32), PIXELS, BK, BC, "turned" if W_TURNED else "transposed",
                PRECISION, EMULATE_BF16,
            )  # fmt: skip
            b_phase = rounded(b_phase, OUT, OUT_BF16)  # [BK, PIXELS]
            if i == 0:
                b_gx = b_phase
            if i == 1:
                b_gx = tl.join(b_gx, b_phase).reshape(BK, 2 * PIXELS)  # element by element in turn
        o_channel = group * group_channels + column_block * BK
        if DESCRIBED:
            p_gx.store([n, at.h, split, at.w, o_channel], b_gx.T.reshape(TN, TH, 1, TW, BK))
        elif GX_VECTOR == 0:
            gx_view.store([n, at.h, 0, at.w, o_channel], b_gx.T.reshape(TN, TH, 1, TW, BK))
        else:
            if TOGETHER > 1:
                at, pixel_step = HW(at.h, at.w * 2), HW(stride.h, 1)
            else:
                pixel_step = stride
            store_window(
                b_gx, o_channel, C, 0, n, at, gx, a, pixel_step, N, HW(H, W), image,
                TOGETHER * PIXELS, TH, TOGETHER * TW, BK, FLAT, GX_VECTOR, WIDE,
            )  # fmt: skip
