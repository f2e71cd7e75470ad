"""Step 4, windows: the copy engine of an H100 (TMA) fetches the tiles, and no thread computes an address.

    y[k, pixel] = Σ_tap Σ_c w[tap, k, c] · x[window of pixels moved by tap, c]

A program owns a window of 8 × 8 pixels, and 64 filters. For a tap it needs a window of the same shape, moved:

          q 0 … 7    8 … 15             program 0, tap (0, 0), first pixel (−1, −1):
         ┌──────────┬──────────┐
    p 0  │          │          │           0  0  0  0  0  0  0  0      outside the image the
      …  │ program 0│ program 1│           0 ┌─────────────────────    copy engine writes zeros:
      7  │          │          │           0 │ x(0,0) … x(0,6)         no mask
         ├──────────┼──────────┤           0 │   …
      8  │          │          │           0 │ x(6,0) … x(6,6)
      …  │ program 2│ program 3│
     15  │          │          │        tap (2, 2), first pixel (1, 1): x(1,1) … x(8,8)
         └──────────┴──────────┘

A descriptor says where a tensor begins, its sizes and its strides. With it one instruction of one thread copies a
box, here 1 × 8 × 8 × 64 numbers, given the coordinates of the first; negative ones are welcome.

Weights are the left operand: so both are read from shared memory by the tensor cores, as the copy engine laid them.
The other way round, the window as left operand would go through registers first.
"""

import step
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def windows(
    x, w, y, P, Q, C, R: tl.constexpr, S: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    window, k = tl.program_id(0), tl.program_id(1) * BK
    row = window // tl.cdiv(Q, TW)  # of windows
    n, p, q = row // tl.cdiv(P, TH), row % tl.cdiv(P, TH) * TH, window % tl.cdiv(Q, TW) * TW  # its first pixel
    b_acc = tl.zeros((BK, TH * TW), tl.float32)
    for i in range(0, R * S * (C // BC)):
        tap, c0 = i // (C // BC), i % (C // BC) * BC
        r, s = tap // S, tap % S
        b_x = x.load([n, p + r - R // 2, q + s - S // 2, c0]).reshape(TH * TW, BC)
        b_w = w.load([tap, k, c0]).reshape(BK, BC)
        b_acc = tl.dot(b_w, b_x.T, b_acc)  # [BK, BC] · [BC, TH·TW]
    y.store([n, p, q, k], b_acc.to(tl.bfloat16).T.reshape(1, TH, TW, BK))


def convolve(x, w, y):
    (N, P, Q, C), (K, R, S, _) = x.shape, w.shape
    d_x, d_y = (TensorDescriptor.from_tensor(t, [1, 8, 8, 64]) for t in (x, y))
    d_w = TensorDescriptor(w, shape=[R * S, K, C], strides=[C, R * S * C, 1], block_shape=[1, 64, 64])
    grid = N * triton.cdiv(P, 8) * triton.cdiv(Q, 8), triton.cdiv(K, 64)
    windows[grid](d_x, d_w, d_y, P, Q, C, R, S, TH=8, TW=8, BK=64, BC=64, num_warps=4, num_stages=3)


if __name__ == "__main__":
    step.main(__file__)
