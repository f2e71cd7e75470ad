"""Step 2, implicit GEMM: the convolution as a matrix product, whose left matrix is gathered and never stored.

    y[m, k] = Σ_j X[m, j] · W[j, k]        m = (n·P + p)·Q + q counts pixels, j = (c·R + r)·S + s counts terms
    X[m, j] = x[n, p + r − 1, q + s − 1, c]        W[j, k] = w[k, r, s, c]

A program owns 64 pixels × 64 filters. In a step it gathers 64 terms for all of them, and multiplies on tensor cores:

                         j  0 … 63   64 … 127   …   512 … 575
                            ┌───────┬───────┬───────┬───────┐
                            │       │       │       │       │  k 0 … 63
                            └───────┴───────┴───────┴───────┘
    m    0 …  63 program 0  ┌───────┬───────┬───────┬───────┐  ┌───────────┐
                            │step 0 │step 1 │   …   │step 8 │  │ y, 64 × 64│
        64 … 127 program 1  ├───────┼───────┼───────┼───────┤  ├───────────┤
                            │       │       │       │       │  │           │

A number that is fetched now serves 64 outputs, not one. But the order of j is the textbook's (im2col), taps fastest:

    j        0    1    2    …  8    9    10   …       neighbours are in other pixels, so in other sectors:
    c, tap   0,0  0,1  0,2  …  0,8  1,0  1,1  …       2 bytes at a time, each with an address and a mask of its own
"""

import step
import triton
import triton.language as tl


@triton.jit
def implicit_gemm(
    p_x, p_w, p_y, H, W, C, K, R: tl.constexpr, S: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM] pixels
    k = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN] filters
    n, p, q = m // (H * W), m // W % H, m % W
    b_acc = tl.zeros((BM, BN), tl.float32)
    for j0 in range(0, C * R * S, BJ):
        j = j0 + tl.arange(0, BJ)  # [BJ] terms
        c, r, s = j // (R * S), j // S % R, j % S
        h, w = p[:, None] + r[None, :] - R // 2, q[:, None] + s[None, :] - S // 2  # [BM, BJ]
        m_x = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        b_x = tl.load(p_x + ((n[:, None] * H + h) * W + w) * C + c[None, :], mask=m_x, other=0.0)  # [BM, BJ]
        b_w = tl.load(p_w + ((k[None, :] * R + r[:, None]) * S + s[:, None]) * C + c[:, None])  # [BJ, BN]
        b_acc = tl.dot(b_x, b_w, b_acc)
    tl.store(p_y + m[:, None] * K + k[None, :], b_acc.to(tl.bfloat16))


def convolve(x, w, y):
    (N, H, W, C), (K, R, S, _) = x.shape, w.shape
    grid = triton.cdiv(N * H * W, 64), triton.cdiv(K, 64)
    implicit_gemm[grid](x, w, y, H, W, C, K, R, S, BM=64, BN=64, BJ=64, num_warps=4)


if __name__ == "__main__":
    step.main(__file__)
