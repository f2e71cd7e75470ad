"""Blocks of a cluster: memory of the other block, barriers of all, copies to several blocks at once, and scopes."""

import numpy as np
import pytest
from ptx import aligned, fault, run
from schedules import SCHEDULES

from gpuconv.emulator import TensorMap

RANK = "mov.u32 %r1, %cluster_ctarank; xor.b32 %r2, %r1, 1; mad.lo.u32 %r3, %r1, 32, %thread;"
OUT = "mul.wide.u32 %l9, %r3, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r9;"
MEET = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
WORD = "shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at;"

# Each block writes into the other's memory, or reads it.
STORE = f"""{RANK} {WORD} mapa.shared::cluster.u32 %r4, %r0, %r2; add.u32 %r5, %r3, 100;
    «{MEET}» st.shared::cluster.u32 [%r4], %r5; {MEET} ld.shared.u32 %r9, [%r0]; {OUT}"""
LOAD = f"""{RANK} {WORD} mapa.shared::cluster.u32 %r4, %r0, %r2; add.u32 %r5, %r3, 100; st.shared.u32 [%r0], %r5;
    «{MEET}» ld.shared::cluster.u32 %r9, [%r4]; {MEET} {OUT}"""


def blocks(body: str, **named: object) -> np.ndarray:
    to = np.zeros(64, np.uint32)
    run(body.replace("«", "").replace("»", ""), to, blocks=2, cluster=2, shared=1024, **named)
    return to.reshape(2, 32)


@pytest.mark.parametrize("body", [STORE, LOAD], ids=["store", "load"])
def test_memory_of_the_other_block(body: str) -> None:
    np.testing.assert_array_equal(blocks(body, schedules=True), 100 + np.arange(64).reshape(2, 32)[::-1])


def test_memory_of_the_other_block_before_it_is_there() -> None:
    for schedule, seed in SCHEDULES:
        with fault("race", "uninitialised"):
            blocks(LOAD.replace(f"«{MEET}»", ""), schedule=schedule, seed=seed)


def test_ranks_and_places() -> None:
    """Four blocks in clusters of two."""
    to = np.zeros((4, 32, 4), np.uint32)
    body = """mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, %cluster_nctarank; mov.u32 %r3, %clusterid.x;
        mov.u32 %r4, %ctaid.x;
        mad.lo.u32 %r5, %r4, 32, %thread; mul.wide.u32 %l1, %r5, 16; add.u64 %l1, %l1, %x0;
        st.global.v4.u32 [%l1], {%r1, %r2, %r3, %r4};"""
    run(body, to, blocks=4, cluster=2)
    expected = np.array([[b % 2, 2, b // 2, b] for b in range(4)])
    np.testing.assert_array_equal(to, np.broadcast_to(expected[:, None], to.shape))


def test_an_mbarrier_of_the_other_block() -> None:
    """Each block arrives at the other's barrier, and waits at its own."""
    body = f"""{RANK} {WORD} setp.eq.u32 %p1, %thread, 0; @%p1 mbarrier.init.shared::cta.b64 [%at+512], 32;
        fence.mbarrier_init.release.cluster; {MEET} add.u32 %r6, %at, 512; mapa.shared::cluster.u32 %r7, %r6, %r2;
        mapa.shared::cluster.u32 %r4, %r0, %r2; st.shared::cluster.u32 [%r4], %r3;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r7];
        WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r6], 0; @!%p2 bra WAIT;
        ld.shared.u32 %r9, [%r0]; {MEET} {OUT}"""
    np.testing.assert_array_equal(blocks(body, schedules=True), np.arange(64).reshape(2, 32)[::-1])


def test_a_block_that_has_ended_is_not_waited_for() -> None:
    body = (
        f"{RANK} setp.eq.u32 %p1, %r1, 0; @%p1 bra OVER; {MEET} {MEET} bra END; OVER: {MEET} END: mov.u32 %r9, 5; {OUT}"
    )
    assert (blocks(body, schedules=True) == 5).all()


# Each block fetches half of a box of 64 words, for both; each waits for both halves at its own mbarrier.
MULTICAST = f"""{RANK} setp.eq.u32 %p1, %thread, 0; @%p1 mbarrier.init.shared::cta.b64 [%at+512], 1;
    fence.mbarrier_init.release.cluster; {MEET} add.u32 %r6, %at, 512;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 256; {MEET}
    shl.b32 %r7, %r1, 7; add.u32 %r7, %r7, %at; shl.b32 %r8, %r1, 5; mov.u16 %h1, 3;
    @%p1 cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r7],
        [%x1, {{%r8}}], [%r6], %h1;
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r6], 0; @!%p2 bra WAIT;
    shl.b32 %r0, %thread, 3; add.u32 %r0, %r0, %at; ld.shared.v2.u32 {{%r10, %r11}}, [%r0]; add.u32 %r9, %r10, %r11;
    «{MEET}» {OUT}"""


def test_one_copy_for_both_blocks() -> None:
    words = aligned(np.arange(100, 164, dtype=np.uint32))
    half = TensorMap(words.ctypes.data, "u32", (64,), (), (32,))
    to = np.zeros(64, np.uint32)
    run(MULTICAST.replace("«", "").replace("»", ""), to, half, blocks=2, cluster=2, shared=1024, schedules=True)
    np.testing.assert_array_equal(to.reshape(2, 32), np.tile(words.reshape(32, 2).sum(1), (2, 1)))


def test_scopes_have_names_of_their_own() -> None:
    """Registers and labels of inline assembly, twice the same, one scope inside another."""
    to = np.zeros(32, np.uint32)
    once = """{ .reg .u32 count; .reg .pred p; mov.u32 count, 0;
        ROUND: add.u32 count, count, 1; setp.lt.u32 p, count, %thread; @p bra ROUND;
        { .reg .u32 count; mov.u32 count, 1000; add.u32 %r9, %r9, count; } add.u32 %r9, %r9, count; }"""
    body = (
        f"mov.u32 %r9, 0; {once}\n{once} mul.wide.u32 %l1, %thread, 4; add.u64 %l1, %l1, %x0; st.global.u32 [%l1], %r9;"
    )
    run(body, to)
    np.testing.assert_array_equal(to, 2000 + 2 * np.maximum(np.arange(32), 1))
