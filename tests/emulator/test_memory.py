"""Loads, stores, atomics and cp.async of PTX, in every state space, width and vector."""

import struct

import numpy as np
import pytest
from ptx import TYPES, aligned, apply, fault, run, text

from gpuconv.emulator import run_ptx

BYTES = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
KINDS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64"]
# The address of this thread's bytes in an array: `size` bytes for each thread.
MINE = "mul.wide.u32 %l{to}, %thread, {size}; add.u64 %l{to}, %l{to}, %x{of};"


def mine(to: int, of: int, size: int) -> str:
    return MINE.format(to=to, of=of, size=size)


@pytest.mark.parametrize("kind", KINDS)
def test_loads_extend_to_the_register(kind: str) -> None:
    """Loads of signed types extend the sign; stores cut off."""
    size = TYPES[kind].itemsize
    wide = f"{kind[0]}64" if kind[0] in "us" else kind
    source, to, back = BYTES[: 32 * size].copy(), np.zeros(32, TYPES[wide]), np.zeros(32 * size, np.uint8)
    body = f"""{mine(0, 0, size)} {mine(1, 1, TYPES[wide].itemsize)} {mine(2, 2, size)}
        .reg .b{8 * TYPES[wide].itemsize} %v; ld.global.{kind} %v, [%l0];
        st.global.b{8 * TYPES[wide].itemsize} [%l1], %v; st.global.{kind} [%l2], %v;"""
    run(body, source, to, back)
    np.testing.assert_array_equal(back, source)
    np.testing.assert_array_equal(
        to.view("u8" if to.itemsize == 8 else "u4"),
        source.view(TYPES[kind]).astype(to.dtype).view("u8" if to.itemsize == 8 else "u4"),
    )


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize(
    "width", ["v2.u8", "v4.u8", "v2.b16", "v4.u16", "v2.f32", "v4.b32", "v2.b64", "v2.f64", "b16", "b64"]
)
def test_vectors_keep_their_order(width: str, space: str) -> None:
    """Reversed on the way, so that an order lost twice is seen."""
    n, bits = int(width[1]) if width[0] == "v" else 1, int(width[-2:].strip("uv.f"))
    size = n * bits // 8
    source, to = BYTES[: 32 * size].copy(), np.zeros(32 * size, np.uint8)
    names = [f"%v{i}" for i in range(n)]
    vector = lambda v: f"{{{', '.join(v)}}}" if n > 1 else v[0]  # noqa: E731
    registers = f".reg .b{max(bits, 16)} %v<{n}>;"
    load, store = f"ld.global.{width} {vector(names)}, [%l0];", f"st.global.{width} [%l1], {vector(names[::-1])};"
    if space != "global":
        at = f"mad.lo.u32 %r0, %thread, {size}, %at;"
        through = {"shared": (".shared", "%r0"), "generic": ("", "%l3")}[space]
        generic = "cvt.u64.u32 %l2, %r0; cvta.shared.u64 %l3, %l2;" * (space == "generic")
        load += f"""{at} {generic} st{through[0]}.{width} [{through[1]}], {vector(names)};
            ld{through[0]}.{width} {vector(names)}, [{through[1]}];"""
    run(f"{registers} {mine(0, 0, size)} {mine(1, 1, size)} {load} {store}", source, to, shared=512)
    np.testing.assert_array_equal(to.reshape(32, n, -1)[:, ::-1], source.reshape(32, n, -1))


def test_offsets_and_generic_addresses() -> None:
    source, to = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    body = f"""{mine(0, 0, 4)} {mine(1, 1, 4)} cvta.to.global.u64 %l2, %l0; add.u64 %l3, %l0, 256;
        ld.u32 %r0, [%l0]; ld.global.u32 %r1, [%l2+128]; st.u32 [%l1], %r1; st.global.u32 [%l1+128], %r0;
        ld.global.nc.u32 %r2, [%l3+-128]; add.u32 %r2, %r2, %r0; st.global.u32 [%l1+128], %r2;"""
    run(body, source, to)
    np.testing.assert_array_equal(to, np.concatenate([source[32:], source[:32] + source[32:]]))


def test_cache_policies_change_nothing() -> None:
    source, to = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    body = f"""{mine(0, 0, 4)} {mine(1, 1, 4)} createpolicy.fractional.L2::evict_last.b64 %l5, 1.0;
        ld.global.L1::evict_last.L2::cache_hint.b32 %r1, [%l0], %l5;
        st.global.L1::evict_first.L2::cache_hint.b32 [%l1], %r1, %l5;"""
    run(body, source, to)
    np.testing.assert_array_equal(to, source)


def test_variables_of_the_module() -> None:
    """Tables in global and constant memory with their first values, and one that is written."""
    tables = """.global .align 4 .u32 table[4] = {5, 6, 0x7, 8};
        .const .align 8 .f64 half = 0d3FE0000000000000;
        .global .align 1 .b8 name[3] = {65, 66};"""
    to = np.zeros(4, np.float64)
    body = """mov.u64 %l0, table; ld.global.u32 %r0, [%l0+8]; ld.global.u32 %r1, [table+4];
        ld.const.f64 %l1, [half];
        mov.u64 %l2, name; cvta.global.u64 %l2, %l2; ld.u8 %r2, [%l2+1]; st.global.u32 [table+12], %r1;
        ld.global.u32 %r3, [table+12];
        add.u32 %r0, %r0, %r3; cvt.rn.f64.u32 %l3, %r0; st.global.f64 [%x0], %l3; cvt.rn.f64.u32 %l3, %r1;
        st.global.f64 [%x0+8], %l3; st.global.f64 [%x0+16], %l1; cvt.rn.f64.u32 %l3, %r2;
        st.global.f64 [%x0+24], %l3;"""
    run_ptx(text(body, (to,)).replace(".visible", tables + "\n.visible"), "k", 1, 1, 0, (to,))
    np.testing.assert_array_equal(to, [7 + 6, 6, 0.5, 66])


def test_parameters_with_offsets() -> None:
    """A struct that is passed by value, read by name, by address and by generic address."""
    value = struct.pack("<IhbBdQ4f", 7, -3, -1, 200, 2.5, 2**40 + 1, 1, 2, 3, 4).ljust(128, b"\0")
    to = np.zeros(10, np.float64)
    body = """ld.param.u32 %r0, [p0]; ld.param.s16 %r1, [p0+4]; ld.param.s8 %r2, [p0+6]; ld.param.u8 %r3, [p0+7];
        ld.param.f64 %l3, [p0+8]; mov.b64 %l1, p0; ld.param.u64 %l2, [%l1+16]; cvt.rn.f64.u64 %l2, %l2;
        ld.param.v4.f32 {%r4, %r5, %r6, %r7}, [%l1+24]; ld.param.v2.u32 {%r8, %r9}, [p0]; ld.f64 %l5, [%x0+8];
        st.global.f64 [%x1+48], %l5; st.global.f64 [%x1+32], %l3; st.global.f64 [%x1+40], %l2;"""
    body += "".join(
        f"cvt.rn.f64.{k} %l4, %r{i}; st.global.f64 [%x1+{8 * i}], %l4;"
        for i, k in enumerate(["u32", "s32", "s32", "u32"])
    )
    body += "".join(f"cvt.f64.f32 %l4, %r{i}; st.global.f64 [%x1+{8 * j}], %l4;" for i, j in ((5, 7), (7, 8)))
    run(body + "cvt.rn.f64.u32 %l4, %r8; st.global.f64 [%x1+72], %l4;", value, to)
    np.testing.assert_array_equal(to, [7, -3, -1, 200, 2.5, 2**40 + 1, 2.5, 2, 4, 7])


def test_local_memory_is_each_threads_own() -> None:
    to = np.zeros(64, np.uint32)
    body = f""".local .align 16 .b8 stack[32]; {mine(0, 0, 8)} mov.u64 %l1, stack; cvta.local.u64 %l2, %l1;
        st.local.u32 [%l1+4], %thread; mul.lo.u32 %r0, %thread, %thread; st.u32 [%l2+12], %r0;
        ld.u32 %r1, [%l2+4]; ld.local.u32 %r2, [stack+12]; st.global.v2.u32 [%l0], {{%r1, %r2}};"""
    run(body, to)
    np.testing.assert_array_equal(to.reshape(32, 2), np.stack([np.arange(32), np.arange(32) ** 2], 1))


def test_what_is_predicated_off_touches_nothing() -> None:
    """Neither memory far outside nor its register."""
    source, to = np.arange(16, dtype=np.uint32), np.full(32, 9, np.uint32)
    body = f"""{mine(0, 0, 4)} {mine(1, 1, 4)} setp.lt.u32 %p1, %thread, 16; mov.u32 %r0, 77;
        @%p1 ld.global.u32 %r0, [%l0]; setp.ge.u32 %p2, %thread, 8; @%p2 st.global.u32 [%l1], %r0;
        add.u64 %l2, %x0, 1000000; setp.gt.u32 %p3, %thread, 40; @%p3 st.global.u32 [%l2], %r0;
        @%p3 atom.global.add.u32 %r3, [%l2], 1;"""
    run(body, source, to)
    np.testing.assert_array_equal(to, [9] * 8 + list(range(8, 16)) + [77] * 16)


SIGNED = {"s32", "s64"}
ATOMIC = {
    "add": (lambda old, b, c: old + b, ["u32", "s32", "u64"]),
    "min": (lambda old, b, c: min(old, b), ["u32", "s32", "u64", "s64"]),
    "max": (lambda old, b, c: max(old, b), ["u32", "s32", "u64", "s64"]),
    "and": (lambda old, b, c: old & b, ["b32", "b64"]),
    "or": (lambda old, b, c: old | b, ["b32", "b64"]),
    "xor": (lambda old, b, c: old ^ b, ["b32", "b64"]),
    "exch": (lambda old, b, c: b, ["b32", "b64"]),
    "cas": (lambda old, b, c: c if old == b else old, ["b16", "b32", "b64"]),
    "inc": (lambda old, b, c: 0 if old >= b else old + 1, ["u32"]),
    "dec": (lambda old, b, c: b if old == 0 or old > b else old - 1, ["u32"]),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, (_, kinds) in ATOMIC.items() for k in kinds])
def test_atomics(name: str, kind: str, space: str) -> None:
    """Atomics return the old value and leave the new one; red leaves the same."""
    dtype = TYPES[kind.replace("b", "u")]
    bits, n = 8 * dtype.itemsize, 64
    random = np.random.default_rng(3)
    old, b, c = (
        random.integers(0, 256, (n, dtype.itemsize), dtype=np.uint8).view(dtype).ravel().copy() for _ in range(3)
    )
    b[::4], old[1::8], b[1::8] = old[::4], 0, 5
    expected = np.array(
        [ATOMIC[name][0](*map(int, v)) & 2**bits - 1 for v in zip(old, b, c, strict=True)], f"u{bits // 8}"
    ).view(dtype)
    memory, returned, reduced = old.copy(), np.zeros(n, dtype), old.copy()
    extra = ", %l12" if name == "cas" else ""
    body = "".join(mine(i, i, bits // 8) for i in range(5))
    body += f".reg .b{bits} %v<4>; ld.global.b{bits} %v1, [%l3]; ld.global.b{bits} %v2, [%l4];"
    extra = ", %v2" if name == "cas" else ""
    if space == "shared":
        body += f"""mad.lo.u32 %r0, %thread, {bits // 8}, %at; ld.global.b{bits} %v0, [%l0];
            st.shared.b{bits} [%r0], %v0;
            atom.shared.{name}.{kind} %v3, [%r0], %v1{extra}; ld.shared.b{bits} %v0, [%r0];
            st.global.b{bits} [%l0], %v0;"""
    else:
        body += f"atom.relaxed.gpu.global.{name}.{kind} %v3, [%l0], %v1{extra};"
    body += f"st.global.b{bits} [%l1], %v3;"
    if name not in ("exch", "cas"):
        body += f"red.global.{name}.{kind} [%l2], %v1;"
    run(body, memory, returned, reduced, b, c, threads=n, shared=512)
    np.testing.assert_array_equal(returned, old)
    np.testing.assert_array_equal(memory, expected)
    if name not in ("exch", "cas"):
        np.testing.assert_array_equal(reduced, expected)


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics_of_many_threads_on_one_word(space: str) -> None:
    total, seen = np.zeros(1, np.uint32), np.zeros(256, np.uint32)
    where = "%x0" if space == "global" else "%at"
    body = f"""{mine(1, 1, 4)} setp.eq.u32 %p1, %thread, 0; mov.u32 %r9, 0; @%p1 st.{space}.u32 [{where}], %r9;
        bar.sync 0;
        atom.{space}.add.u32 %r0, [{where}], 3; st.global.u32 [%l1], %r0; bar.sync 0;
        ld.{space}.u32 %r1, [{where}]; @%p1 st.global.u32 [%x0], %r1;"""
    run(body, total, seen, threads=256, shared=16)
    assert total[0] == 768
    np.testing.assert_array_equal(np.sort(seen), 3 * np.arange(256))


@pytest.mark.parametrize(
    "line", ["add.f32", "add.f64", "add.noftz.f16", "add.noftz.f16x2", "add.noftz.bf16", "add.noftz.bf16x2"]
)
def test_atomic_sums_of_floats(line: str) -> None:
    """Small whole numbers, exact in every type; both forms."""
    form = line.split(".")[-1]
    element = {"f32": "f4", "f64": "f8", "f16": "f2", "f16x2": "f2", "bf16": "u2", "bf16x2": "u2"}[form]
    size = {"f32": 4, "f64": 8, "f16": 2, "bf16": 2}.get(form, 4)
    encode = (
        (lambda v: (v.astype(np.float32).view(np.uint32) >> 16).astype("u2"))
        if "bf" in form
        else lambda v: v.astype(element)
    )
    random = np.random.default_rng(4)
    a, b = (random.integers(-64, 64, 32 * size // np.dtype(element).itemsize) for _ in range(2))
    memory, returned, reduced, more = encode(a), encode(0 * a), encode(a), encode(b)
    body = "".join(mine(i, i, size) for i in range(4))
    body += f""".reg .b{8 * size} %v<2>; ld.global.b{8 * size} %v0, [%l3];
        atom.global.gpu.acq_rel.{line} %v1, [%l0], %v0;
        st.global.b{8 * size} [%l1], %v1; red.global.{line} [%l2], %v0;"""
    run(body, memory, returned, reduced, more)
    np.testing.assert_array_equal(returned, encode(a))
    np.testing.assert_array_equal(memory, encode(a + b))
    np.testing.assert_array_equal(reduced, encode(a + b))


def test_atomics_of_vectors() -> None:
    a, b = np.arange(128, dtype=np.float32), np.zeros(64, np.float32)
    memory = aligned(a)
    body = f"""{mine(0, 0, 16)} {mine(1, 1, 8)} mov.f32 %r1, 0f3F800000; mov.f32 %r2, 0f40000000;
        red.global.add.v4.f32 [%l0], {{%r1, %r2, %r1, %r2}}; atom.global.v2.f32.add {{%r3, %r4}}, [%l0+8], {{%r2, %r1}};
        st.global.v2.b32 [%l1], {{%r3, %r4}};"""
    run(body, memory, b)
    np.testing.assert_array_equal(memory.reshape(32, 4), a.reshape(32, 4) + np.array([1, 2, 3, 3]))
    np.testing.assert_array_equal(b.reshape(32, 2), a.reshape(32, 4)[:, 2:] + np.array([1, 2]))


def test_moves_that_pack_and_unpack() -> None:
    a = BYTES.view(np.uint64)
    lines = "mov.b64 {%r5, %r6}, %a; mov.b32 {%h1, %h2}, %r5; mov.b32 %r7, {%h2, %h1}; mov.b64 %d, {%r6, %r7};"
    expected = (a & 0xFFFF) << 48 | (a >> 16 & 0xFFFF) << 32 | a >> 32
    np.testing.assert_array_equal(apply(lines, "u64", a), expected)
    lines = "mov.b64 {%h1, %h2, %h3, %h4}, %a; mov.b64 %d, {%h4, %h3, %h2, %h1};"
    np.testing.assert_array_equal(
        apply(lines, "u64", a), a.view(np.uint16).reshape(-1, 4)[:, ::-1].copy().view(np.uint64).ravel()
    )


COPY = "cp.async.{cache}.shared.global [%r0], [%l0], {size}{zfill};"


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies(size: int) -> None:
    """Copies of each size; bytes beyond the source size are zero."""
    source, count = BYTES[: 32 * size].copy(), np.arange(32, dtype=np.uint32) % (size + 1)
    for zfill, there in (("", np.full(32, size)), (", %r1", count)):
        to = np.zeros(32 * size, np.uint8)
        copy = COPY.format(cache="cg" if size == 16 else "ca", size=size, zfill=zfill)
        body = f"""{mine(0, 0, size)} {mine(1, 1, 4)} ld.global.u32 %r1, [%l1];
            mad.lo.u32 %r0, %thread, {size}, %at; {copy}
            cp.async.commit_group; cp.async.wait_group 0; .reg .b8 %v; {mine(2, 2, size)}"""
        body = body.replace(".reg .b8 %v;", "")
        body += "".join(f"ld.shared.u8 %h1, [%r0+{i}]; st.global.u8 [%l2+{i}], %h1;" for i in range(size))
        run(body, source, count, to, shared=512, schedules=True)
        kept = np.arange(size) < there[:, None]
        np.testing.assert_array_equal(to.reshape(32, size), np.where(kept, source.reshape(32, size), 0))


def test_a_copy_of_no_bytes_reads_nothing() -> None:
    """Its source may lie outside every tensor."""
    source, to = BYTES[:16].copy(), np.zeros(4, np.uint32)
    body = """add.u64 %l0, %x0, 4096; mov.u32 %r0, %at; mov.u32 %r1, {bytes};
        cp.async.cg.shared.global [%r0], [%l0], 16, %r1;
        cp.async.wait_all; ld.shared.v4.u32 {{%r2, %r3, %r4, %r5}}, [%at];
        st.global.v4.u32 [%x1], {{%r2, %r3, %r4, %r5}};"""
    run(body.format(bytes=0), source, to, shared=16, threads=1)
    assert not to.any()
    with fault("bounds"):
        run(body.format(bytes=4), source, to, shared=16, threads=1)


def test_groups_of_copies_complete_in_order() -> None:
    """`wait_group n` leaves the n youngest open: the third wait sees all."""
    source, to = np.arange(96, dtype=np.uint32), np.zeros(96, np.uint32)
    body = f"{mine(0, 0, 4)} {mine(1, 1, 4)} shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at;"
    for i in range(3):
        body += f"cp.async.ca.shared.global [%r0+{128 * i}], [%l0+{128 * i}], 4; cp.async.commit_group;"
    for i in range(3):
        body += f"cp.async.wait_group {2 - i}; ld.shared.u32 %r1, [%r0+{128 * i}]; st.global.u32 [%l1+{128 * i}], %r1;"
    run(body, source, to, shared=384, schedules=True)
    np.testing.assert_array_equal(to, source)
