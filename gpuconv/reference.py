"""The oracle: convolution in plain NumPy, written to be obviously right, and the error bound that follows from it.

    forward      y[n,k,p]  = Σ_{c,r} x[n, c, p·u + r·d − low] · w[k,c,r]          (+ bias + residual, then activation)
    grad_input   gx[n,c,i] = Σ_{k,r} gy[n,k,p] · w[k,c,r]          over all p with p·u + r·d − low = i
    grad_weight  gw[k,c,r] = Σ_{n,p} gy[n,k,p] · x[n, c, p·u + r·d − low]
    grad_bias    gb[k]     = Σ_{n,p} gy[n,k,p]
    act_backward gz        = gy · act'

Loops run over filter taps only. At one tap the input pixels that meet the outputs form a strided window of the padded
input, and each sum over channels or pixels is a matrix product. Everything is computed in float64 (or longdouble)
twice: the result, and the same sum over absolute values, from which every element gets its own error bound:

    |got − y| ≤ u_out·|y| + η_out + γ·a,        γ = τ + c·u_acc·√n          (n for √n on data of one sign)

(Higham, Accuracy and Stability of Numerical Algorithms, §3.1; √n is the usual growth of independent rounding errors.)
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from gpuconv.activations import IDENTITY, LIPSCHITZ, Activation, Array, activate, derivative
from gpuconv.problem import ConvProblem, Direction

BOUND_CONSTANT = 4.0  # c, for zero-mean random data: measured over 200 problems in three directions
TF32_OPERANDS = 4 * 2.0**-11  # τ, two operands rounded or truncated to 10 bits of fraction
ONE_OUTPUT_ROUNDING = {
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
_quiet = np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are results here, not accidents


class Exact(NamedTuple):
    """A result and what bounds the error of computing it: Σ|terms| for each element, and the number of terms."""

    value: Array
    magnitude: Array
    terms: int
    lipschitz: float = 1.0


def pad(x: Array, problem: ConvProblem) -> Array:
    """x [N, C, *input_size] with the problem's zeros around it."""
    return np.pad(x, ((0, 0), (0, 0), *problem.padding)) if any(map(any, problem.padding)) else x


def last_axes(index: tuple[Any, ...]) -> Any:
    """`index` as an index of an array's last axes."""
    return (Ellipsis, *index)


def crop(padded: Array, problem: ConvProblem) -> Array:
    """The inverse of `pad`, as a view."""
    inner = tuple(slice(low, low + h) for (low, _), h in zip(problem.padding, problem.input_size, strict=True))
    return padded[last_axes(inner)]


def tap_windows(problem: ConvProblem) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Each tap of the filter with the slices of the padded input that it meets, one pixel for each output."""
    for tap in np.ndindex(*problem.filter_size):
        yield (
            tap,
            tuple(
                slice(r * d, r * d + (p - 1) * s + 1, s)
                for r, d, p, s in zip(tap, problem.dilation, problem.output_size, problem.stride, strict=True)
            ),
        )


def grouped(t: Array, groups: int) -> Array:
    """[N, C, *size] as [N, groups, C/groups, pixels]."""
    return t.reshape(t.shape[0], groups, t.shape[1] // groups, math.prod(t.shape[2:]))


def _forward(problem: ConvProblem, x: Array, w: Array) -> Array:
    g = problem.groups
    padded = pad(x, problem)
    w = w.reshape(g, w.shape[0] // g, *w.shape[1:])  # [G, K/G, C/G, *filter]
    y = np.zeros((problem.batch, g, w.shape[1], math.prod(problem.output_size)), x.dtype)
    for tap, window in tap_windows(problem):
        y += w[last_axes(tap)] @ grouped(padded[last_axes(window)], g)
    return y.reshape(problem.output_shape)


def _grad_input(problem: ConvProblem, gy: Array, w: Array) -> Array:
    g = problem.groups
    w = w.reshape(g, w.shape[0] // g, *w.shape[1:])
    size = [h + low + high for h, (low, high) in zip(problem.input_size, problem.padding, strict=True)]
    padded = np.zeros((problem.batch, problem.in_channels, *size), gy.dtype)
    for tap, window in tap_windows(problem):
        part = w[last_axes(tap)].swapaxes(1, 2) @ grouped(gy, g)  # [N, G, C/G, P]
        padded[last_axes(window)] += part.reshape(problem.batch, problem.in_channels, *problem.output_size)
    return crop(padded, problem).copy()


def _grad_weight(problem: ConvProblem, gy: Array, x: Array) -> Array:
    g = problem.groups
    padded = pad(x, problem)
    gw = np.zeros(problem.weight_shape, gy.dtype)
    for tap, window in tap_windows(problem):
        part = grouped(gy, g) @ grouped(padded[last_axes(window)], g).swapaxes(2, 3)  # [N, G, K/G, C/G]
        gw[last_axes(tap)] = part.sum(0).reshape(problem.weight_shape[:2])
    return gw


@_quiet
def forward(
    problem: ConvProblem,
    x: Array,
    w: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: Activation = IDENTITY,
    dtype: Any = np.float64,
) -> Exact:
    """activation(x ⋆ w + bias + residual), exactly.

    x: [N, C, *size]; w: [K, C/groups, *filter]; bias: [K]; residual: the output's shape. Computed in `dtype`.
    """
    x, w = x.astype(dtype), w.astype(dtype)
    z, a = _forward(problem, x, w), _forward(problem, abs(x), abs(w))
    if bias is not None:
        row = bias.astype(dtype).reshape(-1, *(1,) * problem.ndim)
        z, a = z + row, a + abs(row)
    if residual is not None:
        z, a = z + residual.astype(dtype), a + abs(residual.astype(dtype))
    terms = problem.products("forward") + (bias is not None) + (residual is not None)
    if activation.name in ("sigmoid", "tanh"):  # made of numbers of the size of 1, however small z is
        a = a + 1
    return Exact(activate(activation, z), a, terms, _lipschitz(activation))


@_quiet
def grad_input(problem: ConvProblem, gy: Array, w: Array, dtype: Any = np.float64) -> Exact:
    """Derivative with respect to the input. gy: [N, K, *output]; w: [K, C/groups, *filter]; gives [N, C, *size]."""
    gy, w = gy.astype(dtype), w.astype(dtype)
    return Exact(_grad_input(problem, gy, w), _grad_input(problem, abs(gy), abs(w)), problem.products("grad_input"))


@_quiet
def grad_weight(problem: ConvProblem, gy: Array, x: Array, dtype: Any = np.float64) -> Exact:
    """Derivative with respect to the weight. gy: [N, K, *output]; x: [N, C, *size]; gives [K, C/groups, *filter]."""
    gy, x = gy.astype(dtype), x.astype(dtype)
    return Exact(_grad_weight(problem, gy, x), _grad_weight(problem, abs(gy), abs(x)), problem.products("grad_weight"))


@_quiet
def grad_bias(problem: ConvProblem, gy: Array, dtype: Any = np.float64) -> Exact:
    """Derivative with respect to the bias: gy summed over batch and pixels, [K]."""
    axes = (0, *range(2, gy.ndim))
    gy = gy.astype(dtype)
    return Exact(gy.sum(axes), abs(gy).sum(axes), problem.products("grad_weight"))


def precision_for(dtype: torch.dtype) -> Any:
    """The type to compute in for judging results of type `dtype`: more exact than any of them."""
    return np.longdouble if dtype is torch.float64 else np.float64


def results(
    problem: ConvProblem,
    direction: Direction,
    first: Array,
    second: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: Activation = IDENTITY,
) -> tuple[Exact, ...]:
    """What `direction` gives, exactly enough for the problem's type: y, gx, or gw and gb.

    first, second: the two tensors that it multiplies, in the order of the function; the rest is for 'forward'.
    """
    precision = precision_for(problem.dtype)
    if direction == "forward":
        return (forward(problem, first, second, bias, residual, activation, precision),)
    if direction == "grad_input":
        return (grad_input(problem, first, second, precision),)
    return grad_weight(problem, first, second, precision), grad_bias(problem, first, precision)


@_quiet
def act_backward(activation: Activation, gy: Array, saved: Array, dtype: Any = np.float64) -> tuple[Exact, Exact]:
    """gz = gy · act', told from `saved` (`gpuconv.activations.derivative`), and gb, its sum over batch and pixels."""
    gy, saved = gy.astype(dtype), saved.astype(dtype)
    gz, a = gy * derivative(activation, saved), abs(gy) * _lipschitz(activation)
    axes = (0, *range(2, gy.ndim))
    roundings = 64  # one after the other: few, but an exponent of up to about 8 makes that many of its own
    return Exact(gz, a, roundings), Exact(gz.sum(axes), a.sum(axes), roundings * gy[:, :1].size)


def _lipschitz(activation: Activation) -> float:
    return max(LIPSCHITZ[activation.name], abs(activation.slope) if activation.name == "leaky_relu" else 0.0)


def error_bound(exact: Exact, dtype: torch.dtype, *, tf32: bool = False, one_sign: bool = False) -> Array:
    """The largest error allowed in each element of a result of type `dtype` (the formula at the head of this file)."""
    accumulator = ONE_OUTPUT_ROUNDING[torch.float64 if dtype is torch.float64 else torch.float32]
    growth = exact.terms if one_sign else math.sqrt(exact.terms)
    gamma = (TF32_OPERANDS if tf32 else 0.0) + BOUND_CONSTANT * accumulator * growth
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal
    rounding = ONE_OUTPUT_ROUNDING[dtype] * abs(exact.value) + smallest / 2
    return rounding + exact.lipschitz * gamma * exact.magnitude


def as_numpy(t: torch.Tensor) -> Array:
    """The values of `t` as a NumPy array, to be read; bfloat16, which NumPy lacks, widened to float32."""
    t = t.detach().cpu()
    # Not t.numpy(), after which PyTorch never resizes the tensor's storage again, as FSDP does with its parameters.
    return np.from_dlpack(t.float() if t.dtype is torch.bfloat16 else t)


def worst_violation(
    got: torch.Tensor, exact: Exact, *, tf32: bool = False, one_sign: bool = False
) -> tuple[float, tuple[int, ...]]:
    """The largest error as a fraction of its bound, and where; at most 1 where `got` is right.

    Infinite where exactly one of got and exact is NaN, or an infinity is missing, wrong or uncalled for. An exact value
    beyond `got`'s range must have become the infinity of its sign (or, within its bound of the range's end, may).
    """
    if tuple(got.shape) != exact.value.shape:
        raise AssertionError(f"expected a result of shape {exact.value.shape}, got {tuple(got.shape)}")
    if not exact.value.size:
        return 0.0, ()
    value = as_numpy(got).astype(exact.value.dtype)
    bound = error_bound(exact, got.dtype, tf32=tf32, one_sign=one_sign)
    largest = torch.finfo(got.dtype).max
    with np.errstate(invalid="ignore", divide="ignore"):  # the bound of a float64 that is 0 rounds to 0
        ratio = abs(value - exact.value) / bound
        overflow_allowed = (
            np.isinf(value) & (np.sign(value) == np.sign(exact.value)) & (abs(exact.value) + bound >= largest)
        )
    ratio[overflow_allowed | (value == exact.value) | (np.isnan(value) & np.isnan(exact.value))] = 0.0
    ratio[np.isnan(ratio)] = math.inf
    where = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return float(ratio[where]), tuple(int(i) for i in where)


def assert_close_to_oracle(
    got: torch.Tensor, exact: Exact, context: str = "", *, tf32: bool = False, one_sign: bool = False
) -> None:
    """Raise AssertionError, naming the worst element, its error and its bound, unless `got` is within the bound."""
    ratio, where = worst_violation(got, exact, tf32=tf32, one_sign=one_sign)
    if not ratio <= 1:
        bound = error_bound(exact, got.dtype, tf32=tf32, one_sign=one_sign)[where]
        value, want = float(as_numpy(got)[where]), float(exact.value[where])
        raise AssertionError(
            f"{context}: element {where} is {value!r}, exactly {want!r}: error {abs(value - want):.3g}, "
            f"bound {bound:.3g} ({ratio:.3g} times too large), {exact.terms} terms, {got.dtype}"
        )
