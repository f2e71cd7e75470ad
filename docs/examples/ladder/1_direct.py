"""Step 1, direct: one thread for each output.

    y[n, p, q, k] = Σ_{r,s} Σ_c x[n, p + r − 1, q + s − 1, c] · w[k, r, s, c]        x is 0 outside the image

y as it lies in memory, and who computes it:

    pixel (n, p, q)   (0, 0, 0)           (0, 0, 1)           (0, 0, 2)
    filter k          0 … 31    32 … 63   0 … 31    32 … 63   0 … 31    32 … 63
                     ├─ warp 0 ┼─ warp 1 ┼─ warp 2 ┼─ warp 3 ┼─ warp 0 ┼─ warp 1 ┼ …
                     ├──────── program 0, 128 threads ───────┼──────── program 1 …

What the 32 lanes of a warp read in one step of the loop over c:

    x[n, h, w, c]        ■                            one number for all of them: 1 sector
    w[k, r, s, c]        ■········■········■····  …   32 numbers, each 1,152 bytes from the next: 32 sectors

A sector is 32 bytes, the least that memory gives. Of the 32 sectors of w 2 bytes each are used now. The neighbours are
fetched again when c gets there, and again by every other pixel.
"""

import step
import triton
import triton.language as tl


@triton.jit
def direct(p_x, p_w, p_y, H, W, C, K, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] one output for each thread
    k, q, p, n = o % K, o // K % W, o // K // W % H, o // K // W // H
    b_acc = tl.zeros((BLOCK,), tl.float32)
    for r in range(R):
        for s in range(S):
            h, w = p + r - R // 2, q + s - S // 2
            m_x = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            for c in range(C):
                b_x = tl.load(p_x + ((n * H + h) * W + w) * C + c, mask=m_x, other=0.0)
                b_w = tl.load(p_w + ((k * R + r) * S + s) * C + c)
                b_acc += b_x.to(tl.float32) * b_w.to(tl.float32)
    tl.store(p_y + o, b_acc.to(tl.bfloat16))


def convolve(x, w, y):
    (_, H, W, C), (K, R, S, _) = x.shape, w.shape
    direct[(triton.cdiv(y.numel(), 128),)](x, w, y, H, W, C, K, R, S, BLOCK=128, num_warps=4)


if __name__ == "__main__":
    step.main(__file__)
