"""Gradient of the input of few channels, all its output phases at once. On one axis (all are alike):

    gx[n, c, E·i + a] = Σ_v Σ_k gy[n, k, m·i + v] · f[(a, c), v, k]       a = 0 … E − 1,  E = m·u

At stride u a pixel of gx meets only some taps of the filter, and which depends on its phase. Phase by phase, three
channels would fill three of the 16 columns of a tensor core. Here a row of the product is a *cell* of E·E neighbouring
pixels of gx, with its channels: at stride 2, and with m = 2, 48 columns. They all meet the same outputs, those from
m·i + first on; which tap of the filter lies between pixel a and output v, if any, `pack_cells` has written into f:

    f[(a, c), v, k] = w[k, c, r]   where a + pad − r·d = u·v for a tap r,  else 0

So this is a convolution of gy at stride m with dense filters, which reads each output far less often than there are
taps, and in which tensor cores have as many columns as they like.

    program  →  a tile of BM cells × BN columns (a, c)
    masks    →  outputs that fall outside gy, filters ≥ K; at the store cells, columns and pixels beyond the last

A column lies where it is stored: pixels of a row of a cell are neighbours in gx, with their channels (channels last) or
without (contiguous: planes), RUN elements. Zeros of f are multiplied: where gy is not finite, NaN may spread to pixels
of gx that it has no part in.
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
    split_pixel,
    tile_of_program,
    valid_taps,
    vectors,
    wide,
)


@triton.jit
def split_column(o_j, E_D, E_H, RUN, EACH):
    """(pixel of the cell, plane, element of the run) of columns."""
    o_row = o_j // RUN
    return Axes(o_row // E_H % E_D, o_row % E_H, o_j % RUN // EACH), o_row // (E_H * E_D), o_j % RUN


@triton.jit
def tap_between(b_a, b_v, first, stride, pad, dilation, taps):
    """(tap of the filter, whether there is one) between pixels a of a cell and its outputs v, on one axis."""
    b_at = b_a + pad - stride * (first + b_v)
    return b_at // dilation, (b_at >= 0) & (b_at % dilation == 0) & (b_at // dilation < taps)


@kernel
def pack_cells(
    p_w, p_filters,
    K,
    T, R, S,  # taps of the filter
    stride_d, stride_h, stride_w,
    pad_d, pad_h, pad_w,
    dilation_d, dilation_h, dilation_w,
    first_d, first_h, first_w,
    V_d, V_h, V_w,  # outputs that a cell meets
    w_k, w_c, w_t, w_r, w_s,
    size,  # of the filters, in elements
    E_D, E_H, RUN, EACH,  # see below
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
):  # fmt: skip
    """f[column, v, k]; a program writes BLOCK neighbouring elements."""
    # One element a thread: masked as they are, several would be stored one by one, each to another sector.
    o = wide(tl.program_id(0), WIDE) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), 1)  # [BLOCK]
    b_k, o_v = o % K, o // K
    b_v = split_pixel(o_v % (V_d * V_h * V_w), V_h, V_w)
    a, plane, o_run = split_column(o_v // (V_d * V_h * V_w), E_D, E_H, RUN, EACH)
    b_t, m_t = tap_between(a.d, b_v.d, first_d, stride_d, pad_d, dilation_d, T)
    b_r, m_r = tap_between(a.h, b_v.h, first_h, stride_h, pad_h, dilation_h, R)
    b_s, m_s = tap_between(a.w, b_v.w, first_w, stride_w, pad_w, dilation_w, S)
    b_c = plane * EACH + o_run % EACH
    o_w = wide(b_k, WIDE) * w_k + wide(b_c, WIDE) * w_c
    o_w += wide(b_t, WIDE) * w_t + wide(b_r, WIDE) * w_r + wide(b_s, WIDE) * w_s
    b = tl.load(p_w + o_w, mask=m_t & m_r & m_s & (o < size), other=0.0)
    tl.store(p_filters + o, b, mask=o < size)


@kernel
def cells_grad_input(
    p_gy, p_filters, p_gx,
    N, K,
    D, H, W,
    Z, P, Q,
    first_d, first_h, first_w,  # outputs that a cell meets: the first, counted from m·i, and how many
    V_d, V_h, V_w,
    m_d, m_h, m_w,  # outputs from cell to cell
    cells_d, cells_h, cells_w,  # of an image
    gy_n, gy_k, gy_z, gy_p, gy_q,
    gx_row,  # elements of a row of an image of gx, in GX vectors
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BAND: tl.constexpr,
    E_D: tl.constexpr, E_H: tl.constexpr,  # pixels of a cell
    RUN: tl.constexpr, EACH: tl.constexpr,  # neighbouring elements of a row of a cell, and of one of its pixels
    PLANES: tl.constexpr,  # of an image of gx: C, or 1 if EACH is C
    INSIDE: tl.constexpr, EVEN_K: tl.constexpr,  # see gather_product
    EVEN: tl.constexpr,  # cells divide an image
    GY_ROWS_FAST: tl.constexpr,  # pixels lie closer than channels
    VECTOR: tl.constexpr,  # see common: K and the strides of gy are divided by it
    GX_VECTOR: tl.constexpr,  # elements that lie together in gx
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    K *= VECTOR
    gy = vectors(Operand(p_gy, gy_n, gy_k, Axes(gy_z, gy_p, gy_q)), VECTOR)
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

    # ---- the outputs that each cell meets, and the sum over them
    first, size = Axes(first_d, first_h, first_w), Axes(Z, P, Q)
    b_start = Axes(b_i.d * m_d + first.d, b_i.h * m_h + first.h, b_i.w * m_w + first.w)
    o_gy = offset_of(b_n, b_start, gy)  # [BM]
    taps, step = Axes(V_d, V_h, V_w), Axes(1, 1, 1)
    b_valid = o_gy
    if INSIDE == "bits":
        b_valid = valid_taps(b_start, step, size, taps)
    row = wide(V_d, WIDE) * V_h * V_w * K
    filters = Operand(p_filters, row, 1, Axes(V_h * V_w * K, V_w * K, K))
    b_gx = gather_product(  # [BM, BN]
        gy, o_gy, b_valid, b_start, step, size,
        filters, o_j % COLUMNS * row, taps, K,
        tl.zeros((BM, BN), ACCUMULATE),
        BC, INSIDE, EVEN_K, VECTOR, GY_ROWS_FAST, True, WIDE, PRECISION, EMULATE_BF16,
    )  # fmt: skip

    # ---- one rounding; store
    gx_row = wide(gx_row, WIDE) * GX_VECTOR
    a, plane, o_run = split_column(o_j, E_D, E_H, RUN, EACH)
    o_row = ((b_n * (PLANES * D) + b_i.d * E_D) * H + b_i.h * E_H) * gx_row + b_i.w * RUN  # [BM]
    o_column = ((plane * D + a.d) * H + a.h) * gx_row + o_run  # [BN]
    m = (o_cell < cells)[:, None] & (o_j < COLUMNS)[None, :]
    if not EVEN:
        m &= ((b_i.d * E_D)[:, None] + a.d[None, :] < D) & ((b_i.h * E_H)[:, None] + a.h[None, :] < H)
        m &= (b_i.w * (RUN // EACH))[:, None] + a.w[None, :] < W
    b_out = rounded(b_gx, p_gx.dtype.element_ty, EMULATE_BF16)
    tl.store(p_gx + (o_row[:, None] + o_column[None, :]), b_out, mask=m)
