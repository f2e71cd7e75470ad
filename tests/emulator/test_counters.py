"""Counters of a run on the virtual GPU, for kernels whose counts can be worked out by hand."""

import numpy as np
import pytest
import torch

from gpuconv.emulator import TensorMap, run_ptx, why_not
from gpuconv.emulator.counters import COUNTS, Counters, Instruction, pipe_of

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

FACTS = {
    "instructions", "global_sectors", "global_sectors_least", "shared_passes", "shared_passes_least", "tma_bytes",
    "tensor_operations",
}  # fmt: skip


def kernel(body: str, threads: int = 32) -> str:
    """PTX of a kernel of one block: %lane is the thread's number, %in and %out are the pointers that it is given."""
    return f""".version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 in, .param .u64 out)
.reqntid {threads}
{{
.reg .pred %p<4>;
.reg .b16 %h<4>;
.reg .b32 %lane, %r<32>;
.reg .f32 %f<16>;
.reg .f64 %d<4>;
.reg .b64 %in, %out, %rd<16>;
.shared .align 1024 .b8 mem[16384];
mov.u32 %lane, %tid.x;
ld.param.u64 %in, [in];
ld.param.u64 %out, [out];
{body}
ret;
}}
"""


def counted(body: str, threads: int = 32, **named: object) -> Counters:
    """The counters of `body` in one block, %in being 64 KB of float32 numbers and %out as many bytes."""
    x, y = torch.arange(16384, dtype=torch.float32), torch.zeros(16384)
    return run_ptx(kernel(body, threads=threads), "k", 1, threads, 0, (x, y), **named)


def of(counters: Counters, opcode: str) -> dict[str, int]:
    """The counts of the only instruction that begins so."""
    (row,) = (row for line, row in zip(counters.lines, counters.table, strict=True) if opcode in line.text)
    return {name: int(row[name]) for name in COUNTS.names}


def address(base: str, stride: int) -> str:
    """%rd1 = base + lane · stride, in global memory."""
    return f"mul.wide.u32 %rd1, %lane, {stride};\nadd.s64 %rd1, {base}, %rd1;\n"


def shared_address(stride: int) -> str:
    """%r1 = lane · stride, in shared memory."""
    return f"mov.u32 %r1, mem;\nmad.lo.s32 %r1, %lane, {stride}, %r1;\n"


@pytest.mark.parametrize(
    ("load", "stride", "bytes", "sectors", "least"),
    [
        ("ld.global.b32 %r1, [%rd1]", 4, 128, 4, 4),  # coalesced
        ("ld.global.b32 %r1, [%rd1+16]", 4, 128, 5, 4),  # not from the beginning of a sector
        ("ld.global.b32 %r1, [%rd1]", 8, 128, 8, 4),  # every other number
        ("ld.global.b32 %r1, [%rd1]", 32, 128, 32, 4),  # a sector for each lane
        ("ld.global.b16 %h1, [%rd1]", 2, 64, 2, 2),
        ("ld.global.b16 %h1, [%rd1]", 128, 64, 32, 2),  # a channel of 64
        ("ld.global.v2.b32 {%r1, %r2}, [%rd1]", 8, 256, 8, 8),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]", 16, 512, 16, 16),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]", 32, 512, 32, 16),
        ("st.global.b32 [%rd1], %lane", 4, 128, 4, 4),
        ("st.global.b32 [%rd1], %lane", 64, 128, 32, 4),
    ],
)
def test_sectors_of_global_memory(load: str, stride: int, bytes: int, sectors: int, least: int) -> None:
    counters = counted(address("%in", stride) + load + ";")
    row = of(counters, load.split()[0])
    assert (row["runs"], row["lanes"], row["bytes"]) == (1, 32, bytes)
    assert (row["sectors"], row["sectors_least"]) == (sectors, least)
    assert (counters.global_bytes, counters.global_sectors, counters.global_sectors_least) == (bytes, sectors, least)
    assert counters.shared_passes == counters.shared_passes_least == 0


@pytest.mark.parametrize(
    ("store", "stride", "passes", "least"),
    [
        ("st.shared.b32 [%r1], %lane", 4, 1, 1),
        ("st.shared.b32 [%r1], %lane", 8, 2, 1),  # half of the banks
        ("st.shared.b32 [%r1], %lane", 128, 32, 1),  # one bank
        ("st.shared.b32 [%r1], %lane", 132, 1, 1),  # the same, a row padded by a word
        ("st.shared.b16 [%r1], %h1", 2, 1, 1),
        ("st.shared.v2.b32 [%r1], {%lane, %lane}", 8, 2, 2),
        ("st.shared.v2.b32 [%r1], {%lane, %lane}", 128, 32, 2),
        ("st.shared.v4.b32 [%r1], {%lane, %lane, %lane, %lane}", 16, 4, 4),
        ("st.shared.v4.b32 [%r1], {%lane, %lane, %lane, %lane}", 128, 32, 4),
        ("st.shared.v4.b32 [%r1], {%lane, %lane, %lane, %lane}", 144, 4, 4),
    ],
)
def test_passes_of_shared_memory(store: str, stride: int, passes: int, least: int) -> None:
    counters = counted("mov.b16 %h1, 1;\n" + shared_address(stride) + store + ";")
    row = of(counters, "st.shared")
    assert (row["passes"], row["passes_least"]) == (counters.shared_passes, counters.shared_passes_least)
    assert (row["passes"], row["passes_least"]) == (passes, least)
    assert counters.global_sectors == counters.global_bytes == 0


def test_lanes_that_read_the_same_word_share_a_pass_and_a_sector() -> None:
    body = "st.shared.b32 [mem], 7;\nbar.sync 0;\nld.shared.b32 %r1, [mem];\nld.global.b32 %r2, [%in];"
    counters = counted(body)
    assert of(counters, "ld.shared")["passes"] == of(counters, "ld.shared")["passes_least"] == 1
    assert of(counters, "ld.global")["sectors"] == of(counters, "ld.global")["sectors_least"] == 1


@pytest.mark.parametrize(("stride", "passes"), [(16, 4), (128, 32), (144, 4)])
def test_passes_of_ldmatrix(stride: int, passes: int) -> None:
    """Four matrices of eight rows; the rows of one are read in a pass unless they share banks."""
    fill = shared_address(stride) + "st.shared.v4.b32 [%r1], {%lane, %lane, %lane, %lane};\nbar.sync 0;\n"
    body = fill + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];"
    row = of(counted(body), "ldmatrix")
    assert (row["passes"], row["passes_least"]) == (passes, 4)


@pytest.mark.parametrize("schedule", ["early", "late", "random"])
@pytest.mark.parametrize(
    ("op", "size", "sectors", "passes"), [("ca", 4, 4, 1), ("ca", 8, 8, 2), ("ca", 16, 16, 4), ("cg", 16, 16, 4)]
)
def test_cp_async_counts_both_memories(op: str, size: int, sectors: int, passes: int, schedule: str) -> None:
    copy = f"cp.async.{op}.shared.global [%r1], [%rd1], {size};\ncp.async.commit_group;\ncp.async.wait_group 0;"
    row = of(counted(address("%in", size) + shared_address(size) + copy, schedule=schedule), f"cp.async.{op}")
    assert (row["bytes"], row["sectors"], row["sectors_least"]) == (32 * size, sectors, sectors)
    assert (row["passes"], row["passes_least"]) == (passes, passes)


def test_lanes_whose_predicate_is_false_take_no_part() -> None:
    body = address("%in", 4) + "setp.lt.u32 %p1, %lane, 8;\n@%p1 ld.global.b32 %r1, [%rd1];\n"
    row = of(counted(body), "ld.global")
    assert (row["runs"], row["lanes"], row["bytes"], row["sectors"], row["sectors_least"]) == (1, 8, 32, 1, 1)
    never = counted(body.replace("%lane, 8", "%lane, 0"))
    assert not any(of(never, "ld.global").values())
    assert never.instructions == counted(body).instructions - 1


def test_both_sides_of_a_branch_are_run_by_their_lanes_alone() -> None:
    body = """setp.lt.u32 %p1, %lane, 5;
    @%p1 bra FEW;
    add.s32 %r1, %lane, 1;
    bra DONE;
    FEW:
    sub.s32 %r1, %lane, 1;
    DONE:
    shl.b32 %r2, %lane, 2;"""
    counters = counted(body, threads=64)  # the second warp has no lane that branches
    assert [of(counters, op)["runs"] for op in ("add.s32", "sub.s32", "shl.b32")] == [2, 1, 2]
    assert [of(counters, op)["lanes"] for op in ("add.s32", "sub.s32", "shl.b32")] == [59, 5, 64]


def test_instructions_of_a_loop_are_counted_as_often_as_they_run() -> None:
    body = "mov.u32 %r1, 0;\nAGAIN:\nadd.s32 %r1, %r1, 1;\nsetp.lt.s32 %p1, %r1, 10;\n@%p1 bra AGAIN;"
    counters = counted(body, threads=96)
    assert of(counters, "add.s32")["runs"] == 30
    assert counters.instructions == 3 * (4 + 30 - 1 + 1)  # the head, the loop, whose last branch no lane takes, ret
    assert counters.by_pipe == {"alu": 60, "branch": 30, "move": 12}


MMA = {
    "m16n8k16.row.col.f32.f16.f16.f32": (4, 4, 2, 16 * 8 * 16),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (4, 4, 2, 16 * 8 * 8),
    "m16n8k8.row.col.f32.f16.f16.f32": (4, 2, 1, 16 * 8 * 8),
}


@pytest.mark.parametrize("shape", MMA)
def test_operations_of_mma(shape: str) -> None:
    sums, left, right, products = MMA[shape]
    zero = "".join(f"mov.b32 %r{i}, 0;\nmov.f32 %f{i}, 0f00000000;\n" for i in range(8))
    a, b = (", ".join(f"%r{i}" for i in range(n)) for n in (left, right))
    c = ", ".join(f"%f{i}" for i in range(sums))
    counters = counted(f"{zero}mma.sync.aligned.{shape} {{{c}}}, {{{a}}}, {{{b}}}, {{{c}}};", threads=64)
    assert counters.tensor_operations == 2 * 2 * products  # by two warps
    assert counters.by_pipe["tensor"] == 2


def test_operations_of_wgmma_are_those_of_its_four_warps_together() -> None:
    """A is 64 × 16, B 8 × 16, of zeros."""
    body = """mov.u32 %r1, mem;
    shl.b32 %r2, %lane, 4;
    add.s32 %r2, %r1, %r2;
    mov.b32 %r3, 0;
    st.shared.v4.b32 [%r2], {%r3, %r3, %r3, %r3};
    st.shared.v4.b32 [%r2+2048], {%r3, %r3, %r3, %r3};
    fence.proxy.async;
    bar.sync 0;
    shr.u32 %r1, %r1, 4;
    cvt.u64.u32 %rd1, %r1;
    or.b64 %rd1, %rd1, 0x0000001000080000;
    add.s64 %rd2, %rd1, 128;
    mov.f32 %f0, 0f00000000;
    mov.f32 %f1, 0f00000000;
    mov.f32 %f2, 0f00000000;
    mov.f32 %f3, 0f00000000;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3}, %rd1, %rd2, 1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;"""
    for schedule in ("early", "late"):
        assert counted(body, threads=128, schedule=schedule).tensor_operations == 2 * 64 * 8 * 16


TILES = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .align 64 .b8 from[128], .param .align 64 .b8 to[128], .param .u32 row)
.reqntid 32
{
.reg .pred %p<2>;
.reg .b32 %r<8>;
.reg .b64 %rd<4>;
.shared .align 1024 .b8 mem[2048];
mov.u32 %r0, %tid.x;
setp.ne.u32 %p1, %r0, 0;
@%p1 bra END;
mov.b64 %rd1, from;
mov.b64 %rd2, to;
ld.param.u32 %r1, [row];
mov.u32 %r2, 0;
mbarrier.init.shared.b64 [mem+8], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared.b64 _, [mem+8], 1024;
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [mem+1024], [%rd1, {%r2, %r1}], [mem+8];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p0, [mem+8], 0;
@!%p0 bra WAIT;
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd2, {%r2, %r1}], [mem+1024];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
END:
ret;
}
"""


@pytest.mark.parametrize("schedule", ["early", "late", "random"])
@pytest.mark.parametrize("row", [0, 8, 28])
def test_bytes_of_the_copy_engine_are_those_of_whole_boxes(row: int, schedule: str) -> None:
    """Boxes of 8 rows × 32 numbers; of the one at row 28 half lies outside."""
    x, y = torch.arange(32 * 32.0).reshape(32, 32), torch.zeros(32, 32)
    maps = [TensorMap(t.data_ptr(), "f32", (32, 32), (128,), (32, 8)) for t in (x, y)]
    counters = run_ptx(TILES, "k", 1, 32, 0, (*maps, row), schedule=schedule)
    assert counters.tma_bytes == 2 * 8 * 32 * 4
    assert of(counters, "cp.async.bulk.tensor.2d.shared")["tma_bytes"] == 1024
    assert counters.by_pipe["copy engine"] == 2 and counters.global_bytes == counters.global_sectors == 0
    assert torch.equal(y[row : row + 8], x[row : row + 8]) and y.count_nonzero() == x[row : row + 8].count_nonzero()


def test_bytes_of_copies_without_a_tensor() -> None:
    body = """setp.ne.u32 %p1, %lane, 0;
    @%p1 bra END;
    mbarrier.init.shared.b64 [mem+8], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [mem+8], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [mem+1024], [%in+64], 256, [mem+8];
    WAIT:
    mbarrier.try_wait.parity.shared.b64 %p2, [mem+8], 0;
    @!%p2 bra WAIT;
    cp.async.bulk.global.shared::cta.bulk_group [%out+32], [mem+1040], 128;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    END:"""
    x, y = torch.arange(128.0), torch.zeros(128)
    counters = run_ptx(kernel(body), "k", 1, 32, 0, (x, y))
    assert counters.tma_bytes == 256 + 128 and counters.by_pipe["copy engine"] == 2
    assert torch.equal(y[8:40], x[20:52]) and y.count_nonzero() == 32


def test_a_barrier_is_a_wait_of_every_warp() -> None:
    assert counted("bar.sync 0;\nbar.sync 0;", threads=96).waits == 6


def test_runs_of_one_program_add_up_and_those_of_two_do_not() -> None:
    body = address("%in", 8) + "ld.global.b32 %r1, [%rd1];"
    one, two = counted(body), counted(body)
    both = one + two
    assert both.facts() == {name: 2 * value for name, value in one.facts().items()}
    assert both.facts().keys() == FACTS and both.instructions > 0
    assert (both.by_pipe, both.waits) == ({pipe: 2 * runs for pipe, runs in one.by_pipe.items()}, 2 * one.waits)
    assert np.array_equal((one + two + both).table["lanes"], 4 * one.table["lanes"])
    with pytest.raises(ValueError, match="not the same program"):
        one + counted(body.replace("b32 %r1", "f32 %f1"))


def test_blocks_are_counted_together() -> None:
    x, y = torch.zeros(32), torch.zeros(32)
    text = kernel(address("%out", 4) + "st.global.f32 [%rd1], 0f3F800000;")
    one, many = (run_ptx(text, "k", grid, 32, 0, (x, y)) for grid in (1, (2, 3)))
    assert many.facts() == {name: 6 * value for name, value in one.facts().items()}
    assert y.eq(1).all()


LOOPS = """
mov.u32 %r1, 0;
outer:
ld.global.f32 %f1, [%in];
mov.u32 %r2, 0;
inner:
ld.global.f32 %f2, [%in];
{product}
add.u32 %r2, %r2, 1;
setp.lt.u32 %p1, %r2, 5;
@%p1 bra inner;
mov.u32 %r3, 0;
other:
ld.global.f32 %f3, [%in];
add.u32 %r3, %r3, 1;
setp.lt.u32 %p1, %r3, 7;
@%p1 bra.uni other;
add.u32 %r1, %r1, 1;
setp.lt.u32 %p1, %r1, 2;
@%p1 bra outer;
"""


def test_the_main_loop_is_the_innermost_that_multiplies() -> None:
    main = counted(LOOPS.format(product="fma.rn.f32 %f4, %f2, %f2, %f4;")).main_loop
    assert main.instructions == 2 * (4 * 5 + 4)  # a branch that no lane takes does not count
    assert [line.opcode for line in main.lines] == ["ld.global.f32", "fma.rn.f32", "add.u32", "setp.lt.u32", "bra"]
    whole = counted(LOOPS.format(product="add.f32 %f4, %f2, %f4;"))
    assert whole.main_loop is whole  # no loop multiplies


# ---- the text and the grouping ---------------------------------------------------------------------------------------


def made() -> Counters:
    """A program of four instructions on two source lines."""
    lines = (
        Instruction(10, "mov.u32 %r1, %tid.x;", None, "move"),
        Instruction(12, "ld.global.b16 %h1, [%rd1];", "gemm.cu:7", "lsu"),
        Instruction(14, "st.shared.b16 [%r1], %h1;", "gemm.cu:8", "lsu"),
        Instruction(15, "@!%p1 ld.global.b16 %h2, [%rd1+2];", "gemm.cu:7", "lsu"),
    )
    table = np.zeros(4, COUNTS)
    table["runs"], table["lanes"] = (1000, 4, 8, 4), (32000, 128, 256, 128)
    table["bytes"], table["sectors"], table["sectors_least"] = (0, 256, 0, 256), (0, 128, 0, 64), (0, 8, 0, 62)
    table["passes"], table["passes_least"] = (0, 0, 64, 0), (0, 0, 8, 0)
    return Counters("k", table, lines)


def test_source_lines_are_grouped() -> None:
    found = {line.source: line for line in made().by_source()}
    assert list(found) == [None, "gemm.cu:7", "gemm.cu:8"]
    assert found["gemm.cu:7"].counts["sectors"] == 192 and found["gemm.cu:7"].counts["sectors_least"] == 70
    assert [line.wasted for line in found.values()] == [0, 122, 56]


def test_the_text_names_what_is_wasted_where() -> None:
    assert made().text().split("\n") == [
        "k",
        "  instructions           1,016 move 98%, lsu 2%",
        "  global memory            192 sectors, least 70 (2.74 times), for 512 bytes",
        "  shared memory             64 passes, least 8 (8 times)",
        "  most instructions",
        "             1,000 98%, (source line unknown)",
        "                 8 1%, gemm.cu:7",
        "                 8 1%, gemm.cu:8",
        "  most beyond the least",
        "               192 sectors, least 70 (2.74 times), gemm.cu:7: 2 × ld.global.b16 (PTX line 12…)",
        "                64 passes, least 8 (8 times), gemm.cu:8: 1 × st.shared.b16 (PTX line 14…)",
    ]
    assert made().text(1).count("PTX line") == 1
    assert Counters("k", np.zeros(4, COUNTS), made().lines).text() == "k"


PIPES = {
    "fma": "fma.rn.f32 add.f32 mul.lo.s32 mad.wide.s32 fma.rn.f16x2 add.rn.bf16 mul.hi.u16",
    "alu": "add.s32 lop3.b32 shl.b64 setp.lt.f32 selp.f64 max.f32 cvt.rn.f16x2.f32 cvt.u64.u32 prmt.b32 shf.l.wrap.b32",
    "fp64": "add.f64 fma.rn.f64 setp.lt.f64 cvt.f64.f32 div.rn.f64 rcp.rn.f64",
    "xu": "ex2.approx.f32 rsqrt.approx.f32 cvt.rn.f32.s32 cvt.rzi.s32.f64 popc.b32 div.s32 div.full.f32",
    "lsu": """ld.global.v4.b32 st.shared::cta.b32 ldmatrix.sync.aligned.m8n8.x4.shared.b16 cp.async.cg.shared.global
        shfl.sync.bfly.b32 atom.global.add.f64 ld.local.f64""",
    "tensor": """mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64
        wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16""",
    "copy engine": """cp.async.bulk.tensor.5d.shared::cta.global.mbarrier::complete_tx::bytes
        cp.async.bulk.tensor.5d.global.shared::cta.bulk_group tensormap.replace.tile.rank.shared::cta.b1024.b32""",
    "barrier": """bar.sync bar.warp.sync mbarrier.try_wait.parity.shared.b64 fence.proxy.async cp.async.commit_group
        cp.async.wait_group cp.async.wait_all cp.async.bulk.commit_group cp.async.bulk.wait_group.read
        cp.async.mbarrier.arrive.noinc.shared.b64 wgmma.fence.sync.aligned wgmma.wait_group.sync.aligned""",
    "branch": "bra bra.uni brx.idx ret exit",
    "move": "mov.b32 mov.f64 ld.param.b64 cvta.to.global.u64 elect.sync",
}


@pytest.mark.parametrize("pipe", PIPES)
def test_pipes(pipe: str) -> None:
    assert {opcode: pipe_of(opcode) for opcode in PIPES[pipe].split()} == dict.fromkeys(PIPES[pipe].split(), pipe)
