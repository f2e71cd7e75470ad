"""The check that a pipelined loop has enough buffers finds a loop that has not."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import triton.language as tl
from buffers import too_few

from gpuconv.backends.base import Tile
from gpuconv.backends.triton.compiler import compile_for
from gpuconv.backends.triton.launch import Launch
from gpuconv.kernels.triton.common import kernel


@kernel
def product(p_a, p_b, p_c, p_sum, steps, SUM: tl.constexpr):
    """c = a · b, [64, 64 · steps] · [64 · steps, 64], and the sums of the rows of a where it has them at hand."""
    o = tl.arange(0, 64)
    b_acc, b_sum = tl.zeros((64, 64), tl.float32), tl.zeros((64,), tl.float32)
    for step in range(0, steps):
        b_a = tl.load(p_a + step * 4096 + o[:, None] * 64 + o[None, :])
        b_acc = tl.dot(b_a, tl.load(p_b + step * 4096 + o[:, None] * 64 + o[None, :]), b_acc)
        if SUM:
            b_sum += tl.sum(b_a.to(tl.float32), 1)
    tl.store(p_c + o[:, None] * 64 + o[None, :], b_acc)
    tl.store(p_sum + o, b_sum)


@pytest.mark.parametrize("sums", [False, True])
def test_an_operand_that_is_also_summed_has_too_few_buffers(sums: bool) -> None:
    dtypes = (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    launch = Launch(product, 1, dtypes, (9,), {"SUM": sums}, Tile(64, 64, 64, warps=4, stages=4))
    ttgir = compile_for(launch, 90).asm["ttgir"]
    assert "ttng.warp_group_dot " in ttgir
    if not sums:
        assert too_few(ttgir) == []
        assert too_few(ttgir.replace("!ttg.memdesc<4x64x64xbf16", "!ttg.memdesc<3x64x64xbf16"))
        return
    assert any("is read to registers too" in line for line in too_few(ttgir)), ttgir
