"""The ordered sum of a forward or grad_input that was split: y = activation(Σ_split partial[split] + bias + residual).

    program  →  BLOCK neighbouring elements of y, which lies densely, as the residual does and each of the partials
    masks    →  the last block

Memory-bound: each partial is read once. No atomics, so the same partials give the same bits.
"""

import triton.language as tl

from .common import kernel, rounded, wide, widened
from .epilogue import activate


@kernel
def window_sum(
    p_partial,  # [splits, size]
    p_bias, p_residual, p_y,  # bias and residual may be None
    splits,
    quarter,  # size / 4, so that the compiler sees that partials are multiples of 16 bytes apart
    channels, apart,  # elements from one channel to the next: 1, or an image's pixels
    BLOCK: tl.constexpr, WIDE: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    size = wide(quarter, WIDE) * 4
    o = wide(tl.program_id(0), WIDE) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), 4)  # [BLOCK], four a thread
    m = o < size
    b_sum = tl.zeros((BLOCK,), tl.float32)
    p = p_partial + o
    for _ in range(0, splits):
        b_sum += tl.load(p, mask=m, other=0.0)
        p += size
    if p_bias is not None:
        b_sum += widened(tl.load(p_bias + o // apart % channels), tl.float32, EMULATE_BF16)
    if p_residual is not None:
        b_sum += widened(tl.load(p_residual + o, mask=m, other=0.0), tl.float32, EMULATE_BF16)
    b_y = rounded(activate(b_sum, ACTIVATION, SLOPE), p_y.dtype.element_ty, EMULATE_BF16)
    tl.store(p_y + o, b_y, mask=m)
