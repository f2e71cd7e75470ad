"""The part of `gpuconv doctor` behind `--self-test`: runs the self-test, and prints what it found."""

import json
import os
from collections.abc import Iterable
from typing import Any

import torch

from gpuconv import backends
from gpuconv.checking import isolated, self_test
from gpuconv.checking.problems import as_code
from gpuconv.cli.options import checked, usable_device
from gpuconv.cli.progress import Progress
from gpuconv.gpu import Gpu
from gpuconv.planning import distrust, plan

_MOST_PROCESSES = 16
_MEMORY = 1 << 30  # bytes of the GPU's that a process may take: half of that for its context


def run_self_test(backend: list[str] | None, device: str | None, as_json: bool) -> int:
    """Test every family of the backends on the device, print and record the results; returns the exit status."""
    where = usable_device(device)
    names = list(dict.fromkeys(checked(backends.load, name) for name in backend or backends.names()))
    here, not_here = self_test.usable(names, where)
    if backend and not_here:
        raise backends.BackendUnavailable("; ".join(f"backend {name!r}: {why}" for name, why in not_here.items()))
    trials = [trial for name in here for trial in self_test.trials(name, Gpu.of(where), where)]
    device_name = plan.device_name(where)
    outcomes: Iterable[self_test.Outcome]
    if where.type == "cuda" and os.name == "posix":
        processes = processes_for(len(os.sched_getaffinity(0)), torch.cuda.mem_get_info(where)[0])
        outcomes = isolated.attempts(
            trials, where, [spec for spec in backend or () if ":" in spec], processes=processes
        )
    else:
        outcomes = (self_test.attempt(trial, where) for trial in trials)
    report, finished, printed = self_test.Report(device_name, [], {}), False, 0
    say = (lambda text: None) if as_json else (lambda text: print(text, flush=True))
    say(f"self-test on {device_name}: {len(trials)} problems; errors are fractions of their bound")
    with Progress(len(trials), "self-test") as show:
        try:
            for done, report in enumerate(self_test.run(device_name, trials, outcomes), start=1):
                family = report.families[-1]
                show(done, f"{family.backend} {family.family}".rstrip())
                while not show.live and printed < len(report.families) - 1:
                    say(_line(report.families[printed]))
                    printed += 1
            finished = True
        except KeyboardInterrupt:
            pass
    for family in report.families[printed:]:
        say(_line(family))
    trouble = _remember(report, finished)
    if as_json:
        print(json.dumps(_values(report, not_here, finished, trouble), indent=2))
    else:
        print("\n".join(_end(report, not_here, finished, trouble)))
    return 130 if not finished else 0 if report.ok else 1


def processes_for(cores: int, free: int) -> int:
    """How many processes share a self-test on a GPU with so many bytes free."""
    return max(1, min(_MOST_PROCESSES, cores, free // _MEMORY))


def _remember(report: self_test.Report, finished: bool) -> str | None:
    """Record the report. Returns why it could not be recorded, or None."""
    try:
        self_test.remember(report, finished)
    except OSError as error:
        return f"{distrust.path()} cannot be written ({error.strerror}): nothing is recorded"
    plan.forget()
    return None


def _line(family: self_test.FamilyResult) -> str:
    worst = f"worst {family.worst:.3g}" if family.problems else ""
    line = (
        f"  {family.backend:8} {family.family:13} {family.problems:4} problems  {worst:12} {family.seconds:7.1f} s  "
        f"{family.status}" + (f": {family.not_judged}" if family.not_judged else "")
    )
    more = len(family.failures) - 1
    first = [f"      {text}" for failure in family.failures[:1] for text in str(failure).split("\n")]
    return "\n".join([line, *first, *([f"      and {more} more"] if more > 0 else [])])


def _end(report: self_test.Report, not_here: dict[str, str], finished: bool, trouble: str | None) -> list[str]:
    lines = [f"  {name:8} not here: {reason}" for name, reason in not_here.items()]
    failed = [str(kernels) for kernels, failure in report.failed.items() if failure and kernels.backend != "aten"]
    if failed:
        lines.append(f"FAILED: {', '.join(failed)}")
        lines.append(
            trouble
            or f"the planner does not use these on {report.device} until they pass a self-test: {distrust.path()}"
        )
    elif trouble:
        lines.append(trouble)
    if not finished:
        lines.append("interrupted: what was not tested keeps its last result")
    elif not failed:
        lines.append("all passed" if report.ok else "not everything could be judged")
    return lines


def _values(report: self_test.Report, not_here: dict[str, str], finished: bool, trouble: str | None) -> dict[str, Any]:
    return {
        "device": report.device,
        "versions": distrust.software(),
        "ok": report.ok and finished,
        "finished": finished,
        "families": [
            {
                "backend": family.backend, "family": family.family, "status": family.status,
                "problems": family.problems, "refused": family.refused, "worst": _finite(family.worst),
                "seconds": family.seconds, "not_judged": family.not_judged or None,
                "failures": [_failure_values(failure) for failure in family.failures],
            }
            for family in report.families
        ],
        "failed": [
            kernels._asdict() for kernels, failure in report.failed.items() if failure and kernels.backend != "aten"
        ],
        "not_here": not_here,
        "remembered_in": str(distrust.path()),
        "trouble": trouble,
    }  # fmt: skip


def _failure_values(failure: self_test.Failure) -> dict[str, Any]:
    trial, outcome = failure.trial, failure.outcome
    case, kernels = trial.case, trial.kernels
    return {
        "direction": kernels.direction, "numbers": kernels.numbers, "problem": case.name, "layout": case.layout,
        "activation": case.activation or None, "tile": trial.tile and vars(trial.tile),
        "check": outcome.check, "message": outcome.message, "worst": _finite(outcome.worst),
        "code": as_code(case.problem),
    }  # fmt: skip


def _finite(number: float) -> float | str:
    """The number as JSON can hold it, which has no infinity."""
    return number if number < float("inf") else "inf"
