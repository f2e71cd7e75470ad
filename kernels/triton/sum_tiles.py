"""The ordered sum of the partial sums of a grad_weight that left each tile as its registers lie:

    gw = Σ_split partial[split]        gb likewise

Tiles of BK filters × BC channels, one for each of TAPS taps of each program of a split; a tile in blocks of 16 filters
× 8 channels, so that threads of tensor cores write whole lines of memory.

    program  →  BLOCK neighbouring elements of a tile, LANES splits at a time, added up in the end; where the taps of a
                channel are neighbours in gw, those elements of the tiles of all taps, so that runs are written; beyond,
                BLOCK elements of grad-bias
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


@triton.jit
def sum_block(
    block, p_partial, p_gw, splits, blocks, tiles, T, R, S, group_filters, group_channels, gw_k, gw_c, gw_tap,
    BK: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
    GW_VECTOR: tl.constexpr,
):  # fmt: skip
    """A block of one tap."""
    UNIT: tl.constexpr = max(GW_VECTOR, 1)
    of_tile: tl.constexpr = BK * BC // BLOCK  # blocks
    row_blocks, column_blocks = tiles
    p = p_partial + block.to(tl.int64) * BLOCK
    b_sum = sum_of_lanes(p, splits, blocks.to(tl.int64) * BLOCK, BLOCK, BLOCK, LANES)
    tile, o = block // of_tile, block % of_tile * (BLOCK // 8) + tl.arange(0, BLOCK // 8)  # rows of 8 channels
    program, run, runs = tile // TAPS, tile // TAPS // (row_blocks * column_blocks), tl.cdiv(R, TAPS)
    s, r, t = run % S, run // S % runs * TAPS + tile % TAPS, run // S // runs % T
    group = run // S // runs // T
    k = program // column_blocks % row_blocks * BK + o // (2 * BC) * 16 + o % 16
    c = program % column_blocks * (BC // 8) + o % (2 * BC) // 16
    o_gw = (group * group_filters + k) * gw_k * UNIT + ((t * R + r) * S + s) * gw_tap * UNIT
    o_channel = tl.arange(0, 8)
    if GW_VECTOR > 0:
        o_gw += c * 8
    else:
        o_gw += c * 8 * gw_c
        o_channel *= gw_c
    b_gw = tl.reshape(b_sum.to(p_gw.dtype.element_ty), (BLOCK // 8, 8))
    m = (k < group_filters) & (c < group_channels) & (r < R)
    tl.store(p_gw + o_gw[:, None] + o_channel[None, :], b_gw, mask=m[:, None])


@triton.jit
def sum_all_taps(
    block, p_partial, p_gw, splits, blocks, tiles, T, R, S, group_filters, group_channels, gw_k, gw_c,
    BK: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, ALL_TAPS: tl.constexpr,
):  # fmt: skip
    """A block of 16 filters × 8 channels of every tap; taps of a channel are neighbours in gw."""
    TILE: tl.constexpr = BK * BC
    row_blocks, column_blocks = tiles
    tile, at = block // (TILE // 128), block % (TILE // 128) * 128
    group, tile = tile // (row_blocks * column_blocks), tile % (row_blocks * column_blocks)
    tap = tl.arange(0, ALL_TAPS)
    s, r, t = tap % S, tap // S % R, tap // S // R
    program = ((group * T + t) * tl.cdiv(R, TAPS) + r // TAPS) * S + s
    program = program * (row_blocks * column_blocks) + tile
    m_tap = tap < T * R * S
    o_tap = (program * TAPS + r % TAPS).to(tl.int64) * TILE + at  # [ALL_TAPS]
    p = p_partial + o_tap[:, None] + tl.arange(0, 128)[None, :]
    b_sum = tl.zeros((ALL_TAPS, 128), tl.float32)
    for _ in tl.range(0, splits, loop_unroll_factor=2):
        b_sum += tl.load(p, mask=m_tap[:, None], other=0.0)
        p += blocks.to(tl.int64) * 128
    k = tile // column_blocks * BK + at // (16 * BC) * 16 + tl.arange(0, 16)
    c = tile % column_blocks * BC + at % (16 * BC) // 16 + tl.arange(0, 8)
    b_gw = tl.permute(tl.reshape(b_sum.to(p_gw.dtype.element_ty), (ALL_TAPS, 16, 8)), (1, 2, 0))
    o_gw = ((group * group_filters + k) * gw_k)[:, None, None] + (c * gw_c)[None, :, None] + tap[None, None, :]
    m = (k < group_filters)[:, None, None] & (c < group_channels * 8)[None, :, None] & m_tap[None, None, :]
    tl.store(p_gw + o_gw, b_gw, mask=m)


@kernel
def sum_tiles(
    p_partial,  # [splits, programs, TAPS, BK/16, BC/8, 16, 8], then the bias's [splits, filters of all groups]
    p_gw, p_gb,  # gb may be None
    splits,
    programs,  # of this kernel that add for gw
    blocks,  # of BLOCK elements of a split
    row_blocks, column_blocks,  # of a tap
    T, R, S, G,
    group_filters, group_channels,  # channels in units of 8
    gw_k, gw_c, gw_tap,  # in units of GW_VECTOR channels that lie together; 0: they do not, and units are elements
    BK: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
    GW_VECTOR: tl.constexpr,
    ALL_TAPS: tl.constexpr,  # a power of two of at least so many, where a program adds all; else 0
):  # fmt: skip
    block, tiles = tl.program_id(0), (row_blocks, column_blocks)
    if block >= programs:
        if p_gb is not None:
            filters, first = G * group_filters, (block - programs) * BLOCK
            p = p_partial + splits.to(tl.int64) * blocks * BLOCK + first
            b_sum = sum_of_lanes(p, splits, filters, filters - first, BLOCK, LANES)
            o = first + tl.arange(0, BLOCK)
            tl.store(p_gb + o, b_sum.to(p_gb.dtype.element_ty), mask=o < filters)
    elif ALL_TAPS > 0:
        sum_all_taps(
            block, p_partial, p_gw, splits, blocks, tiles, T, R, S, group_filters, group_channels, gw_k, gw_c,
            BK, BC, TAPS, ALL_TAPS,
        )  # fmt: skip
    else:
        sum_block(
            block, p_partial, p_gw, splits, blocks, tiles, T, R, S, group_filters, group_channels, gw_k, gw_c, gw_tap,
            BK, BC, TAPS, BLOCK, LANES, GW_VECTOR,
        )  # fmt: skip
