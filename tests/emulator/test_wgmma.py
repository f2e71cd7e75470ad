"""wgmma of PTX: operands laid out in shared memory as CUTLASS documents it, in every swizzle and both majors."""

import numpy as np
import pytest
from ptx import bf16, fault, run

SWIZZLES = {0: 0, 32: 3, 64: 2, 128: 1}  # bytes: the number in the descriptor
ENCODE = {"f16": lambda x: x.astype(np.float16), "bf16": bf16, "tf32": lambda x: x.astype(np.float32)}
ENCODE |= {"s8": lambda x: x.astype(np.int8)}
OUT = {"f32": np.float32, "f16": np.float16, "s32": np.int32}
STEP = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32}  # of k
THREAD = np.arange(128)[:, None]
B_AT = 16384  # the second operand's place in shared memory


def swizzled(address: np.ndarray, swizzle: int) -> np.ndarray:
    """Bits 4, 5, 6 of an address are crossed with bits 7, 8, 9, as many as the swizzle has."""
    bits = {0: 0, 32: 1, 64: 2, 128: 3}[swizzle]
    return address ^ (address >> 7 & 2**bits - 1) << 4


def placed(matrix: np.ndarray, size: int, major: str, swizzle: int, start: int = 0) -> tuple[np.ndarray, int, int]:
    """Addresses for [row, k], and the leading and the stride byte offset that the descriptor tells.

    Core matrices are 8 rows of 16 bytes. K-major: 8 rows, as far apart as the swizzle is wide, then the next 8 after
    the stride offset; the second 16 bytes of k follow at once or, without a swizzle, after the leading offset.
    MN-major: the rows lie along memory, as many as the swizzle is wide, the next such block after the leading offset;
    8 k beneath each other, the next 8 after the stride offset. Without a swizzle the two offsets change places.
    """
    rows, k = np.indices(matrix.shape)
    wide, per = max(swizzle, 16), 16 // size
    if major == "k":
        stride = 8 * wide + (0 if swizzle else 16)  # without a swizzle a gap shows that the offset is used
        leading = matrix.shape[0] // 8 * stride if not swizzle else 0
        at = rows % 8 * wide + rows // 8 * stride
        at = at + (k * size if swizzle else k // per * leading + k % per * size)
    else:
        across = wide // size
        blocks = -(-matrix.shape[0] // across)
        first = 8 * wide + (0 if swizzle else 16)
        next_rows, next_k = first, blocks * first
        at = rows % across * size + rows // across * next_rows + k % 8 * wide + k // 8 * next_k
        leading, stride = (next_rows, next_k) if swizzle else (next_k, next_rows)
    return swizzled(start + at, swizzle), leading, stride


def descriptor(address: int, leading: int, stride: int, swizzle: int) -> int:
    """Without the address of the block's shared memory, which the kernel adds."""
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLES[swizzle] << 62


def accumulators(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column for [thread, register]: a warp has 16 rows, a lane two columns in each eight."""
    i = np.arange(n // 2)[None]
    row = 16 * (THREAD >> 5) + (THREAD >> 2 & 7) + 8 * (i >> 1 & 1)
    return row, 8 * (i >> 2) + 2 * (THREAD & 3) + (i & 1)


def fragment(a: np.ndarray) -> np.ndarray:
    """Four registers of each thread for 64 rows of A."""
    e = 4 // a.itemsize  # elements of a register
    row, place, i = 16 * (THREAD >> 5) + (THREAD >> 2 & 7), THREAD & 3, np.arange(4 * e)[None]
    r = i // e
    return np.ascontiguousarray(a[row + 8 * (r & 1), e * place + i % e + 4 * e * (r >> 1)]).view(np.uint32)


def multiply(
    a: np.ndarray,
    b: np.ndarray,
    kind: str,
    *,
    a_from: tuple[str, int] | None = ("k", 128),
    b_from: tuple[str, int] = ("k", 128),
    c: np.ndarray | None = None,
    signs: tuple[int, int] = (1, 1),
    out: str = "f32",
    slices: int = 1,
    **named: object,
) -> np.ndarray:
    """a b (+ c) for a [64, k], b [n, k]; a from registers (None) or memory; `slices` steps of k in one 128-byte row."""
    x, y = ENCODE[kind](a), ENCODE[kind](b)
    size, n = x.itemsize, len(b)
    step = 32 // size
    image = np.zeros(B_AT + 32768, np.uint8)
    descriptors = []
    for matrix, start, layout in ((x, 0, a_from), (y, B_AT, b_from)):
        if layout is None:
            descriptors.append(0)
            continue
        at, leading, stride = placed(matrix, size, *layout, start)
        for byte in range(size):
            image[at + byte] = np.ascontiguousarray(matrix).view(np.uint8).reshape(*matrix.shape, size)[..., byte]
        descriptors.append(descriptor(start, leading, stride, layout[1]))
    out = "s32" if kind == "s8" else out
    registers = n // 4 if out == "f16" else n // 2
    d = np.zeros((128, registers), np.uint32)
    if c is not None:
        row, column = accumulators(n)
        d[...] = np.ascontiguousarray(c[row, column].astype(OUT[out])).view(np.uint32)
    words = fragment(x) if a_from is None else np.zeros((128, 4), np.uint32)
    body = f"""mul.lo.u32 %r0, %thread, 16; add.u32 %r1, %r0, %at; cvt.u64.u32 %l0, %r0; add.u64 %l0, %l0, %x0;
        mov.u32 %r2, 0; COPY: ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%l0];
        st.shared.v4.u32 [%r1], {{%r4, %r5, %r6, %r7}};
        add.u64 %l0, %l0, 2048; add.u32 %r1, %r1, 2048; add.u32 %r2, %r2, 1;
        setp.lt.u32 %p1, %r2, {image.size // 2048}; @%p1 bra COPY;
        fence.proxy.async; bar.sync 0; shr.u32 %r3, %at, 4; cvt.u64.u32 %l1, %r3;
        mov.u64 %l2, {descriptors[0]:#x}; mov.u64 %l3, {descriptors[1]:#x}; add.u64 %l2, %l2, %l1;
        add.u64 %l3, %l3, %l1;
        mul.wide.u32 %l4, %thread, 16; add.u64 %l4, %l4, %x1; ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%l4];
        mul.wide.u32 %l4, %thread, {4 * registers}; add.u64 %l4, %l4, %x2; setp.ne.u32 %p2, {int(c is not None)}, 0;"""
    names = [f"%r{10 + i}" for i in range(registers)]
    if c is not None:
        body += "".join(f"ld.global.u32 {name}, [%l4+{4 * i}];" for i, name in enumerate(names))
    body += "wgmma.fence.sync.aligned;"
    first = "{%r4, %r5, %r6, %r7}" if a_from is None else "%l2"
    major = lambda layout: str(int(layout[0] == "mn"))  # noqa: E731
    majors = "" if size != 2 else "".join(f", {major(f)}" for f in (a_from, b_from) if f)
    for s in range(slices):
        body += "add.u64 %l2, %l2, 2; add.u64 %l3, %l3, 2; setp.eq.u32 %p2, 0, 0;" * (s > 0)
        body += f"""wgmma.mma_async.sync.aligned.m64n{n}k{step}.{out}.{kind}.{kind} {{{", ".join(names)}}},
            {first}, %l3, %p2{"" if kind == "s8" else f", {signs[0]}, {signs[1]}"}{majors};"""
    body += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
    body += "".join(f"st.global.u32 [%l4+{4 * i}], {name};" for i, name in enumerate(names))
    run(body, image, words, d, threads=128, shared=B_AT + 32768, **named)
    result = np.full((64, n), 99.0, OUT[out])
    result[accumulators(n)] = d.view(result.dtype).reshape(128, -1)
    return result


def numbers(n: int, k: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(-7, 8, (64, k)), random.integers(-7, 8, (n, k)), random.integers(-99, 99, (64, n))


def layouts(kind: str) -> list[tuple[str, int]]:
    return [(major, s) for major in (("k",) if kind in ("tf32", "s8") else ("k", "mn")) for s in SWIZZLES]


def name(layout: object) -> str:
    return (
        "registers"
        if layout is None
        else f"{layout[0]}_major_{layout[1]}"
        if isinstance(layout, tuple)
        else str(layout)
    )


@pytest.mark.parametrize(("kind", "layout"), [(k, f) for k in ENCODE for f in (*layouts(k), None)], ids=name)
def test_first_operand(kind: str, layout: tuple[str, int] | None) -> None:
    a, b, c = numbers(32, STEP[kind])
    np.testing.assert_array_equal(multiply(a, b, kind, a_from=layout), a @ b.T)
    np.testing.assert_array_equal(multiply(a, b, kind, a_from=layout, c=c), a @ b.T + c)


@pytest.mark.parametrize(("kind", "layout"), [(k, f) for k in ENCODE for f in layouts(k)], ids=name)
@pytest.mark.parametrize("n", [8, 80, 192])
def test_second_operand(kind: str, layout: tuple[str, int], n: int) -> None:
    a, b, _ = numbers(n, STEP[kind])
    np.testing.assert_array_equal(multiply(a, b, kind, b_from=layout), a @ b.T)


@pytest.mark.parametrize("n", [16, 24, 64, 128, 256])
def test_widths(n: int) -> None:
    a, b, c = numbers(n, 16)
    np.testing.assert_array_equal(multiply(a, b, "bf16", c=c), a @ b.T + c)


@pytest.mark.parametrize("kind", ENCODE)
@pytest.mark.parametrize("swizzle", [64, 128])
def test_steps_of_k_in_one_swizzled_row(kind: str, swizzle: int) -> None:
    """The start address moves by 32 bytes inside the swizzled row, under every schedule."""
    a, b, c = numbers(48, swizzle // 32 * STEP[kind])
    got = multiply(a, b, kind, a_from=("k", swizzle), b_from=("k", swizzle), c=c, slices=swizzle // 32, schedules=True)
    np.testing.assert_array_equal(got, a @ b.T + c)


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("layout", [("k", 128), None], ids=name)
def test_negated_operands(signs: tuple[int, int], layout: tuple[str, int] | None) -> None:
    a, b, c = numbers(16, 16)
    got = multiply(a, b, "f16", a_from=layout, c=c, signs=signs)
    np.testing.assert_array_equal(got, signs[0] * signs[1] * (a @ b.T) + c)


@pytest.mark.parametrize("layout", [("k", 64), None], ids=name)
def test_float16_accumulators(layout: tuple[str, int] | None) -> None:
    a, b, c = numbers(16, 16)
    np.testing.assert_array_equal(multiply(a, b, "f16", a_from=layout, c=c, out="f16"), a @ b.T + c)


def test_tf32_operands_lose_what_is_below_ten_bits() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(64, 8)).astype(np.float32), random.normal(size=(16, 8)).astype(np.float32)
    cut = lambda x: (x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64)  # noqa: E731
    for layout in (("k", 32), None):
        error = np.abs(multiply(a, b, "tf32", a_from=layout) - cut(a) @ cut(b).T)
        assert (error <= 2.0**-22 * (np.abs(a) @ np.abs(b).T)).all()


def test_a_descriptor_that_leaves_shared_memory() -> None:
    """The last rows of an operand of 256 columns lie beyond the block's memory."""
    body = """mov.u32 %r2, 0; mad.lo.u32 %r1, %thread, 16, %at; st.shared.v4.u32 [%r1], {%r2, %r2, %r2, %r2};
        fence.proxy.async; bar.sync 0;
        shr.u32 %r3, %at, 4; cvt.u64.u32 %l1, %r3; mov.u64 %l2, 0x4000004000000000; add.u64 %l2, %l2, %l1;
        wgmma.fence.sync.aligned; setp.ne.u32 %p1, 0, 0;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r4, %r5, %r6, %r7}, %l2, %l2, %p1, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; st.global.u32 [%x0], %r4;"""
    with fault("bounds"):
        run(body, np.zeros(1, np.uint32), threads=128, shared=2048)
