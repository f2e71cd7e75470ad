"""Convolution on Hopper, where one warp fetches and warp groups multiply; forward, and grad_input at stride 1.

    acc[k, pixel] += w[k, tap, c] · x[window shifted by tap, c]ᵀ        for each block of BC channels, for each tap

The windows are those of `gpuconv.kernels.triton.window_common`, but that their rows vary slowest: [h, n, d, w, c]. A
program takes the tiles p, p + programs, …; a tile is a window for each of two or three warp groups, and BK filters.

    warp group 0    ─ multiply ─ multiply ─ multiply ─ round, store ─ multiply ─ …     window 0 of the tile
    warp group 1    ─ multiply ─ multiply ─ multiply ─ round, store ─ multiply ─ …     window 1
    one warp        fetch fetch fetch fetch fetch fetch fetch fetch …                  runs ahead over a tile's end

Between them lies a ring of STAGES slots, each with a window for each group and a block of filters, and two barriers:

    full[slot]   its operands have come: the copies count their bytes on it
    empty[slot]  every group's product that read it is done: it may be filled again

A barrier's phase ends when all that it waits for has happened, and who waits names the parity of the phase. Slot s is
filled for the j-th time after the (j − 1)-th phase of empty[s] has ended, which is when all groups have handed it back,
and read after the j-th phase of full[s] has. So no copy overwrites what is read, and nobody reads what is not there;
and since copies only wait for products of slots that were filled before, all get on. A group hands a slot back one
step later than it multiplies with it: when the next product is on its way, so that the tensor cores never wait.

HALO. A window that is moved by a row shares all rows but one with what it was. So where filters have several taps below
each other, a slot may hold rows: a tile is a row of pixels for each warp group (of several images, so that it has
enough), a slot has those and the rows that taps reach beyond them, and a tap takes its row out of it:

    slot    row 0  row 1  row 2  row 3  row 4         three warp groups, three taps: 5 rows are fetched, not 9
    tap 0   [ 0 ]  [ 1 ]  [ 2 ]                       of warp group 0, 1, 2
    tap 1          [ 0 ]  [ 1 ]  [ 2 ]
    tap 2                 [ 0 ]  [ 1 ]  [ 2 ]

Filters then have a ring and barriers of their own, with the same protocol, since they are read for one tap each.

Pixels are on the left of the product, or filters where there are 64: an instruction multiplies 64 rows of the left
operand with all of the right, and reads both from shared memory; it is quick enough only where the right one is wide.
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
def tile_at(tile, windows, column_blocks, WORKERS: gl.constexpr, BAND: gl.constexpr):
    """(the first window of a tile, its block of columns, its group). Groups vary slowest."""
    rows = gl.cdiv(windows, WORKERS)
    row, column_block = tile_of_program(tile % (rows * column_blocks), rows, column_blocks, BAND)
    return row * WORKERS, column_block, tile // (rows * column_blocks)


@gluon.jit
def window_at(
    window, windows_d, windows_h, windows_w,  # of an image, on each axis
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr,
):  # fmt: skip
    """(row, image, plane, column) of the first pixel of a window. One beyond the last is beyond the last image."""
    w = window % windows_w * TW
    h = window // windows_w % windows_h * TH
    d = window // windows_w // windows_h % windows_d * TD
    n = window // windows_w // windows_h // windows_d * TN
    return h, n, d, w


@gluon.jit
def place_of_filters(tap, c, group, column_block, C, columns, BK: gl.constexpr, WEIGHTS: gl.constexpr):
    """The coordinates of a block of filters: of BK filters and the channels from c on."""
    if WEIGHTS == "plain":
        place = [tap, group * columns + column_block * BK, c]
    elif WEIGHTS == "turned":
        place = [tap, column_block * BK, group * C + c]
    else:
        place = [tap, group * C + c, column_block * BK]
    return place


@gluon.jit
def fetch(
    x, w, xs, ws, x_full, x_empty, w_full, w_empty, count, taps, start, step, up, C, columns, x_w,
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    WORKERS: gl.constexpr, STAGES: gl.constexpr, W_STAGES: gl.constexpr, BAND: gl.constexpr,
    FOLD_H: gl.constexpr, FOLD_W: gl.constexpr, WEIGHTS: gl.constexpr, HALO: gl.constexpr, APART: gl.constexpr,
):  # fmt: skip
    """The warp that fetches: windows and filters of one step after the other, into the rings' slots in turn."""
    ROWS: gl.constexpr = WORKERS + (HALO - 1) * (APART if APART > 0 else -APART)
    tiles, windows, windows_d, windows_h, windows_w, column_blocks = count
    taps_d, taps_h, taps_w = taps
    start_d, start_h, start_w = start
    step_d, step_h, step_w = step
    up_h, up_w = up
    slot, phase = gl.to_tensor(0), gl.to_tensor(1)  # the first round waits for nothing
    w_slot, w_phase = gl.to_tensor(0), gl.to_tensor(1)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        window, column_block, group = tile_at(tile, windows, column_blocks, 1 if HALO > 1 else WORKERS, BAND)
        h0, n0, d0, w0 = window_at(window, windows_d, windows_h, windows_w, TN, TD, TH, TW)
        if HALO == 1:
            h1, n1, d1, w1 = window_at(window + 1, windows_d, windows_h, windows_w, TN, TD, TH, TW)
            h2, n2, d2, w2 = window_at(window + 2, windows_d, windows_h, windows_w, TN, TD, TH, TW)
        for c in range(0, C, BC):
            for t in range(taps_d):
                for r in range(taps_h):
                    from_h = start_h + r * step_h
                    h = from_h // FOLD_H - up_h
                    d = start_d + t * step_d
                    if FOLD_H > 1:
                        d = from_h % FOLD_H
                    for s in range(taps_w):
                        from_w = start_w + s * step_w
                        at = from_w // FOLD_W - up_w
                        channel = from_w % FOLD_W * x_w + group * C + c
                        mbarrier.wait(x_empty.index(slot), phase)
                        ready = x_full.index(slot)
                        if HALO == 1:
                            mbarrier.expect(ready, WORKERS * x.block_type.nbytes + w.block_type.nbytes)
                            tap = (t * taps_h + r) * taps_w + s
                            place = place_of_filters(tap, c, group, column_block, C, columns, BK, WEIGHTS)
                            tma.async_copy_global_to_shared(w, place, ready, ws.index(slot))
                            to = slot * WORKERS
                            place = [h0 + h, n0, d0 + d, w0 + at, channel]
                            tma.async_copy_global_to_shared(x, place, ready, xs.index(to))
                            place = [h1 + h, n1, d1 + d, w1 + at, channel]
                            tma.async_copy_global_to_shared(x, place, ready, xs.index(to + 1))
                            if WORKERS == 3:
                                place = [h2 + h, n2, d2 + d, w2 + at, channel]
                                tma.async_copy_global_to_shared(x, place, ready, xs.index(to + 2))
                        else:
                            mbarrier.expect(ready, ROWS * x.block_type.nbytes)
                            for row in gl.static_range(ROWS):
                                place = [h0 + h + row, n0, d0 + d, w0 + at, channel]
                                tma.async_copy_global_to_shared(x, place, ready, xs.index(slot * ROWS + row))
                            for i in gl.static_range(HALO):
                                mbarrier.wait(w_empty.index(w_slot), w_phase)
                                mbarrier.expect(w_full.index(w_slot), w.block_type.nbytes)
                                tap = (t * HALO + i) * taps_w + s
                                place = place_of_filters(tap, c, group, column_block, C, columns, BK, WEIGHTS)
                                tma.async_copy_global_to_shared(w, place, w_full.index(w_slot), ws.index(w_slot))
                                w_slot, w_phase = next_slot(w_slot, w_phase, W_STAGES)
                        slot, phase = next_slot(slot, phase, STAGES)


@gluon.jit
def multiplied(
    b_x, b_w, acc,
    PIXELS: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr, WEIGHTS: gl.constexpr, FILTERS_LEFT: gl.constexpr,
):  # fmt: skip
    """acc with the product of a window and a block of filters on its way; the product before it is done."""
    b_x = b_x.reshape((PIXELS, BC))
    b_w = b_w.reshape((BC, BK)).permute((1, 0)) if WEIGHTS == "transposed" else b_w.reshape((BK, BC))  # [BK, BC]
    if FILTERS_LEFT:
        product = warpgroup_mma(b_w, b_x.permute((1, 0)), acc, is_async=True)
    else:
        product = warpgroup_mma(b_x, b_w.permute((1, 0)), acc, is_async=True)
    return warpgroup_mma_wait(1, deps=(product,))


@gluon.jit
def multiply(
    p_bias, residual, y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps, columns, K,
    ME: gl.constexpr,
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    WORKERS: gl.constexpr, STAGES: gl.constexpr, W_STAGES: gl.constexpr, BAND: gl.constexpr,
    WEIGHTS: gl.constexpr, FILTERS_LEFT: gl.constexpr, HALO: gl.constexpr, APART: gl.constexpr,
    ACTIVATION: gl.constexpr, SLOPE: gl.constexpr,
):  # fmt: skip
    """A warp group that multiplies: the steps of its window, then bias, residual, activation; one rounding; store."""
    PIXELS: gl.constexpr = TN * TD * TW * (1 if HALO > 1 else TH)
    ROWS: gl.constexpr = WORKERS + (HALO - 1) * (APART if APART > 0 else -APART)
    DEPTH: gl.constexpr = 32 // (xs.dtype.primitive_bitwidth // 8)  # of one instruction
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PIXELS if FILTERS_LEFT else BK, DEPTH])
    tiles, windows, windows_d, windows_h, windows_w, column_blocks = count
    mine = ys.index(ME)
    result = mine.reshape((PIXELS, BK))
    if FILTERS_LEFT:
        result = result.permute((1, 0))
    slot, phase, round = gl.to_tensor(0), gl.to_tensor(0), gl.to_tensor(0)
    w_slot, w_phase = gl.to_tensor(0), gl.to_tensor(0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        window, column_block, group = tile_at(tile, windows, column_blocks, 1 if HALO > 1 else WORKERS, BAND)
        if HALO > 1:
            h, n, d, w = window_at(window, windows_d, windows_h, windows_w, TN, TD, TH, TW)
            h += ME
        else:
            h, n, d, w = window_at(window + ME, windows_d, windows_h, windows_w, TN, TD, TH, TW)
        k = group * columns + column_block * BK
        if residual is not None:  # to where the result will be
            tma.store_wait(0)
            mbarrier.expect(came.index(ME), residual.block_type.nbytes)
            tma.async_copy_global_to_shared(residual, [h, n, d, w, k], came.index(ME), mine)

        acc = gl.zeros((BK, PIXELS) if FILTERS_LEFT else (PIXELS, BK), gl.float32, layout)
        for i in range(steps):
            mbarrier.wait(x_full.index(slot), phase)
            if HALO == 1:
                b_x = xs.index(slot * WORKERS + ME)
                acc = multiplied(b_x, ws.index(slot), acc, PIXELS, BK, BC, WEIGHTS, FILTERS_LEFT)
                mbarrier.arrive(x_empty.index(slot_before(slot, STAGES)), pred=i > 0)
            else:
                for r in gl.static_range(HALO):
                    mbarrier.wait(w_full.index(w_slot), w_phase)
                    b_x = xs.index(slot * ROWS + ME + (r if APART > 0 else r + 1 - HALO) * APART)
                    acc = multiplied(b_x, ws.index(w_slot), acc, PIXELS, BK, BC, WEIGHTS, FILTERS_LEFT)
                    if r == 0:
                        mbarrier.arrive(w_empty.index(slot_before(w_slot, W_STAGES)), pred=i > 0)
                        mbarrier.arrive(x_empty.index(slot_before(slot, STAGES)), pred=i > 0)
                    else:
                        mbarrier.arrive(w_empty.index(slot_before(w_slot, W_STAGES)))
                    w_slot, w_phase = next_slot(w_slot, w_phase, W_STAGES)
            slot, phase = next_slot(slot, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(x_empty.index(slot_before(slot, STAGES)))
        if HALO > 1:
            mbarrier.arrive(w_empty.index(slot_before(w_slot, W_STAGES)))

        if p_bias is not None:
            o_k = k + gl.arange(0, BK, gl.SliceLayout(1 if FILTERS_LEFT else 0, layout))
            b_bias = gl.load(p_bias + o_k, mask=o_k < K, other=0.0).to(gl.float32)
            if FILTERS_LEFT:
                acc += b_bias[:, None]
            else:
                acc += b_bias[None, :]
        if residual is not None:
            mbarrier.wait(came.index(ME), round)
            round ^= 1
            acc += result.load(layout).to(gl.float32)
        b_y = activate(acc, ACTIVATION, SLOPE).to(y.dtype)
        tma.store_wait(0)  # the result before has left
        result.store(b_y)
        fence_async_shared()
        tma.async_copy_shared_to_global(y, [h, n, d, w, k], mine)
    tma.store_wait(0)


@kernel
def hopper_conv(
    p_x, p_w, p_bias, p_residual, p_y,  # descriptors, but for the bias
    C, columns, K,  # channels of a group that are summed, of a group's results, of all results
    x_w,  # stride of the image's pixels, in elements
    tiles, windows, windows_d, windows_h, windows_w, column_blocks,
    taps_d, taps_h, taps_w,
    start_d, start_h, start_w, step_d, step_h, step_w, up_h, up_w,  # where taps fall, counted from the window's pixel
    TN: gl.constexpr, TD: gl.constexpr, TH: gl.constexpr, TW: gl.constexpr, BK: gl.constexpr, BC: gl.constexpr,
    WORKERS: gl.constexpr, STAGES: gl.constexpr, BAND: gl.constexpr, FOLD_H: gl.constexpr, FOLD_W: gl.constexpr,
    WEIGHTS: gl.constexpr,  # how they lie: "plain", "transposed" (filters are summed over), or "turned" before
    FILTERS_LEFT: gl.constexpr,  # which operand is on the left: whose 64 rows an instruction multiplies
    HALO: gl.constexpr,  # taps below each other that are slices of one slot of rows, if that is more than 1
    APART: gl.constexpr,  # rows from one of them to the next
    W_STAGES: gl.constexpr,
    ACTIVATION: gl.constexpr, SLOPE: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = WORKERS + (HALO - 1) * (APART if APART > 0 else -APART)
    xs = ring(p_x, STAGES * ROWS)
    ws = ring(p_w, W_STAGES)
    ys = ring(p_y, WORKERS)
    x_full, x_empty = barriers(STAGES), barriers(STAGES, WORKERS)
    w_full, w_empty, came = x_full, x_empty, x_full  # those that are not used must not be made: another would lie there
    if HALO > 1:
        w_full, w_empty = barriers(W_STAGES), barriers(W_STAGES, WORKERS)
    if p_residual is not None:
        came = barriers(WORKERS)
    count = (tiles, windows, windows_d, windows_h, windows_w, column_blocks)
    taps = (taps_d, taps_h // HALO, taps_w)
    start = (start_d, start_h, start_w)
    step = (step_d, step_h, step_w)
    up = (up_h, up_w)
    steps = taps_d * (taps_h // HALO) * taps_w * gl.cdiv(C, BC)
    if WORKERS == 2:
        gl.warp_specialize([
            (multiply, (p_bias, p_residual, p_y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps,
                        columns, K, 0, TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, WEIGHTS, FILTERS_LEFT,
                        HALO, APART, ACTIVATION, SLOPE)),
            (multiply, (p_bias, p_residual, p_y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps,
                        columns, K, 1, TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, WEIGHTS, FILTERS_LEFT,
                        HALO, APART, ACTIVATION, SLOPE)),
            (fetch, (p_x, p_w, xs, ws, x_full, x_empty, w_full, w_empty, count, taps, start, step, up, C, columns, x_w,
                     TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, FOLD_H, FOLD_W, WEIGHTS, HALO, APART)),
        ], [4, 1], [232, 40])  # fmt: skip
    else:
        gl.warp_specialize([
            (multiply, (p_bias, p_residual, p_y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps,
                        columns, K, 0, TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, WEIGHTS, FILTERS_LEFT,
                        HALO, APART, ACTIVATION, SLOPE)),
            (multiply, (p_bias, p_residual, p_y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps,
                        columns, K, 1, TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, WEIGHTS, FILTERS_LEFT,
                        HALO, APART, ACTIVATION, SLOPE)),
            (multiply, (p_bias, p_residual, p_y, ys, xs, ws, x_full, x_empty, w_full, w_empty, came, count, steps,
                        columns, K, 2, TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, WEIGHTS, FILTERS_LEFT,
                        HALO, APART, ACTIVATION, SLOPE)),
            (fetch, (p_x, p_w, xs, ws, x_full, x_empty, w_full, w_empty, count, taps, start, step, up, C, columns, x_w,
                     TN, TD, TH, TW, BK, BC, WORKERS, STAGES, W_STAGES, BAND, FOLD_H, FOLD_W, WEIGHTS, HALO, APART)),
        ], [4, 4, 1], [152, 152, 40])  # fmt: skip
