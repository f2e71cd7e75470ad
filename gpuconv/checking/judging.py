"""Holds what a backend's function gives to the oracle, and to what else a backend owes: see `judge`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from gpuconv import reference
from gpuconv.checking.problems import OPERANDS
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import Exact, as_numpy

MARGIN = 1024  # elements on either side of a tensor; keeps the alignment that PyTorch's allocator gives
CANARY = 12345.0


class Finding(NamedTuple):
    """The first thing that is wrong with a function's results, if anything is, and their largest error."""

    check: str  # which check failed, as `gpuconv.checking.check` lists them; "" where all is right
    message: str
    worst: float  # as a fraction of the bound


def judge(
    t: dict[str, torch.Tensor],
    exact: dict[str, Exact],
    call: Callable[[], tuple[Any, ...]],
    memory_format: torch.memory_format,
    repeats: int,
    tf32: bool,
    non_finite: bool = False,
) -> Finding:
    """Call a function `repeats` times, and compare its results with `exact`, which has them in the same order.

    Values have to be within the bound; nothing may be written around the results, and no input changed; the first
    result has to have `memory_format`; each call has to give the same bits.

    t: the tensors that it reads, `surrounded`. non_finite: one of t holds a NaN or infinity, and only whether it
    arrives is judged.
    """
    before = {name: tensor.clone() for name, tensor in t.items()}
    results, spoilt = [], 0
    for _ in range(repeats):
        with GuardedAllocations() as allocations:
            results.append(call())
        spoilt += allocations.spoilt()
    named = dict(zip(exact, results[0], strict=False))
    given = next(iter(t.values()))
    worst = 0.0

    def found(check: str, message: str) -> Finding:
        return Finding(check, message, worst)

    for name, got in named.items():
        if not isinstance(got, torch.Tensor):
            return found("form", f"{name} is {got!r}, not a tensor")
        form = (tuple(got.shape), got.dtype, got.device.type)
        expected = (exact[name].value.shape, given.dtype, given.device.type)
        if form != expected:
            return found("form", f"{name} is {form}, expected {expected}")
    if non_finite:
        lost = ~np.isfinite(exact["result"].value) & np.isfinite(as_numpy(named["result"]))
        return found("non-finite" if lost.any() else "", f"lost in {int(lost.sum())} places")
    for name, got in named.items():
        worst = max(worst, reference.worst_violation(got, exact[name], tf32=tf32)[0])
        try:
            reference.assert_close_to_oracle(got, exact[name], name, tf32=tf32)
        except AssertionError as error:
            return found("value", str(error))
    if spoilt:
        return found("memory", f"{spoilt} elements around an output were written")
    for name, tensor in t.items():
        if not _same_bits(tensor, before[name]):
            return found("inputs", f"{name} was changed")
    if not named["result"].is_contiguous(memory_format=memory_format):
        return found("form", f"strides {named['result'].stride()}, expected {memory_format}")
    for again in results[1:]:
        if not all(_same_bits(x, y) for x, y in zip(results[0], again, strict=True)):
            return found("bits", f"{repeats} runs with the same inputs do not give the same bits")
    return found("", "")


def exact_results(problem: ConvProblem, direction: Direction, n: dict[str, Any], *epilogue: Any) -> dict[str, Exact]:
    """The exact results for `judge`. n: the arrays by name. epilogue: forward's bias, residual and activation."""
    exact = reference.results(problem, direction, *(n[name] for name in OPERANDS[direction]), *epilogue)
    return dict(zip(("result", "grad_bias"), exact, strict=False))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return torch.equal(a.view(integer), b.view(integer))


# ---- memory around tensors -------------------------------------------------------------------------------------------


def surrounded(t: torch.Tensor) -> torch.Tensor:
    """A copy of t, strides included, that lies inside a buffer of NaN."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    buffer = torch.full((extent + 2 * MARGIN,), math.nan, dtype=t.dtype, device=t.device)
    inner = buffer.as_strided(t.shape, t.stride(), MARGIN)
    if 0 in t.stride():  # one image, seen several times
        inner[:1].copy_(t[:1])
    else:
        inner.copy_(t)
    return inner


_MAKE_TENSORS = {
    torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided,
}  # fmt: skip


class GuardedAllocations(TorchFunctionMode):
    """While active, PyTorch's uninitialised tensors are NaN, and lie inside larger buffers, whose rest is watched."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _MAKE_TENSORS or not out.is_floating_point() or out.device.type == "meta":
            return out
        size = out.untyped_storage().nbytes() // out.itemsize
        buffer = torch.full((size + 2 * MARGIN,), CANARY, dtype=out.dtype, device=out.device)
        buffer[MARGIN : MARGIN + size] = math.nan
        self._buffers.append(buffer)
        return buffer.as_strided(out.shape, out.stride(), MARGIN)

    def spoilt(self) -> int:
        """How many elements around the tensors were written."""
        outside = (torch.cat((b[:MARGIN], b[-MARGIN:])) for b in self._buffers)
        return sum(int((o != torch.full_like(o, CANARY)).sum()) for o in outside)
