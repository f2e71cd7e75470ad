"""Convolution on Hopper, where one warp fetches and two warp groups multiply; forward, and grad_input at stride 1.

    acc[k, pixel] += w[k, tap, c] · x[window shifted by tap, c]ᵀ        for each tap, for each block of BC channels

The windows are those of `gpuconv.kernels.triton.window_common`, but that their rows vary slowest: [h, n, d, w, c].

    warp       program p takes the tiles p, p + programs, …
    0 … 7      multiply: wait for a slot, wgmma on it, hand back the slot before; round, store
    8          fetch: wait until a slot is free, start the copies into it; runs ahead over a tile's end

Between them lies a ring of STAGES slots, each with a block of filters and a window, and two barriers:

    full[slot]   its operands have come: the copies count their bytes on it
    empty[slot]  the product that read it is done: it may be filled again
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..triton.epilogue import activate
from .common import barriers, kernel, next_slot, ring, slot_before, tile_of_program


@gluon.jit
def tile_at(
    tile, windows, windows_d, windows_h, windows_w, column_blocks,
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BAND: gl.constexpr,
):  # fmt: skip
    """(h, n, d, w) of the first pixel of a tile, its block of columns and its group. Groups vary slowest."""
    tiles = windows * column_blocks
    window, column_block = tile_of_program(tile % tiles, windows, column_blocks, BAND)
    w = window % windows_w * TW
    h = window // windows_w % windows_h * TH
    d = window // windows_w // windows_h % windows_d * TD
    n = window // windows_w // windows_h // windows_d * TN
    return h, n, d, w, column_block, tile // tiles


@gluon.jit
def fetch(
    x, w, xs, ws, full, empty, count, taps, start, step, up, C, columns, x_w,
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    STAGES: gl.constexpr, BAND: gl.constexpr, FOLD_H: gl.constexpr, FOLD_W: gl.constexpr, WEIGHTS: gl.constexpr,
):  # fmt: skip
    """The warp that fetches: window and filters of one step after the other, into the ring's slots in turn."""
    tiles, windows, windows_d, windows_h, windows_w, column_blocks = count
    taps_d, taps_h, taps_w = taps
    start_d, start_h, start_w = start
    step_d, step_h, step_w = step
    up_h, up_w = up
    slot, phase = gl.to_tensor(0), gl.to_tensor(1)  # the first round waits for nothing
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        h, n, d, at, column_block, group = tile_at(
            tile, windows, windows_d, windows_h, windows_w, column_blocks, TN, TD, TH, TW, BAND
        )
        for t in range(taps_d):
            for r in range(taps_h):
                from_h = start_h + r * step_h
                e = d + start_d + t * step_d
                if FOLD_H > 1:
                    e = from_h % FOLD_H
                for s in range(taps_w):
                    from_w = start_w + s * step_w
                    tap = (t * taps_h + r) * taps_w + s
                    for c in range(0, C, BC):
                        mbarrier.wait(empty.index(slot), phase)
                        mbarrier.expect(full.index(slot), x.block_type.nbytes + w.block_type.nbytes)
                        tma.async_copy_global_to_shared(
                            x,
                            [h - up_h + from_h // FOLD_H, n, e, at - up_w + from_w // FOLD_W,
                             from_w % FOLD_W * x_w + group * C + c],
                            full.index(slot), xs.index(slot),
                        )  # fmt: skip
                        if WEIGHTS == "plain":
                            place = [tap, group * columns + column_block * BK, c]
                        elif WEIGHTS == "turned":
                            place = [tap, column_block * BK, group * C + c]
                        else:
                            place = [tap, group * C + c, column_block * BK]
                        tma.async_copy_global_to_shared(w, place, full.index(slot), ws.index(slot))
                        slot, phase = next_slot(slot, phase, STAGES)


@gluon.jit
def multiply(
    p_bias, y, ys, xs, ws, full, empty, count, steps, columns, K,
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    STAGES: gl.constexpr, BAND: gl.constexpr, WEIGHTS: gl.constexpr, ACTIVATION: gl.constexpr, SLOPE: gl.constexpr,
):  # fmt: skip
    PIXELS: gl.constexpr = TN * TD * TH * TW
    ACROSS: gl.constexpr = gl.num_warps() * 16 // BK if gl.num_warps() * 16 > BK else 1
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [gl.num_warps() // ACROSS, ACROSS], [16, PIXELS // ACROSS, 32 // (xs.dtype.primitive_bitwidth // 8)]
    )
    tiles, windows, windows_d, windows_h, windows_w, column_blocks = count
    slot, phase = gl.to_tensor(0), gl.to_tensor(0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        acc = gl.zeros((BK, PIXELS), gl.float32, layout)
        for i in range(steps):
            mbarrier.wait(full.index(slot), phase)
            if WEIGHTS == "transposed":
                a = ws.index(slot).reshape((BC, BK)).permute((1, 0))
            else:
                a = ws.index(slot).reshape((BK, BC))
            b = xs.index(slot).reshape((PIXELS, BC)).permute((1, 0))
            product = warpgroup_mma(a, b, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(product,))
            mbarrier.arrive(empty.index(slot_before(slot, STAGES)), pred=i > 0)
            slot, phase = next_slot(slot, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(slot_before(slot, STAGES)))

        h, n, d, w, column_block, group = tile_at(
            tile, windows, windows_d, windows_h, windows_w, column_blocks, TN, TD, TH, TW, BAND
        )
        k = group * columns + column_block * BK
        if p_bias is not None:
            o_k = k + gl.arange(0, BK, gl.SliceLayout(1, layout))
            acc += gl.load(p_bias + o_k, mask=o_k < K, other=0.0).to(gl.float32)[:, None]
        b_y = activate(acc, ACTIVATION, SLOPE).to(y.dtype)
        tma.store_wait(0)
        ys.reshape((PIXELS, BK)).permute((1, 0)).store(b_y)
        fence_async_shared()
        tma.async_copy_shared_to_global(y, [h, n, d, w, k], ys)
    tma.store_wait(0)


@kernel
def hopper_conv(
    p_x, p_w, p_bias, p_residual, p_y,
    C, columns, K, x_w,
    tiles, windows, windows_d, windows_h, windows_w, column_blocks,
    taps_d, taps_h, taps_w,
    start_d, start_h, start_w, step_d, step_h, step_w, up_h, up_w,  # where taps fall, counted from the window's pixel
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    STAGES: gl.constexpr, BAND: gl.constexpr, FOLD_H: gl.constexpr, FOLD_W: gl.constexpr, WEIGHTS: gl.constexpr,
    ACTIVATION: gl.constexpr, SLOPE: gl.constexpr,
):  # fmt: skip
    xs = ring(p_x, STAGES)
    ws = ring(p_w, STAGES)
    ys = gl.allocate_shared_memory(p_y.dtype, p_y.block_type.shape, p_y.layout)
    full = barriers(STAGES)
    empty = barriers(STAGES)
    count = (tiles, windows, windows_d, windows_h, windows_w, column_blocks)
    taps = (taps_d, taps_h, taps_w)
    start = (start_d, start_h, start_w)
    step = (step_d, step_h, step_w)
    up = (up_h, up_w)
    steps = taps_d * taps_h * taps_w * gl.cdiv(C, BC)
    gl.warp_specialize([
        (multiply, (p_bias, p_y, ys, xs, ws, full, empty, count, steps, columns, K,
                    TN, TD, TH, TW, BK, BC, STAGES, BAND, WEIGHTS, ACTIVATION, SLOPE)),
        (fetch, (p_x, p_w, xs, ws, full, empty, count, taps, start, step, up, C, columns, x_w,
                 TN, TD, TH, TW, BK, BC, STAGES, BAND, FOLD_H, FOLD_W, WEIGHTS)),
    ], [1], [24])  # fmt: skip
