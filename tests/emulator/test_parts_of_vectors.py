"""A vector of shared or local memory that was written in part is undefined in part."""

import pytest
import torch

from gpuconv import emulator

_READS = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry parts(.param .u64 out)
{{
  .reg .b32 %r<8>;
  .reg .b64 %rd<4>;
  .{space} .align 16 .b8 memory[16];
  ld.param.u64 %rd1, [out];
  mov.u64 %rd2, memory;
  mov.u32 %r0, 7;
  st.{space}.u32 [%rd2+8], %r0;
  ld.{space}.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd2];
  st.global.u32 [%rd1], %r{used};
  ret;
}}
"""


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"nothing can be emulated: {emulator.why_not()}")
@pytest.mark.parametrize("space", ["shared", "local"])
def test_what_is_used_of_a_vector_must_have_been_written_and_no_more(space: str) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    emulator.run_ptx(_READS.format(space=space, used=3), None, 1, 1, 0, [out])
    assert out.item() == 7
    for used in (1, 2, 4):
        with pytest.raises(emulator.EmulationError, match="never written") as caught:
            emulator.run_ptx(_READS.format(space=space, used=used), None, 1, 1, 0, [out])
        assert caught.value.kind == "uninitialised"


_HALVES = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry halves(.param .u64 out)
{{
  .reg .b32 %r<8>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  mov.u32 %r0, 7;
  mov.b64 %rd2, {{{packed}}};
  mov.b64 {{{taken}}}, %rd2;
  st.global.u32 [%rd1], %r2;
  ret;
}}
"""


@pytest.mark.skipif(emulator.why_not() is not None, reason=f"nothing can be emulated: {emulator.why_not()}")
@pytest.mark.parametrize("packed", ["%r0, %r1", "%r1, %r0"])
def test_of_a_register_that_is_half_undefined_the_other_half_may_be_used(packed: str) -> None:
    """LLVM's vectoriser makes such code for sm_120."""
    out = torch.zeros(1, dtype=torch.int32)
    good, bad = ("%r2, _", "_, %r2") if packed.startswith("%r0") else ("_, %r2", "%r2, _")
    emulator.run_ptx(_HALVES.format(packed=packed, taken=good), None, 1, 1, 0, [out])
    assert out.item() == 7
    with pytest.raises(emulator.EmulationError, match="never written") as caught:
        emulator.run_ptx(_HALVES.format(packed=packed, taken=bad), None, 1, 1, 0, [out])
    assert caught.value.kind == "uninitialised"
