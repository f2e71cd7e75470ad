"""The ordered sum of the partial sums of a grad_weight that is split over pixels: gw = Σ_split partial[split].

    program  →  BLOCK neighbouring elements of gw, or of grad-bias: of a partial, or, if taps are the closer ones in
                memory, of the result. What is read then is near what a neighbour reads: in the L1 cache
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
    filters, channels, taps,  # filters of all groups
    gw_k, gw_c, gw_tap,
    BLOCK: tl.constexpr,
    TAPS_FAST: tl.constexpr,  # the result is [filters, channels, taps]
    WIDE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """result = Σ_split partial[split], in the order of the splits; one rounding.

    program → BLOCK neighbouring elements; programs beyond gw's do gb.
    """
    block = tl.program_id(0)
    gw_blocks = tl.cdiv(size, BLOCK)
    of_bias = block >= gw_blocks
    block = tl.where(of_bias, block - gw_blocks, block)
    count = tl.where(of_bias, filters, size)
    count = wide(count, WIDE)
    # One element a thread: of a run of them it could not be proved that all are there, and each would move by itself.
    o = wide(block, WIDE) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), 1)  # [BLOCK]
    m = o < count
    o_partial = o
    if TAPS_FAST:
        o_partial = tl.where(of_bias, o, o % taps * filters * channels + o // taps)
    p = p_partial + tl.where(of_bias, bias_at, 0) + o_partial
    b_sum = tl.zeros((BLOCK,), p_partial.dtype.element_ty)
    for _ in range(0, splits):
        b_sum += tl.load(p, mask=m, other=0.0)
        p += count
    if of_bias:
        if p_gb is not None:
            tl.store(p_gb + o, rounded(b_sum, p_gb.dtype.element_ty, EMULATE_BF16), mask=m)
    else:
        o_gw = o
        if not TAPS_FAST:
            o_gw = o // channels % filters * gw_k + o % channels * gw_c + o // channels // filters * gw_tap
        tl.store(p_gw + o_gw, rounded(b_sum, p_gw.dtype.element_ty, EMULATE_BF16), mask=m)
