"""What forward does to its sum before the one rounding: y = activation(sum + bias + residual).

    relu        max(z, 0)                          silu        z · σ(z)
    leaky_relu  z, or slope · z where z < 0        gelu        z · Φ(z)
    hardswish   z · clip(z + 3, 0, 6) / 6          gelu_tanh   z · σ(2u),  u = √(2/π) (z + 0.044715 z³)

σ(2u) is (1 + tanh u) / 2 written without tanh. Comparisons are written so that NaN stays NaN. No masks: elements that
will not be stored are computed along with the rest.
"""

import triton
import triton.language as tl

from .common import widened


@triton.jit
def activate(b_z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """activation(z), element by element, in z's type (float32 or float64)."""
    if ACTIVATION == "relu":
        b_z = tl.where(b_z < 0, 0.0, b_z)
    elif ACTIVATION == "leaky_relu":
        b_z = tl.where(b_z < 0, b_z * SLOPE, b_z)
    elif ACTIVATION == "silu":
        b_z = b_z / (1.0 + tl.exp(-b_z))
    elif ACTIVATION == "gelu":
        b_z = b_z * (0.5 + 0.5 * tl.erf(b_z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        b_z = b_z / (1.0 + tl.exp(-1.5957691216057308 * (b_z + 0.044715 * b_z * b_z * b_z)))
    elif ACTIVATION == "hardswish":
        b_z = b_z * tl.minimum(tl.maximum(b_z + 3.0, 0.0), 6.0) / 6.0
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return b_z


@triton.jit
def epilogue(
    b_acc,  # [BM, BN] the sum
    p_bias,  # at the program's group, or None
    p_residual,  # at the program's group, or None
    o_column,  # [BN] channel in the group, never beyond the last
    o_residual_rows,  # [BM] offset of each row's pixel
    o_residual_columns,  # [BN]
    RESIDUAL_ROWS_FAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """activation(acc + bias + residual), [BM, BN], in acc's type."""
    if p_bias is not None:
        b_acc += widened(tl.load(p_bias + o_column), b_acc.dtype, EMULATE_BF16)[None, :]
    if p_residual is not None:
        if RESIDUAL_ROWS_FAST:
            b_res = tl.trans(tl.load(p_residual + (o_residual_columns[:, None] + o_residual_rows[None, :])))
        else:
            b_res = tl.load(p_residual + (o_residual_rows[:, None] + o_residual_columns[None, :]))
        b_acc += widened(b_res, b_acc.dtype, EMULATE_BF16)
    return activate(b_acc, ACTIVATION, SLOPE)
