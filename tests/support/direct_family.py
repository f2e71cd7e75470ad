"""A toy family of Triton kernels, whole: the kernel, and what the planner and the backend ask of a family.

    y[n, k, p, q] = activation(Σ_c,r,s  x[n, c, p·u + r·d − pad, q·u + s·d − pad] · w[k, c, r, s] + bias + residual)

Program i computes results i·BM … (i+1)·BM − 1 of y, counted as they lie in memory; each of its threads loops over the
channels and taps by itself. Contiguous tensors of two axes in one group, forward alone.
"""

import math

import triton.language as tl

from gpuconv.activations import IDENTITY, Activation
from gpuconv.backends.base import Operands, Tile, contiguous_operands
from gpuconv.backends.constants import SCHEDULERS
from gpuconv.backends.family import Family
from gpuconv.backends.roofline import Prediction
from gpuconv.backends.triton.launch import Launch, dtypes_of_forward, epilogue_of
from gpuconv.gpu import Gpu
from gpuconv.kernels.triton.common import kernel
from gpuconv.kernels.triton.epilogue import activate
from gpuconv.problem import ConvProblem, Direction

_BLOCK = 128  # results of a program, one for each thread


@kernel
def direct_forward(
    p_x, p_w, p_bias, p_residual, p_y,
    results, C, H, W, K, P, Q, R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    residual_n, residual_k, residual_p, residual_q,
    BM: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    m_result = i < results
    n, k, p, q = i // (K * P * Q), i // (P * Q) % K, i // Q % P, i % Q
    b_sum = tl.zeros([BM], tl.float32)
    for c in range(C):
        for r in range(R):
            for s in range(S):
                h, w = p * stride_h + r * dilation_h - pad_h, q * stride_w + s * dilation_w - pad_w
                m_inside = m_result & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                b_x = tl.load(p_x + ((n * C + c) * H + h) * W + w, mask=m_inside, other=0.0)
                b_w = tl.load(p_w + ((k * C + c) * R + r) * S + s, mask=m_result, other=0.0)
                b_sum += b_x.to(tl.float32) * b_w.to(tl.float32)
    if p_bias is not None:
        b_sum += tl.load(p_bias + k, mask=m_result, other=0.0).to(tl.float32)
    if p_residual is not None:
        o_residual = n * residual_n + k * residual_k + p * residual_p + q * residual_q
        b_sum += tl.load(p_residual + o_residual, mask=m_result, other=0.0).to(tl.float32)
    tl.store(p_y + i, activate(b_sum, ACTIVATION, SLOPE).to(p_y.dtype.element_ty), mask=m_result)


def refuses(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> str | None:
    """Why this family cannot do it; None if it can."""
    if direction != "forward":
        return "the toy has a forward pass and nothing else"
    if problem.ndim != 2 or problem.groups != 1:
        return "the toy is for two axes and one group"
    if operands.strides != contiguous_operands(problem, direction).strides:
        return "the toy reads contiguous tensors"
    if problem.dtype.itemsize == 8:
        return "the toy sums in float32"
    return None


def tiles(problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> list[Tile]:
    """Its one tile; none where `refuses` gives a reason."""
    if refuses(problem, direction, gpu, operands) is not None:
        return []
    return [Tile(_BLOCK, 1, 1, warps=_BLOCK // 32, stages=1, kernel="direct")]


def launches(
    problem: ConvProblem,
    direction: Direction,
    operands: Operands,
    tile: Tile,
    activation: Activation = IDENTITY,
    with_bias: bool = False,
) -> tuple[Launch, ...]:
    """What one call launches."""
    results = math.prod(problem.output_shape)
    scalars = (
        results, problem.in_channels, *problem.input_size, problem.out_channels, *problem.output_size,
        *problem.filter_size, *problem.stride, *(low for low, _ in problem.padding), *problem.dilation,
        *(operands.residual or (0, 0, 0, 0)),
    )  # fmt: skip
    constants = {"BM": tile.rows, **epilogue_of(activation)}
    programs = math.ceil(results / tile.rows)
    return (Launch(direct_forward, programs, dtypes_of_forward(problem, operands), scalars, constants, tile),)


def predict(problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
    """Two elements are fetched one by one for each product; the first of them has to come."""
    programs, steps = math.ceil(math.prod(problem.output_shape) / tile.rows), problem.in_channels * problem.taps
    waves = math.ceil(programs / gpu.multiprocessors)
    step = 2 * tile.rows * 10 / 32 / (SCHEDULERS * gpu.clock)  # ten instructions for each
    seconds = gpu.step_latency + waves * steps * step
    return Prediction(seconds, "instructions", programs, steps, 1, waves, 1 / problem.dtype.itemsize)


FAMILY = Family("direct", refuses, tiles, launches, predict)
