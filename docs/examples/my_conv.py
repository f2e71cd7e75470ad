"""A backend of your own: the forward pass of a two-dimensional convolution, in one Triton kernel.

    gpuconv check --backend my_conv:MyBackend

docs/your-own-kernel.md explains it.
"""

import torch
import triton
import triton.language as tl

from gpuconv.activations import Activation
from gpuconv.backends import Backend
from gpuconv.problem import ConvProblem, Direction, allocate


@triton.jit
def kernel(
    x, w, bias, y,  # pointers: input [N, C, H, W], weight [K, C, R, S], bias [K], output [N, K, P, Q]
    C, K, H, W, P, Q, pixels,  # pixels: N · P · Q
    xn, xc, xh, xw, wk, wc, wr, ws, yn, yk, yp, yq,  # strides, in elements
    stride, pad, R: tl.constexpr, S: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """y[n,k,p,q] = bias[k] + Σ_rsc x[n, c, p·stride+r−pad, q·stride+s−pad] · w[k,c,r,s]; B pixels × B filters."""
    i = tl.program_id(0) * B + tl.arange(0, B)  # pixels of the output, those of all images counted through
    k = tl.program_id(1) * B + tl.arange(0, B)  # filters
    n, p, q = i // (P * Q), i // Q % P, i % Q
    acc = tl.zeros((B, B), tl.float32) + tl.load(bias + k, k < K, other=0)
    for r in range(R):
        for s in range(S):
            h, v = p * stride - pad + r, q * stride - pad + s
            inside = (i < pixels) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
            for start in range(0, C, B):
                c = start + tl.arange(0, B)
                window = x + (n * xn + h * xh + v * xw)[:, None] + c * xc  # [B pixels, B channels]
                taps = w + (c * wc + r * wr + s * ws)[:, None] + k * wk  # [B channels, B filters]
                a = tl.load(window, inside[:, None] & (c < C), other=0)
                b = tl.load(taps, (c < C)[:, None] & (k < K), other=0)
                acc = tl.dot(a, b, acc, input_precision="ieee")
    out = y + (n * yn + p * yp + q * yq)[:, None] + k * yk
    tl.store(out, acc.to(y.dtype.element_ty), (i < pixels)[:, None] & (k < K))


class MyBackend(Backend):
    """Plain forward passes: two axes, one group, the same stride and padding on both axes, no dilation."""

    name = "mine"

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        p, (same, *others) = problem, problem.padding
        square = len({*p.stride}) == 1 and same[0] == same[1] and all(other == same for other in others)
        fits = p.ndim == 2 and p.groups == 1 and p.dilation == (1, 1) and p.dtype.itemsize < 8 and p.batch > 0
        return None if direction == "forward" and square and fits else "it does plain 2-D forward passes"

    def forward(
        self, problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
        residual: torch.Tensor | None, activation: Activation,
    ) -> torch.Tensor:  # fmt: skip
        if residual is not None or activation.name != "none":
            raise NotImplementedError("it has no epilogue but the bias")
        y = allocate(problem.output_shape, input, problem.memory_format)
        (N, C, H, W), (K, P, Q) = input.shape, y.shape[1:]
        grid = (triton.cdiv(N * P * Q, 64), triton.cdiv(K, 64))
        bias = input.new_zeros(K) if bias is None else bias
        kernel[grid](
            input, weight, bias, y, C, K, H, W, P, Q, N * P * Q, *input.stride(), *weight.stride(), *y.stride(),
            problem.stride[0], problem.padding[0][0], *problem.filter_size, B=64,
        )  # fmt: skip
        return y
