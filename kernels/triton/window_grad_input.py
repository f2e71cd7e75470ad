"""Gradient of the input by shifted windows, channels last, two axes:

    gx[n, i, j, c] = Σ_{r,s} Σ_k gy[n, p(i, r), q(j, s), k] · w[k, r, s, c]

`gather_grad_input` says which output pixels a pixel takes part in: pixels of one *phase*, apart by the stride, have the
same filter taps, and among them this is a convolution of gy at stride 1, with taps p = j + base − m·d/g. So a program
owns a window of one phase and BK channels of the input, and loops over the phase's taps and blocks of filters as
`window_forward` does over channels; it reads the weights lying on their side. gy is never spread out with zeros. A
phase without taps takes no step and stores its zeros.

    program  →  split of the sum, phase (a_h, a_w), then tiles first, first + step, … of the phase; in bands
    masks    →  none: the copy engine reads zeros outside gy and stores nothing outside gx

Phases differ in size by at most one pixel an axis: a window beyond a smaller one's last is stored nowhere.
"""

import triton.language as tl

from .common import kernel, rounded
from .gather_grad_input import phase_of_axis
from .window_common import image_view, window_of_tile, window_product


@kernel
def window_grad_input(
    p_gy, p_w, p_gx,  # gx, or the workspace
    N, C, K, group_channels, group_filters,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    common_h, common_w, inverse_h, inverse_w,  # see `gather_grad_input`
    gy_n, gy_p, gy_q, w_k, w_tap, gx_n, gx_h, gx_w,  # strides, in elements
    gx_split,  # elements of the workspace for one split
    windows, windows_h, windows_w, column_blocks, tiles, step, splits,  # of one phase
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = TN * TH * TW
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gx.dtype.element_ty == tl.bfloat16
    phases_w = tl.minimum(stride_w, W)  # those that have pixels
    phases = tl.minimum(stride_h, H) * phases_w
    first = tl.program_id(0) % step
    phase = tl.program_id(0) // step % phases
    split = tl.program_id(0) // step // phases
    a_h, a_w = phase // phases_w, phase % phases_w
    zero = tl.full((), 0, tl.int32)
    r_count, r_first, base_h = phase_of_axis(a_h, stride_h, pad_h, dilation_h, common_h, inverse_h, R)
    s_count, s_first, base_w = phase_of_axis(a_w, stride_w, pad_w, dilation_w, common_w, inverse_w, S)
    steps = r_count * s_count * tl.cdiv(group_filters, BC)
    begin, end = steps * split // splits, steps * (split + 1) // splits
    gy_view = image_view(p_gy, zero, zero, N, P, Q, K, gy_n, gy_p, gy_q, 1, 1, 1, 1, TN, TH, TW, BC)
    w_view = tl.make_tensor_descriptor(p_w, [R * S, K, group_channels], [w_tap, w_k, 1], [1, BC, BK])
    gx_view = image_view(
        p_gx + split.to(tl.int64) * gx_split, a_h, a_w, N, H, W, C, gx_n, gx_h, gx_w, stride_h, stride_w, 1, 1,
        TN, TH, TW, BK,
    )  # fmt: skip
    for tile in range(first, tiles, step):
        n, i, j, column_block, group = window_of_tile(
            tile, windows, column_blocks, windows_h, windows_w, TN, TH, TW, BAND
        )
        b_gx = window_product(
            gy_view, w_view, n, i, j, group * group_filters, begin, end, group_filters,
            base_h, 0, -(dilation_h // common_h), 0, 1, base_w, 0, -(dilation_w // common_w), 0, 1,
            gy_q, s_count, r_first * S + s_first, stride_h // common_h * S, stride_w // common_w,
            group * group_filters, column_block * BK,
            tl.zeros((BK, PIXELS), tl.float32), PIXELS, BK, BC, True, PRECISION, EMULATE_BF16,
        )  # fmt: skip
        b_gx = rounded(b_gx, p_gx.dtype.element_ty, OUT_BF16)
        gx_view.store([n, i, 0, j, group * group_channels + column_block * BK], b_gx.T.reshape(TN, TH, 1, TW, BK))
