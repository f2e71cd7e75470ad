"""A warp-specialised matrix product in Gluon for Hopper: C = A·Bᵀ for A [M, K], B [N, K].

Persistent: program p takes the tiles p, p + programs, …. One warp fetches (TMA), the others multiply (wgmma) and store
(TMA); a ring of STAGES slots lies between them.

    full[slot]   the slot's operands have come: the copies count their bytes on it
    empty[slot]  the slot may be filled again: the product that read it is done
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


@gluon.jit
def _fetch(a, b, tiles_a, tiles_b, full, empty, columns, tiles, K, STAGES: gl.constexpr):
    BM: gl.constexpr = a.block_type.shape[0]
    BK: gl.constexpr = a.block_type.shape[1]
    BN: gl.constexpr = b.block_type.shape[0]
    i = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        m, n = tile // columns * BM, tile % columns * BN
        for k in range(0, K, BK):
            slot = i % STAGES
            mbarrier.wait(empty.index(slot), (i // STAGES & 1) ^ 1)  # the first round waits for nothing
            mbarrier.expect(full.index(slot), a.block_type.nbytes + b.block_type.nbytes)
            tma.async_copy_global_to_shared(a, [m, k], full.index(slot), tiles_a.index(slot))
            tma.async_copy_global_to_shared(b, [n, k], full.index(slot), tiles_b.index(slot))
            i += 1


@gluon.jit
def _multiply(c, tile_c, tiles_a, tiles_b, full, empty, columns, tiles, K, BK: gl.constexpr, STAGES: gl.constexpr):
    BM: gl.constexpr = c.block_type.shape[0]
    BN: gl.constexpr = c.block_type.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BN, 16])
    i = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        acc = gl.zeros((BM, BN), gl.float32, layout)
        for _ in range(0, K, BK):
            slot = i % STAGES
            mbarrier.wait(full.index(slot), i // STAGES & 1)
            product = warpgroup_mma(tiles_a.index(slot), tiles_b.index(slot).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(product,))
            if i > 0:  # the product before this one is done
                mbarrier.arrive(empty.index((i - 1) % STAGES))
            i += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        tma.store_wait(0)
        tile_c.store(acc.to(c.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(c, [tile // columns * BM, tile % columns * BN], tile_c)
    tma.store_wait(0)


@gluon.jit
def matmul_kernel(a, b, c, M, N, K, STAGES: gl.constexpr):
    BM: gl.constexpr = c.block_type.shape[0]
    BN: gl.constexpr = c.block_type.shape[1]
    BK: gl.constexpr = a.block_type.shape[1]
    tiles_a = gl.allocate_shared_memory(a.dtype, [STAGES, BM, BK], a.layout)
    tiles_b = gl.allocate_shared_memory(b.dtype, [STAGES, BN, BK], b.layout)
    tile_c = gl.allocate_shared_memory(c.dtype, [BM, BN], c.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    columns = gl.cdiv(N, BN)
    tiles = gl.cdiv(M, BM) * columns
    gl.warp_specialize(
        [
            (_multiply, (c, tile_c, tiles_a, tiles_b, full, empty, columns, tiles, K, BK, STAGES)),
            (_fetch, (a, b, tiles_a, tiles_b, full, empty, columns, tiles, K, STAGES)),
        ],
        [1],
        [24],
    )


def matmul(a: torch.Tensor, b: torch.Tensor, programs: int = 2, stages: int = 3) -> torch.Tensor:
    """A·Bᵀ; the strides of A, B and C must be multiples of 16 bytes."""
    (M, K), N, (BM, BN, BK) = a.shape, b.shape[0], (64, 32, 64)
    c = torch.empty(M, N, dtype=a.dtype)
    element = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[a.dtype]
    given = [
        TensorDescriptor.from_tensor(t, box, gl.NVMMASharedLayout.get_default_for(box, element))
        for t, box in ((a, [BM, BK]), (b, [BN, BK]), (c, [BM, BN]))
    ]
    matmul_kernel[(min(programs, triton.cdiv(M, BM) * triton.cdiv(N, BN)),)](
        *given, M, N, K, STAGES=stages, num_warps=4
    )
    return c
