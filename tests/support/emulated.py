"""One case of the sweep, run on the emulator under every schedule."""

from typing import Any

from lanes import Lane
from schedules import SCHEDULES, Schedule
from sweep import Case

from gpuconv import backends
from gpuconv.activations import Activation
from gpuconv.checking.judging import exact_results, judge, surrounded
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.reference import as_numpy


def lane_of(backend: str, gpu: str) -> Lane:
    """The lane of a backend on an emulated GPU."""
    return Lane(backend, "cpu", gpu.lower())


def complaint(case: Case, schedules: tuple[Schedule, ...] = SCHEDULES) -> str | None:
    """The first fault of the kernels of a case, under any of these schedules; None if there is none.

    Values must be within the bound, every output written and nothing else, inputs untouched, bits equal, and no check
    may fire.
    """
    problem, operands, epilogue = case.problem, case.operands, case.epilogue
    given = tensors(problem, case.name, problem.dtype, "cpu", case.layout)
    n = {name: as_numpy(t) for name, t in given.items()}
    added = n["bias"] if epilogue.bias else None, n["residual"] if epilogue.residual else None
    exact = exact_results(problem, case.direction, n, *added, Activation.parse(epilogue.activation))
    t = {name: surrounded(tensor) for name, tensor in given.items()}
    activation, device = Activation.parse(epilogue.activation), t["input"].device
    a, b = (t[name] for name in OPERANDS[case.direction])
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
        found = judge(t, exact, call, problem.memory_format, len(schedules), operands.tf32)
    except RuntimeError as error:
        return f"{case}, {now}: {type(error).__name__}: {error}"
    return f"{case}: {found.check}: {found.message}" if found.check else None
