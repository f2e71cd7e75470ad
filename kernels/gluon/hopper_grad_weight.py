"""Gradient of the weight on Hopper, where one warp fetches and the others multiply, and of the bias in the same pass:

    gw[k, r, c] = Σ_pixels gy[pixel, k] · x[pixel · u + r · d − pad, c]        gb[k] = Σ_pixels gy[pixel, k] · 1

A product gyᵀ · x for each tap, summed over windows of TN × TH × TW pixels (of three axes, images and planes apart, one
plane high). Both operands lie in shared memory as the copy engine writes them, a row of channels for each pixel; wgmma
reads either with its pixels along the sum, so nothing passes through registers. The bias is one product more, with
ones: gy is not read again.

Windows of one row (TH = 1) follow each other down a strip of the images, and a window of x serves TAPS taps in turn:

    item     0    1    2    3    4   …   the first TAPS − 1 of a strip bring x alone
    x row    0    1    2    3    4   …   down to the strip's last, and TAPS − 1 beyond
    gy row             0    1    2   …   with x rows 0 1 2, then 1 2 3, …: each fetched once, for all TAPS

    program  →  a tile of BK filters × BC channels, then a column s, TAPS rows r and a plane of taps, group, split
    masks    →  at the store: filters, channels, and taps beyond the last; the copy engine reads zeros outside an image

    warps            for each item
    0 … 7 (or 3)     multiply: wait until it is full, TAPS products, wait for those of the item before, hand back x
                     row and gy row of TAPS items ago, which no product reads any more
    one more         fetch: wait until the item's slot is empty, start both copies; runs ahead by the ring's STAGES

Between them lies a ring of STAGES slots with two barriers each. `full` counts the bytes of its copies; `empty` one
arrival, from which on the slot may be written. Both sides count phases: a slot's n-th filling waits for phase n − 1 of
`empty` (the wait for phase −1 passes at once) and completes phase n of `full`. Item i hands back item i − TAPS: so the
fetching warp gets ahead by STAGES − TAPS items, and no wait is for ever if STAGES > TAPS.

Why nothing is read too early or written too soon: a product reads a slot after `full` of its item, on which both copies
count. When an item hands back a slot, the wait before that has left under way but the item's own products, which read
its slot and the TAPS − 1 before; at the end of a strip, none. A test takes away each wait, arrival and fence in turn,
and finds it missed.

    gpuconv inspect --layer resnet50.conv3_3x3 --batch 4 --direction grad_weight --gpu h100 --dtype bfloat16 --run

counts on the virtual GPU what this moves and executes: sectors of global memory the least, no pass over shared memory
in the loop.

A window that reaches beyond gy reads zeros there, and multiplies them with what x has: where that is not finite, the
sum of the window's tap becomes NaN even if no output pixel meets it.
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

from .common import barriers, kernel, next_slot, ring


@gluon.jit
def fetch(
    gy, x, k, c, blocks, up, buffers, walk,
    TAPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    TN: gl.constexpr = gy.block_type.shape[0]
    TH: gl.constexpr = gy.block_type.shape[2]
    TW: gl.constexpr = gy.block_type.shape[3]
    b_gy, b_x, full, empty = buffers
    begin, end, rows = walk
    columns, planes = blocks
    up_d, up_h, up_w = up
    slot, phase = gl.to_tensor(0), gl.to_tensor(1)
    window = begin
    while window < end:
        row, strip = window % rows, window // rows
        last = gl.minimum(rows, row + end - window)
        n, d, q = strip // columns // planes * TN, strip // columns % planes, strip % columns * TW
        x_d, x_w = d + up_d, q + up_w
        for lead in gl.static_range(TAPS - 1):
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(full.index(slot), x.block_type.nbytes)
            tma.async_copy_global_to_shared(x, [n, x_d, row + up_h + lead, x_w, c], full.index(slot), b_x.index(slot))
            slot, phase = next_slot(slot, phase, STAGES)
        for at in range(row, last):
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(full.index(slot), gy.block_type.nbytes + x.block_type.nbytes)
            x_h = at * TH + up_h + TAPS - 1
            tma.async_copy_global_to_shared(gy, [n, d, at * TH, q, k], full.index(slot), b_gy.index(slot))
            tma.async_copy_global_to_shared(x, [n, x_d, x_h, x_w, c], full.index(slot), b_x.index(slot))
            slot, phase = next_slot(slot, phase, STAGES)
        window += last - row


@gluon.jit
def waited(products, UNDER_WAY: gl.constexpr):
    """The sums, when but so many products are under way."""
    if len(products) == 1:
        sums = (warpgroup_mma_wait(UNDER_WAY, deps=products),)
    else:
        sums = warpgroup_mma_wait(UNDER_WAY, deps=products)
    return sums


@gluon.jit
def multiply(
    p_gw, p_gb, result, buffers, walk,
    TAPS: gl.constexpr, STAGES: gl.constexpr, ACROSS: gl.constexpr, SPLIT: gl.constexpr,
    GW_VECTOR: gl.constexpr,
):  # fmt: skip
    b_gy, b_x, full, empty = buffers
    begin, end, rows = walk
    gw_at, gw_strides, of_bias, left = result
    filters, channels, taps = left
    is_here, gb_at = of_bias
    PIXELS: gl.constexpr = b_gy.shape[1] * b_gy.shape[2] * b_gy.shape[3] * b_gy.shape[4]
    BK: gl.constexpr = b_gy.shape[5]
    BC: gl.constexpr = b_x.shape[5]
    WARPS: gl.constexpr = [gl.num_warps() // ACROSS, ACROSS]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], WARPS, [16, BC // ACROSS, 16])
    sums = ()
    for t in gl.static_range(TAPS):  # noqa: B007
        sums += (gl.zeros((BK, BC), gl.float32, LAYOUT),)  # type: ignore[assignment]  # tuples grow
    if p_gb is not None:
        OF_BIAS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], WARPS, [16, 8, 16])
        sums += (gl.zeros((BK, 8 * ACROSS), gl.float32, OF_BIAS),)  # type: ignore[assignment]  # tuples grow
        OF_ONES: gl.constexpr = gl.NVMMASharedLayout.get_default_for([8 * ACROSS, PIXELS], b_gy.dtype)
        b_ones = gl.allocate_shared_memory(b_gy.dtype, [8 * ACROSS, PIXELS], OF_ONES)
        SPREAD: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [gl.num_warps(), 1], [1, 0])
        b_ones.store(gl.full([8 * ACROSS, PIXELS], 1.0, b_gy.dtype, SPREAD))
        fence_async_shared()
    slot, phase, item = gl.to_tensor(0), gl.to_tensor(0), gl.to_tensor(0)
    before = ()  # the slots of the TAPS items before
    for t in gl.static_range(TAPS):
        before += (slot + STAGES - TAPS + t,)  # type: ignore[assignment]  # tuples grow
    window = begin
    while window < end:
        row = window % rows
        last = gl.minimum(rows, row + end - window)
        for lead in gl.static_range(TAPS - 1):  # noqa: B007  # `_` is a run-time number below
            mbarrier.wait(full.index(slot), phase)
            mbarrier.arrive(empty.index(before[0]), pred=item >= TAPS)  # type: ignore[misc]  # it has grown
            before = before[1:] + (slot,)  # type: ignore[assignment]  # tuples grow  # noqa: RUF005
            slot, phase = next_slot(slot, phase, STAGES)
            item += 1
        for _ in range(row, last):
            mbarrier.wait(full.index(slot), phase)
            of_taps = before[1:] + (slot,)  # noqa: RUF005
            a = b_gy.index(slot).reshape((PIXELS, BK)).permute((1, 0))
            products = ()
            for t in gl.static_range(TAPS):
                b = b_x.index(of_taps[t]).reshape((PIXELS, BC))
                products += (warpgroup_mma(a, b, sums[t], is_async=True),)  # type: ignore[assignment]  # tuples grow
            if p_gb is not None:
                b = b_ones.permute((1, 0))
                products += (warpgroup_mma(a, b, sums[TAPS], is_async=True),)  # type: ignore[assignment]  # tuples grow
            sums = waited(products, len(products))
            mbarrier.arrive(empty.index(before[0]), pred=item >= TAPS)  # type: ignore[misc]  # it has grown
            before = of_taps  # type: ignore[assignment]  # tuples grow
            slot, phase = next_slot(slot, phase, STAGES)
            item += 1
        sums = waited(sums, 0)  # the next strip's first items hand back what this one's last products read
        window += last - row
    o_k = gl.arange(0, BK, gl.SliceLayout(1, LAYOUT))
    o_c = gl.arange(0, BC, gl.SliceLayout(0, LAYOUT))
    if SPLIT:  # as registers lie, in blocks of 16 filters × 8 channels
        TILE: gl.constexpr = BK * BC
        p = p_gw + gl.program_id(0).to(gl.int64) * (TAPS * TILE)
        p += (o_k // 16 * (16 * BC) + o_k % 16 * 8)[:, None] + (o_c // 8 * 128 + o_c % 8)[None, :]
        for t in gl.static_range(TAPS):
            gl.store(p + t * TILE, sums[t])
    else:
        gw_k, gw_c, gw_tap = gw_strides
        m = (o_k < filters)[:, None] & (o_c < channels * 8)[None, :]
        if GW_VECTOR == 0:
            o_c *= gw_c
        UNIT: gl.constexpr = max(GW_VECTOR, 1)
        p = p_gw + gw_at + (o_k * gw_k * UNIT)[:, None] + o_c[None, :]
        for t in gl.static_range(TAPS):
            gl.store(p + t * gw_tap * UNIT, sums[t].to(p_gw.dtype.element_ty), m & (t < taps))
    if p_gb is not None:  # in all columns alike
        o_k = gl.arange(0, BK, gl.SliceLayout(1, OF_BIAS))[:, None]
        o_column = gl.arange(0, 8 * ACROSS, gl.SliceLayout(0, OF_BIAS))[None, :]
        m = (o_k < filters) & (o_column == 0) & is_here
        gl.store(p_gb + gb_at + o_k + o_column, sums[TAPS].to(p_gb.dtype.element_ty), m)


@gluon.jit
def apart(shift, pad, stride):
    """How many strides a shift of at least −pad is, rounded down, and what remains."""
    lift = gl.cdiv(pad, stride) * stride
    return (shift + lift) // stride - lift // stride, (shift + lift) % stride


@kernel
def hopper_grad_weight(
    p_gy, p_x,  # descriptors
    p_gw, p_gb,  # the results, or where sums are split, what `sum_tiles` adds; gb may be None
    group_channels, group_filters,  # channels in units of 8
    G,
    stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
    fold_d, fold_h, fold_w,  # how far pixels of x that differ by less than the stride are apart in a descriptor's row
    gw_k, gw_c, gw_tap,  # of a result, in units of GW_VECTOR channels that lie together; 0: in elements
    windows, rows, columns, planes, splits,
    TAPS: gl.constexpr, STAGES: gl.constexpr, ACROSS: gl.constexpr, SPLIT: gl.constexpr, STRIDED: gl.constexpr,
    GW_VECTOR: gl.constexpr,
    T: gl.constexpr, R: gl.constexpr, S: gl.constexpr,  # constants: what divides is a chain of a hundred instructions
):  # fmt: skip
    BK: gl.constexpr = p_gy.block_type.shape[4]
    BC: gl.constexpr = p_x.block_type.shape[4]
    b_gy = ring(p_gy, STAGES)  # [slot, TN, 1, TH, TW, BK]
    b_x = ring(p_x, STAGES)  # [slot, TN, 1, TH, TW, BC]
    full = barriers(STAGES)
    empty = barriers(STAGES)

    # ---- which tile, taps, group, split; tiles vary fastest, then taps: they share gy and x in the L2 cache
    column_blocks = gl.cdiv(group_channels, BC // 8)
    tiles, runs = gl.cdiv(group_filters, BK) * column_blocks, gl.cdiv(R, TAPS)
    program = gl.program_id(0)
    k, c = program % tiles // column_blocks * BK, program % tiles % column_blocks * BC
    run = program // tiles
    s, r, t = run % S, run // S % runs * TAPS, run // S // runs % T
    group = run // S // runs // T % G
    split = run // S // runs // T // G
    each, more = windows // splits, windows % splits  # the first splits have one window more
    begin = split * each + gl.minimum(split, more)
    end = begin + each + (split < more).to(gl.int32)

    # ---- where the first tap finds the first pixel: `up` strides on, pixel `at` of those that the stride joins
    up_d, up_h, up_w = t * dilation_d - pad_d, r * dilation_h - pad_h, s * dilation_w - pad_w
    x_c = group * group_channels * 8 + c
    if STRIDED:
        up_d, at_d = apart(up_d, pad_d, stride_d)
        up_h, at_h = apart(up_h, pad_h, stride_h)
        up_w, at_w = apart(up_w, pad_w, stride_w)
        x_c += at_d * fold_d + at_h * fold_h + at_w * fold_w

    gy_k = group * group_filters + k
    UNIT: gl.constexpr = max(GW_VECTOR, 1)
    gw_at = gy_k * gw_k * UNIT + ((t * R + r) * S + s) * gw_tap * UNIT
    gw_at += c if GW_VECTOR > 0 else c * gw_c
    of_bias = (run % (S * runs * T) == 0) & (c == 0), split.to(gl.int64) * (G * group_filters) + gy_k
    left = (group_filters - k, group_channels - c // 8, R - r)
    walk = (begin, end, rows)
    buffers = (b_gy, b_x, full, empty)
    blocks, up, strides = (columns, planes), (up_d, up_h, up_w), (gw_k, gw_c, S * gw_tap)
    result = (gw_at, strides, of_bias, left)
    gl.warp_specialize(
        [
            (multiply, (p_gw, p_gb, result, buffers, walk, TAPS, STAGES, ACROSS, SPLIT, GW_VECTOR)),
            (fetch, (p_gy, p_x, gy_k, x_c, blocks, up, buffers, walk, TAPS, STAGES)),
        ],
        [1],
        [24],
    )
