"""Gradient of the bias, by programs of their own beside those of a grad_weight's product, in the same launch:

    gb[k] = Σ_m gy[m, k]        m counts output pixels

It could be summed where the product has gy at hand, but then what tensor cores read from shared memory would have to
come to registers too. That triples the instructions of a loop on Hopper; and Triton then gives the tile of gy one
buffer fewer than a product under way needs, so that the next tile is written where the last is still being read. So
programs beyond the product's last read gy once more. They take less time than a step of the product does for the same
pixels.

    program  →  split, then 32 filters of all groups; loops over the split's pixels, STEP at a time
    masks    →  pixels beyond the last; at the store filters beyond the last

A split here is a share of the pixels, and need not be the product's share; there are as many.
"""

import triton
import triton.language as tl

from .common import block_indices, load_tile, offset_of, rounded, split_pixel, wide, widened
from .last_program import sum_of_splits

FILTERS = tl.constexpr(32)  # of a program


@triton.jit
def sum_bias(
    gy, p_gb, gb_split,  # gb, or the workspace, and its stride
    p_workspace, p_arrived,  # of `last_program`, or None
    products,  # programs of a split of the product, which has the first places of both
    SIZE: tl.constexpr,  # of its tiles
    program,  # counted from the product's last on
    splits, pixels, filters,  # N·Z·P·Q, and the filters of all groups
    size,  # Z, P, Q
    FILTERS_FAST: tl.constexpr,  # filters lie closer than pixels
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr, OUT_BF16: tl.constexpr,
    SHARE: tl.constexpr = 1,  # of the pixels of a step, 1 of so many: where a program may have but two warps
):  # fmt: skip
    """gb[split, k] = Σ_m gy[m, k] over the pixels of a split, for the filters of a program."""
    STEP: tl.constexpr = 4096 // ACCUMULATE.primitive_bitwidth // SHARE  # in no more registers than a product takes
    blocks = tl.cdiv(filters, FILTERS)
    split = wide(program // blocks, WIDE)
    o_filter, o_filter_safe = block_indices(program % blocks, FILTERS, filters, WIDE)  # [FILTERS]
    per_split = tl.cdiv(tl.cdiv(pixels, STEP), splits) * STEP
    first = split * per_split
    image = wide(size.w, WIDE) * size.h * size.d
    b_sum = tl.zeros((FILTERS, STEP), ACCUMULATE)  # added up in the end: nothing is exchanged in the loop
    for m0 in range(0, tl.minimum(per_split, pixels - first), STEP):
        o_m = first + m0 + tl.arange(0, STEP)  # [STEP]
        b_at = split_pixel(o_m % image, size.h, size.w)  # [STEP] each
        o_gy = offset_of(o_m // image, b_at, gy)  # [STEP]
        m_pixel = o_m < pixels
        b_gy = load_tile(gy.p, o_filter_safe * gy.channel, o_gy, m_pixel, m_pixel, False, True, FILTERS_FAST)
        b_sum += widened(b_gy, ACCUMULATE, EMULATE_BF16)  # [FILTERS, STEP]
    b_gb = tl.sum(b_sum, 1)  # [FILTERS]
    m_filter = o_filter < filters
    if p_arrived is not None:
        p_sums = p_workspace + products * splits * SIZE
        b_all, adds = sum_of_splits(
            b_gb[:, None], p_sums, p_arrived + products, program % blocks, program // blocks, splits
        )
        b_gb, m_filter = tl.reshape(b_all, (FILTERS,)), m_filter & adds
    tl.store(p_gb + split * gb_split + o_filter, rounded(b_gb, p_gb.dtype.element_ty, OUT_BF16), mask=m_filter)
