"""A sum that is split over programs, added by the one of them that comes last: no launch of its own.

    result[tile] = Σ_split partial[tile, split], in the order of the splits, whichever program adds

Each program of a tile writes its partial sum to the workspace, then counts itself. The one that counts the last knows
that all the others are there, reads them all, its own too, and puts the counter back to 0 for the next launch. Only
integers are added atomically, so the same inputs give the same bits.

    workspace  →  [tiles, splits, rows, columns], whole tiles: nothing is masked
    counters   →  [tiles], all 0 before and after

Why the others' partials are seen: the barrier orders the stores of a program's threads before the atomic of one of
them, which releases them to the GPU and acquires those of the programs that came before; a second barrier, which comes
with the atomic's result, lets all threads of the last program read them.
"""

import triton
import triton.language as tl


@triton.jit
def leave(b_part, p):
    """Write a partial sum [rows, columns] to its place in the workspace."""
    ROWS: tl.constexpr = b_part.shape[0]
    COLUMNS: tl.constexpr = b_part.shape[1]
    tl.store(p + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], b_part)


@triton.jit
def comes_last(p_counter, splits):
    """Whether this program, which has left all that it has, is the last of a tile's to come."""
    tl.debug_barrier()
    last = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu") == splits - 1
    tl.store(p_counter, 0, mask=last)
    return last


@triton.jit
def added(p, splits, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACCUMULATE: tl.constexpr):
    """Σ_split of what lies at p + split · step: [rows, columns]."""
    UNROLL: tl.constexpr = 2 if ROWS * COLUMNS <= 4096 else 1  # partials on their way at a time, in registers
    p += tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [rows, columns]
    b_sum = tl.zeros((ROWS, COLUMNS), ACCUMULATE)
    for _ in tl.range(0, splits, loop_unroll_factor=UNROLL):
        b_sum += tl.load(p)
        p += step
    return b_sum


@triton.jit
def sum_of_splits(b_part, p_workspace, p_arrived, tile, split, splits):
    """Σ_split of a tile [rows, columns], and whether this program, the last to come, has it: elsewhere it is zeros."""
    ROWS: tl.constexpr = b_part.shape[0]
    COLUMNS: tl.constexpr = b_part.shape[1]
    p_tile = p_workspace + tile * splits * ROWS * COLUMNS
    leave(b_part, p_tile + split * ROWS * COLUMNS)
    last = comes_last(p_arrived + tile, splits)
    return added(p_tile, tl.where(last, splits, 0), ROWS * COLUMNS, ROWS, COLUMNS, b_part.dtype), last
