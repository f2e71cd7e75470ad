"""The command `gpuconv check`; `gpuconv.cli.main` puts it on the command line."""

import json
from collections import Counter
from typing import Annotated, Any

import typer

from gpuconv import backends
from gpuconv.checking.check import DTYPES, SEEDS, Report, check_backend, device_name, select_cases
from gpuconv.cli.options import BACKENDS, AsJson, Device, Directions, On, checked, each_of, emulated, usable_device
from gpuconv.cli.progress import Progress
from gpuconv.errors import UserError
from gpuconv.gpu import Gpu, named
from gpuconv.problem import DIRECTIONS
from gpuconv.text import printable_lines


def check(
    backend: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help=f"What to check: {BACKENDS}. Default, with --on: gpuconv's backends that have kernels for that GPU.",
        ),
    ] = None,
    device: Device = None,
    on: On = None,
    direction: Directions = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"{', '.join(DTYPES)}. Repeatable. Default: all."),
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help="A problem by name, or 'random SEED'. Repeatable. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="How many random problems.")] = SEEDS,
    as_json: AsJson = False,
) -> int:
    """Check a backend, yours or one of gpuconv's, with the oracle suite; exits with 1 if anything is wrong.

    The suite checks that values are within the error bound, that every output element is written and nothing around it,
    that the same inputs give the same bits, that every layout works, and that no NaN is lost. Prints what fails, with
    the problem, and the options that run it again.
    """
    if backend is None and on is None:
        raise UserError("--backend must be given: what to check")
    names = [checked(backends.load, backend)] if backend else _with_kernels_for(checked(named, on or "", "--on"))
    where = usable_device("cpu" if on else device)
    directions, dtypes = each_of("direction", direction, DIRECTIONS), each_of("dtype", dtype, DTYPES)
    cases = checked(select_cases, directions, dtypes, problem or (), seeds)
    reports = []
    for name in names:
        with (
            emulated(on, device, triton=":" in (backend or "")),
            Progress(len(cases), f"checking {name} on {device_name(where)}") as show,
        ):
            report = check_backend(
                name, where, cases, lambda done, so_far: show(done, f"{len(so_far.failures)} failed")
            )
        reports.append(report)
        if not as_json:
            print(printable_lines(_text(report)))
    if as_json:
        values = [_values(report) for report in reports]
        print(json.dumps(values if len(values) > 1 else values[0], indent=2))
    return 0 if all(report.ok for report in reports) else 1


def _with_kernels_for(gpu: Gpu) -> list[str]:
    """The backends with hand-written kernels for a GPU."""
    from gpuconv.inspection.kernels import BACKENDS

    return [name for name in BACKENDS if backends.get(name).refuses_gpu(gpu) is None]


def _values(report: Report) -> dict[str, Any]:
    failures = [
        {"check": f.check, **f.case._asdict(), "dtype": f.case.dtype_name, "message": f.message, "again": f.again}
        for f in report.failures
    ]
    fields = ("backend", "device", "passed", "refused", "ok")
    return {name: getattr(report, name) for name in fields} | {"failures": failures}


def _text(report: Report, most: int = 5) -> str:
    """A report as text: the totals, and each kind of failure with its first one; of at most `most` kinds in full."""
    lines = [
        f"{report.backend} on {report.device}: {sum(report.passed.values())} passed"
        + "".join(f", {direction} {report.passed[direction]}" for direction in DIRECTIONS),
        *(f"refused {count}: {reason}" for reason, count in report.refused.most_common()),
    ]
    if not report.passed and not report.failures:
        lines.append("FAILED: nothing was checked, everything was refused")
    if report.failures:
        lines.append(f"FAILED {len(report.failures)}")
        kinds = Counter((f.check, f.case.direction) for f in report.failures)
        first = {(f.check, f.case.direction): f for f in reversed(report.failures)}
        for kind, count in kinds.most_common(most):
            lines += [
                f"  {kind[0]}, {kind[1]}: {count}, the first:",
                *(f"    {s}" for s in str(first[kind]).split("\n")),
            ]
        lines += [f"  {check}, {direction}: {n}" for (check, direction), n in kinds.most_common()[most:]]
    return "\n".join(lines)
