"""mma.sync, ldmatrix and stmatrix of PTX: fragments as the figures of the ISA place them, small whole numbers."""

from collections.abc import Callable

import numpy as np
import pytest
from ptx import bf16, run

# A lane's group, its place in the group, and the number of an element in the lane's fragment.
LANE, NUMBER = np.arange(32)[:, None], np.arange(16)[None]
GROUP, PLACE = LANE >> 2, LANE & 3

# Where the elements of a fragment lie: rows and columns for [lane, element].
Places = tuple[np.ndarray, np.ndarray]
C8X8: Places = (GROUP + 0 * NUMBER[:, :2], 2 * PLACE + NUMBER[:, :2])
C16X8: Places = (GROUP + 8 * (NUMBER[:, :4] >> 1), 2 * PLACE + (NUMBER[:, :4] & 1))


def a_pairs(n: int) -> Places:
    """16 × 8·n/4 of 16-bit elements: eight columns, then the next eight."""
    i = NUMBER[:, :n]
    return GROUP + 8 * (i >> 1 & 1), 2 * PLACE + (i & 1) + 8 * (i >> 2)


def b_pairs(n: int) -> Places:
    i = NUMBER[:, :n]
    return 2 * PLACE + (i & 1) + 8 * (i >> 1), GROUP + 0 * i


def a_words(n: int) -> Places:
    """16 × 4·n/2 of elements of a register or two."""
    i = NUMBER[:, :n]
    return GROUP + 8 * (i & 1), PLACE + 4 * (i >> 1)


def b_words(n: int) -> Places:
    i = NUMBER[:, :n]
    return PLACE + 4 * i, GROUP + 0 * i


def a_bytes(n: int) -> Places:
    i = NUMBER[:, :n]
    return GROUP + 8 * (i >> 2 & 1), 4 * PLACE + (i & 3) + 16 * (i >> 3)


def b_bytes(n: int) -> Places:
    i = NUMBER[:, :n]
    return 4 * PLACE + (i & 3) + 16 * (i >> 2), GROUP + 0 * i


def f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16)


def f32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def f64(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


SHAPES: dict[str, tuple[int, int, int, Places, Places, Places, Callable, Callable]] = {
    "m16n8k16.row.col.f32.f16.f16.f32": (16, 8, 16, a_pairs(8), b_pairs(4), C16X8, f16, f32),
    "m16n8k16.row.col.f16.f16.f16.f16": (16, 8, 16, a_pairs(8), b_pairs(4), C16X8, f16, f16),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, 8, 16, a_pairs(8), b_pairs(4), C16X8, bf16, f32),
    "m16n8k8.row.col.f32.f16.f16.f32": (16, 8, 8, a_pairs(4), b_pairs(2), C16X8, f16, f32),
    "m16n8k8.row.col.f16.f16.f16.f16": (16, 8, 8, a_pairs(4), b_pairs(2), C16X8, f16, f16),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (16, 8, 8, a_pairs(4), b_pairs(2), C16X8, bf16, f32),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (16, 8, 8, a_words(4), b_words(2), C16X8, f32, f32),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (16, 8, 4, a_words(2), b_words(1), C16X8, f32, f32),
    "m8n8k4.row.col.f64.f64.f64.f64": (8, 8, 4, (GROUP, PLACE), (PLACE, GROUP), C8X8, f64, f64),
    "m16n8k4.row.col.f64.f64.f64.f64": (16, 8, 4, a_words(2), b_words(1), C16X8, f64, f64),
    "m16n8k8.row.col.f64.f64.f64.f64": (16, 8, 8, a_words(4), b_words(2), C16X8, f64, f64),
    "m16n8k16.row.col.f64.f64.f64.f64": (16, 8, 16, a_words(8), b_words(4), C16X8, f64, f64),
    "m16n8k16.row.col.s32.s8.s8.s32": (16, 8, 16, a_bytes(8), b_bytes(4), C16X8, np.int8, np.int32),
    "m16n8k32.row.col.s32.s8.s8.s32": (16, 8, 32, a_bytes(16), b_bytes(8), C16X8, np.int8, np.int32),
    "m16n8k32.row.col.s32.u8.u8.s32": (16, 8, 32, a_bytes(16), b_bytes(8), C16X8, np.uint8, np.int32),
}  # fmt: skip


def registers(matrix: np.ndarray, places: Places) -> np.ndarray:
    """The registers of each lane's fragment, [lane, register]."""
    fragment = np.ascontiguousarray(matrix[places])
    return fragment if fragment.itemsize == 8 else fragment.view(np.uint32)


def multiply(shape: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, word: str = "") -> np.ndarray:
    """d = a b + c by one instruction."""
    *_, in_a, in_b, in_c, inputs, outputs = SHAPES[shape]
    fragments = [registers(inputs(a), in_a), registers(inputs(b), in_b), registers(outputs(c), in_c)]
    d = np.zeros_like(fragments[2])
    body, operands, at = "", [], 0
    for i, f in enumerate(fragments):
        kind, bits = ("l", 64) if f.itemsize == 8 else ("r", 32)
        names = [f"%{kind}{at + 10 + j}" for j in range(f.shape[1])]
        at += len(names)
        body += f"mul.wide.u32 %l0, %lane, {f[0].nbytes}; add.u64 %l0, %l0, %x{i};"
        body += "".join(f"ld.global.b{bits} {name}, [%l0+{j * bits // 8}];" for j, name in enumerate(names))
        operands.append("{" + ", ".join(names) + "}")
    a_names, b_names, c_names = operands
    body += f"mma.sync.aligned.{shape.replace('.col', f'.col{word}')} {c_names}, {a_names}, {b_names}, {c_names};"
    body += f"mul.wide.u32 %l0, %lane, {d[0].nbytes}; add.u64 %l0, %l0, %x3;"
    body += "".join(
        f"st.global.b{bits} [%l0+{j * bits // 8}], {name};" for j, name in enumerate(c_names[1:-1].split(", "))
    )
    run(body, *fragments, d)
    result = np.full(c.shape, 99, outputs(c).dtype)
    result[in_c] = d.view(result.dtype).reshape(32, -1)
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: str) -> None:
    m, n, k, *_ = SHAPES[shape]
    random = np.random.default_rng(1)
    least = 0 if ".u8" in shape else -7
    a, b, c = (random.integers(least, 8, s) for s in ((m, k), (k, n), (m, n)))
    np.testing.assert_array_equal(multiply(shape, a, b, c), a @ b + c)


@pytest.mark.parametrize("shape", [s for s in SHAPES if "tf32" in s])
def test_tf32_operands_lose_what_is_below_ten_bits(shape: str) -> None:
    m, n, k, *_ = SHAPES[shape]
    random = np.random.default_rng(2)
    a, b = (random.normal(size=s).astype(np.float32) for s in ((m, k), (k, n)))
    cut = lambda x: (x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64)  # noqa: E731
    exact = cut(a) @ cut(b)
    got = multiply(shape, a, b, np.zeros((m, n)))
    assert np.abs(got - exact).max() <= 2.0**-22 * (np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))).max()


def test_byte_products_wrap_or_stay_at_the_end() -> None:
    a, b = np.full((16, 32), 127), np.full((32, 8), 127)
    b[:, ::2] *= -1
    c = np.where(b[:16, :8] > 0, 2**31 - 1000, -(2**31) + 1000)
    shape = "m16n8k32.row.col.s32.s8.s8.s32"
    np.testing.assert_array_equal(multiply(shape, a, b, c), (a @ b + c).astype(np.int32))
    clamped = np.clip(a @ b + c, -(2**31), 2**31 - 1)
    np.testing.assert_array_equal(multiply(shape, a, b, c, ".satfinite"), clamped)


def test_non_finite_operands() -> None:
    """Infinity times zero is NaN, in its row and column alone."""
    a, b = np.ones((16, 16)), np.ones((16, 8))
    a[3, 5], b[5, 2], a[7, 1] = np.inf, 0, np.nan
    got = multiply("m16n8k16.row.col.f32.f16.f16.f32", a, b, np.zeros((16, 8)))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, a @ b)


ROWS = np.random.default_rng(4).permutation(64)[:32].astype(np.uint32) * 16  # where in shared memory each row lies


def loaded(n: int, transposed: bool, matrices: np.ndarray) -> np.ndarray:
    """Registers of ldmatrix as the ISA has it: lane 4·r + c holds elements 2c and 2c + 1 of row (or column) r."""
    m = matrices.transpose(0, 2, 1) if transposed else matrices
    lane = np.arange(32)
    pairs = np.stack([m[:n, lane >> 2, 2 * (lane & 3)], m[:n, lane >> 2, 2 * (lane & 3) + 1]], -1)
    return np.ascontiguousarray(pairs.transpose(1, 0, 2)).view(np.uint32)[..., 0]  # [lane, matrix]


def row_addresses(n: int) -> np.ndarray:
    """Lane 8·i + r gives row r of matrix i; what the others give is not looked at."""
    return np.where(np.arange(32) < 8 * n, ROWS, 0xFFFFFF0).astype(np.uint32)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_matrices_loaded(n: int, transposed: bool) -> None:
    image = np.random.default_rng(5).integers(0, 65536, (64, 8), dtype=np.uint16)
    matrices = image[ROWS // 16].reshape(4, 8, 8)
    to = np.zeros((32, n), np.uint32)
    names = "{" + ", ".join(f"%r{10 + i}" for i in range(n)) + "}"
    body = f"""mul.wide.u32 %l0, %lane, 32; add.u64 %l1, %l0, %x0; ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%l1];
        ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%l1+16]; shl.b32 %r0, %lane, 5; add.u32 %r0, %r0, %at;
        st.shared.v4.u32 [%r0], {{%r1, %r2, %r3, %r4}}; st.shared.v4.u32 [%r0+16], {{%r5, %r6, %r7, %r8}};
        bar.warp.sync -1;
        mul.wide.u32 %l0, %lane, 4; add.u64 %l0, %l0, %x1; ld.global.u32 %r0, [%l0]; add.u32 %r0, %r0, %at;
        ldmatrix.sync.aligned.m8n8.x{n}{".trans" * transposed}.shared.b16 {names}, [%r0];
        mul.wide.u32 %l0, %lane, {4 * n}; add.u64 %l0, %l0, %x2;"""
    body += "".join(f"st.global.u32 [%l0+{4 * i}], %r{10 + i};" for i in range(n))
    run(body, image, row_addresses(n), to, shared=1024)
    np.testing.assert_array_equal(to, loaded(n, transposed, matrices))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_matrices_stored(n: int, transposed: bool) -> None:
    """The inverse; memory that belongs to no row stays."""
    matrices = np.random.default_rng(6).integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    image = np.zeros((64, 8), np.uint16)
    names = "{" + ", ".join(f"%r{10 + i}" for i in range(n)) + "}"
    body = f"""shl.b32 %r0, %lane, 5; add.u32 %r0, %r0, %at; mov.u32 %r1, 0;
        st.shared.v4.u32 [%r0], {{%r1, %r1, %r1, %r1}};
        st.shared.v4.u32 [%r0+16], {{%r1, %r1, %r1, %r1}}; bar.warp.sync -1;
        mul.wide.u32 %l0, %lane, 4; add.u64 %l0, %l0, %x1; ld.global.u32 %r2, [%l0]; add.u32 %r2, %r2, %at;
        mul.wide.u32 %l0, %lane, {4 * n}; add.u64 %l0, %l0, %x0;"""
    body += "".join(f"ld.global.u32 %r{10 + i}, [%l0+{4 * i}];" for i in range(n))
    body += f"""stmatrix.sync.aligned.m8n8.x{n}{".trans" * transposed}.shared.b16 [%r2], {names}; bar.warp.sync -1;
        mul.wide.u32 %l0, %lane, 32; add.u64 %l1, %l0, %x2;
        ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [%r0]; st.global.v4.u32 [%l1], {{%r3, %r4, %r5, %r6}};
        ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [%r0+16]; st.global.v4.u32 [%l1+16], {{%r3, %r4, %r5, %r6}};"""
    run(body, loaded(n, transposed, matrices), row_addresses(n), image, shared=1024)
    expected = np.zeros_like(image)
    expected[ROWS[: 8 * n] // 16] = matrices[:n].reshape(-1, 8)
    np.testing.assert_array_equal(image, expected)
