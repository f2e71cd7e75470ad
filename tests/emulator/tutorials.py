"""Triton's well-known tutorial kernels, written anew, and what launches them: each takes and returns CPU tensors."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# ---- elementwise and row kernels ----


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m = o < n
    tl.store(out + o, tl.load(x + o, m) + tl.load(y + o, m), m)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    add_kernel[lambda given: (triton.cdiv(given["n"], given["BLOCK"]),)](x, y, out, x.numel(), BLOCK=256)
    return out


@triton.jit
def softmax_kernel(x, out, rows, columns, stride, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Every program takes each num_programs-th row."""
    o = tl.arange(0, BLOCK)  # [BLOCK]
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        v = tl.load(x + row * stride + o, o < columns, other=-float("inf"))
        e = tl.exp(v - tl.max(v, 0))
        tl.store(out + row * columns + o, e / tl.sum(e, 0), o < columns)


def softmax(x: torch.Tensor, programs: int = 5) -> torch.Tensor:
    rows, columns = x.shape
    out = torch.empty(rows, columns, dtype=x.dtype)
    block = triton.next_power_of_2(columns)
    softmax_kernel[(programs,)](x, out, rows, columns, x.stride(0), BLOCK=block, STAGES=2, num_warps=2)
    return out


# ---- matrix products: C = A·B ----


@triton.jit
def _grouped(tile, rows, columns, GROUP: tl.constexpr):
    """The tile's row and column in an order that keeps GROUP rows of tiles together."""
    in_group = GROUP * columns
    first = tile // in_group * GROUP
    size = min(rows - first, GROUP)
    return first + tile % in_group % size, tile % in_group // size


@triton.jit
def matmul_kernel(
    a, b, c, M, N, K, a_m, a_k, b_k, b_n, c_m, c_n,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    i, j = _grouped(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    o_m, o_n, o_k = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN), tl.arange(0, BK)
    p_a = a + (o_m % M)[:, None] * a_m + o_k[None, :] * a_k  # [BM, BK]
    p_b = b + o_k[:, None] * b_k + (o_n % N)[None, :] * b_n  # [BK, BN]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        b_a = tl.load(p_a, o_k[None, :] < K - k * BK, other=0.0)
        b_b = tl.load(p_b, o_k[:, None] < K - k * BK, other=0.0)
        acc = tl.dot(b_a, b_b, acc)
        p_a += BK * a_k
        p_b += BK * b_k
    p_c = c + o_m[:, None] * c_m + o_n[None, :] * c_n
    tl.store(p_c, acc.to(c.dtype.element_ty), (o_m[:, None] < M) & (o_n[None, :] < N))


def matmul(a: torch.Tensor, b: torch.Tensor, stages: int = 3, warps: int = 4) -> torch.Tensor:
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty(M, N, dtype=a.dtype)
    matmul_kernel[lambda given: (triton.cdiv(M, given["BM"]) * triton.cdiv(N, given["BN"]),)](
        a, b, c, M, N, K, *a.stride(), *b.stride(), *c.stride(),
        BM=64, BN=32, BK=32, GROUP=2, num_stages=stages, num_warps=warps,
    )  # fmt: skip
    return c


@triton.jit
def matmul_host_descriptors_kernel(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(a.load([m, k]), b.load([n, k]).T, acc)
    c.store([m, n], acc.to(c.dtype))


def matmul_host_descriptors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A·Bᵀ for A [M, K] and B [N, K]."""
    (M, K), N, (BM, BN, BK) = a.shape, b.shape[0], (64, 32, 64)
    c = torch.empty(M, N, dtype=a.dtype)
    matmul_host_descriptors_kernel[(triton.cdiv(M, BM), triton.cdiv(N, BN))](
        TensorDescriptor.from_tensor(a, [BM, BK]), TensorDescriptor.from_tensor(b, [BN, BK]),
        TensorDescriptor.from_tensor(c, [BM, BN]), K, BM=BM, BN=BN, BK=BK, num_stages=3,
    )  # fmt: skip
    return c


@triton.jit
def matmul_device_descriptors_kernel(
    a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """Persistent: every program takes each num_programs-th tile."""
    d_a = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BM, BK])
    d_b = tl.make_tensor_descriptor(b, [N, K], [K, 1], [BN, BK])
    d_c = tl.make_tensor_descriptor(c, [M, N], [N, 1], [BM, BN])
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=False):
        i, j = _grouped(tile, rows, columns, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            acc = tl.dot(d_a.load([i * BM, k]), d_b.load([j * BN, k]).T, acc)
        d_c.store([i * BM, j * BN], acc.to(c.dtype.element_ty))


def matmul_device_descriptors(a: torch.Tensor, b: torch.Tensor, programs: int = 2) -> torch.Tensor:
    """A·Bᵀ for A [M, K] and B [N, K], by as many persistent programs."""
    (M, K), N = a.shape, b.shape[0]
    c = torch.empty(M, N, dtype=a.dtype)
    matmul_device_descriptors_kernel[(programs,)](a, b, c, M, N, K, BM=64, BN=32, BK=64, GROUP=2, num_stages=3)
    return c


@triton.jit
def persistent_matmul_kernel(
    a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """A matrix product by pointers into contiguous A [M, K], B [K, N], C [M, N]; its loops over tiles and k are one."""
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        i, j = _grouped(tile, rows, columns, GROUP)
        o_m, o_n = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, tl.cdiv(K, BK)):
            o_k = k * BK + tl.arange(0, BK)
            b_a = tl.load(a + o_m[:, None] * K + o_k, (o_m[:, None] < M) & (o_k < K), other=0.0)
            b_b = tl.load(b + o_k[:, None] * N + o_n, (o_k[:, None] < K) & (o_n < N), other=0.0)
            acc = tl.dot(b_a, b_b, acc)
        tl.store(c + o_m[:, None] * N + o_n, acc.to(c.dtype.element_ty), (o_m[:, None] < M) & (o_n < N))


def persistent_matmul(a: torch.Tensor, b: torch.Tensor, programs: int = 3) -> torch.Tensor:
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty(M, N, dtype=a.dtype)
    persistent_matmul_kernel[(programs,)](a, b, c, M, N, K, BM=32, BN=32, BK=32, GROUP=2, num_stages=3)
    return c


# ---- layer norm over rows of [M, N]: y = (x − mean)·rstd·w + b ----


@triton.jit
def layer_norm_kernel(x, y, w, b, mean, rstd, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        o = first + tl.arange(0, BLOCK)
        total += tl.load(x + row * N + o, o < N, other=0.0).to(tl.float32)
    mu = tl.sum(total, 0) / N
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        o = first + tl.arange(0, BLOCK)
        d = tl.where(o < N, tl.load(x + row * N + o, o < N, other=0.0).to(tl.float32) - mu, 0.0)
        total += d * d
    r = 1 / tl.sqrt(tl.sum(total, 0) / N + eps)
    tl.store(mean + row, mu)
    tl.store(rstd + row, r)
    for first in range(0, N, BLOCK):
        o = first + tl.arange(0, BLOCK)
        m = o < N
        hat = (tl.load(x + row * N + o, m).to(tl.float32) - mu) * r
        tl.store(y + row * N + o, (hat * tl.load(w + o, m) + tl.load(b + o, m)).to(y.dtype.element_ty), m)


@triton.jit
def layer_norm_gx_kernel(gx, gy, gw, gb, x, w, mean, rstd, locks, N, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """grad_x of one row; its share of grad_w and grad_b is added to its group's row of gw and gb, under a lock.

    locks holds GROUPS locks, then GROUPS flags: whether the group's row holds anything yet.
    """
    row = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < N
    hat = (tl.load(x + row * N + o, m, other=0.0).to(tl.float32) - tl.load(mean + row)) * tl.load(rstd + row)
    g = tl.load(gy + row * N + o, m, other=0.0).to(tl.float32)
    wg = tl.load(w + o, m, other=0.0).to(tl.float32) * g
    hat = tl.where(m, hat, 0.0)
    wg = tl.where(m, wg, 0.0)
    mean_1, mean_2 = tl.sum(hat * wg, 0) / N, tl.sum(wg, 0) / N
    gradient = (wg - (hat * mean_1 + mean_2)) * tl.load(rstd + row)
    tl.store(gx + row * N + o, gradient.to(gx.dtype.element_ty), m)
    group = (row % GROUPS).to(tl.int32)
    p_w, p_b, lock = gw + group * N + o, gb + group * N + o, locks + group
    part_w, part_b = g * hat, g
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    first = tl.load(lock + GROUPS) == 0
    tl.debug_barrier()  # every warp has read it
    if first:
        tl.atomic_xchg(lock + GROUPS, 1)
    else:
        part_w += tl.load(p_w, m)
        part_b += tl.load(p_b, m)
    tl.store(p_w, part_w, m)
    tl.store(p_b, part_b, m)
    tl.debug_barrier()  # all the block's stores before the lock is free
    tl.atomic_xchg(lock, 0)


@triton.jit
def layer_norm_gw_kernel(parts_w, parts_b, gw, gb, groups, N, BM: tl.constexpr, BN: tl.constexpr):
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    sum_w, sum_b = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for first in range(0, groups, BM):
        rows = first + tl.arange(0, BM)
        m = (rows[:, None] < groups) & (columns[None, :] < N)
        sum_w += tl.load(parts_w + rows[:, None] * N + columns[None, :], m, other=0.0)
        sum_b += tl.load(parts_b + rows[:, None] * N + columns[None, :], m, other=0.0)
    tl.store(gw + columns, tl.sum(sum_w, 0), columns < N)
    tl.store(gb + columns, tl.sum(sum_b, 0), columns < N)


def layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, eps: float = 1e-5) -> tuple[torch.Tensor, ...]:
    """y, and the mean and the reciprocal deviation of every row."""
    M, N = x.shape
    y, mean, rstd = torch.empty_like(x), torch.empty(M), torch.empty(M)
    layer_norm_kernel[(M,)](x, y, w, b, mean, rstd, N, eps, BLOCK=128)
    return y, mean, rstd


def layer_norm_backward(
    gy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, groups: int = 3
) -> tuple[torch.Tensor, ...]:
    M, N = x.shape
    gx, parts_w, parts_b = torch.empty_like(x), torch.empty(groups, N), torch.empty(groups, N)
    locks, gw, gb = torch.zeros(2 * groups, dtype=torch.int32), torch.empty(N), torch.empty(N)
    layer_norm_gx_kernel[(M,)](
        gx, gy, parts_w, parts_b, x, w, mean, rstd, locks, N, GROUPS=groups, BLOCK=triton.next_power_of_2(N)
    )
    layer_norm_gw_kernel[(triton.cdiv(N, 32),)](parts_w, parts_b, gw, gb, groups, N, BM=4, BN=32)
    return gx, gw, gb


# ---- scans, sorting, arg-reductions ----


@triton.jit
def _linear(a1, b1, a2, b2):
    """h → a·h + b, the first then the second."""
    return a1 * a2, b1 * a2 + b2


@triton.jit
def scan_kernel(a, b, h, sums, N, BLOCK: tl.constexpr):
    """A row's linear recurrence h[t] = a[t]·h[t−1] + b[t], and the running sums of b."""
    o = tl.program_id(0) * N + tl.arange(0, BLOCK)
    m = tl.arange(0, BLOCK) < N
    b_a, b_b = tl.load(a + o, m, other=1.0), tl.load(b + o, m, other=0.0)
    tl.store(h + o, tl.associative_scan((b_a, b_b), 0, _linear)[1], m)
    tl.store(sums + o, tl.cumsum(b_b, 0), m)


def scan(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h, sums, (rows, N) = torch.empty_like(a), torch.empty_like(a), a.shape
    scan_kernel[(rows,)](a, b, h, sums, N, BLOCK=triton.next_power_of_2(N))
    return h, sums


@triton.jit
def sort_kernel(x, out, at, N, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    m = o < N
    row = tl.program_id(0)
    v = tl.load(x + row * N + o, m, other=float("inf"))
    tl.store(out + row * N + o, tl.sort(v), m)
    tl.store(at + row, tl.argmin(v, 0))


def sort(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of x, ascending, and where the least of each row is."""
    out, at = torch.empty_like(x), torch.empty(len(x), dtype=torch.int32)
    sort_kernel[(len(x),)](x, out, at, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
    return out, at


# ---- atomics ----


@triton.jit
def histogram_kernel(x, counts, sums, most, n, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Counts of each of BINS values in x; sums of x by its value, and the largest x (also of the block's)."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    v = tl.load(x + o, m, other=0)
    tl.atomic_add(counts + tl.arange(0, BINS), tl.histogram(v, BINS, mask=m))
    tl.atomic_add(sums + v, v.to(tl.float32), m)
    tl.atomic_max(most, tl.max(v, 0))


def histogram(x: torch.Tensor, bins: int) -> tuple[torch.Tensor, ...]:
    counts, sums, most = torch.zeros(bins, dtype=torch.int32), torch.zeros(bins), torch.zeros(1, dtype=torch.int32)
    histogram_kernel[(triton.cdiv(x.numel(), 128),)](x, counts, sums, most, x.numel(), BINS=bins, BLOCK=128)
    return counts, sums, most


@triton.jit
def atomics_kernel(x, integers, longs, floats, halves, doubles, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    v = tl.load(x + o, m, other=0)
    tl.atomic_add(integers + 0, tl.sum(v, 0))
    tl.atomic_max(integers + 1 + 0 * o, v, m)
    tl.atomic_min(integers + 2 + 0 * o, v, m)
    tl.atomic_and(integers + 3 + 0 * o, v, m)
    tl.atomic_or(integers + 4 + 0 * o, v, m)
    tl.atomic_xor(integers + 5 + 0 * o, v, m)
    tl.atomic_add(longs + 0 * o, v.to(tl.int64), m)
    tl.atomic_max(longs + 1 + 0 * o, v.to(tl.int64), m)
    f = v.to(tl.float32)
    tl.atomic_max(floats + 0 * o, f, m)
    tl.atomic_min(floats + 1 + 0 * o, f, m)
    tl.atomic_add(floats + 2 + 0 * o, f, m, sem="relaxed")
    tl.atomic_add(halves + o % 8, (v % 3).to(tl.float16), m)
    tl.atomic_add(doubles + 0 * o, v.to(tl.float64), m, sem="release")
    old = tl.atomic_xchg(integers + 8 + o, v, m, sem="acquire")
    tl.store(integers + 8 + n + o, old, m)


def atomics(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Add, max, min, and, or, xor, …, exchange: 6 cells, 2 unused, then x and what was there before it."""
    n = x.numel()
    integers = torch.tensor([0, -(2**31), 2**31 - 1, -1, 0, 0, 0, 0] + [7] * n + [0] * n, dtype=torch.int32)
    longs = torch.tensor([0, -(2**63)])
    floats = torch.tensor([-float("inf"), float("inf"), 0.0])
    halves, doubles = torch.zeros(8, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    atomics_kernel[(triton.cdiv(n, 64),)](x, integers, longs, floats, halves, doubles, n, BLOCK=64, num_warps=2)
    return integers, longs, floats, halves, doubles


@triton.jit
def cas_kernel(cell, out, n):
    """Every program counts up with a compare-and-swap of its own and keeps the number that it got."""
    old = tl.load(cell)
    seen = tl.atomic_cas(cell, old, old + 1)
    while seen != old:
        old = seen
        seen = tl.atomic_cas(cell, old, old + 1)
    tl.store(out + old.to(tl.int32), tl.program_id(0))


@triton.jit
def dropout_kernel(x, out, n, p, seed, BLOCK: tl.constexpr):
    """Philox decides what is kept."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = tl.rand(seed, o) > p
    tl.store(out + o, tl.where(keep, tl.load(x + o, o < n) / (1 - p), 0.0), o < n)
