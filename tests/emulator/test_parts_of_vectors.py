"""Of a vector that is loaded, only the parts that were never written may not be used."""

import numpy as np
import pytest

from gpuconv import emulator

reason = emulator.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

KERNEL = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry parts(.param .u64 out) {
    .%(space)s .align 16 .b8 memory[16];
    .reg .b32 %%a, %%b, %%c, %%d;
    .reg .b64 %%out;
    ld.param.u64 %%out, [out];
    mov.u32 %%a, 7;
    st.%(space)s.u32 [memory], %%a;
    st.%(space)s.u32 [memory+8], %%a;
    ld.%(space)s.v4.u32 {%%a, %%b, %%c, %%d}, [memory];
    add.u32 %%a, %%a, %%%(other)s;
    st.global.u32 [%%out], %%a;
    ret;
}
"""
each_space = pytest.mark.parametrize("space", ["shared", "local"])


def run(space: str, other: str) -> int:
    out = np.zeros(1, np.int32)
    emulator.run_ptx(KERNEL % {"space": space, "other": other}, "parts", 1, 1, 0, [out])
    return int(out[0])


@each_space
def test_what_was_written_may_be_used_beside_what_was_not(space: str) -> None:
    assert run(space, "c") == 14


@each_space
@pytest.mark.parametrize("other", ["b", "d"])
def test_what_was_not_written_may_not(space: str, other: str) -> None:
    with pytest.raises(emulator.EmulationError, match="never written") as caught:
        run(space, other)
    assert caught.value.kind == "uninitialised"
