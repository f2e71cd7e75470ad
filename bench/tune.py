"""Measures which backend and tile is fastest on this device, and records it in `gpuconv.planning.tuned`.

The candidates of a problem are, for each backend that supports it here, the tiles that the planner's formula ranks
first; PyTorch's own convolution is one of them. A candidate is timed only if its result is right (`ExactResult`). The
times of a problem are recorded at once, so that an interruption loses no more than one problem.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from gpuconv import backends
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Operands, Tile, numbers
from gpuconv.bench import timing
from gpuconv.bench.verdict import ExactResult
from gpuconv.checking.precision import float32_as
from gpuconv.gpu import Gpu
from gpuconv.planning import distrust, plan, tuned
from gpuconv.planning.plan import Asked
from gpuconv.planning.ranking import ranked

MOST_TILES = 6  # of each backend


class Timed(NamedTuple):
    """A candidate that was timed, and how long its formula says that it takes; None where it has none."""

    backend: str
    tile: Tile | None
    seconds: float
    predicted: float | None


class Tuned(NamedTuple):
    """What was measured for one problem."""

    asked: Asked
    winners: tuned.Winners
    timed: tuple[Timed, ...]
    wrong: tuple[str, ...]  # the candidates that gave a wrong result or failed, and how

    @property
    def best(self) -> str:
        """The fastest backend."""
        return min(self.winners, key=lambda name: self.winners[name].seconds)


def candidates(asked: Asked, names: Sequence[str], most_tiles: int = MOST_TILES) -> Iterator[tuple[str, Tile | None]]:
    """The backends of `names` that support a problem, each with its most promising tiles, or with None if it has none.

    What failed the self-test is not among them.
    """
    problem, direction, device, operands = asked
    gpu, failed = Gpu.of(device), distrust.failed(plan.device_name(device))
    for name in names:
        backend = backends.get(name)
        if (backend.unavailable() or backend.refuses(problem, direction, device)) is not None:
            continue
        menu = backend.tiles(problem, direction, gpu, operands)
        tiles, reasons = distrust.sift(menu, name, direction, numbers(problem.dtype, operands.tf32), failed, {})
        in_order = ranked(backend, tiles, problem, direction, gpu, operands.tf32)
        yield from ((name, tile) for tile, _ in in_order[:most_tiles])
        if not menu and not reasons:
            yield name, None


def tune(asked: Asked, names: Sequence[str], budget: float | None = None) -> Tuned:
    """Time the candidates of one problem, `budget` seconds each, and record the best time of each backend."""
    problem, direction, device, operands = asked
    a, b = operands_of(asked)
    winners: tuned.Winners = {}
    wrong, timed = [], []
    gpu = Gpu.of(device)
    exact = ExactResult(problem, direction, a, b, operands.tf32)
    with float32_as("tf32" if operands.tf32 else "float32"):
        for name, tile in candidates(asked, names):
            try:
                run = bound_call(asked, name, tile, a, b)
                error = exact.error_of(run())
                if error > 1 and name != "aten":  # PyTorch's own is what a user would have otherwise
                    wrong.append(f"{name} {tile}: error {error:.3g} × the bound")
                    continue
                seconds = timing.summary(timing.times(run, device, budget))["ms"] / 1e3
            except Exception as failure:  # out of memory, or a kernel that is not built or launched: the others may
                if not (isinstance(failure, RuntimeError) or backends.get(name).cannot_build(failure)):
                    raise
                wrong.append(f"{name} {tile}: {distrust.in_a_line(failure)}")
                continue
            predicted = None
            if tile is not None:
                predicted = backends.get(name).predict(problem, direction, tile, gpu, operands.tf32).seconds
            timed.append(Timed(name, tile, seconds, predicted))
            if name not in winners or seconds < winners[name].seconds:
                winners[name] = tuned.Measured(seconds, tile)
    key = tuned.key_of(problem, direction, plan.device_name(device), operands)
    if winners and key is not None:
        tuned.record({key: winners})
        plan.forget()
    return Tuned(asked, winners, tuple(timed), tuple(wrong))


def operands_of(asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tensors for a problem, which lie in memory as those that it was planned for."""
    p = asked.problem
    first, second = p.operand_shapes(asked.direction)
    generator = torch.Generator(asked.device).manual_seed(1)

    def draw(shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
        t = torch.empty_strided(shape, strides, dtype=p.dtype, device=asked.device)
        return t.copy_(torch.randn(shape, generator=generator, device=asked.device))

    return draw(first, asked.operands.strides[0]), draw(second, asked.operands.strides[1])


def bound_call(asked: Asked, name: str, tile: Tile | None, a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    """A function that computes a problem by a backend with a tile, past the planner."""
    problem, direction, device, operands = asked
    plain = operands._replace(bias=False, residual=None)
    run = backends.get(name).bind(problem, direction, device, IDENTITY, *(() if tile is None else (plain, tile)))
    if direction == "forward":
        return lambda: run(a, b, None, None)
    if direction == "grad_input":
        return lambda: run(a, b)
    return lambda: run(a, b, False)[0]


def distinct(found: Iterable[Asked]) -> list[Asked]:
    """The problems that can be recorded, each `tuned.key_of` once, without bias and residual, which tiles ignore."""
    by_key: dict[str, Asked] = {}
    for asked in found:
        asked = asked._replace(operands=Operands(asked.operands.strides, tf32=asked.operands.tf32))
        key = tuned.key_of(asked.problem, asked.direction, plan.device_name(asked.device), asked.operands)
        if key is not None:
            by_key.setdefault(key, asked)
    return list(by_key.values())


def tune_each(
    problems: Sequence[Asked], names: Sequence[str], limit: float, budget: float | None = None
) -> Iterator[Tuned]:
    """Tune one problem after the other; start none after `limit` seconds."""
    start = time.monotonic()
    for asked in problems:
        if time.monotonic() - start > limit:
            return
        yield tune(asked, names, budget)
