"""One small kernel with a fault for each check of the virtual GPU, and what it says: python docs/examples/faults.py

The kernels are PTX, the language that Triton and NVRTC compile to: a block of 128 threads, whose number is %t,
with an input and an output of 128 numbers each, at %in and %out.
"""

import torch

from gpuconv.emulator import EmulationError, run_ptx

HEAD = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry faulty(.param .u64 in, .param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %t, %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %in, %out, %rd<8>;
    .shared .align 1024 .b8 mem[4096];
    mov.u32 %t, %tid.x;
    ld.param.u64 %in, [in];
    ld.param.u64 %out, [out];
    mul.wide.u32 %rd1, %t, 4;
    add.s64 %rd2, %in, %rd1;   // of this thread's input
    add.s64 %rd3, %out, %rd1;  // of its output
    shl.b32 %r1, %t, 2;
    mov.u32 %r2, mem;
    add.s32 %r3, %r2, %r1;     // of its word in shared memory
"""

FAULTS = {
    "a store beyond the end of the output": "st.global.u32 [%rd3+4], %t;",
    "two words from an address that is no multiple of 8": "ld.global.v2.u32 {%r4, %r5}, [%in+4];",
    "shared memory that nobody wrote, on its way to the output": """
        ld.shared.u32 %r4, [%r3];
        st.global.u32 [%rd3], %r4;""",
    "words exchanged between two warps without a barrier before they are overwritten": """
        st.shared.u32 [%r3], %t;
        bar.sync 0;
        xor.b32 %r4, %r1, 128;     // of the same lane in the other warp
        add.s32 %r4, %r2, %r4;
        ld.shared.u32 %r5, [%r4];
        st.shared.u32 [%r3], %r5;""",
    "a barrier that half of a warp passes by": """
        setp.lt.u32 %p1, %t, 16;
        @%p1 bra DONE;
        bar.sync 0;
        DONE:""",
    "warps that wait at two barriers for each other": """
        setp.lt.u32 %p1, %t, 32;
        @%p1 bra FIRST;
        bar.sync 1, 64;
        bra DONE;
        FIRST:
        bar.sync 2, 64;
        DONE:""",
    "a bulk copy of a size that is no multiple of 16": """
        setp.eq.u32 %p0, %t, 0;
        @%p0 mbarrier.init.shared.b64 [mem], 1;
        @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [mem+1024], [%in], 24, [mem];""",
    "a sum that is read before its product is done": """
        mul.lo.s32 %r4, %t, 32;
        add.s32 %r4, %r2, %r4;
        st.shared.v4.u32 [%r4], {0, 0, 0, 0};
        st.shared.v4.u32 [%r4+16], {0, 0, 0, 0};
        fence.proxy.async;
        bar.sync 0;
        mov.f32 %f0, 0f00000000;
        mov.f32 %f1, %f0;
        mov.f32 %f2, %f0;
        mov.f32 %f3, %f0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3},
            0x0000001000080000, 0x0000001000080000, 1, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        st.global.f32 [%rd3], %f0;""",
    "the kernel's own trap": "trap;",
    "an instruction that it does not know": "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [mem], 32;",
}


def found(body: str) -> EmulationError | None:
    """What the virtual GPU finds in a kernel."""
    x, y = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    try:
        run_ptx(f"{HEAD}    {body.strip()}\n    ret;\n}}\n", "faulty", grid=1, block=128, shared=0, args=(x, y))
    except EmulationError as error:
        return error
    return None


if __name__ == "__main__":
    for fault, body in FAULTS.items():
        print(fault, *str(found(body)).split("\n"), sep="\n    ")
