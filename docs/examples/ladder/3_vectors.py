"""Step 3, vectors: the same product with its terms in the order of memory, 16 bytes for each lane.

    y[m, k] = Σ_tap Σ_c x[pixel m moved by tap, c] · w[k, tap, c]        tap = r·S + s

Tiles as in step 2: a program owns 64 pixels × 64 filters. But now channels are fastest, and a step is 64 channels of
one tap:

    step       0             1             2                  8
    tap        (0, 0)        (0, 1)        (0, 2)        …    (2, 2)
    channels   0 … 63        0 … 63        0 … 63             0 … 63

Channels of a pixel lie side by side, so lanes read side by side, and 8 channels at once:

    pixel m      │ lane 0   │ lane 1   │ …  │ lane 7    │       a warp: 4 pixels, 512 bytes, 16 whole sectors
                 │ c 0 … 7  │ c 8 … 15 │    │ c 56 … 63 │
    pixel m + 1  │ lane 8   │ lane 9   │ …

Where the tile of tap 0 begins is computed once, for each row. From there to another tap it is one number for the whole
tile, (r·W + s)·C. Left in the loop are that number, and whether a row's pixel is inside the image.

The compiler now sees that 16 bytes lie together, and copies straight to shared memory (cp.async), two steps ahead.
"""

import step
import triton
import triton.language as tl


@triton.jit
def vectors(
    p_x, p_w, p_y, H, W, C, K, R: tl.constexpr, S: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM] pixels
    k = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN] filters
    c = tl.arange(0, BC)  # [BC] channels
    h, w = m // W % H - R // 2, m % W - S // 2  # where tap (0, 0) falls
    p_x_rows = p_x + (m - R // 2 * W - S // 2)[:, None] * C + c[None, :]  # [BM, BC]
    p_w_columns = p_w + k[None, :] * (R * S * C) + c[:, None]  # [BC, BN]
    b_acc = tl.zeros((BM, BN), tl.float32)
    for i in range(0, R * S * (C // BC)):
        tap, c0 = i // (C // BC), i % (C // BC) * BC
        r, s = tap // S, tap % S
        m_x = (h + r >= 0) & (h + r < H) & (w + s >= 0) & (w + s < W)  # [BM]
        b_x = tl.load(p_x_rows + ((r * W + s) * C + c0), mask=m_x[:, None], other=0.0)  # [BM, BC]
        b_w = tl.load(p_w_columns + i * BC)  # [BC, BN]
        b_acc = tl.dot(b_x, b_w, b_acc)
    tl.store(p_y + m[:, None] * K + k[None, :], b_acc.to(tl.bfloat16))


def convolve(x, w, y):
    (N, H, W, C), (K, R, S, _) = x.shape, w.shape
    grid = triton.cdiv(N * H * W, 64), triton.cdiv(K, 64)
    vectors[grid](x, w, y, H, W, C, K, R, S, BM=64, BN=64, BC=64, num_warps=4, num_stages=3)


if __name__ == "__main__":
    step.main(__file__)
