"""Faults in kernels are found, where they happen; correct code that looks like them is not."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from ptx import aligned, fault, run, text

from gpuconv.emulator import EmulationError, UnknownInstruction, load, run_ptx

MINE = "mul.wide.u32 %l0, %thread, 4; add.u64 %l0, %l0, %x0;"
TWO = "{%r5, %r6}"
FOUR = "{%r1, %r2, %r3, %r4}"
OUT = "mul.wide.u32 %l9, %thread, 4; add.u64 %l9, %l9, %x0; st.global.u32 [%l9], %r9;"


def neighbours() -> tuple[np.ndarray, np.ndarray]:
    """Two tensors of 32 words, one right behind the other in memory."""
    memory = np.zeros(64, np.uint32)
    return memory[:32], memory[32:]


OUTSIDE = {
    "load_behind_its_end": "ld.global.u32 %r9, [%l0+4];",
    "load_before_its_start": "ld.global.u32 %r9, [%l0+-4];",
    "store_behind_its_end": "st.global.u32 [%l0+4], %thread;",
    "generic_store_behind_its_end": "st.u32 [%l0+4], %thread;",
    "vector_over_its_end": """and.b32 %r1, %thread, 31; setp.eq.u32 %p1, %r1, 31;
        @%p1 ld.global.v2.u32 {%r8, %r9}, [%x0+128];""",
    "a_tensor_further": "ld.global.u32 %r9, [%x0+1024];",
    "far_away": "add.u64 %l1, %x0, 4611686018427387904; ld.global.u32 %r9, [%l1];",
    "null": "mov.u64 %l1, 0; ld.global.u32 %r9, [%l1];",
    "atomic": "red.global.add.u32 [%l0+4], 1;",
    "cp_async": """shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at; cp.async.ca.shared.global [%r0], [%l0+4], 4;
        cp.async.wait_all;""",
    "shared_behind_its_end": "mov.u32 %r1, 1; st.shared.u32 [%at+256], %r1;",
    "shared_before_its_start": "mov.u32 %r1, 1; st.shared.u32 [%at+-4], %r1;",
    "shared_through_a_generic_address": "cvt.u64.u32 %l1, %at; cvta.shared.u64 %l1, %l1; st.u32 [%l1+256], %thread;",
    "local": ".local .align 4 .b8 stack[16]; mov.u64 %l1, stack; st.local.u32 [%l1+16], %thread;",
    "matrix_row": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%at+256];",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_bounds(name: str) -> None:
    """Also where the next tensor lies just there, and with checks off."""
    for checks in (True, False):
        with fault("bounds"):
            run(MINE + OUTSIDE[name], *neighbours(), shared=256, checks=checks)


MISALIGNED = {
    "word": "ld.global.u32 %r9, [%x0+2];",
    "half": "mov.u16 %h1, 0; st.global.u16 [%x0+1], %h1;",
    "vector": "ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%x0+8];",
    "shared_double": "mov.u64 %l1, 0; st.shared.u64 [%at+4], %l1;",
    "shared_vector": "mov.u32 %r1, 0; st.shared.v2.u32 [%at+4], {%r1, %r1};",
    "atomic": "red.shared.add.u32 [%at+2], 1;",
    "cp_async": "add.u32 %r0, %at, 8; cp.async.cg.shared.global [%r0], [%x0], 16; cp.async.wait_all;",
    "cp_async_source": "mov.u32 %r0, %at; cp.async.cg.shared.global [%r0], [%x0+8], 16; cp.async.wait_all;",
    "matrix_row": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%at+8];",
    "mbarrier": "mbarrier.init.shared::cta.b64 [%at+4], 1;",
}


@pytest.mark.parametrize("name", MISALIGNED)
def test_alignment(name: str) -> None:
    with fault("alignment"):
        run(MISALIGNED[name], aligned(np.zeros(32, np.uint32)), shared=256)


UNDEFINED = {
    "stored": f"add.u32 %r9, %r8, 1; {OUT}",
    "stored_from_one_lane": f"setp.ne.u32 %p1, %thread, 7; @%p1 mov.u32 %r9, 1; {OUT}",
    "an_address": f"cvt.u64.u32 %l1, %r8; add.u64 %l1, %l1, %x0; ld.global.u32 %r9, [%l1]; {OUT}",
    "a_shared_address": f"add.u32 %r8, %r8, %at; ld.shared.u32 %r9, [%r8]; {OUT}",
    "a_branch": f"setp.eq.u32 %p1, %r8, 0; @%p1 bra A; mov.u32 %r9, 0; A: mov.u32 %r9, 1; {OUT}",
    "the_guard_of_a_store": f"mov.u32 %r9, 0; {OUT.replace('st.', '@%p7 st.')}",
    "the_guard_of_a_move": f"mov.u32 %r9, 0; @%p7 mov.u32 %r9, 1; {OUT}",
    "chosen": f"setp.eq.u32 %p1, %thread, 7; mov.u32 %r1, 1; selp.u32 %r9, %r8, %r1, %p1; {OUT}",
    "by_a_shuffle": f"setp.ne.u32 %p1, %thread, 7; @%p1 mov.u32 %r8, 1; shfl.sync.bfly.b32 %r9, %r8, 1, 31, -1; {OUT}",
    "shared_memory": f"shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at; ld.shared.u32 %r9, [%r0]; {OUT}",
    "a_byte_of_shared_memory": f"""mov.u32 %r1, 5; st.shared.u16 [%at], %r1; st.shared.u8 [%at+2], %r1;
        ld.shared.u32 %r9, [%at]; {OUT}""",
    "local_memory": f".local .align 8 .b8 stack[16]; st.local.u32 [stack], %thread; ld.local.u32 %r9, [stack+4]; {OUT}",
    "through_shared_memory": f"""shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at; st.shared.u32 [%r0], %r8;
        ld.shared.u32 %r9, [%r0]; {OUT}""",
    "a_product": f"""mov.u32 %r1, 0;
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%r6, %r7, %r8, %r9}}, {{%r1, %r1}}, {{%r2}},
        {{%r1, %r1, %r1, %r1}}; {OUT}""",
    "matrices": f"""shl.b32 %r0, %lane, 4; add.u32 %r0, %r0, %at;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r0]; {OUT}""",
    "an_atomic": "red.global.add.u32 [%x0], %r8;",
    "a_vote": f"setp.eq.u32 %p1, %r8, 0; vote.sync.ballot.b32 %r9, %p1, -1; {OUT}",
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_values_that_were_never_written(name: str) -> None:
    with fault("uninitialised"):
        run(UNDEFINED[name], np.zeros(32, np.uint32), shared=1024)
    if name not in ("an_address", "a_shared_address", "a_branch", "the_guard_of_a_store"):  # whose effects are open
        run(UNDEFINED[name], np.zeros(32, np.uint32), shared=1024, checks=False)


HARMLESS = {
    "not_chosen": f"setp.lt.u32 %p1, %thread, 99; mov.u32 %r1, 1; selp.u32 %r9, %r1, %r8, %p1; {OUT}",
    "overwritten": f"add.u32 %r9, %r8, 1; mov.u32 %r9, 1; {OUT}",
    "never_used": f"""mov.u32 %r9, 1; shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at; ld.shared.u32 %r1, [%r0];
        add.u32 %r1, %r1, %r8; {OUT}""",
    "in_lanes_that_do_not_store": f"setp.lt.u32 %p1, %thread, 7; @%p1 mov.u32 %r9, 1; {OUT.replace('st.', '@%p1 st.')}",
    "stored_to_shared_memory_only": f"""mov.u32 %r9, 1; shl.b32 %r0, %thread, 2; add.u32 %r0, %r0, %at;
        st.shared.u32 [%r0], %r8; {OUT}""",
    "false_and_unknown": f"setp.gt.u32 %p1, %thread, 99; and.pred %p2, %p1, %p7; selp.u32 %r9, 5, 1, %p2; {OUT}",
    "true_or_unknown": f"setp.lt.u32 %p1, %thread, 99; or.pred %p2, %p1, %p7; selp.u32 %r9, 1, 5, %p2; {OUT}",
    "the_other_half_of_a_pair": f"mov.u32 %r1, 1; mov.b64 %l1, {{%r1, %r1}}; mov.b64 {{%r9, %r2}}, %l1; {OUT}",
    "shuffled_but_not_taken": f"""setp.lt.u32 %p1, %thread, 16; @%p1 mov.u32 %r8, 1;
        shfl.sync.idx.b32 %r9, %r8, 3, 31, -1; {OUT}""",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_values_that_get_nowhere(name: str) -> None:
    to = np.zeros(32, np.uint32)
    run(HARMLESS[name], to, shared=1024)
    assert (to == (np.arange(32) < 7 if name == "in_lanes_that_do_not_store" else 1)).all()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%at], 32;", "tcgen05.alloc"),
        ("frobnicate.u32 %r1, %r2;", "frobnicate.u32 %r1, %r2"),
        ("add.pred %p1, %p2, %p3;", "add.pred"),
        (f"mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {FOUR}, {TWO}, {TWO}, {FOUR}, %r9, 0;", "mma.sp."),
        ("min.xorsign.abs.f32 %r1, %r2, %r3;", "xorsign"),
        ("cvt.rn.satfinite.f16.f32 %h1, %r1;", "satfinite"),
        (f"mma.sync.aligned.m16n8k8.row.col.satfinite.f32.f16.f16.f32 {FOUR}, {TWO}, {{%r7}}, {FOUR};", "satfinite"),
        ("bra NOWHERE;", "NOWHERE"),
        ("mov.u32 %r1, %smid;", "%smid"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(line: str, named: str) -> None:
    made = text(f"mov.u32 %r0, 0;\n{line}", (), shared=16)
    number = made[: made.index(line)].count("\n") + 1
    with pytest.raises(UnknownInstruction, match=rf"k: PTX line {number}: .*is not known") as found:
        load(made, "k")
    assert named in str(found.value) and found.value.ptx_line == number and found.value.kind == "unknown instruction"


def test_a_trap_and_where_it_is() -> None:
    """The error says the kernel, block, thread, line and what was compiled to it."""
    body = """.loc 1 42 7
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.x; mov.u32 %r3, %tid.y; setp.eq.u32 %p1, %r1, 5;
        setp.eq.and.u32 %p1, %r2, 6, %p1; setp.eq.and.u32 %p1, %r3, 4, %p1;
        .loc 1 43 7
        @%p1 trap;"""
    made = text(body, ()) + '.file 1 "/somewhere/kernel.py"\n'
    run_ptx(made, "k", (5, 3), (16, 8), 0, ())  # no block 5
    with pytest.raises(EmulationError) as found:
        run_ptx(made, "k", (6, 2), (16, 8), 0, ())
    e = found.value
    assert (e.kernel, e.block, e.thread, e.source) == ("k", (5, 0, 0), (6, 4, 0), "kernel.py:43")
    assert e.ptx_line == made[: made.index("@%p1 trap")].count("\n") + 1
    for part in ("k: trap", f"PTX line {e.ptx_line}, kernel.py:43: @%p1 trap;", "block (5, 0, 0), thread (6, 4, 0)"):
        assert part in str(e)


def test_the_argument_is_named() -> None:
    with fault("bounds", match=r"4 bytes at byte 128 of args\[1\] \(p1\), which has 128"):
        run("st.global.u32 [%x1+128], %thread;", *neighbours(), threads=1)


def test_registers_of_threads_that_are_not_there() -> None:
    """A block of 40 threads: the second warp has eight lanes."""
    to = np.zeros(40, np.uint32)
    run(
        f"vote.sync.ballot.b32 %r9, 1, -1; {OUT}".replace("vote.sync.ballot.b32 %r9, 1, -1;", "activemask.b32 %r9;"),
        to,
        threads=40,
    )
    np.testing.assert_array_equal(to, [2**32 - 1] * 32 + [255] * 8)


ARGUMENTS = {
    "too_few": ((), {}, ValueError, "args must be 1"),
    "no_array": (("x",), {}, TypeError, r"args\[0\] \(p0\) must be a tensor"),
    "float_for_a_pointer": ((1.5,), {}, TypeError, r"args\[0\] \(p0\) must be an integer"),
    "bytes_of_another_size": ((b"123",), {}, ValueError, r"args\[0\] \(p0\) must have 8 bytes, but got 3"),
    "many_threads": ((None,), {"block": 1025}, ValueError, "block must have 1 to 1024 threads"),
    "schedule": ((None,), {"schedule": "soon"}, ValueError, "schedule must be one of early, late, random"),
    "shared": ((None,), {"shared": -1}, ValueError, r"shared must be 0 to 232448 bytes, but got -1"),
    "more_shared_memory_than_there_is": ((None,), {"shared": 1 << 31}, ValueError, "shared must be 0 to 232448"),
    "clusters_of_nothing": ((None,), {"cluster": 0}, ValueError, "cluster must have 1 block at least"),
    "name": ((None,), {"name": "other"}, ValueError, "no 'other'"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str) -> None:
    args, named, error, message = ARGUMENTS[name]
    given = {"name": "k", "grid": 1, "block": 32, "shared": 0} | named
    with pytest.raises(error, match=message):
        run_ptx(text("", (None,)), args=args, **given)


def test_an_array_with_strides() -> None:
    """Its memory reaches to its last element, and no further."""
    memory = np.arange(64, dtype=np.uint32)
    run(f"ld.global.u32 %r9, [%x1+120]; {OUT}", to := np.zeros(32, np.uint32), memory[:32:2])
    assert (to == 30).all()
    run(f"ld.global.u32 %r9, [%x1+-120]; {OUT}", to, memory[30::-2])
    assert (to == 0).all()
    for array, offset in ((memory[:32:2], 124), (memory[:32:2], -4), (memory[30::-2], 4), (memory[30::-2], -124)):
        with fault("bounds"):
            run(f"ld.global.u32 %r9, [%x1+{offset}]; {OUT}", to, array)


def test_ctrl_c_stops_a_kernel_that_does_not_end(clean_environment: dict[str, str]) -> None:
    code = f"""
import os, signal, threading
from gpuconv.emulator import load
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this
program = load({text("again: bra again;", (None,))!r}, "k")
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
program.run(1, 32, 0, [None])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == -signal.SIGINT and run.stderr.endswith("\nKeyboardInterrupt\n"), run.stderr
