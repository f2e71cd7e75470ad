"""The ordered sum of the partial sums of a grad_weight that is split over pixels: gw = Σ_split partial[split].

    program  →  BLOCK neighbouring elements of gw, or of grad-bias
    masks    →  the last block of either

Memory-bound: each partial is read once. No atomics, so the same partials give the same bits.
"""

import triton.language as tl

from .common import kernel, rounded, wide


@kernel
def sum_partials(
    p_partial,  # [splits, taps, filters, channels], and from bias_at on the bias's [splits, filters]
    p_gw, p_gb,  # gb may be None
    splits,
    size,  # taps · filters · channels
    bias_at,
    filters, channels,  # filters of all groups
    gw_k, gw_c, gw_tap,
    BLOCK: tl.constexpr, WIDE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """result = Σ_split partial[split], in the order of the splits; one rounding.

    program → BLOCK neighbouring elements of a partial; programs beyond gw's do gb.
    """
    block = tl.program_id(0)
    gw_blocks = tl.cdiv(size, BLOCK)
    of_bias = block >= gw_blocks
    block = tl.where(of_bias, block - gw_blocks, block)
    count = tl.where(of_bias, filters, size)
    count = wide(count, WIDE)
    o = wide(block, WIDE) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m = o < count
    p = p_partial + tl.where(of_bias, bias_at, 0) + o
    b_sum = tl.zeros((BLOCK,), p_partial.dtype.element_ty)
    for _ in range(0, splits):
        b_sum += tl.load(p, mask=m, other=0.0)
        p += count
    if of_bias:
        if p_gb is not None:
            tl.store(p_gb + o, rounded(b_sum, p_gb.dtype.element_ty, EMULATE_BF16), mask=m)
    else:
        o_gw = o // channels % filters * gw_k + o % channels * gw_c + o // channels // filters * gw_tap
        tl.store(p_gw + o_gw, rounded(b_sum, p_gw.dtype.element_ty, EMULATE_BF16), mask=m)
