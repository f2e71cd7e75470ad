"""float32 and float64 instructions of PTX beside rational numbers rounded once, or within the documented errors."""

from collections.abc import Callable
from fractions import Fraction
from math import copysign, isfinite, isinf, isnan, isqrt, nan

import numpy as np
import pytest
from ptx import FORMATS, TYPES, apply, pairs, rounded, same_numbers

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
MODES = ["rn", "rz", "rm", "rp"]


def edges(kind: str) -> list[float]:
    info = np.finfo(TYPES[kind])
    one = [
        0.0,
        info.smallest_subnormal,
        info.smallest_normal / 2,
        info.smallest_normal,
        1.0,
        1 + info.eps,
        1.5,
        info.max,
        np.inf,
    ]
    return [float(s * v) for v in one for s in (1, -1)] + [nan]


def operands(kind: str, count: int = 2) -> list[np.ndarray]:
    """Edges with edges, random bits, and numbers of similar size, whose sums cancel."""
    dtype = TYPES[kind]
    a, b = pairs(edges(kind), dtype, 1, 150)
    close = np.random.default_rng(2).normal(size=(2, 300)).astype(dtype)
    close[1, :100] = -close[0, :100] * (1 + np.finfo(dtype).eps * np.arange(100, dtype=dtype))
    a, b = np.concatenate([a, close[0]]), np.concatenate([b, close[1]])
    c = np.random.default_rng(3).permutation(b)
    c[-100:] = -(a[-100:].astype(np.float64) * b[-100:]).astype(dtype)  # cancels a·b
    return [a, b, c][:count]


def exactly(kind: str, mode: str, terms: list[tuple[float, ...]]) -> float:
    """The sum of products, rounded once, as IEEE 754 has it."""
    products = [float(np.prod(t, dtype=np.float64)) if not all(map(isfinite, t)) else None for t in terms]
    if any(p is not None for p in products):
        return float(sum(p if p is not None else 0.0 for p in products))
    exact = sum(Fraction(t[0]) * Fraction(t[1] if len(t) > 1 else 1) for t in terms)
    if exact:
        return rounded(exact, kind, mode)
    signs = {copysign(1, t[0]) * copysign(1, t[1] if len(t) > 1 else 1) for t in terms}
    return 0.0 * signs.pop() if len(signs) == 1 else -0.0 if mode == "rm" else 0.0


OPERATIONS: dict[str, Callable[..., list[tuple[float, ...]]]] = {
    "add": lambda a, b: [(a,), (b,)],
    "sub": lambda a, b: [(a,), (-b,)],
    "mul": lambda a, b: [(a, b)],
    "fma": lambda a, b, c: [(a, b), (c,)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_rounded_once(name: str, kind: str, mode: str) -> None:
    inputs = operands(kind, 3 if name == "fma" else 2)
    line = f"{name}.{mode}.{kind} %d, %a, %b{', %c' * (name == 'fma')};"
    got = apply(line, kind, *inputs)
    expected = [exactly(kind, mode, OPERATIONS[name](*map(float, v))) for v in zip(*inputs, strict=True)]
    same_numbers(got, np.array(expected, TYPES[kind]))


def test_no_rounding_named_is_to_nearest() -> None:
    a, b = operands("f32")
    for name in ("add", "sub", "mul"):
        np.testing.assert_array_equal(
            apply(f"{name}.f32 %d, %a, %b;", "f32", a, b), apply(f"{name}.rn.f32 %d, %a, %b;", "f32", a, b)
        )


def flushed(a: np.ndarray) -> np.ndarray:
    return np.where(np.abs(a) < np.finfo(np.float32).smallest_normal, np.copysign(np.float32(0), a), a)


@pytest.mark.parametrize("name", OPERATIONS)
def test_subnormals_flushed(name: str) -> None:
    inputs = operands("f32", 3 if name == "fma" else 2)
    got = apply(f"{name}{'.rn' * (name == 'fma')}.ftz.f32 %d, %a, %b{', %c' * (name == 'fma')};", "f32", *inputs)
    inputs = [flushed(a) for a in inputs]
    expected = [exactly("f32", "rn", OPERATIONS[name](*map(float, v))) for v in zip(*inputs, strict=True)]
    same_numbers(got, flushed(np.array(expected, np.float32)))


def test_saturated() -> None:
    """To [0, 1]; NaN becomes +0."""
    a, b, c = operands("f32", 3)
    for line, exact in (("add.sat.f32 %d, %a, %b;", a + b), ("mul.sat.f32 %d, %a, %b;", a * b)):
        clamped = np.where(exact > 0, np.minimum(exact, 1), np.float32(0))
        np.testing.assert_array_equal(apply(line, "f32", a, b), clamped)
    fma = np.array(
        [exactly("f32", "rn", [(x, y), (z,)]) for x, y, z in zip(*(v.tolist() for v in (a, b, c)), strict=True)]
    )
    np.testing.assert_array_equal(
        apply("fma.rn.sat.f32 %d, %a, %b, %c;", "f32", a, b, c), np.where(fma > 0, np.minimum(fma, 1), 0)
    )


def extreme(a: float, b: float, largest: bool, keeps_nan: bool) -> float:
    """−0 is less than +0; the number of a number and NaN."""
    if isnan(a) or isnan(b):
        return nan if keeps_nan or (isnan(a) and isnan(b)) else b if isnan(a) else a
    key = lambda v: (v, copysign(1, v))  # noqa: E731
    return max(a, b, key=key) if largest else min(a, b, key=key)


@pytest.mark.parametrize("line", ["min.f32", "max.f32", "min.NaN.f32", "max.NaN.f32", "min.f64", "max.f64"])
def test_extremes(line: str) -> None:
    kind = line[-3:]
    a, b = operands(kind)
    got = apply(f"{line} %d, %a, %b;", kind, a, b)
    expected = [extreme(float(x), float(y), line[:3] == "max", "NaN" in line) for x, y in zip(a, b, strict=True)]
    same_numbers(got, np.array(expected, TYPES[kind]))


def test_extremes_flushed() -> None:
    a, b = operands("f32")
    got = apply("max.ftz.f32 %d, %a, %b;", "f32", a, b)
    x, y = flushed(a), flushed(b)
    same_numbers(
        got, np.array([extreme(float(p), float(q), True, False) for p, q in zip(x, y, strict=True)], np.float32)
    )


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_signs(kind: str) -> None:
    a, b = operands(kind)
    number = ~np.isnan(a)
    for name, expected in {"abs": np.abs(a), "neg": -a}.items():
        same_numbers(apply(f"{name}.{kind} %d, %a;", kind, a)[number], expected[number])
    same_numbers(apply(f"copysign.{kind} %d, %a, %b;", kind, a, b)[number], np.copysign(b, a)[number])


def test_signs_flushed() -> None:
    a = operands("f32")[0]
    a = a[~np.isnan(a)]
    same_numbers(apply("abs.ftz.f32 %d, %a;", "f32", a), flushed(np.abs(a)))
    same_numbers(apply("neg.ftz.f32 %d, %a;", "f32", a), flushed(-a))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_properties(kind: str) -> None:
    a = operands(kind)[0]
    normal = np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).smallest_normal)
    meanings = {
        "finite": np.isfinite(a),
        "infinite": np.isinf(a),
        "number": ~np.isnan(a),
        "notanumber": np.isnan(a),
        "normal": normal,
        "subnormal": np.isfinite(a) & ~normal & (a != 0),
    }
    for name, expected in meanings.items():
        got = apply(f"testp.{name}.{kind} %p1, %a; selp.u32 %d, 1, 0, %p1;", "u32", a)
        np.testing.assert_array_equal(got, expected, err_msg=name)


ORDERED = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_comparisons(kind: str) -> None:
    """`ne` and the plain ones are false with NaN, those that end in u are true."""
    a, b = operands(kind)
    nans = np.isnan(a) | np.isnan(b)
    meanings = {name: compare(a, b) & ~nans for name, compare in ORDERED.items()}
    meanings |= {f"{name}u": compare(a, b) | nans for name, compare in ORDERED.items()}
    meanings |= {"ne": (a != b) & ~nans, "neu": (a != b) | nans, "num": ~nans, "nan": nans}
    for name, expected in meanings.items():
        second = "|%p2" * (kind != "f16")  # f16 has no opposite
        line = (
            f"setp.{name}.{kind} %p1{second}, %a, %b; selp.u32 %d, 1, 0, %p1; {'@%p2 or.b32 %d, %d, 2;' * bool(second)}"
        )
        got = apply(line, "u32", a, b)
        np.testing.assert_array_equal(got, np.where(expected, 1, 2 if second else 0), err_msg=name)


def test_comparisons_flushed() -> None:
    a, b = operands("f32")
    got = apply("setp.lt.ftz.f32 %p1, %a, %b; selp.u32 %d, 1, 0, %p1;", "u32", a, b)
    np.testing.assert_array_equal(got, flushed(a) < flushed(b))


def quotient(a: float, b: float, kind: str, mode: str) -> float:
    if isnan(a) or isnan(b) or (isinf(a) and isinf(b)) or a == b == 0:
        return nan
    sign = copysign(1, a) * copysign(1, b)
    if isinf(a) or b == 0:
        return sign * np.inf
    return sign * 0.0 if isinf(b) or a == 0 else rounded(Fraction(a) / Fraction(b), kind, mode)


def root(a: float, kind: str, mode: str) -> float:
    if isnan(a) or a < 0:
        return nan
    if isinf(a) or a == 0:
        return a
    scaled = Fraction(a) * 4**1200
    below = isqrt(scaled.numerator // scaled.denominator)
    sticky = 2 * below + (below * below != scaled)  # a bit beyond decides
    return rounded(Fraction(sticky, 2**1201), kind, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_divisions_and_roots_rounded_once(kind: str, mode: str) -> None:
    a, b = (v[::2] for v in operands(kind))
    got = apply(f"div.{mode}.{kind} %d, %a, %b;", kind, a, b)
    same_numbers(
        got, np.array([quotient(float(x), float(y), kind, mode) for x, y in zip(a, b, strict=True)], TYPES[kind])
    )
    got = apply(f"rcp.{mode}.{kind} %d, %a;", kind, a)
    same_numbers(got, np.array([quotient(1.0, float(x), kind, mode) for x in a], TYPES[kind]))
    got = apply(f"sqrt.{mode}.{kind} %d, %a;", kind, a)
    same_numbers(got, np.array([root(float(x), kind, mode) for x in a], TYPES[kind]))


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in units of the last place of float32."""
    exponent = np.maximum(np.floor(np.log2(np.abs(exact))), FORMATS["f32"][1])
    return float(np.max(np.abs(got.astype(np.float64) - exact) / 2.0 ** (exponent - 23)))


def test_approximate_within_the_documented_errors() -> None:
    random = np.random.default_rng(7)
    a = (random.uniform(1, 2, 4000) * 2.0 ** random.integers(-100, 100, 4000)).astype(np.float32)
    b = random.permutation(a)
    wide, other = a.astype(np.float64), b.astype(np.float64)
    within = np.abs(np.log2(wide / other)) < 125
    for ftz in ("", ".ftz"):
        assert ulps(apply(f"rcp.approx{ftz}.f32 %d, %a;", "f32", a), 1 / wide) <= 1
        for full in ("approx", "full"):
            got = apply(f"div.{full}{ftz}.f32 %d, %a, %b;", "f32", a, b)
            assert ulps(got[within], (wide / other)[within]) <= 2
        relative = lambda got, exact: np.max(np.abs(got / exact - 1))  # noqa: E731
        assert relative(apply(f"sqrt.approx{ftz}.f32 %d, %a;", "f32", a), np.sqrt(wide)) <= 2**-23
        assert relative(apply(f"rsqrt.approx{ftz}.f32 %d, %a;", "f32", a), wide**-0.5) <= 2**-22.9
        x = random.uniform(-100, 100, 4000).astype(np.float32)
        assert relative(apply(f"ex2.approx{ftz}.f32 %d, %a;", "f32", x), 2.0 ** x.astype(np.float64)) <= 2**-22
        logarithm = apply(f"lg2.approx{ftz}.f32 %d, %a;", "f32", a)
        assert relative(logarithm, np.log2(wide)) <= 2**-22
        near = random.uniform(0.5, 2, 4000).astype(np.float32)
        assert (
            np.abs(apply(f"lg2.approx{ftz}.f32 %d, %a;", "f32", near) - np.log2(near.astype(np.float64))).max()
            <= 2**-22
        )
        x = random.uniform(-2 * np.pi, 2 * np.pi, 4000).astype(np.float32)
        for name, exact in {"sin": np.sin, "cos": np.cos}.items():
            assert (
                np.abs(apply(f"{name}.approx{ftz}.f32 %d, %a;", "f32", x) - exact(x.astype(np.float64))).max()
                <= 2**-20.5
            )
    assert relative(apply("tanh.approx.f32 %d, %a;", "f32", x), np.tanh(x.astype(np.float64))) <= 2**-11
    assert relative(apply("rsqrt.approx.f64 %d, %a;", "f64", wide), wide**-0.5) <= 2**-22.9
    assert relative(apply("rcp.approx.ftz.f64 %d, %a;", "f64", wide), 1 / wide) <= 2**-20


SPECIAL = {  # the tables of the ISA: an input, the result
    "rcp.approx.f32": [(-np.inf, -0.0), (-0.0, -np.inf), (0.0, np.inf), (np.inf, 0.0), (nan, nan)],
    "rcp.approx.ftz.f32": [(1e-40, np.inf), (-1e-40, -np.inf)],
    "sqrt.approx.f32": [(-np.inf, nan), (-1.0, nan), (-0.0, -0.0), (0.0, 0.0), (np.inf, np.inf), (nan, nan)],
    "sqrt.approx.ftz.f32": [(-1e-40, -0.0), (1e-40, 0.0)],
    "rsqrt.approx.f32": [(-np.inf, nan), (-1.0, nan), (-0.0, -np.inf), (0.0, np.inf), (np.inf, 0.0), (nan, nan)],
    "rsqrt.approx.ftz.f32": [(-1e-40, -np.inf), (1e-40, np.inf)],
    "ex2.approx.f32": [
        (-np.inf, 0.0),
        (-0.0, 1.0),
        (0.0, 1.0),
        (1.0, 2.0),
        (-127.0, 2.0**-127),
        (np.inf, np.inf),
        (nan, nan),
    ],
    "ex2.approx.ftz.f32": [(-1e-40, 1.0), (1e-40, 1.0), (-127.0, 0.0)],
    "lg2.approx.f32": [
        (-np.inf, nan),
        (-1.0, nan),
        (-0.0, -np.inf),
        (0.0, -np.inf),
        (8.0, 3.0),
        (np.inf, np.inf),
        (nan, nan),
    ],
    "lg2.approx.ftz.f32": [(1e-40, -np.inf), (-1e-40, -np.inf)],
    "sin.approx.f32": [(-np.inf, nan), (-0.0, -0.0), (0.0, 0.0), (np.inf, nan), (nan, nan)],
    "cos.approx.f32": [(-np.inf, nan), (-0.0, 1.0), (0.0, 1.0), (np.inf, nan), (nan, nan)],
    "tanh.approx.f32": [(-np.inf, -1.0), (-0.0, -0.0), (0.0, 0.0), (np.inf, 1.0), (nan, nan)],
}


@pytest.mark.parametrize("line", SPECIAL)
def test_approximate_of_special_inputs(line: str) -> None:
    inputs, expected = np.array(SPECIAL[line], np.float32).T.copy()
    same_numbers(apply(f"{line} %d, %a;", "f32", inputs), expected)


def test_immediate_floats() -> None:
    a = np.arange(32, dtype=np.float32)
    got = apply("fma.rn.f32 %d, %a, 0f3FC00000, 0fBF800000;", "f32", a)  # 1.5, −1
    np.testing.assert_array_equal(got, a * 1.5 - 1)
    got = apply("fma.rn.f64 %d, %a, 0d3FF8000000000000, 0dBFF0000000000000;", "f64", a.astype(np.float64))
    np.testing.assert_array_equal(got, a * 1.5 - 1)
