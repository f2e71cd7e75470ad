"""What forward does to its sum before the one rounding: y = activation(sum + bias + residual).

    relu         max(z, 0)                         sigmoid    σ(z) = 1 / (1 + exp(−z))
    relu6        min(max(z, 0), 6)                 tanh       2 σ(2z) − 1
    leaky_relu   z, or slope · z where z < 0       silu       z · σ(z)
    hardswish    z · min(max(z + 3, 0), 6) / 6     gelu       z · Φ(z)
                                                   gelu_tanh  z · σ(2u),  u = √(2/π) (z + 0.044715 z³)

σ(2u) is (1 + tanh u) / 2 written without tanh. Comparisons are written so that NaN stays NaN. No masks: elements that
will not be stored are computed along with the rest. `derivative` is what `act_backward` multiplies with.
"""

import triton
import triton.language as tl

from .common import FIRST_AXIS_FAST, widened


@triton.jit
def clip6(b_z):
    """min(max(z, 0), 6)"""
    return tl.where(b_z < 0, 0.0, tl.where(b_z > 6, 6.0, b_z))


@triton.jit
def sigmoid(b_z):
    return 1.0 / (1.0 + tl.exp(-b_z))


@triton.jit
def normal(b_z):
    """Φ(z)"""
    return 0.5 + 0.5 * tl.erf(b_z * 0.7071067811865476)


@triton.jit
def activate(b_z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """activation(z), element by element, in z's type (float32 or float64)."""
    if ACTIVATION == "relu":
        b_z = tl.where(b_z < 0, 0.0, b_z)
    elif ACTIVATION == "relu6":
        b_z = clip6(b_z)
    elif ACTIVATION == "leaky_relu":
        b_z = tl.where(b_z < 0, b_z * SLOPE, b_z)
    elif ACTIVATION == "sigmoid":
        b_z = sigmoid(b_z)
    elif ACTIVATION == "tanh":
        b_z = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * b_z))
    elif ACTIVATION == "hardswish":
        b_z = b_z * clip6(b_z + 3.0) / 6.0
    elif ACTIVATION == "silu":
        b_z = b_z / (1.0 + tl.exp(-b_z))
    elif ACTIVATION == "gelu":
        b_z = b_z * normal(b_z)
    elif ACTIVATION == "gelu_tanh":
        b_z = b_z / (1.0 + tl.exp(-1.5957691216057308 * (b_z + 0.044715 * b_z * b_z * b_z)))
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return b_z


@triton.jit
def derivative(b_s, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """activation', in s's type. s: y for the activations down to tanh, z for the others."""
    b_one = tl.full(b_s.shape, 1.0, b_s.dtype)
    if ACTIVATION == "relu":
        b_d = tl.where(b_s <= 0, 0.0, b_one)
    elif ACTIVATION == "relu6":
        b_d = tl.where((b_s <= 0) | (b_s >= 6), 0.0, b_one)
    elif ACTIVATION == "leaky_relu":
        b_d = tl.where(b_s > 0, b_one, b_one * SLOPE)
    elif ACTIVATION == "sigmoid":
        b_d = b_s * (1.0 - b_s)
    elif ACTIVATION == "tanh":
        b_d = 1.0 - b_s * b_s
    elif ACTIVATION == "hardswish":
        b_d = tl.where(b_s <= -3, 0.0, tl.where(b_s < 3, b_s / 3.0 + 0.5, 1.0))
    elif ACTIVATION == "silu":
        b_d = sigmoid(b_s) * (1.0 + b_s * sigmoid(-b_s))
    elif ACTIVATION == "gelu":
        b_d = normal(b_s) + b_s * (0.3989422804014327 * tl.exp(-0.5 * b_s * b_s))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh", "unknown activation")
        # of z · p, where p = σ(2u), p' = 2 u' p (1 − p), and 1 − p = σ(−2u), which so keeps its digits
        b_2u = 1.5957691216057308 * (b_s + 0.044715 * b_s * b_s * b_s)
        b_2du = 1.5957691216057308 * (1.0 + 0.134145 * b_s * b_s)
        b_d = sigmoid(b_2u) * (1.0 + b_s * b_2du * sigmoid(-b_2u))
    return b_d


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
        if RESIDUAL_ROWS_FAST != FIRST_AXIS_FAST:
            b_res = tl.trans(tl.load(p_residual + (o_residual_columns[:, None] + o_residual_rows[None, :])))
        else:
            b_res = tl.load(p_residual + (o_residual_rows[:, None] + o_residual_columns[None, :]))
        b_acc += widened(b_res, b_acc.dtype, EMULATE_BF16)
    return activate(b_acc, ACTIVATION, SLOPE)
