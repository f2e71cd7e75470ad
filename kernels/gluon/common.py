"""What the Gluon kernels share.

Gluon is Triton's lower floor: the same Python, the same compiler behind it, but the kernel says itself where values lie
(layouts), what is in shared memory, which warps do what, and who waits for whom.
"""

import inspect
from collections.abc import Callable
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


def kernel(function: Callable[..., Any]) -> Any:
    """`gluon.jit` for a kernel that is launched: compiled once for all values of its run-time integers."""
    parameters = inspect.signature(function).parameters.values()
    integers = [p.name for p in parameters if p.annotation is p.empty and not p.name.startswith("p_")]
    return gluon.jit(function, do_not_specialize=integers)


@gluon.jit
def ring(described, STAGES: gl.constexpr):
    """Shared memory for so many blocks of a tensor that is given as a descriptor."""
    shape: gl.constexpr = [STAGES] + described.block_type.shape  # noqa: RUF005  # Gluon does not know [STAGES, *shape]
    return gl.allocate_shared_memory(described.dtype, shape, described.layout)


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr = 1):
    """So many barriers in shared memory, each for so many arrivals a phase."""
    all_of_them = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(all_of_them.index(i), count=ARRIVALS)
    return all_of_them


@gluon.jit
def next_slot(slot, phase, STAGES: gl.constexpr):
    """The slot of a ring that follows, and the parity of its barriers' phase: it flips with every round."""
    last = slot == STAGES - 1
    return gl.where(last, 0, slot + 1), gl.where(last, phase ^ 1, phase)


@gluon.jit
def slot_before(slot, STAGES: gl.constexpr):
    """The slot of a ring that comes before. (Two variables of a loop that begin as one value stay one, by mistake: so
    it is not carried along.)"""
    return gl.where(slot == 0, STAGES, slot) - 1


@gluon.jit
def tile_of_program(program, row_blocks, column_blocks, BAND: gl.constexpr):
    """`gpuconv.kernels.triton.common.tile_of_program`."""
    in_band = BAND * column_blocks
    first = program // in_band * BAND
    height = gl.minimum(row_blocks - first, BAND)
    within = program % in_band
    return first + within % height, within // height
