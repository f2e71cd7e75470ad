"""1×1 convolution of contiguous tensors, [N, C, pixels]: for each image a matrix product whose rows are its pixels.

    forward       y[n, k, m]  = Σ_c x[n, c, m] · w[k, c]
    grad_input    gx[n, c, m] = Σ_k gy[n, k, m] · w[k, c]         the same kernel, with w transposed
    grad_weight   gw[k, c]    = Σ_n Σ_m gy[n, k, m] · x[n, c, m]

The pixels of a plane lie one after the other, so a tile that stays within an image is fetched in vectors along them.
The gather kernels, whose tiles run on from image to image, fetch such tensors element by element.

    planes_product       program  →  image, group, BM pixels of a plane, BN columns; columns vary fastest: they share x
    planes_grad_weight   program  →  split, group, BM filters × BN channels; a step is BC pixels of one image
    masks                →  pixels beyond the plane, channels that are summed over beyond the last; at the store
                            columns, or filters and channels, beyond the last

Vectors: as in `common`, but along pixels (VECTOR divides their number) and along the channels of w (W_VECTOR).
"""

import triton.language as tl

from .common import Axes, Operand, block_indices, in_vectors, kernel, load_tile, multiply, store_tile, wide
from .epilogue import epilogue
from .grad_bias import sum_bias
from .last_program import sum_of_splits


@kernel
def planes_product(
    p_x, p_w, p_bias, p_residual, p_y,  # bias and residual may be None
    pixels,  # of a plane
    columns, C, G,  # channels of the result, and channels to sum over, in one group; groups
    x_n, x_c,  # strides, in elements; those of pixels are 1
    w_column, w_c,
    y_n, y_k,
    residual_n, residual_k,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    W_COLUMNS_FAST: tl.constexpr,  # in w the columns lie one after the other, else the channels that are summed over
    VECTOR: tl.constexpr, W_VECTOR: tl.constexpr,
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    pixels, x_n, x_c, y_n, y_k = pixels * VECTOR, x_n * VECTOR, x_c * VECTOR, y_n * VECTOR, y_k * VECTOR
    residual_n, residual_k = residual_n * VECTOR, residual_k * VECTOR
    if W_COLUMNS_FAST:
        columns, w_c = columns * W_VECTOR, w_c * W_VECTOR
        if W_VECTOR > 1:
            w_column = 1
    else:
        C, w_column = C * W_VECTOR, w_column * W_VECTOR
        if W_VECTOR > 1:
            w_c = 1

    # ---- which image, group, tile
    column_blocks, row_blocks = tl.cdiv(columns, BN), tl.cdiv(pixels, BM)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = program // column_blocks % row_blocks
    group = wide(program // column_blocks // row_blocks % G, WIDE)
    n = wide(program // column_blocks // row_blocks // G, WIDE)
    o_pixel = row_block * BM + tl.arange(0, BM)  # [BM]
    o_column = column_block * BN + tl.arange(0, BN)  # [BN]
    m_pixel, m_column = o_pixel < pixels, o_column < columns

    # ---- the sum
    p_image = p_x + n * x_n + group * C * x_c
    p_filters = p_w + group * (C * w_c if W_COLUMNS_FAST else columns * w_column)
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for c0 in range(0, C, BC):
        b_c = c0 + tl.arange(0, BC)  # [BC]
        m_c = b_c < C
        b_x = load_tile(p_image, o_pixel, wide(b_c, WIDE) * x_c, m_pixel, m_c, True, True, True)  # [BM, BC]
        b_w = load_tile(
            p_filters, wide(b_c, WIDE) * w_c, wide(o_column, WIDE) * w_column, m_c, m_column, True, True,
            not W_COLUMNS_FAST,
        )  # [BC, BN]  # fmt: skip
        b_acc = multiply(b_x, b_w, b_acc, PRECISION, EMULATE_BF16)

    # ---- bias, residual, activation; one rounding; store
    o_channel = group * columns
    p_group_bias, p_group_residual = p_bias, p_residual
    if p_bias is not None:
        p_group_bias += o_channel
    if p_residual is not None:
        p_group_residual += n * residual_n + o_channel * residual_k
    o_column_safe = o_column % columns
    b_y = epilogue(
        b_acc, p_group_bias, p_group_residual, o_column_safe,
        o_pixel % pixels, wide(o_column_safe, WIDE) * residual_k, True, ACTIVATION, SLOPE, EMULATE_BF16,
    )  # fmt: skip
    p_tile = p_y + n * y_n + o_channel * y_k
    store_tile(p_tile, o_pixel, wide(o_column, WIDE) * y_k, m_pixel, m_column, b_y, True, EMULATE_BF16)


@kernel
def planes_grad_weight(
    p_gy, p_x, p_gw, p_gb,  # gw and gb, or, where `sum_partials` follows, the workspace; gb may be None
    p_workspace, p_arrived,  # of `last_program`; None where it does not add
    pixels,  # of a plane
    K, C, G,  # filters and channels in one group; groups
    gy_n, gy_k, x_n, x_c,
    gw_split, gw_k, gw_c, gb_split,
    steps, splits,  # steps: of BC pixels, in all images
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    VECTOR: tl.constexpr,
    GW_VECTOR: tl.constexpr,  # channels of gw that lie together, its strides in units of it; 0: they do not
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    pixels, gy_n, gy_k, x_n, x_c = pixels * VECTOR, gy_n * VECTOR, gy_k * VECTOR, x_n * VECTOR, x_c * VECTOR
    if GW_VECTOR > 0:
        gw_split, gw_k, gw_c = gw_split * GW_VECTOR, gw_k * GW_VECTOR, 1

    # ---- which split, group, tile
    column_blocks = tl.cdiv(C, BN)
    tiles = tl.cdiv(K, BM) * column_blocks
    program = tl.program_id(0)
    blocks = tl.cdiv(pixels, BC)
    OUT_BF16: tl.constexpr = EMULATE_BF16 and p_gw.dtype.element_ty == tl.bfloat16
    if p_gb is not None:  # noqa: SIM102 (settled when compiling, unlike the next)
        if program >= tiles * G * splits:
            sum_bias(
                Operand(p_gy, gy_n, gy_k, Axes(0, 0, 1)), p_gb, gb_split, p_workspace, p_arrived, tiles * G, BM * BN,
                program - tiles * G * splits, splits, wide(steps // blocks, WIDE) * pixels, K * G, Axes(1, 1, pixels),
                False, WIDE, ACCUMULATE, EMULATE_BF16, OUT_BF16,
            )  # fmt: skip
            return
    tile = program % tiles
    group = wide(program // tiles % G, WIDE)
    split = wide(program // tiles // G, WIDE)
    o_filter, o_filter_safe = block_indices(tile // column_blocks, BM, K, WIDE)  # [BM]
    o_channel, o_channel_safe = block_indices(tile % column_blocks, BN, C, WIDE)  # [BN]
    p_gy_group, p_x_group = p_gy + group * K * gy_k, p_x + group * C * x_c

    # ---- the sum
    per_split = tl.cdiv(steps, splits)
    first = split * per_split
    n, block = first // blocks, (first % blocks).to(tl.int32)
    b_acc = tl.zeros((BM, BN), ACCUMULATE)
    for _ in range(0, tl.minimum(per_split, steps - first)):
        o_pixel = block * BC + tl.arange(0, BC)  # [BC]
        m_pixel = o_pixel < pixels
        b_gy = load_tile(
            p_gy_group + n * gy_n, o_filter_safe * gy_k, o_pixel, m_pixel, m_pixel, False, True, False
        )  # [BM, BC]
        b_x = load_tile(
            p_x_group + n * x_n, o_pixel, o_channel_safe * x_c, m_pixel, m_pixel, True, False, True
        )  # [BC, BN]
        b_acc = multiply(b_gy, b_x, b_acc, PRECISION, EMULATE_BF16)
        next_image = block + 1 == blocks
        block = tl.where(next_image, 0, block + 1)
        n = tl.where(next_image, n + 1, n)

    # ---- store; the workspace has the type of the sum, a single split rounds to the result's
    m_filter, m_channel = o_filter < K, o_channel < in_vectors(C, GW_VECTOR)
    if p_arrived is not None:
        b_acc, adds = sum_of_splits(b_acc, p_workspace, p_arrived, program % (tiles * G), program // tiles // G, splits)
        m_filter &= adds
    p_tile = p_gw + split * gw_split + group * K * gw_k
    store_tile(p_tile, o_filter * gw_k, o_channel * gw_c, m_filter, m_channel, b_acc, False, OUT_BF16)
