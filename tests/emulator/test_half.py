"""float16 and bfloat16 arithmetic of PTX, one at a time and in pairs, beside rational numbers rounded once."""

from collections.abc import Callable
from fractions import Fraction
from math import copysign, isfinite, nan

import numpy as np
import pytest
from ptx import apply, from_bf16, rounded, same_numbers

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
FORMS = ["f16", "bf16"]


def operands(form: str) -> list[np.ndarray]:
    """Patterns: zeros, the least, one, the largest, infinities and NaN with each other, then random ones."""
    one, least_normal, largest = {"f16": (0x3C00, 0x0400, 0x7BFF), "bf16": (0x3F80, 0x0080, 0x7F7F)}[form]
    edges = [0, 1, least_normal - 1, least_normal, one, one + 1, largest, largest + 1, largest + 2]
    edges = np.array([e | s for e in edges for s in (0, 0x8000)], np.uint16)
    a, b = (m.ravel() for m in np.meshgrid(edges, edges))
    random = np.random.default_rng(1)
    near = (one + random.integers(-2000, 2000, (2, 400)) + 0x8000 * random.integers(0, 2, (2, 400))).astype(np.uint16)
    a, b = (
        np.concatenate([a, random.integers(0, 65536, 300, np.uint16), near[0]]),
        np.concatenate([b, random.integers(0, 65536, 300, np.uint16), near[1]]),
    )
    return [a, b, random.permutation(a)]


def numbers(patterns: np.ndarray, form: str) -> np.ndarray:
    return from_bf16(patterns) if form == "bf16" else patterns.view(np.float16).astype(np.float32)


def once(form: str, a: float, b: float, c: float) -> float:
    """a · b + c, rounded once."""
    if not (isfinite(a) and isfinite(b) and isfinite(c)):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    return rounded(exact, form) if exact else a * b + c if a * b == 0 else 0.0


MEANINGS: dict[str, Callable[[str, float, float, float], float]] = {
    "add": lambda form, a, b, c: once(form, a, 1.0, b),
    "sub": lambda form, a, b, c: once(form, a, 1.0, -b),
    "mul": lambda form, a, b, c: once(form, a, b, copysign(0.0, a) * copysign(1.0, b)),
    "fma": once,
}


def expected(name: str, form: str, inputs: list[np.ndarray]) -> np.ndarray:
    values = zip(*(numbers(p, form).tolist() for p in inputs), strict=True)
    return np.array([MEANINGS[name](form, *v) for v in values], np.float32)


def instruction(name: str, form: str, extra: str = "") -> str:
    rounding = ".rn" * (name == "fma" or form.startswith("bf16"))
    return f"{name}{rounding}{extra}.{form} %d, %a, %b{', %c' * (name == 'fma')};"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEANINGS)
def test_rounded_once(name: str, form: str) -> None:
    inputs = operands(form)
    got = apply(instruction(name, form), "u16", *inputs[: 3 if name == "fma" else 2])
    same_numbers(numbers(got, form), expected(name, form, inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEANINGS)
def test_in_pairs(name: str, form: str) -> None:
    """Two lanes that do not touch each other."""
    inputs = operands(form)
    half = inputs[0].size // 2
    words = [p[:half].astype(np.uint32) | p[half : 2 * half].astype(np.uint32) << 16 for p in inputs]
    got = apply(instruction(name, f"{form}x2"), "u32", *words[: 3 if name == "fma" else 2])
    got = np.concatenate([got.astype(np.uint16), (got >> 16).astype(np.uint16)])
    same_numbers(numbers(got, form), expected(name, form, [p[: 2 * half] for p in inputs]))


@pytest.mark.parametrize("form", FORMS)
def test_fma_relu(form: str) -> None:
    """Negative results become zero, NaN stays NaN."""
    inputs = operands(form)
    got = numbers(apply(instruction("fma", form, ".relu"), "u16", *inputs), form)
    exact = expected("fma", form, inputs)
    np.testing.assert_array_equal(got, np.where(np.isnan(exact) | (exact > 0), exact, 0))


def test_saturated() -> None:
    """To [0, 1]; NaN becomes zero."""
    inputs = operands("f16")
    for name in ("add", "mul", "fma"):
        got = apply(instruction(name, "f16", ".sat"), "f16", *inputs[: 3 if name == "fma" else 2])
        exact = expected(name, "f16", inputs)
        np.testing.assert_array_equal(got, np.where(exact > 0, np.minimum(exact, 1), 0))


def test_subnormals_flushed() -> None:
    flush = lambda x: np.where(np.abs(x) < 2.0**-14, np.copysign(0, x), x).astype(np.float16)  # noqa: E731
    inputs = operands("f16")
    calm = [flush(p.view(np.float16)).view(np.uint16) for p in inputs]
    for name in MEANINGS:
        got = apply(instruction(name, "f16", ".ftz"), "f16", *inputs[: 3 if name == "fma" else 2])
        same_numbers(got, flush(expected(name, "f16", calm)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes(name: str, form: str) -> None:
    """−0 is less than +0; the number of a number and NaN, unless .NaN keeps it."""
    a, b, _ = operands(form)
    x, y = numbers(a, form), numbers(b, form)
    key = lambda v: (v, copysign(1, v))  # noqa: E731
    chosen = np.array(
        [{"min": min, "max": max}[name](p, q, key=key) for p, q in zip(x.tolist(), y.tolist(), strict=True)]
    )
    plain = np.where(np.isnan(x), y, np.where(np.isnan(y), x, chosen))
    keeping = np.where(np.isnan(x) | np.isnan(y), nan, chosen)
    for line, right in ((f"{name}.{form}", plain), (f"{name}.NaN.{form}", keeping)):
        same_numbers(numbers(apply(f"{line} %d, %a, %b;", "u16", a, b), form), right.astype(np.float32))
        words = [p.astype(np.uint32) << 16 | np.roll(p, 1) for p in (a, b)]
        got = apply(f"{line}x2 %d, %a, %b;", "u32", *words)
        same_numbers(numbers((got >> 16).astype(np.uint16), form), right.astype(np.float32))
        same_numbers(numbers(got.astype(np.uint16), form), np.roll(right, 1).astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_signs_of_every_pattern(form: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    x = numbers(every, form)
    words = every.astype(np.uint32) << 16 | every[::-1]
    for name, right in {"neg": -x, "abs": np.abs(x)}.items():
        same_numbers(numbers(apply(f"{name}.{form} %d, %a;", "u16", every), form), right)
        got = apply(f"{name}.{form}x2 %d, %a;", "u32", words)
        same_numbers(numbers((got >> 16).astype(np.uint16), form), right)
        same_numbers(numbers(got.astype(np.uint16), form), right[::-1])


@pytest.mark.parametrize("form", FORMS)
def test_exponentials_and_tanh_of_every_pattern(form: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    x = numbers(every, form).astype(np.float64)
    exact, flush = 2.0 ** np.clip(x, -300, 300), ".ftz" * (form == "bf16")
    got = numbers(apply(f"ex2.approx{flush}.{form} %d, %a;", "u16", every), form)
    largest, least = {"f16": (65504.0, 2.0**-14), "bf16": (3.38e38, 2.0**-126)}[form]
    normal = ~np.isnan(x) & (exact < largest * (1 - 2.0**-8)) & (exact >= least)
    assert np.abs(got[normal] / exact[normal] - 1).max() <= {"f16": 2**-9.9, "bf16": 2.0**-7}[form]
    assert (got[exact > largest * 1.01] == np.inf).all() and np.isnan(got[np.isnan(x)]).all()
    assert (got[exact < least * 2.0**-12] == 0).all()
    got = numbers(apply(f"tanh.approx.{form} %d, %a;", "u16", every), form)
    number = ~np.isnan(x)
    assert np.abs(got - np.tanh(x))[number].max() <= {"f16": 2**-10.987, "bf16": 2.0**-8}[form]
    assert np.isnan(got[~number]).all()


@pytest.mark.parametrize("form", FORMS)
def test_functions_in_pairs_are_those_of_one(form: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    for line in (f"ex2.approx{'.ftz' * (form == 'bf16')}.{form}", f"tanh.approx.{form}"):
        one = apply(f"{line} %d, %a;", "u16", every).astype(np.uint32)
        got = apply(f"{line}x2 %d, %a;", "u32", every.astype(np.uint32) << 16 | every[::-1])
        np.testing.assert_array_equal(got, one << 16 | one[::-1])


@pytest.mark.parametrize("form", FORMS)
def test_comparisons(form: str) -> None:
    a, b, _ = operands(form)
    x, y = numbers(a, form), numbers(b, form)
    for name, right in {"lt": x < y, "geu": ~(x < y), "eq": x == y, "neu": x != y}.items():
        got = apply(f"setp.{name}.{form} %p1, %a, %b; selp.u32 %d, 1, 0, %p1;", "u32", a, b)
        np.testing.assert_array_equal(got, right, err_msg=name)
        words = [p.astype(np.uint32) << 16 | np.roll(p, 1) for p in (a, b)]
        line = f"setp.{name}.{form}x2 %p1|%p2, %a, %b; selp.u32 %d, 1, 0, %p1; @%p2 or.b32 %d, %d, 2;"
        got = apply(line, "u32", *words)  # the first predicate is of the lower half
        np.testing.assert_array_equal(got, np.roll(right, 1) + 2 * right, err_msg=name)
