"""Races in shared memory: for each pair of accesses the least program that has one, and its twin that has none.

«…» is what orders the two: without it the race is found under every schedule, with it the program runs under each.
"""

import re

import numpy as np
import pytest
from ptx import fault, run
from schedules import SCHEDULES

# %r0: this thread's word; %r1: that of the same lane of the other warp of a pair.
WORDS = """shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at; xor.b32 %r1, %r0, 128; mov.u32 %r9, 0;
    add.u32 %r2, %thread, 1;
    setp.eq.u32 %p1, %thread, 0; setp.ge.u32 %p2, %thread, 32;
    st.shared.u32 [%r0], %r9; st.shared.u32 [%r0+256], %r9; st.shared.u32 [%r0+512], %r9;
    st.shared.u32 [%r0+768], %r9; bar.sync 0;"""
OUT = "mul.wide.u32 %l9, %thread, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r9;"
SOURCE = "mul.wide.u32 %l1, %thread, 4; add.u64 %l1, %l1, %x1;"  # of this thread's word in global memory
COPY = "cp.async.ca.shared.global [{to}], [%l1], 4; cp.async.commit_group;"
FULL, EMPTY, BUFFER = 1024, 1032, 1040  # two mbarriers and a buffer of 256 bytes for the copy engine
INIT = f"""@%p1 mbarrier.init.shared::cta.b64 [%at+{FULL}], 1; @%p1 mbarrier.init.shared::cta.b64 [%at+{EMPTY}], 32;
    add.u32 %r10, %at, {FULL}; add.u32 %r11, %at, {BUFFER}; fence.proxy.async; bar.sync 0;"""
FILL = """@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 256;
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%x1], 256, [%r10];"""


def wait(barrier: int, parity: int, label: str) -> str:
    return f"{label}: mbarrier.try_wait.parity.shared::cta.b64 %p9, [%at+{barrier}], {parity}; @!%p9 bra {label};"


READ_BUFFER = "and.b32 %r3, %r0, 127; add.u32 %r3, %r3, %r11; ld.shared.u32 %r9, [%r3];"
STORE = "@%p1 cp.async.bulk.global.shared::cta.bulk_group [%x0], [%r11], 256; @%p1 cp.async.bulk.commit_group;"
WRITE_BUFFER = "add.u32 %r3, %r0, %r11; sub.u32 %r3, %r3, %at; st.shared.u32 [%r3], %r2;"

TWINS = {
    "written_then_read": f"{WORDS} st.shared.u32 [%r0], %r2; «bar.sync 0;» ld.shared.u32 %r9, [%r1]; {OUT}",
    "read_then_written": f"""{WORDS} st.shared.u32 [%r0], %r2; bar.sync 0; ld.shared.u32 %r9, [%r1]; «bar.sync 0;»
        add.u32 %r2, %r2, 7; st.shared.u32 [%r0], %r2; {OUT}""",
    "written_twice": f"""{WORDS} @!%p2 st.shared.u32 [%r0], %r2; «bar.sync 0;» @%p2 st.shared.u32 [%r1], %r2;
        bar.sync 0;
        @%p2 ld.shared.u32 %r9, [%r1]; {OUT}""",
    "a_byte_of_a_word": f"{WORDS} st.shared.u32 [%r0], %r2; «bar.sync 0;» ld.shared.u8 %r9, [%r1+3]; {OUT}",
    "a_vector_over_a_word": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.sync 0;» and.b32 %r3, %r1, -16;
        ld.shared.v4.u32 {{%r4, %r5, %r6, %r9}}, [%r3]; {OUT}""",
    "through_a_generic_address": f"""{WORDS} cvt.u64.u32 %l2, %r0; cvta.shared.u64 %l2, %l2; st.u32 [%l2], %r2;
        «bar.sync 0;»
        ld.shared.u32 %r9, [%r1]; {OUT}""",
    "an_atomic_then_a_load": f"""{WORDS} mov.u32 %r3, 0; @%p1 st.shared.u32 [%at], %r3; bar.sync 0;
        atom.shared.add.u32 %r4, [%at], 1; «bar.sync 0;»
        ld.shared.u32 %r9, [%at]; {OUT}""",
    "another_barrier_number": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.sync 3, 64;» shr.u32 %r4, %thread, 5;
        add.u32 %r4, %r4, 1; bar.sync %r4, 32;
        ld.shared.u32 %r9, [%r1]; {OUT}""",
    "arrived_before_writing": f"""{WORDS} @%p2 bra SECOND; st.shared.u32 [%r0], %r2;
        «bar.arrive 2, 64;» st.shared.u32 [%r0+512], %r2; bar.arrive 3, 64; bra END;
        SECOND: «bar.sync 2, 64;» ld.shared.u32 %r9, [%r1]; bar.sync 3, 64; END: {OUT}""",
    "matrices_loaded": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.sync 0;» and.b32 %r3, %lane, 7;
        shl.b32 %r3, %r3, 4; xor.b32 %r4, %warp, 1; shl.b32 %r4, %r4, 7;
        add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %at; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r9}}, [%r3]; {OUT}""",
    "mbarrier_before_its_init": f"""{WORDS} @%p1 mbarrier.init.shared::cta.b64 [%at+{FULL}], 64;
        «bar.sync 0;» mbarrier.arrive.shared::cta.b64 _, [%at+{FULL}];
        {wait(FULL, 0, "W")} {OUT}""",
    "by_an_mbarrier": f"""{WORDS} @%p1 mbarrier.init.shared::cta.b64 [%at+{FULL}], 64; bar.sync 0;
        st.shared.u32 [%r0], %r2;
        mbarrier.arrive.shared::cta.b64 _, [%at+{FULL}]; «{wait(FULL, 0, "W")}» ld.shared.u32 %r9, [%r1]; {OUT}""",
    "cp_async_not_waited_for": f"""{WORDS} {SOURCE} {COPY.format(to='%r0')} «cp.async.wait_group 0;»
        ld.shared.u32 %r9, [%r0]; {OUT}""",
    "cp_async_never_committed": f"""{WORDS} {SOURCE} cp.async.ca.shared.global [%r0], [%l1], 4; «cp.async.commit_group;»
        cp.async.wait_group 0; ld.shared.u32 %r9, [%r0]; {OUT}""",
    "cp_async_waited_for_too_few": f"""{WORDS} {SOURCE} {COPY.format(to="%r0")} {COPY.format(to="%r0+512")}
        cp.async.wait_group 1; «cp.async.wait_group 0;»
        ld.shared.u32 %r9, [%r0+512]; {OUT}""",
    "cp_async_of_another_warp": f"""{WORDS} {SOURCE} {COPY.format(to='%r0')} cp.async.wait_group 0;
        «bar.sync 0;» ld.shared.u32 %r9, [%r1]; {OUT}""",
    "cp_async_into_what_is_read": f"""{WORDS} {SOURCE} st.shared.u32 [%r0], %r2; bar.sync 0;
        ld.shared.u32 %r9, [%r1]; «bar.sync 0;»
        {COPY.format(to="%r0")} cp.async.wait_all; {OUT}""",
    "bulk_copy_not_waited_for": f"""{WORDS} {INIT} {FILL} «{wait(FULL, 0, "W")}» {READ_BUFFER}
        {wait(FULL, 0, "V")} {OUT}""",
    "bulk_copy_into_what_is_read": f"""{WORDS} {INIT} @%p2 bra CONSUMER;
        {FILL} {wait(FULL, 0, "T")} «{wait(EMPTY, 0, "W")}» {FILL} {wait(FULL, 1, "U")} bra END;
        CONSUMER: {wait(FULL, 0, "V")} {READ_BUFFER} mbarrier.arrive.shared::cta.b64 _, [%at+{EMPTY}]; END: {OUT}""",
    "bulk_copy_over_what_was_written": f"""{WORDS} {INIT} {WRITE_BUFFER} «fence.proxy.async;» bar.sync 0;
        {FILL} {wait(FULL, 0, 'W')} {READ_BUFFER} {OUT}""",
    "bulk_store_without_its_fence": f"""{WORDS} {INIT} {WRITE_BUFFER} «fence.proxy.async;» bar.sync 0;
        {STORE} @%p1 cp.async.bulk.wait_group 0;""",
    "bulk_store_before_the_barrier": f"""{WORDS} {INIT} {WRITE_BUFFER} fence.proxy.async;
        «bar.sync 0;» {STORE} @%p1 cp.async.bulk.wait_group 0;""",
    "written_while_bulk_store_reads": f"""{WORDS} {INIT} {WRITE_BUFFER} fence.proxy.async; bar.sync 0;
        {STORE} «@%p1 cp.async.bulk.wait_group.read 0;»
        add.u32 %r2, %r2, 9; @%p1 st.shared.u32 [%r11], %r2; @%p1 cp.async.bulk.wait_group 0;""",
    "written_by_a_lane_then_read_by_another": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.warp.sync -1;»
        xor.b32 %r3, %r0, 4; ld.shared.u32 %r9, [%r3]; {OUT}""",
    "read_by_a_lane_then_written_by_another": f"""{WORDS} xor.b32 %r3, %r0, 4; ld.shared.u32 %r9, [%r3];
        «bar.warp.sync -1;» st.shared.u32 [%r0], %r2; {OUT}""",
    "written_by_two_lanes": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.warp.sync -1;»
        xor.b32 %r3, %r0, 4; st.shared.u32 [%r3], %r9; {OUT}""",
    "an_atomic_of_another_lane": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.warp.sync -1;» xor.b32 %r3, %r0, 4;
        red.shared.add.u32 [%r3], 1; {OUT}""",
    "matrices_of_lanes": f"""{WORDS} st.shared.u32 [%r0], %r2; «bar.warp.sync -1;» and.b32 %r3, %lane, 7;
        shl.b32 %r3, %r3, 4; shl.b32 %r4, %warp, 7; add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %at;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r9}}, [%r3]; {OUT}""",
    "cp_async_of_another_lane": f"""{WORDS} {SOURCE} {COPY.format(to='%r0')} cp.async.wait_group 0;
        «bar.warp.sync -1;» xor.b32 %r3, %r0, 4; ld.shared.u32 %r9, [%r3]; {OUT}""",
}  # fmt: skip


# What else it may lead to first: an arrival before there is a barrier, a phase that is over before it is waited for.
ALSO = {"mbarrier_before_its_init": ["barrier"], "bulk_copy_into_what_is_read": ["deadlock"]}


def twin(body: str, sound: bool) -> str:
    return body.replace("«", "").replace("»", "") if sound else re.sub("«.*?»", "", body, flags=re.DOTALL)


def arrays(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32)


@pytest.mark.parametrize("name", TWINS)
def test_races_are_found(name: str) -> None:
    for schedule, seed in SCHEDULES:
        with fault("race", *ALSO.get(name, ())):
            run(twin(TWINS[name], False), *arrays(64), threads=64, shared=2048, schedule=schedule, seed=seed)


@pytest.mark.parametrize("name", TWINS)
def test_their_twins_are_sound(name: str) -> None:
    run(twin(TWINS[name], True), *arrays(64), threads=64, shared=2048, schedules=True)


def test_a_consumer_that_says_too_early_that_it_has_read() -> None:
    """The consumer arrives at the barrier for which the refill waits, and reads after that."""
    body = f"""{WORDS} {INIT} @%p2 bra CONSUMER;
        {FILL} {wait(FULL, 0, "T")} {wait(EMPTY, 0, "W")} {FILL} {wait(FULL, 1, "U")} bra END;
        CONSUMER: {wait(FULL, 0, "V")} FIRST mbarrier.arrive.shared::cta.b64 _, [%at+{EMPTY}]; THEN END: {OUT}"""
    run(body.replace("FIRST", READ_BUFFER).replace("THEN", ""), *arrays(64), threads=64, shared=2048, schedules=True)
    for schedule, seed in SCHEDULES:
        with fault("race"):
            early = body.replace("FIRST", "").replace("THEN", READ_BUFFER)
            run(early, *arrays(64), threads=64, shared=2048, schedule=schedule, seed=seed)


NO_RACE = {
    "the_same_value_by_two_warps": f"""{WORDS} and.b32 %r3, %thread, 31; shl.b32 %r4, %r3, 2; add.u32 %r4, %r4, %at;
        st.shared.u32 [%r4], %r3; bar.sync 0; ld.shared.u32 %r9, [%r4]; {OUT}""",
    "bytes_beside_each_other": f"""{WORDS} add.u32 %r3, %at, %thread; st.shared.u8 [%r3], %thread; bar.sync 0;
        ld.shared.u8 %r9, [%r3]; {OUT}""",
    "fenced_by_who_stores": f"""{WORDS} {INIT} {WRITE_BUFFER} bar.sync 0; fence.proxy.async; {STORE}
        @%p1 cp.async.bulk.wait_group 0;""",
    "read_by_all": f"""{WORDS} @%p1 st.shared.u32 [%at], %r2; bar.sync 0; ld.shared.u32 %r9, [%at];
        ld.shared.u32 %r9, [%at]; {OUT}""",
    "atomics_of_all": f"""{WORDS} @%p1 st.shared.u32 [%at], %r2; bar.sync 0; red.shared.add.u32 [%at], 5;
        bar.sync 0; ld.shared.u32 %r9, [%at]; {OUT}""",
    "a_warps_own_words": f"""{WORDS} st.shared.u32 [%r0], %r2; bar.warp.sync -1; xor.b32 %r3, %r0, 4;
        ld.shared.u32 %r9, [%r3]; {OUT}""",
    "a_lanes_own_word": f"""{WORDS} st.shared.u32 [%r0], %r2; ld.shared.u32 %r3, [%r0];
        st.shared.u32 [%r0], %r9; {OUT}""",
    "atomics_of_all_lanes_after_the_first": f"""{WORDS} @%p1 st.shared.u32 [%at], %r2; bar.sync 0;
        red.shared.add.u32 [%at], 5; red.shared.add.u32 [%at], 5; bar.sync 0; ld.shared.u32 %r9, [%at]; {OUT}""",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_RACE)
def test_no_false_alarm(name: str) -> None:
    run(NO_RACE[name], *arrays(64), threads=64, shared=2048, schedules=True)


# ---- wgmma -----------------------------------------------------------------------------------------------------------

# 64 × 16 and 16 × 8 of float16, K-major and not swizzled, at 0 and 2048; every thread writes 16 bytes of the first.
OPERANDS = """mad.lo.u32 %r0, %thread, 16, %at; mov.u32 %r2, 0; mov.u32 %r9, 0; setp.lt.u32 %p1, %thread, 16;
    st.shared.v4.u32 [%r0], {%r2, %r2, %r2, %r2}; @%p1 st.shared.v4.u32 [%r0+2048], {%r2, %r2, %r2, %r2};
    fence.proxy.async; bar.sync 0;
    mov.u32 %r8, 0x3C003C00; st.shared.v4.u32 [%r0], {%r8, %r8, %r8, %r8};
    @%p1 st.shared.v4.u32 [%r0+2048], {%r8, %r8, %r8, %r8};
    shr.u32 %r3, %at, 4; cvt.u64.u32 %l1, %r3; add.u64 %l2, %l1, 0x800400000; add.u64 %l3, %l1, 0x80080;
    setp.ne.u32 %p3, 0, 0;
    mov.u32 %r4, 0; mov.u32 %r5, 0; mov.u32 %r6, 0; mov.u32 %r7, 0; setp.eq.u32 %p4, 0, 0;"""
READY = "fence.proxy.async; bar.sync 0;"
D = "{%r4, %r5, %r6, %r7}"
START = "wgmma.fence.sync.aligned;"
PRODUCT = f"""wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {D}, %l2, %l3, %p4, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;"""
FROM_REGISTERS = f"""wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {D}, {{%r20, %r21, %r22, %r23}}, %l3, %p4,
    1, 1, 0; wgmma.commit_group.sync.aligned;"""
ALL = "wgmma.wait_group.sync.aligned 0;"
END = "mul.wide.u32 %l9, %thread, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r4;"
FRAGMENT = "mov.u32 %r20, 0; mov.u32 %r21, 0; mov.u32 %r22, 0; mov.u32 %r23, 0;"

WGMMA = {
    "operand_without_its_fence": ("race", f"{OPERANDS} «fence.proxy.async;» bar.sync 0; {START} {PRODUCT} {ALL} {END}"),
    "operand_before_the_barrier": ("race", f"""{OPERANDS} fence.proxy.async;
        «bar.sync 0;» {START} {PRODUCT} {ALL} {END}"""),
    "operand_overwritten": (
        "race",
        f"""{OPERANDS} {READY} {START} {PRODUCT} «{ALL}» mov.u32 %r2, 1; bar.sync 0;
            @%p1 st.shared.u32 [%r0+2048], %r2; {ALL} {END}""",
    ),
    "operand_overwritten_by_another_warp": (
        "race",
        f"""{OPERANDS} {READY} {START} {PRODUCT} {ALL} «bar.sync 0;» mov.u32 %r2, 1;
            @%p1 st.shared.u32 [%r0+2048], %r2; {END}""",
    ),
    "operand_refilled": (
        "race",
        f"""{OPERANDS} {READY} {START} {PRODUCT} «{ALL} bar.sync 0;» cp.async.cg.shared.global [%r0], [%x1], 16;
            cp.async.wait_all; {ALL} {END}""",
    ),
    "operand_by_cp_async_without_its_fence": (
        "race",
        f"""{OPERANDS} {READY} cp.async.cg.shared.global [%r0], [%x1], 16; cp.async.wait_all;
            «fence.proxy.async;» bar.sync 0; {START} {PRODUCT} {ALL} {END}""",
    ),
    "one_of_two_waited_for": (
        "race",
        f"""{OPERANDS} {READY} {START} {PRODUCT} {PRODUCT} wgmma.wait_group.sync.aligned 1; «{ALL}» bar.sync 0;
            mov.u32 %r2, 1; @%p1 st.shared.u32 [%r0+2048], %r2; {ALL} {END}""",
    ),
    "accumulators_read": ("wgmma", f"{OPERANDS} {READY} {START} {PRODUCT} «{ALL}» add.f32 %r4, %r4, %r4; {ALL} {END}"),
    "accumulators_of_products_never_committed": (
        "wgmma",
        f"""{OPERANDS} {READY} {START} {PRODUCT.partition("wgmma.commit")[0]} «wgmma.commit_group.sync.aligned;» {ALL}
            {END} wgmma.commit_group.sync.aligned; {ALL}""",
    ),
    "accumulators_stored": ("wgmma", f"{OPERANDS} {READY} {START} {PRODUCT} «{ALL}» {END}"),
    "accumulators_written": ("wgmma", f"{OPERANDS} {READY} {START} {PRODUCT} «{ALL}» mov.u32 %r5, 0; {ALL} {END}"),
    "accumulators_without_the_first_fence": ("wgmma", f"{OPERANDS} {READY} «{START}» {PRODUCT} {ALL} {END}"),
    "accumulators_changed_between": (
        "wgmma",
        f"{OPERANDS} {READY} {START} {PRODUCT} {ALL} add.f32 %r4, %r4, %r4; «{START}» {PRODUCT} {ALL} {END}",
    ),
    "fragment_without_a_fence": (
        "wgmma",
        f"{OPERANDS} {READY} {START} {FRAGMENT} «{START}» {FROM_REGISTERS} {ALL} {END}",
    ),
    "fragment_overwritten": (
        "wgmma",
        f"{OPERANDS} {READY} {FRAGMENT} {START} {FROM_REGISTERS} «{ALL}» mov.u32 %r21, 7; {ALL} {END}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WGMMA)
def test_faults_around_wgmma_are_found(name: str) -> None:
    kind, body = WGMMA[name]
    for schedule, seed in SCHEDULES:
        with fault(kind):
            run(twin(body, False), *arrays(128), threads=128, shared=4096, schedule=schedule, seed=seed)


@pytest.mark.parametrize("name", WGMMA)
def test_wgmma_used_as_it_should(name: str) -> None:
    run(twin(WGMMA[name][1], True), *arrays(128), threads=128, shared=4096, schedules=True)
