"""The oracle itself: against the definitions, pixel by pixel; and its error bound, against planted errors."""

import itertools
import math

import numpy as np
import pytest
import torch

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.checking.problems import CURATED, tensors
from gpuconv.problem import ConvProblem
from gpuconv.reference import Exact, assert_close_to_oracle, error_bound, worst_violation

SMALL = [
    "3x3-same",
    "3x3-stride2-dilation3",
    "3x3-groups2-stride2",
    "3x3-asymmetric-padding",
    "2x2-same-even",
    "1d",
    "3d",
]


def by_the_definition(p: ConvProblem, x: np.ndarray, w: np.ndarray, gy: np.ndarray) -> tuple[np.ndarray, ...]:
    """y, gx and gw, one product at a time."""
    y, gx, gw = np.zeros(p.output_shape), np.zeros(p.input_shape), np.zeros(p.weight_shape)
    k_per_group, c_per_group = p.out_channels // p.groups, p.in_channels // p.groups
    for n, k in itertools.product(range(p.batch), range(p.out_channels)):
        for pixel, tap in itertools.product(np.ndindex(*p.output_size), np.ndindex(*p.filter_size)):
            at = [
                i * s + r * d - low
                for i, s, r, d, (low, _) in zip(pixel, p.stride, tap, p.dilation, p.padding, strict=True)
            ]
            if not all(0 <= i < h for i, h in zip(at, p.input_size, strict=True)):
                continue
            for c in range(c_per_group):
                source = (n, k // k_per_group * c_per_group + c, *at)
                y[(n, k, *pixel)] += x[source] * w[(k, c, *tap)]
                gx[source] += gy[(n, k, *pixel)] * w[(k, c, *tap)]
                gw[(k, c, *tap)] += gy[(n, k, *pixel)] * x[source]
    return y, gx, gw


@pytest.mark.parametrize("name", SMALL)
def test_is_the_definition(name: str) -> None:
    p = CURATED[name]
    t = {k: v.numpy() for k, v in tensors(p, name, torch.float64).items()}
    y, gx, gw = by_the_definition(p, t["input"], t["weight"], t["grad_output"])
    np.testing.assert_allclose(reference.forward(p, t["input"], t["weight"]).value, y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(reference.grad_input(p, t["grad_output"], t["weight"]).value, gx, rtol=0, atol=1e-12)
    np.testing.assert_allclose(reference.grad_weight(p, t["grad_output"], t["input"]).value, gw, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_magnitude_is_the_sum_of_absolute_terms(name: str) -> None:
    p = CURATED[name]
    t = {k: v.numpy() for k, v in tensors(p, name, torch.float64).items()}
    exact = reference.forward(p, t["input"], t["weight"], t["bias"], t["residual"])
    absolute = reference.forward(p, *(abs(t[k]) for k in ("input", "weight", "bias", "residual")))
    np.testing.assert_array_equal(exact.magnitude, absolute.value)
    assert (exact.magnitude >= abs(exact.value)).all()
    assert exact.terms == p.products("forward") + 2


def test_longdouble_is_more_exact_than_float64() -> None:
    p = CURATED["wide-channels"]
    t = {k: v.numpy() for k, v in tensors(p, "wide-channels", torch.float64).items()}
    exact = reference.forward(p, t["input"], t["weight"], dtype=np.longdouble)
    assert exact.value.dtype == np.longdouble
    error = abs(reference.forward(p, t["input"], t["weight"]).value - exact.value)
    assert 0 < float(error.max()) < 1e-12


@pytest.mark.parametrize("text", ["none", "relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish"])
def test_activations_are_pytorchs_and_their_lipschitz_constants_hold(text: str) -> None:
    name, slope = activation = Activation.parse(text)
    z = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    functional = torch.nn.functional
    expected = {
        "none": lambda: z,
        "leaky_relu": lambda: functional.leaky_relu(z, slope),
        "gelu_tanh": lambda: functional.gelu(z, approximate="tanh"),
    }.get(name, lambda: getattr(functional, name)(z))()
    got = reference.activate(activation, z.numpy())
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-12, atol=1e-14)
    steepest = abs(np.diff(got) / np.diff(z.numpy())).max()
    assert steepest <= reference.LIPSCHITZ[name] + 1e-9
    assert steepest >= reference.LIPSCHITZ[name] - 0.02  # and they are not generous


def test_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of none, relu.* got 'softmax'"):
        Activation.parse("softmax")


def one(value: float, magnitude: float, terms: int = 1) -> Exact:
    return Exact(np.array([value]), np.array([magnitude]), terms)


def test_bound_is_the_formula() -> None:
    exact = one(3.0, 10.0, 100)
    assert error_bound(exact, torch.float32) == pytest.approx(3 * 2**-24 + 4 * 2**-24 * 10 * 10, rel=1e-12)
    assert error_bound(exact, torch.float32, one_sign=True) == pytest.approx(3 * 2**-24 + 4 * 2**-24 * 100 * 10)
    assert error_bound(exact, torch.float32, tf32=True) > 10 * 4 * 2**-11
    assert error_bound(exact, torch.float64) == pytest.approx(3 * 2**-53 + 4 * 2**-53 * 10 * 10)
    assert error_bound(one(0.0, 0.0), torch.float16) == 2**-25  # half the smallest subnormal, 2⁻²⁴
    assert error_bound(one(2.0, 0.0), torch.bfloat16) == pytest.approx(2 * 2**-8)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("got", "want", "right"),
    [
        (1.0, 1.0, True),
        (1.001, 1.0, False),
        (NAN, 1.0, False),
        (1.0, NAN, False),
        (NAN, NAN, True),
        (INF, INF, True),
        (-INF, INF, False),
        (INF, 1.0, False),
        (1.0, INF, False),
        (INF, 70_000.0, True),  # beyond float16
        (-INF, 70_000.0, False),
        (65_504.0, 70_000.0, False),
        (INF, 60_000.0, False),
    ],
)
def test_nan_and_infinity_never_pass_by_accident(got: float, want: float, right: bool) -> None:
    ratio, _ = worst_violation(torch.tensor([got], dtype=torch.float16), one(want, abs(want)))
    assert (ratio <= 1) == right


def test_failure_names_the_worst_element_its_error_and_its_bound() -> None:
    exact = Exact(np.zeros((2, 3)), np.ones((2, 3)), 4)
    got = torch.zeros(2, 3)
    got[1, 2] = 0.5
    with pytest.raises(AssertionError, match=r"the problem: element \(1, 2\) is 0.5, exactly 0.0: error 0.5, bound .*"):
        assert_close_to_oracle(got, exact, "the problem")
    with pytest.raises(AssertionError, match=r"shape \(2, 3\), got \(3, 2\)"):
        assert_close_to_oracle(got.T, exact)
