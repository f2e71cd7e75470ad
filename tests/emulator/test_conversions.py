"""Conversions of PTX: exhaustively between 16-bit types and float32, and at the edges of the wider ones."""

from fractions import Fraction

import numpy as np
import pytest
from ptx import FORMATS, TYPES, apply, bf16, from_bf16, rounded, same_numbers

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
ALL = np.arange(65536, dtype=np.uint16)
HALVES = ALL.view(np.float16)
BFLOATS = from_bf16(ALL)
MODES = ["rn", "rz", "rm", "rp"]
INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def nearest(values: np.ndarray, form: str, mode: str = "rn") -> np.ndarray:
    """float32 numbers rounded to a format of at most 16 bits: whole steps of the format, counted exactly in float64."""
    bits, least, largest = FORMATS[form]
    x = values.astype(np.float64)
    step = 2.0 ** (np.maximum(np.frexp(np.where(np.isfinite(x), x, 1))[1] - 1, least) - bits)
    way = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil}[mode]
    y = np.copysign(way(x / step) * step, x)
    over = np.abs(y) > largest
    stays = np.zeros(x.shape, bool) if mode == "rn" else (mode == "rz") | (x > 0 if mode == "rm" else x < 0)
    stays &= np.isfinite(x)
    return np.where(over, np.copysign(np.where(stays, largest, np.inf), x), y)


def around(numbers: np.ndarray) -> np.ndarray:
    """Every finite number of a 16-bit format, the middle to the next, and the float32 next to each of them."""
    finite = np.sort(numbers[np.isfinite(numbers)].astype(np.float32))
    middle = (finite[1:] / 2 + finite[:-1] / 2).astype(np.float32)
    beyond = np.array(
        [np.inf, -np.inf, np.nan, *(2 * finite[[0, -1]].astype(np.float64) - finite[[1, -2]])], np.float32
    )
    points = np.concatenate([finite, middle, beyond, finite[[0, -1]] * np.float32(1 + 2**-12)])
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])


def as_numbers(patterns: np.ndarray, form: str) -> np.ndarray:
    return from_bf16(patterns) if form == "bf16" else patterns.view(np.float16).astype(np.float32)


def test_every_half_and_bfloat_widened() -> None:
    same_numbers(apply("cvt.f32.f16 %d, %a;", "f32", HALVES), HALVES.astype(np.float32))
    same_numbers(apply("cvt.f64.f16 %d, %a;", "f64", HALVES), HALVES.astype(np.float64))
    same_numbers(apply("cvt.f32.bf16 %d, %a;", "f32", ALL), BFLOATS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["f16", "bf16"])
def test_float32_to_16_bits_around_every_midpoint(form: str, mode: str) -> None:
    x = around(HALVES if form == "f16" else BFLOATS)
    got = apply(f"cvt.{mode}.{form}.f32 %d, %a;", "u16", x)
    same_numbers(as_numbers(got, form), nearest(x, form, mode).astype(np.float32))


@pytest.mark.parametrize("form", ["f16", "bf16"])
def test_pairs_and_relu(form: str) -> None:
    """The first source is the upper half; relu makes NaN canonical and what is negative zero."""
    x = around(HALVES if form == "f16" else BFLOATS)[::7]
    y = np.roll(x, 1)
    got = apply(f"cvt.rn.{form}x2.f32 %d, %a, %b;", "u32", x, y)
    same_numbers(as_numbers((got >> 16).astype(np.uint16), form), nearest(x, form).astype(np.float32))
    same_numbers(as_numbers(got.astype(np.uint16), form), nearest(y, form).astype(np.float32))
    got = as_numbers(apply(f"cvt.rn.relu.{form}.f32 %d, %a;", "u16", x), form)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(got[number], np.maximum(nearest(x, form), 0)[number])
    assert np.isnan(got[~number]).all()


@pytest.mark.parametrize("mode", MODES)
def test_between_half_and_bfloat(mode: str) -> None:
    got = apply(f"cvt.{mode}.bf16.f16 %d, %a;", "u16", HALVES)
    same_numbers(from_bf16(got), nearest(HALVES, "bf16", mode).astype(np.float32))
    got = apply(f"cvt.{mode}.f16.bf16 %d, %a;", "f16", ALL)
    same_numbers(got, nearest(BFLOATS, "f16", mode).astype(np.float16))


def whole(x: np.ndarray, mode: str) -> np.ndarray:
    return {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x)


WHOLE = ["rni", "rzi", "rmi", "rpi"]
EDGES = [0, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 3.5, 126.5, 127.5, 128, 255, 255.5, 256, 32767.5, 32768, 65535.5, 65536]
EDGES += [2**22 + 0.5, 2**23 - 0.5, 2**23, 2**31 - 64, 2**31, 2**32 - 256, 2**32, 2**53 - 1, 2**63 - 2**40, 2**63]
EDGES += [2**64 - 2**40, 2**64, 1e30, 1e-40, np.inf, np.nan]


@pytest.mark.parametrize("mode", WHOLE)
def test_rounded_to_whole_floats(mode: str) -> None:
    same_numbers(apply(f"cvt.{mode}.f16.f16 %d, %a;", "f16", HALVES), whole(HALVES, mode))
    for kind in ("f32", "f64"):
        x = np.array([s * v for v in EDGES for s in (1, -1)], TYPES[kind])
        same_numbers(apply(f"cvt.{mode}.{kind}.{kind} %d, %a;", kind, x), whole(x, mode))


def clamped(x: np.ndarray, to: str, source: str, mode: str) -> np.ndarray:
    """Integers of floats: the nearest that the type has. NaN is 0; with 64 bits on either side the highest bit."""
    info = np.iinfo(TYPES[to])
    odd = 1 << info.bits - 1 if source == "f64" or info.bits == 64 else 0
    odd -= (1 << info.bits) * (odd > info.max)
    special = {np.inf: int(info.max), -np.inf: int(info.min)}

    def one(v: float) -> int:
        return odd if v != v else special[v] if v in special else min(max(int(v), int(info.min)), int(info.max))

    return np.array([one(v) for v in whole(x.astype(np.float64), mode).tolist()], TYPES[to])


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("to", INTEGERS)
def test_floats_to_integers_saturate(to: str, mode: str) -> None:
    for kind in ("f16", "f32", "f64"):
        x = np.array([s * v for v in EDGES for s in (1, -1)], TYPES[kind])
        x = np.concatenate([x, HALVES[::97].astype(TYPES[kind])])
        got = apply(f"cvt.{mode}.{to}.{kind} %d, %a;", to, x)
        np.testing.assert_array_equal(got, clamped(x, to, kind, mode), err_msg=kind)


@pytest.mark.parametrize("to", ["u16", "s16", "s32"])
def test_every_half_to_integers(to: str) -> None:
    np.testing.assert_array_equal(apply(f"cvt.rzi.{to}.f16 %d, %a;", to, HALVES), clamped(HALVES, to, "f16", "rzi"))


def integers(kind: str) -> np.ndarray:
    """Powers of two and what lies around them and around the middles between floats."""
    info = np.iinfo(TYPES[kind])
    near = {
        s * (2**p + d * 2**q) for p in range(info.bits) for q in range(0, p, 5) for d in (-1, 0, 1) for s in (1, -1)
    }
    near |= {
        2**p + 2 ** (p - b) * k + d
        for b in (8, 11, 24, 53)
        for p in range(b + 1, info.bits)
        for k in (1, 3)
        for d in (-1, 0, 1)
    }
    return np.array(sorted(v for v in near | {0, info.min, info.max} if info.min <= v <= info.max), TYPES[kind])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_to_floats(source: str, mode: str) -> None:
    x = integers(source)
    for kind in ("f16", "f32", "f64"):
        got = apply(f"cvt.{mode}.{kind}.{source} %d, %a;", kind, x)
        expected = np.array([rounded(Fraction(int(v)), kind, mode) for v in x], TYPES[kind])
        np.testing.assert_array_equal(got, expected, err_msg=kind)


@pytest.mark.parametrize("source", ["s16", "u32", "s64"])
def test_integers_to_bfloat(source: str) -> None:
    x = integers(source)
    got = from_bf16(apply(f"cvt.rn.bf16.{source} %d, %a;", "u16", x))
    np.testing.assert_array_equal(got, [rounded(Fraction(int(v)), "bf16") for v in x])


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", INTEGERS)
def test_integers_to_integers(to: str, source: str) -> None:
    """Cut off or extended by the source's sign; with .sat clamped."""
    x, info = integers(source), np.iinfo(TYPES[to])
    np.testing.assert_array_equal(apply(f"cvt.{to}.{source} %d, %a;", to, x), x.astype(TYPES[to]))
    expected = np.array([min(max(int(v), int(info.min)), int(info.max)) for v in x], TYPES[to])
    here = np.iinfo(TYPES[source])
    if info.min > here.min or info.max < here.max:  # else .sat says nothing
        np.testing.assert_array_equal(apply(f"cvt.sat.{to}.{source} %d, %a;", to, x), expected)


@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16"])
def test_small_integers_in_wide_registers(to: str) -> None:
    """Extended by their sign to the register's width."""
    x = integers("s32")
    with np.errstate(over="ignore"):
        expected = x.astype(TYPES[to]).astype(np.int32)
    np.testing.assert_array_equal(apply(f"cvt.{to}.s32 %d, %a;", "s32", x), expected)
    lines = f"cvt.{to}.s32 %d, %a; setp.lt.s32 %p1, %d, 0; selp.s32 %d, 1, 0, %p1;"
    np.testing.assert_array_equal(apply(lines, "s32", x), expected < 0)


@pytest.mark.parametrize("mode", MODES)
def test_float64_to_float32(mode: str) -> None:
    random = np.random.default_rng(1)
    x = np.ldexp(random.uniform(-2, 2, 2000), random.integers(-160, 135, 2000))
    middle = np.ldexp(1 + (2 * random.integers(0, 2**20, 200) + 1) * 2.0**-24, random.integers(-120, 120, 200))
    x = np.concatenate([x, middle, -middle, [0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300]])
    expected = [rounded(Fraction(v), "f32", mode) if v else v for v in x.tolist()]
    expected = np.copysign(np.array(expected, np.float32), x.astype(np.float64)).astype(np.float32)
    same_numbers(apply(f"cvt.{mode}.f32.f64 %d, %a;", "f32", x), expected)
    special = np.array([np.inf, -np.inf, np.nan])
    same_numbers(apply(f"cvt.{mode}.f32.f64 %d, %a;", "f32", special), special.astype(np.float32))


def test_float32_to_float64_and_saturation() -> None:
    x = around(HALVES)[::11]
    same_numbers(apply("cvt.f64.f32 %d, %a;", "f64", x), x.astype(np.float64))
    got = apply("cvt.sat.f32.f32 %d, %a;", "f32", x)
    np.testing.assert_array_equal(got, np.where(x > 0, np.minimum(x, 1), 0))
    y = np.array([1e-40, -1e-40, 2e-38, 1.5, -np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(apply("cvt.ftz.f64.f32 %d, %a;", "f64", y), np.where(np.abs(y) < 1e-38, 0, y))


def test_tf32_is_rounded_half_away_from_zero() -> None:
    """The 13 bits below the tenth of the fraction; what they held is not defined, so only the upper 19 are compared."""
    low = np.arange(8192, dtype=np.uint32)
    x = np.concatenate([(high << 13 | low) for high in (0x3F800 >> 1, 0xBFFFF >> 1, 0x7F7FF >> 1, 1, 0x12345)]).view(
        np.float32
    )
    got = apply("cvt.rna.tf32.f32 %d, %a;", "u32", x) >> 13
    np.testing.assert_array_equal(got, x.view(np.uint32) + 4096 >> 13)


@pytest.mark.parametrize("form", ["e4m3", "e5m2"])
def test_eight_bit_floats(form: str) -> None:
    """Every pattern widened, and float32 around every one and every midpoint narrowed, beyond the largest to it."""
    bits, least, largest = FORMATS[form]
    patterns = np.arange(256, dtype=np.uint16)
    exponent, fraction = patterns >> bits & 2 ** (7 - bits) - 1, patterns & 2**bits - 1
    size = np.where(
        exponent == 0,
        fraction * 2.0 ** (least - bits),
        (2**bits + fraction) * 2.0 ** (exponent.astype(int) - 1 + least - bits),
    )
    if form == "e4m3":
        size[patterns & 127 == 127] = np.nan
    else:
        size[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    numbers = np.where(patterns & 128, -size, size)
    got = apply(f"cvt.rn.f16x2.{form}x2 %d, %a;", "u32", patterns << 8 | patterns[::-1])
    same_numbers((got >> 16).astype(np.uint16).view(np.float16), numbers.astype(np.float16))
    same_numbers(got.astype(np.uint16).view(np.float16), numbers[::-1].astype(np.float16))
    finite = np.sort(numbers[np.isfinite(numbers)])
    x = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, [1e6, -1e6, np.inf, -np.inf]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9))])
    got = apply(f"cvt.rn.satfinite.{form}x2.f32 %d, %a, %b;", "u16", x, -x)
    expected = np.clip(nearest(x, form), -largest, largest)
    same_numbers(numbers[got >> 8], expected)
    same_numbers(numbers[got & 255], -expected)


def test_bfloat_patterns_of_the_support_module() -> None:
    """bf16() and from_bf16() are each other's inverse."""
    number = ~np.isnan(BFLOATS)
    np.testing.assert_array_equal(bf16(BFLOATS[number]), ALL[number])
