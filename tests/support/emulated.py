"""Runs a case of the sweep on the emulator, under every schedule."""

from typing import Any, NamedTuple

import numpy as np
from lanes import Lane
from sweep import Case

from gpuconv import backends, reference
from gpuconv.bench import check
from gpuconv.bench.problems import tensors
from gpuconv.reference import Activation, as_numpy


class Schedule(NamedTuple):
    """When asynchronous work is done, and in which order warps and blocks run."""

    name: str
    seed: int = 0


SCHEDULES = (Schedule("early"), Schedule("late"), Schedule("random", 1), Schedule("random", 2))


def lane_of(backend: str, gpu: str) -> Lane:
    """The lane of a backend on an emulated GPU."""
    return Lane(backend, "cpu", gpu.lower())


def complaint(case: Case, schedules: tuple[Schedule, ...] = SCHEDULES) -> str | None:
    """What is wrong with what the kernels of a case compute, on any of these schedules; None if nothing is: values
    within the bound, every output written and nothing else, inputs untouched, the same bits, no check that fires."""
    problem, operands, epilogue = case.problem, case.operands, case.epilogue
    given = tensors(problem, case.name, problem.dtype, "cpu", case.layout)
    exact = _exact(case, {name: as_numpy(t) for name, t in given.items()})
    t = {name: check.surrounded(tensor) for name, tensor in given.items()}
    activation, device = Activation.parse(epilogue.activation), t["input"].device
    a, b = (t[name] for name in check.OPERANDS[case.direction])
    extra = t["bias"] if epilogue.bias else None, t["residual"] if epilogue.residual else None
    turns = iter(schedules)
    now = schedules[0]

    def call() -> tuple[Any, ...]:
        nonlocal now
        now = next(turns)
        with lane_of(case.backend, case.gpu).emulated(schedule=now.name, seed=now.seed):
            run = backends.get(case.backend).bind(problem, case.direction, device, activation, operands, case.tile)
            if case.direction == "forward":
                return (run(a, b, *extra),)
            return tuple(run(a, b, True)) if case.direction == "grad_weight" else (run(a, b),)

    try:
        found = check.verdict(t, exact, call, problem.memory_format, len(schedules), operands.tf32)
    except RuntimeError as error:
        return f"{case}, {now}: {type(error).__name__}: {error}"
    return f"{case}: {found.check}: {found.message}" if found.check else None


def _exact(case: Case, n: dict[str, Any]) -> dict[str, reference.Exact]:
    """What a case gives, from its tensors as arrays."""
    p = case.problem
    if case.direction != "forward":
        return check.exact_of(case, n)
    e, precision = case.epilogue, np.longdouble if case.dtype.itemsize == 8 else np.float64
    extra = n["bias"] if e.bias else None, n["residual"] if e.residual else None
    act = Activation.parse(e.activation)
    return {"result": reference.forward(p, n["input"], n["weight"], *extra, act, precision)}
