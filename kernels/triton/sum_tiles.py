"""The ordered sum of the partial sums of a grad_weight that left each tile as its registers lie:

    gw = Σ_split partial[split]        gb likewise

Tiles of BK filters × BC channels, one for each of TAPS taps of each program of a split; a tile in blocks of 16 filters
× 8 channels, so that threads of tensor cores write whole lines of memory.

    program  →  BLOCK neighbouring elements of a tile, or of grad-bias; LANES splits at a time, added up in the end
    masks    →  splits beyond the last; at the store filters, channels and taps beyond the last

Memory-bound: each partial is read once. No atomics, so the same partials give the same bits.
"""

import triton
import triton.language as tl

from .common import kernel


@triton.jit
def sum_of_lanes(p, splits, step, count, BLOCK: tl.constexpr, LANES: tl.constexpr):
    """Σ_split of BLOCK elements at p + split · step, of which there are `count`."""
    o_lane, o = tl.arange(0, LANES)[:, None], tl.arange(0, BLOCK)[None, :]
    p += o_lane.to(tl.int64) * step + o
    b_sum = tl.zeros((LANES, BLOCK), tl.float32)
    for first in tl.range(0, splits, LANES, loop_unroll_factor=4):
        b_sum += tl.load(p, mask=(o < count) & (first + o_lane < splits), other=0.0)
        p += LANES * step
    return tl.sum(b_sum, 0)


@kernel
def sum_tiles(
    p_partial,  # [splits, programs, TAPS, BK/16, BC/8, 16, 8], then the bias's [splits, filters of all groups]
    p_gw, p_gb,  # gb may be None
    splits,
    blocks,  # of BLOCK elements of a split
    row_blocks, column_blocks,  # of a tap
    T, R, S, G,
    group_filters, group_channels,  # channels in units of 8
    gw_k, gw_c, gw_tap,  # in units of GW_VECTOR channels that lie together; 0: they do not, and units are elements
    BK: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
    GW_VECTOR: tl.constexpr,
):  # fmt: skip
    UNIT: tl.constexpr = max(GW_VECTOR, 1)
    TILE: tl.constexpr = BK * BC
    block = tl.program_id(0)
    if block < blocks:
        p = p_partial + block.to(tl.int64) * BLOCK
        b_sum = sum_of_lanes(p, splits, blocks.to(tl.int64) * BLOCK, BLOCK, BLOCK, LANES)
        tile, at = block // (TILE // BLOCK), block % (TILE // BLOCK) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        program, run = tile // TAPS, tile // TAPS // (row_blocks * column_blocks)
        runs = tl.cdiv(R, TAPS)
        s, r, t = run % S, run // S % runs * TAPS + tile % TAPS, run // S // runs % T
        group = run // S // runs // T
        k = program // column_blocks % row_blocks * BK + at // (2 * BC) * 16 + at % 16  # [BLOCK/8]
        c = program % column_blocks * (BC // 8) + at % (2 * BC) // 16
        m = (k < group_filters) & (c < group_channels) & (r < R)
        o_gw = (group * group_filters + k) * gw_k * UNIT + ((t * R + r) * S + s) * gw_tap * UNIT
        o = tl.arange(0, 8)
        if GW_VECTOR > 0:
            o_gw += c * 8
        else:
            o_gw += c * 8 * gw_c
            o *= gw_c
        b_gw = tl.reshape(b_sum.to(p_gw.dtype.element_ty), (BLOCK // 8, 8))
        tl.store(p_gw + o_gw[:, None] + o[None, :], b_gw, mask=m[:, None])
    elif p_gb is not None:
        filters = G * group_filters
        first = (block - blocks) * BLOCK
        p = p_partial + splits.to(tl.int64) * blocks * BLOCK + first
        b_sum = sum_of_lanes(p, splits, filters, filters - first, BLOCK, LANES)
        o_gb = first + tl.arange(0, BLOCK)
        tl.store(p_gb + o_gb, b_sum.to(p_gb.dtype.element_ty), mask=o_gb < filters)
