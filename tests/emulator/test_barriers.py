"""Barriers of PTX: numbered ones with counts, mbarriers with phases and bytes, and the faults in their use."""

import numpy as np
import pytest
from ptx import fault, run
from schedules import SCHEDULES

OUT = "mul.wide.u32 %l9, %thread, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r9;"
SLOT = "shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at;"  # this thread's word of shared memory
INIT = "setp.eq.u32 %p1, %thread, 0; @%p1 mbarrier.init.shared::cta.b64 [%at], {count}; bar.sync 0;"


def wait(parity: str, label: str, how: str = "try_wait") -> str:
    return f"{label}: mbarrier.{how}.parity.shared::cta.b64 %p9, [%at], {parity}; @!%p9 bra {label};"


def threads(body: str, n: int, **named: object) -> np.ndarray:
    """%r9 of each thread, the same under every schedule."""
    to = np.zeros(n, np.uint32)
    run(f"{body} {OUT}", to, threads=n, shared=2048, schedules=True, **named)
    return to


def finds(kind: str, body: str, n: int = 64) -> None:
    """Under every schedule the same fault."""
    for schedule, seed in SCHEDULES:
        with fault(kind):
            run(body, np.zeros(n, np.uint32), threads=n, shared=2048, schedule=schedule, seed=seed)


@pytest.mark.parametrize("line", ["bar.sync 0;", "barrier.sync 0;", "bar.sync 7, 128;", "barrier.cta.sync.aligned 3;"])
def test_all_warps_meet(line: str) -> None:
    body = f"""{SLOT} st.shared.u32 [%r0], %thread; {line} xor.b32 %r1, %thread, 96; shl.b32 %r1, %r1, 2;
        add.u32 %r1, %r1, %at; ld.shared.u32 %r9, [%r1];"""
    np.testing.assert_array_equal(threads(body, 128), np.arange(128) ^ 96)


def test_pairs_of_warps_meet_at_barriers_of_their_own() -> None:
    body = f"""{SLOT} st.shared.u32 [%r0], %thread; shr.u32 %r2, %warp, 1; add.u32 %r2, %r2, 1; bar.sync %r2, 64;
        xor.b32 %r1, %r0, 128; ld.shared.u32 %r9, [%r1];"""
    np.testing.assert_array_equal(threads(body, 128), np.arange(128) ^ 32)


def test_one_warp_arrives_and_the_other_waits() -> None:
    body = f"""{SLOT} mov.u32 %r9, 0; setp.ne.u32 %p1, %warp, 0; @%p1 bra SECOND;
        st.shared.u32 [%r0], %thread; bar.arrive 2, 64; bra END;
        SECOND: bar.sync 2, 64; sub.u32 %r1, %r0, 128; ld.shared.u32 %r9, [%r1]; END:"""
    np.testing.assert_array_equal(threads(body, 64), [0] * 32 + list(range(32)))


def test_barriers_that_count() -> None:
    """Over the predicate of all threads: how many, whether all, whether any."""
    told = "setp.lt.u32 %p1, %thread, 37; setp.lt.u32 %p4, %thread, 96; setp.gt.u32 %p5, %thread, 95;"
    assert (threads(f"{told} bar.red.popc.u32 %r9, 0, %p1;", 96) == 37).all()
    assert (threads(f"{told} barrier.cta.red.popc.aligned.u32 %r9, 1, 96, !%p1;", 96) == 59).all()
    for line, expected in (
        ("and.pred %p2, 0, %p1", 0),
        ("and.pred %p2, 0, %p4", 1),
        ("or.pred %p2, 0, %p5", 0),
        ("or.pred %p2, 0, %p1", 1),
    ):
        assert (threads(f"{told} bar.red.{line}; selp.u32 %r9, 1, 0, %p2;", 96) == expected).all(), line


def test_a_barrier_is_used_again() -> None:
    body = f"""mov.u32 %r9, 0; mov.u32 %r3, 0; {SLOT} LOOP: add.u32 %r4, %thread, %r3; st.shared.u32 [%r0], %r4;
        bar.sync 0;
        xor.b32 %r1, %r0, 128; ld.shared.u32 %r5, [%r1]; add.u32 %r9, %r9, %r5; bar.sync 0;
        add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 10; @%p1 bra LOOP;"""
    np.testing.assert_array_equal(threads(body, 64), 10 * (np.arange(64) ^ 32) + 45)


@pytest.mark.parametrize("how", ["try_wait", "test_wait"])
def test_an_mbarrier_of_threads(how: str) -> None:
    """Ten phases; each thread reads what another wrote before it arrived."""
    body = f"""{INIT.format(count=128)} {SLOT} add.u32 %r0, %r0, 1024; mov.u32 %r3, 0; mov.u32 %r9, 0;
        LOOP: and.b32 %r6, %r3, 1; add.u32 %r4, %thread, %r3; st.shared.u32 [%r0], %r4;
        mbarrier.arrive.shared::cta.b64 %l1, [%at]; {wait("%r6", "W", how)}
        xor.b32 %r1, %r0, 256; ld.shared.u32 %r5, [%r1]; add.u32 %r9, %r9, %r5; bar.sync 0;
        add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 10; @%p1 bra LOOP;"""
    np.testing.assert_array_equal(threads(body, 128), 10 * (np.arange(128) ^ 64) + 45)


@pytest.mark.parametrize("setter", [0, 1])
def test_a_warp_may_go_round_until_another_has_written(setter: int) -> None:
    body = f"""mov.u32 %r1, 0; setp.eq.u32 %p1, %thread, 0; @%p1 st.shared.u32 [%at], %r1; bar.sync 0;
        setp.eq.u32 %p2, %warp, {setter}; @%p2 bra SET;
        ROUND: ld.volatile.shared.u32 %r9, [%at]; setp.eq.u32 %p3, %r9, 0; @%p3 bra ROUND; bra END;
        SET: mov.u32 %r9, 1; atom.shared.exch.b32 %r3, [%at], %r9; END:"""
    assert (threads(body, 64) == 1).all()


def test_an_mbarrier_counts_and_tells_its_phase() -> None:
    """Phase 0: a wait for parity 1 succeeds at once, one for parity 0 when all have arrived;
    then the other way round."""
    test = "mbarrier.test_wait.parity.shared::cta.b64 %p2, [%at], {parity}; @%p2 or.b32 %r9, %r9, {bit};"
    body = f"""mov.u32 %r9, 0; mbarrier.init.shared::cta.b64 [%at], 3;
        {test.format(parity=0, bit=1)} {test.format(parity=1, bit=2)}
        mbarrier.arrive.shared::cta.b64 _, [%at], 2; {test.format(parity=0, bit=4)}
        mbarrier.arrive.shared::cta.b64 _, [%at]; {test.format(parity=0, bit=8)} {test.format(parity=1, bit=16)}
        mbarrier.arrive.shared::cta.b64 _, [%at], 3; {test.format(parity=0, bit=32)} {test.format(parity=1, bit=64)}
        mbarrier.inval.shared::cta.b64 [%at];"""
    assert threads(body, 1) == 2 + 8 + 64


def test_a_state_is_waited_for() -> None:
    body = f"""{INIT.format(count=64)} mov.u32 %r9, 0; mbarrier.arrive.shared::cta.b64 %l1, [%at];
        W: mbarrier.try_wait.shared::cta.b64 %p9, [%at], %l1; @!%p9 bra W; mov.u32 %r9, 1;"""
    assert threads(body, 64).all()


def test_copies_arrive() -> None:
    """cp.async.mbarrier.arrive: another warp waits for what a warp copies."""
    source = np.arange(32, dtype=np.uint32) + 5
    to = np.zeros(64, np.uint32)
    body = f"""{INIT.format(count=32)} {SLOT} mov.u32 %r9, 0; setp.ne.u32 %p1, %warp, 0; @%p1 bra SECOND;
        mul.wide.u32 %l1, %thread, 4; add.u64 %l1, %l1, %x1; add.u32 %r1, %r0, 1024;
        cp.async.ca.shared.global [%r1], [%l1], 4;
        cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%at]; bra END;
        SECOND: {wait("0", "W")} sub.u32 %r1, %r0, 128; ld.shared.u32 %r9, [%r1+1024]; END: {OUT}"""
    run(body, to, source, threads=64, shared=2048, schedules=True)
    np.testing.assert_array_equal(to[32:], source)


def test_bytes_by_the_copy_engine() -> None:
    """A plain bulk copy in, and one out."""
    source, to = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    body = f"""{INIT.format(count=1)} fence.proxy.async; mov.u32 %r1, %at; add.u32 %r2, %at, 256;
        @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%at], 256;
        @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%x1], 256, [%r1];
        {wait("0", "W")}
        shl.b32 %r0, %lane, 3; add.u32 %r0, %r0, %r2; ld.shared.v2.u32 {{%r4, %r5}}, [%r0]; add.u32 %r4, %r4, 100;
        add.u32 %r5, %r5, 100;
        st.shared.v2.u32 [%r0], {{%r4, %r5}}; fence.proxy.async; bar.sync 0;
        @%p1 cp.async.bulk.global.shared::cta.bulk_group [%x0], [%r2], 256; @%p1 cp.async.bulk.commit_group;
        @%p1 cp.async.bulk.wait_group 0;"""
    run(body, to, source, shared=512, schedules=True)
    np.testing.assert_array_equal(to, source + 100)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("bar.sync 1, 64;", id="half_the_warps"),
        pytest.param("bar.sync %warp, 64;", id="different_numbers"),
        pytest.param(
            INIT.format(count=65) + "mbarrier.arrive.shared::cta.b64 _, [%at];" + wait("0", "W"),
            id="an_arrival_missing",
        ),
        pytest.param(
            INIT.format(count=64) + "mbarrier.arrive.shared::cta.b64 _, [%at];" + wait("0", "V") + wait("1", "W"),
            id="wrong_parity",
        ),
        pytest.param(
            INIT.format(count=1) + "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%at], 16;" + wait("0", "W"),
            id="bytes_that_never_come",
        ),
    ],
)
def test_deadlocks_are_found(body: str) -> None:
    if body.startswith("bar.sync 1"):
        body = f"setp.eq.u32 %p1, %warp, 0; @%p1 bra IN; bra OUT; IN: {body} OUT:"
    finds("deadlock", body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("setp.lt.u32 %p1, %lane, 16; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:", id="two_places"),
        pytest.param("setp.lt.u32 %p1, %lane, 16; @%p1 bra A; bar.sync 0; A: bar.warp.sync -1;", id="some_lanes"),
        pytest.param("mov.u32 %r1, 48; bar.sync 0, %r1;", id="not_whole_warps"),
        pytest.param("mov.u32 %r1, 16; bar.sync %r1;", id="number_16"),
        pytest.param(
            "setp.eq.u32 %p1, %warp, 0; @%p1 bra A; bar.sync 1, 64; bra B; A: bar.sync 1, 96; B:", id="counts_differ"
        ),
        pytest.param("mbarrier.init.shared::cta.b64 [%at], 0;", id="init_of_nothing"),
        pytest.param("mbarrier.arrive.shared::cta.b64 _, [%at];", id="no_mbarrier"),
        pytest.param(
            INIT.format(count=4) + "@%p1 mbarrier.arrive.shared::cta.b64 _, [%at], 5;", id="too_many_arrivals"
        ),
        pytest.param(
            INIT.format(count=1)
            + "@%p1 mbarrier.inval.shared::cta.b64 [%at]; @%p1 mbarrier.arrive.shared::cta.b64 _, [%at];",
            id="after_inval",
        ),
        pytest.param(
            INIT.format(count=1) + "@%p1 mbarrier.init.shared::cta.b64 [%at], 1;", id="a_second_init_without_inval"
        ),
        pytest.param(INIT.format(count=1) + "@%p1 st.shared.u32 [%at+4], %r9;", id="written_over"),
        pytest.param(INIT.format(count=1) + "@%p1 ld.shared.u8 %r9, [%at+7];", id="read_as_memory"),
    ],
)
def test_misuse_is_found(body: str) -> None:
    finds("barrier", body)
