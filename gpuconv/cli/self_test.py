"""`gpuconv doctor --self-test`: runs it, with a bar, and says what came of it."""

import json as jsonlib
import os
from collections.abc import Iterable
from typing import Any

from gpuconv import backends
from gpuconv.checking import isolated, self_test as selftest
from gpuconv.checking.problems import as_code
from gpuconv.cli.bench import Progress, device_of
from gpuconv.errors import UserError
from gpuconv.gpu import Gpu
from gpuconv.planning import distrust, plan

_MOST_PROCESSES = 4  # each takes half a gigabyte of a GPU's memory


def self_test(backend: list[str] | None, device: str | None, json: bool) -> int:
    """Try every family of the backends on the device, say of each how it went, and remember it; the exit status."""
    where = device_of(device)
    try:
        names = list(dict.fromkeys(map(backends.load, backend or backends.names())))
    except ValueError as error:
        raise UserError(str(error)) from error
    here, not_here = selftest.usable(names, where)
    if backend and not_here:
        raise backends.BackendUnavailable("; ".join(f"backend {name!r}: {why}" for name, why in not_here.items()))
    todo = [trial for name in here for trial in selftest.trials(name, Gpu.of(where), where)]
    called = plan.device_name(where)
    attempts: Iterable[selftest.Outcome]
    if where.type == "cuda" and os.name == "posix":
        processes = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) // 2))
        attempts = isolated.attempts(todo, where, [spec for spec in backend or () if ":" in spec], processes=processes)
    else:
        attempts = (selftest.attempt(trial, where) for trial in todo)
    report, finished, said = selftest.Report(called, [], {}), False, 0
    say = (lambda text: None) if json else (lambda text: print(text, flush=True))
    say(f"self-test on {called}: {len(todo)} problems; errors are fractions of their bound")
    with Progress(len(todo), "self-test") as show:
        try:
            for done, report in enumerate(selftest.run(where, called, todo, attempts), start=1):
                family = report.families[-1]
                show(done, f"{family.backend} {family.family}".rstrip())
                while not show.live and said < len(report.families) - 1:
                    say(_line(report.families[said]))
                    said += 1
            finished = True
        except KeyboardInterrupt:
            pass
    for family in report.families[said:]:
        say(_line(family))
    trouble = _remember(report, finished)
    if json:
        print(jsonlib.dumps(_values(report, not_here, finished, trouble), indent=2))
    else:
        print("\n".join(_end(report, not_here, finished, trouble)))
    return 130 if not finished else 0 if report.ok else 1


def _remember(report: selftest.Report, finished: bool) -> str | None:
    """Record it; why it could not be."""
    try:
        selftest.remember(report, finished)
    except OSError as error:
        return f"{distrust.path()} cannot be written ({error.strerror}): it is not remembered"
    plan.forget()
    return None


def _line(family: selftest.Family) -> str:
    worst = f"worst {family.worst:.3g}" if family.problems else ""
    line = (
        f"  {family.backend:8} {family.family:13} {family.problems:4} problems  {worst:12} {family.seconds:7.1f} s  "
        f"{family.status}" + (f": {family.not_judged}" if family.not_judged else "")
    )
    more = len(family.faults) - 1
    first = [f"      {text}" for fault in family.faults[:1] for text in str(fault).split("\n")]
    return "\n".join([line, *first, *([f"      and {more} more"] if more > 0 else [])])


def _end(report: selftest.Report, not_here: dict[str, str], finished: bool, trouble: str | None) -> list[str]:
    lines = [f"  {name:8} not here: {reason}" for name, reason in not_here.items()]
    failed = [str(kernels) for kernels, fault in report.failed.items() if fault and kernels.backend != "aten"]
    if failed:
        lines.append(f"FAILED: {', '.join(failed)}")
        lines.append(trouble or f"not planned any more on {report.device}, until a self-test passes: {distrust.path()}")
    elif trouble:
        lines.append(trouble)
    if not finished:
        lines.append("interrupted: what was not tried stands as it did")
    elif not failed:
        lines.append("all right" if report.ok else "not everything could be judged")
    return lines


def _values(report: selftest.Report, not_here: dict[str, str], finished: bool, trouble: str | None) -> dict[str, Any]:
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
                "faults": [_fault(fault) for fault in family.faults],
            }
            for family in report.families
        ],
        "failed": [
            kernels._asdict() for kernels, fault in report.failed.items() if fault and kernels.backend != "aten"
        ],
        "not_here": not_here,
        "remembered_in": str(distrust.path()),
        "trouble": trouble,
    }  # fmt: skip


def _fault(fault: selftest.Fault) -> dict[str, Any]:
    case, kernels = fault.trial.case, fault.trial.kernels
    return {
        "direction": kernels.direction, "numbers": kernels.numbers, "problem": case.name, "layout": case.layout,
        "activation": case.activation or None, "tile": fault.trial.tile and vars(fault.trial.tile),
        "check": fault.outcome.check, "message": fault.outcome.message, "worst": _finite(fault.outcome.worst),
        "code": as_code(case.problem),
    }  # fmt: skip


def _finite(number: float) -> float | str:
    """JSON has no infinity."""
    return number if number < float("inf") else "inf"
