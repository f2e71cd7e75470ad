"""Gradient of the weight by shifted windows, channels last, two axes, and of the bias in the same launch:

    gw[k, r, s, c] = Σ_pixels gy[pixel, k] · x[pixel · u − pad + (r, s) · d, c]        gb[k] = Σ_pixels gy[pixel, k]

For one tap this is the product gyᵀ · x, summed over windows of TN × TH × TW pixels: one of gy, and the one of x that is
shifted by the tap, taken from a view in which pixels u apart are neighbours (see `window_common`). A result is as small
as a filter, so the windows are divided over `splits` programs, whose partial sums `sum_partials` adds in order.

    program  →  split, then group, TAPS taps below each other, a tile of BK filters × BC channels; loops over the
                split's windows
    masks    →  at the store filters, channels and taps beyond the last; the copy engine reads zeros outside both images

Taps below each other (u = d = 1 there) share what is fetched of gy. A window of one image or of one column may be
fetched row by row, one product for each: then they share rows of x too, TH + TAPS − 1 instead of TH · TAPS. And gyᵀ is
the left operand: a block of a descriptor with but one axis of pixels is read from shared memory as it is; with more of
them it goes through registers, for which each product has to wait.

A window that reaches beyond gy reads zeros there, and multiplies them with what x has: where that is not finite, the
sum of the window's tap becomes NaN even if no output pixel meets it.
"""

import triton
import triton.language as tl

from .common import HW, Axes, Operand, block_indices, in_vectors, kernel, multiply, store_tile, wide
from .grad_bias import sum_bias
from .last_program import added, comes_last, leave


@triton.jit
def view_of(image, a, N, size, C, u, TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr):
    """The descriptor of an image's pixels (a.h + i·u.h, a.w + j·u.w), where the host cannot make one of all pixels. The
    axis that a window is longest on comes last but the channels: images where it has one column."""
    p = image.p + a.h.to(tl.int64) * image.axis.h + a.w.to(tl.int64) * image.axis.w
    rows = tl.maximum(size.h - a.h + u.h - 1, u.h) // u.h
    columns = tl.maximum(size.w - a.w + u.w - 1, u.w) // u.w
    row, column = u.h * image.axis.h, u.w * image.axis.w
    if TW == 1:
        view = tl.make_tensor_descriptor(p, [rows, columns, N, C], [row, column, image.row, 1], [TH, TW, TN, BC])
    else:
        view = tl.make_tensor_descriptor(p, [N, rows, columns, C], [image.row, row, column, 1], [TN, TH, TW, BC])
    return view


@triton.jit
def pixels_of(
    view, n, h, rest, w, c,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """A block of a view, as [pixels, channels]. If FOLDED, rest is the remainder of the row, and c has the column's."""
    if FOLDED:
        b = view.load([h, rest, w, n, c]) if TW == 1 else view.load([n, h, rest, w, c])
    else:
        b = view.load([h, w, n, c]) if TW == 1 else view.load([n, h, w, c])
    return b.reshape(TN * TH * TW, BC)


@kernel
def window_grad_weight(
    p_gy, p_x,  # descriptors of their pixels, or x
    p_gw, p_gb,  # or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    p_summed,  # gy, for gb
    N, C, K, group_channels, group_filters, G,
    H, W, P, Q, R, S,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    gy_n, gy_p, gy_q, x_n, x_h, x_w,  # strides, in elements
    gw_split, gw_k, gw_c, gw_tap, gb_split,
    windows, windows_h, windows_w, splits,
    TN: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    TAPS: tl.constexpr,
    BY_ROW: tl.constexpr,
    X_VIEW: tl.constexpr,  # "plain", "folded": all remainders in one, "made" here: one of each remainder
    PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    GW_VECTOR: tl.constexpr,  # channels of gw that lie together, so do its strides in units of it; 0: they do not
    WIDE: tl.constexpr,  # offsets into gw, and the bias's into gy, need 64 bits
):  # fmt: skip
    ROWS: tl.constexpr = 1 if BY_ROW else TH  # of a fetch
    if GW_VECTOR > 0:
        gw_split, gw_k, gw_c, gw_tap = gw_split * GW_VECTOR, gw_k * GW_VECTOR, 1, gw_tap * GW_VECTOR
    stride, pad, dilation = HW(stride_h, stride_w), HW(pad_h, pad_w), HW(dilation_h, dilation_w)

    # ---- which split, group, taps, tile; tiles vary fastest, then taps: they share gy and x in the L2 cache
    column_blocks = tl.cdiv(group_channels, BC)
    tiles, runs = tl.cdiv(group_filters, BK) * column_blocks, tl.cdiv(R, TAPS) * S
    program, programs = tl.program_id(0), tiles * runs * G  # of a split
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= programs * splits:
            # filters and strides are multiples of 16 bytes, which the compiler is to see
            UNIT: tl.constexpr = 128 // p_summed.dtype.element_ty.primitive_bitwidth
            beyond, pixels, filters = program - programs * splits, wide(N, WIDE) * P * Q, K // UNIT * UNIT
            gy_all = Operand(p_summed, gy_n // UNIT * UNIT, 1, Axes(0, gy_p // UNIT * UNIT, gy_q // UNIT * UNIT))
            sum_bias(
                gy_all, p_gb, gb_split, p_workspace, p_arrived, programs, TAPS * BK * BC,
                beyond, splits, pixels, filters, Axes(1, P, Q), True, WIDE, tl.float32, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    r, s = program // tiles % runs // S * TAPS, program // tiles % S
    group = program // tiles // runs % G
    split = program // tiles // runs // G
    o_filter, _ = block_indices(tile // column_blocks, BK, group_filters, WIDE)  # [BK]
    o_channel, _ = block_indices(tile % column_blocks, BC, group_channels, WIDE)  # [BC]
    k = group * group_filters + tile // column_blocks * BK
    c = group * group_channels + tile % column_blocks * BC

    # ---- where the first tap finds the first pixel: pixel a of each stride, up further
    shift_h, shift_w = r * dilation.h - pad.h, s * dilation.w - pad.w
    lift_h, lift_w = (pad.h + stride.h - 1) // stride.h, (pad.w + stride.w - 1) // stride.w
    a_h, a_w = (shift_h + lift_h * stride.h) % stride.h, (shift_w + lift_w * stride.w) % stride.w
    up_h, up_w = (shift_h - a_h) // stride.h, (shift_w - a_w) // stride.w  # exact

    begin = (wide(windows, True) * split // splits).to(tl.int32)
    end = (wide(windows, True) * (split + 1) // splits).to(tl.int32)
    tl.assume(begin < end)  # no split without windows: else ptxas waits for each product before the next (C7515)
    x_view, rest_h, rest_w, n0 = p_x, a_h, a_w * x_w, 0
    if X_VIEW == "made":
        inside = (a_h < H) & (a_w < W)  # else the tap meets no pixel: x is read beyond its last image, as zeros
        a = HW(tl.where(inside, a_h, 0), tl.where(inside, a_w, 0))
        x = Operand(p_x, x_n, 1, HW(x_h, x_w))
        x_view, rest_h, rest_w = view_of(x, a, N, HW(H, W), C, stride, TN, ROWS, TW, BC), 0, 0
        n0 = tl.where(inside, 0, N)
    window_w, window_h, window_n = begin % windows_w, begin // windows_w % windows_h, begin // windows_w // windows_h
    b_acc = ()  # [BK, BC] for each tap
    for _ in tl.static_range(TAPS):
        b_acc += (tl.zeros((BK, BC), tl.float32),)  # type: ignore[assignment]  # tuples grow
    for _ in range(begin, end):
        n, p, q = window_n * TN, window_h * TH, window_w * TW
        b_gy, b_x = (), ()
        for i in tl.static_range(TH // ROWS):
            b_gy += (pixels_of(p_gy, n, p + i, 0, q, k, TN, ROWS, TW, BK, False),)  # type: ignore[assignment]  # tuples grow
        for i in tl.static_range(TH // ROWS + TAPS - 1):
            b_row = pixels_of(
                x_view, n0 + n, up_h + p + i, rest_h, up_w + q, rest_w + c, TN, ROWS, TW, BC, X_VIEW == "folded"
            )  # fmt: skip
            b_x += (b_row,)  # type: ignore[assignment]  # tuples grow
        for i in tl.static_range(TH // ROWS):
            b_sum = ()
            for t in tl.static_range(TAPS):  # innermost: two products in turn do not wait for each other's sum
                b_tap = multiply(b_gy[i].T, b_x[i + t], b_acc[t], PRECISION, EMULATE_BF16)
                b_sum += (b_tap,)  # type: ignore[assignment]  # [BK, pixels] · [pixels, BC]
            b_acc = b_sum
        # ---- the next window
        next_row = window_w + 1 == windows_w
        next_image = next_row & (window_h + 1 == windows_h)
        window_w = tl.where(next_row, 0, window_w + 1)
        window_h = tl.where(next_image, 0, tl.where(next_row, window_h + 1, window_h))
        window_n = tl.where(next_image, window_n + 1, window_n)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter, m_channel = o_filter < group_filters, o_channel < in_vectors(group_channels, GW_VECTOR)
    SIZE: tl.constexpr = BK * BC
    if p_arrived is not None:
        p_parts = p_workspace + program % programs * splits * TAPS * SIZE
        for t in tl.static_range(TAPS):
            leave(b_acc[t], p_parts + (split * TAPS + t) * SIZE)
        adds = comes_last(p_arrived + program % programs, splits)
        m_filter &= adds
    p_tile = p_gw + split.to(tl.int64) * gw_split + wide(group, WIDE) * group_filters * gw_k
    for t in tl.static_range(TAPS):
        b_tap = b_acc[t]
        if p_arrived is not None:
            b_tap = added(p_parts + t * SIZE, tl.where(adds, splits, 0), TAPS * SIZE, BK, BC, tl.float32)
        p_tap = p_tile + wide((r + t) * S + s, WIDE) * gw_tap
        m_tap = m_filter & (r + t < R)
        store_tile(p_tap, o_filter * gw_k, o_channel * gw_c, m_tap, m_channel, b_tap, False, OUT_BF16)
