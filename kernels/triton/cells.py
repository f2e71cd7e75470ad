"""Results of few channels: grad_input of few input channels, all its output phases at once, and forward of few filters.
On one axis (all are alike), for grad_input:

    gx[n, c, E·i + a] = Σ_v Σ_k gy[n, k, m·i + v] · f[(a, c), v, k]       a = 0 … E − 1,  E = m·u

At stride u a pixel of gx meets only some taps of the filter, and which depends on its phase. Phase by phase, three
channels would fill three of the 16 columns of a tensor core. Here a row of the product is a *cell* of E·E neighbouring
pixels of gx, with its channels: at stride 2, and with m = 2, 48 columns. They all meet the same outputs, those from
m·i + first on; which tap of the filter lies between pixel a and output v, if any, `pack_cells` has written into f:

    f[(a, c), v, k] = w[k, c, r]   where a + pad − r·d = u·v for a tap r,  else 0

So this is a convolution of gy at stride m with dense filters, which reads each output far less often than there are
taps, and in which tensor cores have as many columns as they like. Forward is the same with a cell of E outputs:

    y[n, k, E·i + a] = Σ_v Σ_c x[n, c, E·u·i + v] · f[(a, k), v, c]

    f[(a, k), v, c] = w[k, c, r]   where a·u + r·d − pad = v for a tap r,  else 0

    program  →  a tile of BM cells × BN columns (a, c)
    masks    →  pixels that fall outside the image, terms ≥ K; at the store cells, columns and pixels beyond the last

A column lies where it is stored: pixels of a row of a cell are neighbours in the result, with their channels (channels
last) or without (contiguous: planes), RUN elements. Zeros of f are multiplied: where gy or x is not finite, NaN may
spread to pixels of the result that it has no part in.
"""

import triton
import triton.language as tl

from .common import (
    Axes,
    Operand,
    block_indices,
    gather_product,
    kernel,
    offset_of,
    rounded,
    scattered,
    split_pixel,
    tile_of_program,
    valid_taps,
    vectors,
    wide,
    widened,
)
from .epilogue import epilogue


@triton.jit
def split_column(o_j, E_D, E_H, RUN, EACH):
    """(pixel of the cell, plane, element of the run) of columns."""
    o_row = o_j // RUN
    return Axes(o_row // E_H % E_D, o_row % E_H, o_j % RUN // EACH), o_row // (E_H * E_D), o_j % RUN


@triton.jit
def tap_between(b_a, b_v, first, stride, pad, dilation, taps, FORWARD: tl.constexpr):
    """(tap of the filter, whether there is one) between pixels a of a cell and those v that it meets, on one axis."""
    b_at = first + b_v + pad - b_a * stride if FORWARD else b_a + pad - stride * (first + b_v)
    return b_at // dilation, (b_at >= 0) & (b_at % dilation == 0) & (b_at // dilation < taps)


@kernel
def pack_cells(
    p_w, p_filters,
    K,  # terms: filters, or in forward channels
    T, R, S,  # taps of the filter
    stride_d, stride_h, stride_w,
    pad_d, pad_h, pad_w,
    dilation_d, dilation_h, dilation_w,
    first_d, first_h, first_w,
    V_d, V_h, V_w,  # pixels that a cell meets
    w_k, w_c, w_t, w_r, w_s,  # strides of terms, columns and taps
    size,  # of the filters, in elements
    E_D, E_H, RUN, EACH,  # see below
    BLOCK: tl.constexpr, FORWARD: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
):  # fmt: skip
    """f[column, v, k]; a program writes BLOCK neighbouring elements."""
    # One element a thread: masked as they are, several would be stored one by one, each to another sector.
    o = wide(tl.program_id(0), WIDE) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), 1)  # [BLOCK]
    b_k, o_v = o % K, o // K
    b_v = split_pixel(o_v % (V_d * V_h * V_w), V_h, V_w)
    a, plane, o_run = split_column(o_v // (V_d * V_h * V_w), E_D, E_H, RUN, EACH)
    b_t, m_t = tap_between(a.d, b_v.d, first_d, stride_d, pad_d, dilation_d, T, FORWARD)
    b_r, m_r = tap_between(a.h, b_v.h, first_h, stride_h, pad_h, dilation_h, R, FORWARD)
    b_s, m_s = tap_between(a.w, b_v.w, first_w, stride_w, pad_w, dilation_w, S, FORWARD)
    b_c = plane * EACH + o_run % EACH
    o_w = wide(b_k, WIDE) * w_k + wide(b_c, WIDE) * w_c
    o_w += wide(b_t, WIDE) * w_t + wide(b_r, WIDE) * w_r + wide(b_s, WIDE) * w_s
    b = tl.load(p_w + o_w, mask=m_t & m_r & m_s & (o < size), other=0.0)
    tl.store(p_filters + o, b, mask=o < size)


@kernel
def cells_product(
    p_x, p_filters, p_bias, p_residual, p_y,  # gathered from; result; bias and residual may be None
    N, K,
    D, H, W,  # of the result
    Z, P, Q,  # of what is gathered from
    first_d, first_h, first_w,  # pixels that a cell meets: the first, counted from its own, and how many
    V_d, V_h, V_w,
    step_d, step_h, step_w,  # from cell to cell, in those
    cells_d, cells_h, cells_w,  # of an image
    x_n, x_k, x_z, x_p, x_q,
    y_row,  # elements of a row of an image of the result, in Y vectors
    residual_n, residual_c, residual_d, residual_h, residual_w,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    E_D: tl.constexpr, E_H: tl.constexpr,  # pixels of a cell
    RUN: tl.constexpr, EACH: tl.constexpr,  # neighbouring elements of a row of a cell, and of one of its pixels
    PLANES: tl.constexpr,  # of an image of the result: its channels, or 1 if EACH is that
    INSIDE: tl.constexpr, EVEN_K: tl.constexpr,  # see gather_product
    EVEN: tl.constexpr,  # cells divide an image
    X_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels
    VECTOR: tl.constexpr,  # see common: K and the strides of x are divided by it
    Y_VECTOR: tl.constexpr,  # elements that lie together in the result
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    K *= VECTOR
    x = vectors(Operand(p_x, x_n, x_k, Axes(x_z, x_p, x_q)), VECTOR)
    COLUMNS: tl.constexpr = PLANES * E_D * E_H * RUN

    # ---- which tile
    cells = wide(N, WIDE) * cells_d * cells_h * cells_w
    row_blocks, column_blocks = tl.cdiv(cells, BM), tl.cdiv(COLUMNS, BN)
    row_block, column_block = tile_of_program(tl.program_id(0), row_blocks, column_blocks, BAND)
    o_cell, o_cell_safe = block_indices(row_block, BM, cells, WIDE)  # [BM]
    o_j = column_block * BN + tl.arange(0, BN)  # [BN]
    image = wide(cells_d, WIDE) * cells_h * cells_w
    b_n = o_cell_safe // image  # [BM]
    b_i = split_pixel(o_cell_safe % image, cells_h, cells_w)  # [BM] each

    # ---- the pixels that each cell meets, and the sum over them
    first, size = Axes(first_d, first_h, first_w), Axes(Z, P, Q)
    b_start = Axes(b_i.d * step_d + first.d, b_i.h * step_h + first.h, b_i.w * step_w + first.w)
    o_x = offset_of(b_n, b_start, x)  # [BM]
    taps, step = Axes(V_d, V_h, V_w), Axes(1, 1, 1)
    b_valid = o_x
    if INSIDE == "bits":
        b_valid = valid_taps(b_start, step, size, taps)
    row = wide(V_d, WIDE) * V_h * V_w * K
    filters = Operand(p_filters, row, 1, Axes(V_h * V_w * K, V_w * K, K))
    b_acc = gather_product(  # [BM, BN]
        x, o_x, b_valid, b_start, step, size,
        filters, o_j % COLUMNS * row, taps, K,
        tl.zeros((BM, BN), ACCUMULATE),
        BC, INSIDE, EVEN_K, VECTOR, X_ROWS_FAST, True, WIDE, PRECISION, EMULATE_BF16,
    )  # fmt: skip

    # ---- bias, residual, activation; one rounding; store
    a, plane, o_run = split_column(o_j, E_D, E_H, RUN, EACH)
    m = (o_cell < cells)[:, None] & (o_j < COLUMNS)[None, :]
    at = Axes(b_i.d * E_D, b_i.h * E_H, b_i.w * (RUN // EACH))  # the cell's first pixel
    if not EVEN:
        m &= (at.d[:, None] + a.d[None, :] < D) & (at.h[:, None] + a.h[None, :] < H)
        m &= at.w[:, None] + a.w[None, :] < W
    b_c = (plane * EACH + o_run % EACH) % (PLANES * EACH)  # [BN]
    if p_residual is not None:
        residual = Operand(p_residual, residual_n, residual_c, Axes(residual_d, residual_h, residual_w))
        o_residual = wide(b_c, WIDE) * residual.channel + offset_of(tl.zeros_like(b_c), a, residual)  # [BN]
        p_pixel = scattered(p_residual, offset_of(b_n, at, residual), o_residual)
        b_acc += widened(tl.load(p_pixel, mask=m, other=0.0), ACCUMULATE, EMULATE_BF16)
    b_y = epilogue(b_acc, p_bias, None, b_c, b_c, b_c, False, ACTIVATION, SLOPE, EMULATE_BF16)
    y_row = wide(y_row, WIDE) * Y_VECTOR
    o_row = ((b_n * (PLANES * D) + at.d) * H + at.h) * y_row + b_i.w * RUN  # [BM]
    o_column = ((plane * D + a.d) * H + a.h) * y_row + o_run  # [BN]
    b_out = rounded(b_y, p_y.dtype.element_ty, EMULATE_BF16)
    if EVEN and Y_VECTOR > 1:  # whose runs the compiler finds
        tl.store(p_y + (o_row[:, None] + o_column[None, :]), b_out, mask=m)
    else:
        tl.store(scattered(p_y, o_row, o_column), b_out, mask=m)
