"""One small kernel with a fault for each check of the virtual GPU, and what it says: python docs/faults.py

The kernels are PTX, the language that Triton and NVRTC compile to: a block of 64 threads, whose number is %t, with an
input and an output of 64 numbers each, at %in and %out.
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
    "no barrier between a write and another warp's read": """
        st.shared.u32 [%r3], %t;
        xor.b32 %r4, %r1, 128;
        add.s32 %r4, %r2, %r4;
        ld.shared.u32 %r5, [%r4];
        st.global.u32 [%rd3], %r5;""",
    "a barrier that half of a warp passes by": """
        setp.lt.u32 %p1, %t, 16;
        @%p1 bra DONE;
        bar.sync 0;
        DONE:""",
    "two warps that wait for each other": """
        setp.lt.u32 %p1, %t, 32;
        @%p1 bra FIRST;
        bar.sync 1, 64;
        bra DONE;
        FIRST:
        bar.sync 2, 64;
        DONE:""",
    "a bulk copy of a size that is no multiple of 16": """
        mbarrier.init.shared.b64 [mem], 1;
        fence.mbarrier_init.release.cluster;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [mem+1024], [%in], 24, [mem];""",
    "an instruction that it does not know": "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [mem], 32;",
}


def message(body: str) -> str:
    """What the virtual GPU says of a kernel."""
    x, y = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    try:
        run_ptx(f"{HEAD}    {body.strip()}\n    ret;\n}}\n", "faulty", grid=1, block=64, shared=0, args=(x, y))
    except EmulationError as error:
        return f"{error.kind}: {error}"
    return "nothing"


if __name__ == "__main__":
    for fault, body in FAULTS.items():
        print(f"{fault}\n    " + message(body).replace("\n", "\n    "))
