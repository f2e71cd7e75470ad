"""Integer instructions of PTX, one by one, beside Python's integers."""

from collections.abc import Callable

import numpy as np
import pytest
from ptx import TYPES, apply, pairs, run

KINDS = ["u16", "s16", "u32", "s32", "u64", "s64"]


def edges(kind: str) -> list[int]:
    low, high = np.iinfo(TYPES[kind]).min, np.iinfo(TYPES[kind]).max
    middle = high // 2
    return sorted({low, low + 1, *range(max(low, -2), 4), 7, middle, middle + 1, high - 1, high})


def wrapped(values: list[int], kind: str) -> np.ndarray:
    """The low bits of each, in the type."""
    dtype = TYPES[kind]
    return np.array([v & (2 ** (8 * dtype.itemsize) - 1) for v in values], f"u{dtype.itemsize}").view(dtype)


def operands(kind: str, count: int = 2) -> list[np.ndarray]:
    a, b = pairs(edges(kind), TYPES[kind])
    return [a, b, np.random.default_rng(5).permutation(a)][:count]


def holds(
    line: str, kind: str, meaning: Callable[..., int], *inputs: np.ndarray, where: np.ndarray | None = None
) -> None:
    got = apply(line, kind, *inputs)
    expected = wrapped([meaning(*map(int, v)) for v in zip(*inputs, strict=True)], kind)
    where = np.ones(got.size, bool) if where is None else where
    np.testing.assert_array_equal(got[where], expected[where])


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BINARY)
def test_sums_and_products(name: str, kind: str) -> None:
    holds(f"{name}.{kind} %d, %a, %b;", kind, BINARY[name], *operands(kind))


@pytest.mark.parametrize("kind", ["u16", "s16"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_pairs_of_16_bits(name: str, kind: str) -> None:
    a, b = operands(kind)
    words = [v.view(np.uint16).astype(np.uint32) << 16 | np.roll(v, 1).view(np.uint16) for v in (a, b)]
    got = apply(f"{name}.{kind}x2 %d, %a, %b;", "u32", *words)
    expected = wrapped([BINARY[name](int(x), int(y)) for x, y in zip(a, b, strict=True)], kind).view(np.uint16)
    np.testing.assert_array_equal(got >> 16, expected)
    np.testing.assert_array_equal(got & 0xFFFF, np.roll(expected, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_high_half_of_a_product(kind: str) -> None:
    bits = 8 * TYPES[kind].itemsize
    holds(f"mul.hi.{kind} %d, %a, %b;", kind, lambda a, b: (a * b) >> bits, *operands(kind))
    holds(f"mad.hi.{kind} %d, %a, %b, %c;", kind, lambda a, b, c: ((a * b) >> bits) + c, *operands(kind, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_and_add(kind: str) -> None:
    holds(f"mad.lo.{kind} %d, %a, %b, %c;", kind, lambda a, b, c: a * b + c, *operands(kind, 3))


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind: str) -> None:
    wide = f"{kind[0]}{16 * TYPES[kind].itemsize}"
    a, b = operands(kind)
    c = pairs(edges(wide), TYPES[wide], 1)[0][: a.size]
    a, b = a[: c.size], b[: c.size]
    holds(f"mul.wide.{kind} %d, %a, %b;", wide, lambda a, b: a * b, a, b)
    holds(f"mad.wide.{kind} %d, %a, %b, %c;", wide, lambda a, b, c: a * b + c, a, b, c)


def quotient(a: int, b: int) -> int:
    """Towards zero. What division by zero gives is open, but it must not end the process."""
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("kind", KINDS)
def test_division_and_remainder(kind: str) -> None:
    a, b = operands(kind)
    least = np.iinfo(TYPES[kind]).min
    told = (b != 0) & ~((a == least) & (b == -1) if least else np.zeros(a.size, bool))
    holds(f"div.{kind} %d, %a, %b;", kind, quotient, a, b, where=told)
    holds(f"rem.{kind} %d, %a, %b;", kind, lambda a, b: a - quotient(a, b) * b, a, b, where=told)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_sign(kind: str) -> None:
    a = operands(kind)[0]
    holds(f"neg.{kind} %d, %a;", kind, lambda a: -a, a)
    holds(f"abs.{kind} %d, %a;", kind, abs, a[a != np.iinfo(TYPES[kind]).min])


def test_saturated_sums() -> None:
    low, high = -(2**31), 2**31 - 1
    holds("add.sat.s32 %d, %a, %b;", "s32", lambda a, b: min(max(a + b, low), high), *operands("s32"))
    holds("sub.sat.s32 %d, %a, %b;", "s32", lambda a, b: min(max(a - b, low), high), *operands("s32"))


@pytest.mark.parametrize("kind", KINDS)
def test_sum_of_absolute_differences(kind: str) -> None:
    holds(f"sad.{kind} %d, %a, %b, %c;", kind, lambda a, b, c: c + abs(a - b), *operands(kind, 3))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bitwise(bits: int) -> None:
    a, b = operands(f"u{bits}")
    for name, meaning in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
        holds(f"{name}.b{bits} %d, %a, %b;", f"u{bits}", meaning, a, b)
    holds(f"not.b{bits} %d, %a;", f"u{bits}", lambda a: ~a, a)
    holds(f"cnot.b{bits} %d, %a;", f"u{bits}", lambda a: int(a == 0), a)


@pytest.mark.parametrize("kind", KINDS)
def test_shifts_by_the_width_and_more(kind: str) -> None:
    a = operands(kind)[0]
    by = np.resize(
        np.array([0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 2**31, 2**32 - 1], np.uint32), a.size
    )
    by = np.random.default_rng(1).permutation(by)
    holds(f"shl.b{8 * a.itemsize} %d, %a, %b;", kind, lambda a, n: a << min(n, 64), a, by)
    holds(f"shr.{kind} %d, %a, %b;", kind, lambda a, n: a >> min(n, 64), a, by)


def field(a: int, position: int, length: int, bits: int, signed: bool) -> int:
    a &= 2**bits - 1
    position, length = position & 255, length & 255
    sign = signed and length > 0 and a >> min(position + length - 1, bits - 1) & 1
    return sum((a >> position + i & 1 if i < length and position + i < bits else sign) << i for i in range(bits))


def inserted(a: int, b: int, position: int, length: int, bits: int) -> int:
    position, length = position & 255, length & 255
    for i in range(min(length, max(bits - position, 0))):
        b = b & ~(1 << position + i) | (a >> i & 1) << position + i
    return b


PLACES = [(p, n) for p in (0, 1, 5, 31, 32, 40, 63, 64, 255, 256) for n in (0, 1, 8, 31, 32, 33, 64, 255, 257)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str) -> None:
    bits = 8 * TYPES[kind].itemsize
    a, b = (np.resize(o, 4 * len(PLACES)) for o in operands(kind))
    at, length = np.resize(np.array(PLACES, np.uint32), (a.size, 2)).T.copy()
    holds(f"bfe.{kind} %d, %a, %b, %c;", kind, lambda a, p, n: field(a, p, n, bits, kind[0] == "s"), a, at, length)
    if kind[0] == "u":
        meaning = lambda a, b, p, n: inserted(a, b, p, n, bits)  # noqa: E731
        holds(f"bfi.b{bits} %d, %a, %b, %c, %e;", kind, meaning, a, b, at, length)


def highest(a: int) -> int:
    return (a if a >= 0 else ~a).bit_length() - 1


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits: int) -> None:
    a = operands(f"u{bits}")[0]
    holds(f"popc.b{bits} %d, %a;", "u32", lambda a: bin(a).count("1"), a)
    holds(f"clz.b{bits} %d, %a;", "u32", lambda a: bits - a.bit_length(), a)
    holds(f"brev.b{bits} %d, %a;", f"u{bits}", lambda a: int(f"{a:0{bits}b}"[::-1], 2), a)
    for kind in (f"u{bits}", f"s{bits}"):
        a = operands(kind)[0]
        holds(f"bfind.{kind} %d, %a;", "u32", highest, a)
        shift = lambda a: bits - 1 - highest(a) if highest(a) >= 0 else -1  # noqa: E731
        holds(f"bfind.shiftamt.{kind} %d, %a;", "u32", shift, a)


def permuted(a: int, b: int, select: int, mode: str) -> int:
    """Bytes of the pair {b, a}; the modes as the tables of the ISA list them, most significant byte first."""
    source, n = (a | b << 32).to_bytes(8, "little"), select & 3
    if not mode:
        chosen = []
        for i in range(4):
            nibble = select >> 4 * i & 15
            byte = source[nibble & 7]
            chosen.append((255 if byte & 128 else 0) if nibble & 8 else byte)
        return int.from_bytes(bytes(chosen), "little")
    table = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    return int.from_bytes(bytes(source[int(digit)] for digit in reversed(table[mode][n])), "little")


@pytest.mark.parametrize("mode", ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"])
def test_bytes_permuted(mode: str) -> None:
    a, b, c = operands("u32", 3)
    c = np.concatenate([c[: c.size - 16], np.arange(16, dtype=np.uint32)])
    line = f"prmt.b32{'.' if mode else ''}{mode} %d, %a, %b, %c;"
    holds(line, "u32", lambda a, b, c: permuted(a, b, c, mode), a, b, c)


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode: str) -> None:
    a, b = operands("u32")
    c = np.resize(np.array([0, 1, 13, 31, 32, 33, 45, 64, 255, 2**31, 2**32 - 1], np.uint32), a.size)
    n = (lambda c: c & 31) if mode == "wrap" else lambda c: min(c, 32)
    holds(f"shf.l.{mode}.b32 %d, %a, %b, %c;", "u32", lambda a, b, c: b << n(c) | a >> 32 - n(c), a, b, c)
    holds(f"shf.r.{mode}.b32 %d, %a, %b, %c;", "u32", lambda a, b, c: b << 32 - n(c) | a >> n(c), a, b, c)


def test_every_table_of_three_inputs() -> None:
    a, b, c = np.random.default_rng(2).integers(0, 2**32, (3, 64), dtype=np.uint32)
    d = np.zeros((256, 64), np.uint32)
    body = ["shl.b32 %r9, %thread, 2; cvt.u64.u32 %l9, %r9;"]
    body += [f"add.u64 %l{i}, %x{i}, %l9;" for i in range(4)]
    body += [f"ld.global.u32 %r{i}, [%l{i}];" for i in range(3)]
    body += [
        f"lop3.b32 %r4, %r0, %r1, %r2, {table:#x}; st.global.u32 [%l3+{256 * table}], %r4;" for table in range(256)
    ]
    run("\n".join(body), a, b, c, d, threads=64)
    for table in range(256):
        expected = np.zeros(64, np.uint32)
        for row in range(8):
            if table >> row & 1:
                expected |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        np.testing.assert_array_equal(d[table], expected)


COMPARISONS = {"eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}
UNSIGNED = {"lo": "__lt__", "ls": "__le__", "hi": "__gt__", "hs": "__ge__"}


@pytest.mark.parametrize("kind", KINDS)
def test_comparisons(kind: str) -> None:
    a, b = operands(kind)
    for name, method in (COMPARISONS | (UNSIGNED if kind[0] == "u" else {})).items():
        line = f"setp.{name}.{kind} %p1, %a, %b; selp.u32 %d, 1, 0, %p1;"
        holds(line, "u32", lambda a, b, method=method: int(getattr(a, method)(b)), a, b)


@pytest.mark.parametrize("negated", [False, True], ids=["as_is", "negated"])
@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparison_combined_with_a_predicate(name: str, negated: bool) -> None:
    """The second destination is the opposite comparison, combined likewise."""
    a, b, c = operands("s32", 3)
    line = f"""setp.ne.s32 %p3, %c, 0; setp.lt.{name}.s32 %p1|%p2, %a, %b, {"!" * negated}%p3;
        selp.u32 %d, 1, 0, %p1; @%p2 or.b32 %d, %d, 2;"""
    combine = getattr(int, f"__{name}__")
    told = lambda c: int((c != 0) != negated)  # noqa: E731
    meaning = lambda a, b, c: combine(int(a < b), told(c)) | combine(int(a >= b), told(c)) << 1  # noqa: E731
    holds(line, "u32", meaning, a, b, c & 1)


def test_set_writes_ones_or_one() -> None:
    a, b = operands("s32")
    holds("set.le.u32.s32 %d, %a, %b;", "u32", lambda a, b: 2**32 - 1 if a <= b else 0, a, b)
    got = apply("set.le.f32.s32 %d, %a, %b;", "f32", a, b)
    np.testing.assert_array_equal(got, (a <= b).astype(np.float32))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_selection(bits: int) -> None:
    a, b = operands(f"u{bits}")
    c = np.random.default_rng(3).integers(-2, 2, a.size, dtype=np.int32)
    holds(
        f"setp.lt.s32 %p1, %c, 0; selp.b{bits} %d, %a, %b, %p1;", f"u{bits}", lambda a, b, c: a if c < 0 else b, a, b, c
    )
    holds(f"slct.b{bits}.s32 %d, %a, %b, %c;", f"u{bits}", lambda a, b, c: a if c >= 0 else b, a, b, c)
    f = np.resize(np.array([1, -1, 0.0, -0.0, np.nan, np.inf, -np.inf], np.float32), a.size)
    got = apply(f"slct.b{bits}.f32 %d, %a, %b, %c;", f"u{bits}", a, b, f)
    np.testing.assert_array_equal(got, np.where(f >= 0, a, b))


def test_logic_of_predicates() -> None:
    a, b = operands("u32")
    for name, meaning in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
        line = f"""setp.ne.u32 %p1, %a, 0; setp.ne.u32 %p2, %b, 0; {name}.pred %p3, %p1, %p2; not.pred %p4, %p3;
            mov.pred %p5, %p4; selp.u32 %d, 1, 0, %p3; selp.u32 %r5, 2, 0, %p5; or.b32 %d, %d, %r5;"""
        holds(line, "u32", lambda a, b, meaning=meaning: meaning(a, b) | (1 - meaning(a, b)) << 1, a & 1, b & 1)


def test_carries() -> None:
    """128-bit sums and differences in two steps, 96-bit products by mad.cc."""
    a, b, c = operands("u64", 3)
    low = "add.cc.u64 %l5, %a, %b; addc.u64 %d, %c, 0;"
    holds(low, "u64", lambda a, b, c: c + (a + b >> 64), a, b, c)
    holds("sub.cc.u64 %l5, %a, %b; subc.u64 %d, %c, 1;", "u64", lambda a, b, c: c - 1 - (a < b), a, b, c)
    a, b, c = operands("u32", 3)
    chain = "add.cc.u32 %r5, %a, %b; addc.cc.u32 %r5, %c, %c; addc.u32 %d, 0, 0;"
    holds(chain, "u32", lambda a, b, c: c + c + (a + b >> 32) >> 32, a, b, c)
    chain = "mad.lo.cc.u32 %r5, %a, %b, %c; madc.hi.u32 %d, %a, %b, 0;"
    holds(chain, "u32", lambda a, b, c: a * b + c >> 32, a, b, c)


def signed_byte(word: int, i: int, signed: bool) -> int:
    byte = word >> 8 * i & 255
    return byte - 256 if signed and byte > 127 else byte


@pytest.mark.parametrize("signs", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dot_products_of_bytes(signs: str) -> None:
    first, second = (s == "s32" for s in signs.split("."))
    a, b, c = operands("u32", 3)
    dot = lambda a, b, c: c + sum(signed_byte(a, i, first) * signed_byte(b, i, second) for i in range(4))  # noqa: E731
    holds(f"dp4a.{signs} %d, %a, %b, %c;", "u32", dot, a, b, c)


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize("signs", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dot_products_of_halves_with_bytes(signs: str, half: str) -> None:
    first, second = (s == "s32" for s in signs.split("."))
    a, b, c = operands("u32", 3)
    up = 2 * (half == "hi")

    def dot(a: int, b: int, c: int) -> int:
        return c + sum(signed_half(a, i, first) * signed_byte(b, i + up, second) for i in range(2))

    holds(f"dp2a.{half}.{signs} %d, %a, %b, %c;", "u32", dot, a, b, c)


def signed_half(word: int, i: int, signed: bool) -> int:
    half = word >> 16 * i & 0xFFFF
    return half - 0x10000 if signed and half > 0x7FFF else half
