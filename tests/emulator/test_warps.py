"""Operations across the lanes of a warp, and branches that part and join them."""

from collections.abc import Callable

import numpy as np
import pytest
from ptx import run

LANES = np.arange(32)
OUT = "mul.wide.u32 %l9, %thread, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r9;"


def lanes(body: str, *args: object, threads: int = 32, **named: object) -> np.ndarray:
    """%r9 of each thread."""
    to = np.zeros(threads, np.uint32)
    run(f"{body} {OUT}", to, *args, threads=threads, **named)
    return to


def source_lane(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The ISA's description of shfl, with 5-bit operands."""
    segment = c >> 8 & 31
    last = lane & segment | c & 31 & ~segment
    j, inside = {
        "up": (lane - b, lane - b >= last),
        "down": (lane + b, lane + b <= last),
        "bfly": (lane ^ b, lane ^ b <= last),
        "idx": (lane & segment | b & ~segment, (lane & segment | b & ~segment) <= last),
    }[mode]
    return (j, True) if inside else (lane, False)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str) -> None:
    """Every distance; whole warps, halves, quarters and pairs, and clamps in the middle."""
    clamps = [c for width in (32, 16, 8, 2) for c in ((32 - width << 8), (32 - width << 8) | 31, (32 - width << 8) | 5)]
    to = np.zeros((len(clamps), 32, 2, 32), np.uint32)
    body = """shl.b32 %r1, %lane, 2; cvt.u64.u32 %l1, %r1; add.u64 %l1, %l1, %x0; mad.lo.u32 %r2, %lane, 7, 100;
        mov.u32 %r3, 0; mov.u32 %r4, 0;"""
    body += "L: shl.b32 %r3, %r4, 8; cvt.u64.u32 %l2, %r3; add.u64 %l2, %l1, %l2;"
    for i, c in enumerate(clamps):
        body += f"shfl.sync.{mode}.b32 %r5|%p1, %r2, %r4, {c}, -1; selp.u32 %r6, 1, 0, %p1;"
        body += f"st.global.u32 [%l2+{8192 * i}], %r5; st.global.u32 [%l2+{8192 * i + 128}], %r6;"
    run(body + "add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 32; @%p2 bra L;", to)
    for i, c in enumerate(clamps):
        for b in range(32):
            told = [source_lane(mode, lane, b, c) for lane in range(32)]
            np.testing.assert_array_equal(to[i, b, 0], [7 * j + 100 for j, _ in told], err_msg=f"c {c:#x}, b {b}")
            np.testing.assert_array_equal(to[i, b, 1], [inside for _, inside in told], err_msg=f"c {c:#x}, b {b}")


def test_shuffle_among_members_of_a_branch() -> None:
    body = """mov.u32 %r9, 0; setp.lt.u32 %p1, %lane, 8; @!%p1 bra OVER;
        mul.lo.u32 %r1, %lane, 3; shfl.sync.down.b32 %r9, %r1, 1, 0x1807, 0xff; OVER:"""
    got = lanes(body)
    np.testing.assert_array_equal(got[:7], 3 * (LANES[:7] + 1))
    assert not got[8:].any()


VOTES: dict[str, Callable[[np.ndarray], int]] = {
    "all": lambda v: int(v.all()),
    "any": lambda v: int(v.any()),
    "uni": lambda v: int(v.all() or not v.any()),
    "ballot": lambda v: int((v.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum()),
}


@pytest.mark.parametrize("negated", [False, True], ids=["as_is", "negated"])
@pytest.mark.parametrize("mode", VOTES)
def test_votes(mode: str, negated: bool) -> None:
    for value in (0, 0xFFFFFFFF, 0x0000_8001, 0x1234_5678):
        votes = (value >> LANES & 1).astype(bool)
        told = f"shr.u32 %r1, %n1, %lane; and.b32 %r1, %r1, 1; setp.{'eq' if negated else 'ne'}.u32 %p1, %r1, 0;"
        sign = "!" * negated
        vote = (
            f"vote.sync.ballot.b32 %r9, {sign}%p1, -1;"
            if mode == "ballot"
            else f"vote.sync.{mode}.pred %p2, {sign}%p1, -1; selp.u32 %r9, 1, 0, %p2;"
        )
        np.testing.assert_array_equal(lanes(told + vote, value), VOTES[mode](votes))


def test_matches() -> None:
    values = np.random.default_rng(1).integers(0, 5, 32)
    told = "mul.wide.u32 %l1, %lane, 4; add.u64 %l1, %l1, %x1; ld.global.u32 %r1, [%l1];"
    got = lanes(told + "match.any.sync.b32 %r9, %r1, -1;", values.astype(np.uint32))
    np.testing.assert_array_equal(got, [sum(1 << j for j in range(32) if values[j] == v) for v in values])
    body = told + "match.all.sync.b32 %r9|%p1, %r1, -1; @%p1 add.u32 %r9, %r9, 1;"
    assert not lanes(body, values.astype(np.uint32)).any()
    assert not lanes(body, np.full(32, 4, np.uint32)).any()  # all lanes, and one more wraps
    assert (lanes(told + "match.all.sync.b32 %r9, %r1, -1;", np.full(32, 4, np.uint32)) == 0xFFFFFFFF).all()


@pytest.mark.parametrize(
    "line", ["add.u32", "add.s32", "min.u32", "max.u32", "min.s32", "max.s32", "and.b32", "or.b32", "xor.b32"]
)
def test_reductions(line: str) -> None:
    name, kind = line.split(".")
    values = np.random.default_rng(2).integers(0, 2**32, 32, dtype=np.uint32)
    told = "mul.wide.u32 %l1, %lane, 4; add.u64 %l1, %l1, %x1; ld.global.u32 %r1, [%l1];"
    ufunc = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name]
    seen = values.view(np.int32) if kind == "s32" else values
    whole = ufunc.reduce(seen).astype(seen.dtype).view(np.uint32)
    assert (lanes(told + f"redux.sync.{line} %r9, %r1, -1;", values) == whole).all()
    half = f"setp.ge.u32 %p1, %lane, 16; mov.u32 %r9, 0; @%p1 redux.sync.{line} %r9, %r1, 0xffff0000;"
    np.testing.assert_array_equal(
        lanes(told + half, values)[16:], ufunc.reduce(seen[16:]).astype(seen.dtype).view(np.uint32)
    )


def test_elected_and_active_lanes() -> None:
    """One member is elected and all learn which; activemask names the lanes of a branch."""
    got = lanes("elect.sync %r1|%p1, 0xffffffff; selp.u32 %r2, 256, 0, %p1; or.b32 %r9, %r1, %r2;")
    leader = got & 255
    assert (leader == leader[0]).all()
    np.testing.assert_array_equal(got >> 8, leader[0] == LANES)
    body = "mov.u32 %r9, 0; and.b32 %r1, %lane, 1; setp.eq.u32 %p1, %r1, 0; @%p1 bra OVER; activemask.b32 %r9; OVER:"
    np.testing.assert_array_equal(lanes(body), np.where(LANES % 2, 0xAAAAAAAA, 0))


def test_loops_with_different_trip_counts() -> None:
    body = """mov.u32 %r9, 0; mov.u32 %r1, 0; L: add.u32 %r9, %r9, %r1; add.u32 %r1, %r1, 1;
        setp.le.u32 %p1, %r1, %thread; @%p1 bra L;"""
    np.testing.assert_array_equal(lanes(body, threads=64), [i * (i + 1) // 2 for i in range(64)])


def test_branches_in_branches_join_again() -> None:
    """After each join the lanes vote together: all who should are there."""
    body = """and.b32 %r1, %lane, 1; and.b32 %r2, %lane, 2; setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r2, 0;
        mov.u32 %r9, 5;
        @%p1 bra ODD;
        @%p2 bra EVEN2; add.u32 %r9, %r9, 100; bra EVEN; EVEN2: add.u32 %r9, %r9, 200; EVEN:
        bar.warp.sync 0x55555555; activemask.b32 %r3; setp.eq.u32 %p3, %r3, 0x55555555; @%p3 add.u32 %r9, %r9, 1000;
        bra JOIN;
        ODD: @%p2 bra ODD2; add.u32 %r9, %r9, 300; bra ODDS; ODD2: add.u32 %r9, %r9, 400;
        ODDS: add.u32 %r9, %r9, 1000;
        JOIN: bar.warp.sync -1; activemask.b32 %r3; setp.eq.u32 %p3, %r3, -1; @%p3 add.u32 %r9, %r9, 10000;"""
    np.testing.assert_array_equal(lanes(body), 11005 + 100 * (1 + (LANES >> 1 & 1) + 2 * (LANES & 1)))


def test_lanes_that_wait_for_a_lock_that_another_holds() -> None:
    """All 32 get it, one after the other: those that go round must let the one go on that has it."""
    lock = np.zeros(2, np.uint32)
    body = """mov.u32 %r9, 1; ROUND: atom.global.cas.b32 %r1, [%x1], 0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra ROUND;
        ld.global.u32 %r2, [%x1+4]; add.u32 %r2, %r2, 1; st.global.u32 [%x1+4], %r2;
        atom.global.exch.b32 %r3, [%x1], 0;"""
    lanes(body, lock, schedule="random")
    np.testing.assert_array_equal(lock, [0, 32])


def test_jump_table() -> None:
    body = """and.b32 %r1, %lane, 3; mov.u32 %r9, 0; JUMPS: .branchtargets A, B, C, A; brx.idx %r1, JUMPS;
        A: add.u32 %r9, %r9, 1; bra END; B: add.u32 %r9, %r9, 20; C: add.u32 %r9, %r9, 300; END:"""
    np.testing.assert_array_equal(lanes(body), np.array([1, 320, 300, 1])[LANES % 4])


def test_early_return_of_some_lanes() -> None:
    to = np.zeros(64, np.uint32)
    body = f"setp.lt.u32 %p1, %thread, 40; @%p1 ret; mov.u32 %r9, 7; vote.sync.ballot.b32 %r1, 1, 0xffffff00; {OUT}"
    body = body.replace("vote.sync.ballot.b32 %r1, 1, 0xffffff00;", "")
    run(body, to, threads=64)
    np.testing.assert_array_equal(to, np.where(np.arange(64) < 40, 0, 7))


def test_special_registers() -> None:
    """Each thread of a grid in three dimensions writes its registers to the place that follows from them."""
    to = np.full((2 * 3 * 4, 4 * 3 * 6, 12), 99, np.uint32)
    names = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    body = "".join(f"mov.u32 %r{i}, {name};" for i, name in enumerate(names))
    body += """mad.lo.u32 %r20, %r2, %r4, %r1; mad.lo.u32 %r20, %r20, %r3, %r0; mad.lo.u32 %r21, %r8, %r10, %r7;
        mad.lo.u32 %r21, %r21, %r9, %r6;
        mad.lo.u32 %r20, %r21, 72, %r20; mul.wide.u32 %l1, %r20, 48; add.u64 %l1, %l1, %x0;"""
    body += "".join(f"st.global.u32 [%l1+{4 * i}], %r{i};" for i in range(12))
    run(body, to, threads=(4, 3, 6), blocks=(2, 3, 4))
    z, y, x = np.unravel_index(np.arange(72), (6, 3, 4))
    w, v, u = np.unravel_index(np.arange(24), (4, 3, 2))
    np.testing.assert_array_equal(to[:, :, :3], np.broadcast_to(np.stack([x, y, z], -1), (24, 72, 3)))
    np.testing.assert_array_equal(to[:, :, 6:9], np.broadcast_to(np.stack([u, v, w], -1)[:, None], (24, 72, 3)))
    np.testing.assert_array_equal(to[..., 3:6], np.broadcast_to([4, 3, 6], (24, 72, 3)))
    np.testing.assert_array_equal(to[..., 9:], np.broadcast_to([2, 3, 4], (24, 72, 3)))


def test_lane_and_warp_numbers() -> None:
    np.testing.assert_array_equal(lanes("mov.u32 %r9, %laneid;", threads=96), np.arange(96) % 32)
    np.testing.assert_array_equal(lanes("mov.u32 %r9, %warpid;", threads=96), np.arange(96) // 32)
    np.testing.assert_array_equal(lanes("mov.u32 %r9, %lanemask_lt;"), (1 << LANES) - 1)
