"""The backward pass of an activation, and of the bias where no grad_weight gives it; memory-bound, all is read once:

    gz[n, k, p] = gy[n, k, p] · act'(s[n, k, p])      gb[k] = Σ_{n,p} gz[n, k, p]      s: y, or z (see `epilogue`)

s and gz are dense and alike, so both are one matrix of rows × columns with the columns side by side in memory: pixels ×
channels in channels-last tensors, (images · channels) × pixels in contiguous ones, and 1 × all where nothing is summed
and gy is dense too. gy may lie in any way: the number of a row, or of a column, has up to four digits (image, d, h, w
among them), each with a stride.

    program  →  BM rows × BN columns, and the `steps` − 1 tiles that follow: down the rows (SUM is "columns" or "none")
                or along the columns ("rows"); sums what it has read of its columns, or of its rows
    masks    →  rows and columns beyond the last

The sums of all programs go to a workspace, and `sum_channels` adds them in a fixed order. No atomics.
"""

import triton
import triton.language as tl

from .common import kernel, rounded, wide, widened
from .epilogue import derivative


@triton.jit
def offset(b_index, size_1, size_2, size_3, stride_0, stride_1, stride_2, stride_3):
    """Σ digit · stride over the four digits of an index, of which the last three are below size_1, size_2, size_3."""
    b_2, b_3 = b_index // size_3, b_index % size_3
    b_1 = b_2 // size_2
    return b_1 // size_1 * stride_0 + b_1 % size_1 * stride_1 + b_2 % size_2 * stride_2 + b_3 * stride_3


@kernel
def act_backward(
    p_gy, p_s, p_gz, p_sums,  # sums: [programs along, columns or rows], or None
    rows, columns,
    row_1, row_2, row_3, column_2, column_3,  # sizes of the digits of a row and of a column
    gy_row_0, gy_row_1, gy_row_2, gy_row_3, gy_column_1, gy_column_2, gy_column_3,  # strides of gy
    steps,
    BM: tl.constexpr, BN: tl.constexpr,
    SUM: tl.constexpr,  # "none", "columns" or "rows": what is a channel
    DENSE: tl.constexpr,  # gy lies as s does
    VECTOR: tl.constexpr,  # columns is divided by it: see common
    WIDE: tl.constexpr, ACCUMULATE: tl.constexpr, EMULATE_BF16: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    columns = columns * VECTOR
    row_blocks, column_blocks = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    program = tl.program_id(0)
    if SUM == "rows":
        across, along = program % row_blocks, program // row_blocks
        row_block, column_block = across, along * steps
    else:
        across, along = program % column_blocks, program // column_blocks
        row_block, column_block = along * steps, across

    b_sum = tl.zeros((BM, BN), ACCUMULATE)
    for _ in range(0, steps):
        o_row = wide(row_block, WIDE) * BM + tl.arange(0, BM)  # [BM]
        o_column = wide(column_block, WIDE) * BN + tl.arange(0, BN)  # [BN]
        m = (o_row < rows)[:, None] & (o_column < columns)[None, :]  # [BM, BN]
        o = (o_row * columns)[:, None] + o_column[None, :]  # [BM, BN]
        o_gy = o
        if not DENSE:
            o_gy_row = offset(o_row, row_1, row_2, row_3, gy_row_0, gy_row_1, gy_row_2, gy_row_3)
            o_gy_column = offset(o_column, 1, column_2, column_3, gy_column_1, 0, gy_column_2, gy_column_3)
            o_gy = o_gy_row[:, None] + o_gy_column[None, :]
        b_s = widened(tl.load(p_s + o, mask=m, other=0.0), ACCUMULATE, EMULATE_BF16)
        b_gy = widened(tl.load(p_gy + o_gy, mask=m, other=0.0), ACCUMULATE, EMULATE_BF16)
        b_gz = b_gy * derivative(b_s, ACTIVATION, SLOPE)
        tl.store(p_gz + o, rounded(b_gz, p_gz.dtype.element_ty, EMULATE_BF16), mask=m)
        b_sum += b_gz
        if SUM == "rows":
            column_block += 1
        else:
            row_block += 1

    if SUM == "rows":
        o_row = wide(row_block, WIDE) * BM + tl.arange(0, BM)
        tl.store(p_sums + wide(along, WIDE) * rows + o_row, tl.sum(b_sum, 1), mask=o_row < rows)
    elif SUM == "columns":
        o_column = wide(column_block, WIDE) * BN + tl.arange(0, BN)
        tl.store(p_sums + wide(along, WIDE) * columns + o_column, tl.sum(b_sum, 0), mask=o_column < columns)


@kernel
def sum_channels(
    p_sums,  # [count, channels]
    p_gb,
    count, channels,
    BM: tl.constexpr, BN: tl.constexpr,
    WIDE: tl.constexpr, EMULATE_BF16: tl.constexpr,
):  # fmt: skip
    """gb[k] = Σ_i sums[i, k], rounded once. program → BN channels, BM sums at a time."""
    o_channel = tl.program_id(0) * BN + tl.arange(0, BN)  # [BN]
    b_sum = tl.zeros((BM, BN), p_sums.dtype.element_ty)
    for i in range(0, count, BM):
        o_i = wide(i, WIDE) + tl.arange(0, BM)  # [BM]
        m = (o_i < count)[:, None] & (o_channel < channels)[None, :]
        b_sum += tl.load(p_sums + (o_i * channels)[:, None] + o_channel[None, :], mask=m, other=0.0)
    b_gb = tl.sum(b_sum, 0)
    tl.store(p_gb + o_channel, rounded(b_gb, p_gb.dtype.element_ty, EMULATE_BF16), mask=o_channel < channels)
