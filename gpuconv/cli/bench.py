"""The commands `gpuconv bench` and `gpuconv check`; `gpuconv.cli.main` puts them on the command line."""

import json as jsonlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from gpuconv import backends, packages
from gpuconv.bench import plots as pictures, records, report as reports, runner, workloads
from gpuconv.bench.suites import SUITES
from gpuconv.bench.workloads import CPU_BATCH, LAYOUTS, NUMBERS
from gpuconv.checking import check as checks
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.gpu import KNOWN, Gpu, named
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem
from gpuconv.text import printable, printable_lines

_BACKEND = f"{', '.join(backends.names())}, or package.module:Class for your own"
_SUITE = "resnet18"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checks.DTYPES}

Device = Annotated[
    str | None,
    typer.Option(show_default=False, help="cpu, cuda or cuda:N. Default: cuda where there is a GPU, else cpu."),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on", show_default=False, help=f"A GPU to emulate on the CPU: {', '.join(KNOWN)}, or sm_90 and so on."
    ),
]
Directions = Annotated[
    list[str] | None,
    typer.Option("--direction", show_default=False, help=f"Of {', '.join(DIRECTIONS)}; repeat it. Default: all."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]


def chosen(name: str, given: list[str] | None, known: Any) -> list[Any]:
    """What the words of a repeated option stand for, commas allowed; all of `known` where nothing was given."""
    known = known if isinstance(known, dict) else {value: value for value in known}
    words = [word for text in given or known for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UserError(f"{name} must be of {', '.join(known)}, but got {word!r}")
    return [known[word] for word in words]


def device_of(name: str | None) -> torch.device:
    """The device called `name`, or the default. Raises UserError for one that is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # whatever PyTorch says of a device that it cannot have
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def timed(device: torch.device) -> torch.device:
    """`device`. Raises UserError where it is no device of its own, and times would say nothing."""
    if plan.emulated(device):
        raise UserError("nothing can be timed on a GPU that is emulated: unset GPUCONV_EMULATE")
    return device


@contextmanager
def emulated(name: str | None, device: str | None, triton: bool = False) -> Iterator[None]:
    """With the GPU called `name` emulated, if one is named; `triton`: for Triton kernels that are not ours, too. Raises
    UserError where it cannot be."""
    if name is None:
        yield
        return
    from gpuconv import emulator
    from gpuconv.emulator.device import unrecorded

    if device not in (None, "cpu"):
        raise UserError(f"--on emulates a GPU on the CPU, and --device is {device!r}: leave one of them out")
    with ExitStack() as stack:
        try:
            stack.enter_context(unrecorded(name, "--on"))
            if triton and packages.installed("triton"):
                stack.enter_context(emulator.triton_gpu(name))
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error
        yield


def check(
    backend: Annotated[
        str | None,
        typer.Option(
            show_default=False, help=f"What to check: {_BACKEND}. Default, with --on: those of ours for that GPU."
        ),
    ] = None,
    device: Device = None,
    on: On = None,
    direction: Directions = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"Of {', '.join(_DTYPES)}; repeat it. Default: all."),
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help="A problem by name, or 'random SEED'; repeat it. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Random problems.")] = checks.SEEDS,
    json: Json = False,
) -> int:
    """Put a backend, yours or ours, through the oracle suite; exits with 1 if anything is wrong.

    Values within the error bound, every output element written and nothing around it, the same bits every time, every
    layout, and no NaN lost. Prints what fails, and the problem and options to see it again.
    """
    if backend is None and on is None:
        raise UserError("--backend must be given: what to check")
    try:
        names = [backends.load(backend)] if backend else _with_kernels_for(named(on or "", "--on"))
        where = device_of("cpu" if on else device)
        todo = checks.cases(
            chosen("direction", direction, DIRECTIONS), chosen("dtype", dtype, _DTYPES), problem or (), seeds
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    found = []
    for name in names:
        with (
            emulated(on, device, triton=":" in (backend or "")),
            Progress(len(todo), f"checking {name} on {checks.called(where)}") as show,
        ):
            report = checks.check(name, where, todo, lambda done, so_far: show(done, f"{len(so_far.failures)} failed"))
        found.append(report)
        if not json:
            print(printable_lines(_check_text(report)))
    if json:
        values = [_check_values(report) for report in found]
        print(jsonlib.dumps(values if len(values) > 1 else values[0], indent=2))
    return 0 if all(report.ok for report in found) else 1


def _with_kernels_for(gpu: Gpu) -> list[str]:
    """The backends with hand-written kernels for a GPU."""
    from gpuconv.inspection.kernels import BACKENDS

    return [name for name in BACKENDS if backends.get(name).refuses_gpu(gpu) is None]


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"Of {', '.join(SUITES)}; repeat it. Default: {_SUITE}."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(show_default=False, help="suite.layer, beside or instead of suites; repeat it.")
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help=f"Of {', '.join(workloads.TIMED)} (forward, bias and ReLU); repeat it. Default: all but fused.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False, help=f"Of {', '.join(NUMBERS)}; repeat it. Default: bfloat16; float32 on a CPU."
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"Of {', '.join(LAYOUTS)}; repeat it. Default: both."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help=f"{_BACKEND}, or inductor; repeat it. PyTorch's own (aten) is always measured beside them. "
            "Default: those of ours that run on the device.",
        ),
    ] = None,
    device: Device = None,
    batch: Annotated[
        int | None,
        typer.Option(show_default=False, min=1, help=f"Default: the layer's own; on a CPU {CPU_BATCH} at most."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(show_default=False, help="Start nothing new after so long; go on with --out later.")
    ] = None,
    first_call: Annotated[
        bool, typer.Option("--first-call", help="Also time first calls in fresh processes, and compilation. Slow.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="File of results, lines of JSON; one that exists is continued. Default: runs/bench-<time>.jsonl.",
        ),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="Measure nothing, report on this file of results; repeat it."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            show_default=False, metavar="OLD NEW", help="Measure nothing, exit with 1 if NEW is worse beyond the noise."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(show_default=False, help="Also write the results as CSV.")] = None,
    plots: Annotated[
        Path | None, typer.Option(show_default=False, help="Also draw rooflines and speed-ups into this folder.")
    ] = None,
    json: Json = False,
) -> int:
    """Time convolutions beside PyTorch's on layers of real networks. Every result is checked before it is timed.

    Exits with 1 if a result of ours, or of a backend under test, is wrong or fails.
    """
    try:
        if compare is not None:
            found = records.compare(records.read([compare[0]]), records.read([compare[1]]))
            print(printable_lines(reports.comparison(found)))
            return 1 if found.regressions else 0
        status = 0
        out = out or Path("runs") / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        missing = packages.missing(packages.BENCH) if plots is not None else ()
        if missing:
            raise UserError(f"--plots needs: {packages.install('bench', missing)}")
        for path, folder in ((None if report else out, False), (csv, False), (plots, True)):
            if path is not None:
                writable_or_raise(path, folder)
        if report:
            rows = records.read(report)
        else:
            where = timed(device_of(device))
            numbers = chosen("dtype", dtype or ["float32" if where.type == "cpu" else "bfloat16"], NUMBERS.keys())
            if where.type == "cpu" and "tf32" in numbers:
                raise UserError("tf32 is how GPUs multiply float32; on a CPU ask for float32")
            subjects = {runner.register(name): name for name in backend or _ours(where)}
            options = runner.Options(
                where, list(dict.fromkeys(("aten", *subjects))), chosen("layout", layout, LAYOUTS.keys()), seconds,
                first_call, subjects,
            )  # fmt: skip
            todo = list(
                workloads.cases(
                    workloads.layers_of(suite or ([] if layer else [_SUITE]), layer or ()),
                    chosen("direction", direction or [*DIRECTIONS], workloads.TIMED),
                    numbers, batch, where.type,
                )
            )  # fmt: skip
            status = _measure(todo, options, out)
            rows = [row for row in records.read([out]) if row["on"] == where.type]
        if csv is not None:
            csv.parent.mkdir(parents=True, exist_ok=True)
            csv.write_text(records.as_csv(rows), encoding="utf-8")
    except ValueError as error:
        raise UserError(str(error)) from error
    if json:
        print(jsonlib.dumps(rows, indent=2))
    else:
        print(printable_lines(reports.table(rows)))
        if not report:
            print(printable(f"results  {out}"))
    if plots is not None:
        drawn = pictures.plot(rows, plots)
        print(*(printable(f"plot     {path}") for path in drawn), sep="\n", file=sys.stderr if json else sys.stdout)
    return status


def _ours(device: torch.device) -> list[str]:
    """The backends of ours that can run on the device."""
    problem = ConvProblem.of((1, 1, 3, 3), (1, 1, 3, 3))
    known = {name: backends.get(name) for name in runner.OURS}
    return [n for n, b in known.items() if (b.unavailable() or b.refuses(problem, "forward", device)) is None]


def _measure(todo: list[workloads.Case], options: runner.Options, out: Path) -> int:
    """Measure, with a bar; gives the exit status. Stopped by Ctrl-C, it keeps what there is."""
    status, start = 0, time.monotonic()
    with Progress(len(todo), "") as show:
        try:
            for row in runner.run(todo, options, out, show):
                bad = "failed" in row or row.get("right") is False
                status = max(status, int(bad and row["role"] != "baseline"))
        except KeyboardInterrupt:
            print(printable(f"stopped; --out {out} goes on from here"), file=sys.stderr)
            return 130
        except runner.Lost as error:
            print(printable(f"error: {error} (--out {out})"), file=sys.stderr)
            return 1
    if options.seconds is not None and time.monotonic() - start > options.seconds:
        print(printable(f"time is up; --out {out} goes on from here"), file=sys.stderr)
    return status


def _check_values(report: checks.Report) -> dict[str, Any]:
    failures = [
        {"check": f.check, **f.case._asdict(), "dtype": str(f.case.dtype).removeprefix("torch."), "message": f.message,
         "again": f.again} for f in report.failures
    ]  # fmt: skip
    fields = ("backend", "device", "passed", "refused", "ok")
    return {name: getattr(report, name) for name in fields} | {"failures": failures}


def _check_text(report: checks.Report, most: int = 5) -> str:
    """A report for people: the totals, each kind of failure with its first, at most `most` in full."""
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


class Progress:
    """A bar on stderr where that is a terminal, a plain one without rich; nothing elsewhere."""

    def __init__(self, total: int, title: str) -> None:
        self._bar: Any = None
        self._title, self._total = title, total
        self.live = sys.stderr.isatty()  # what is printed meanwhile would get in its way
        if self.live:
            try:
                from rich import console, progress
            except ImportError:
                return
            columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
            self._bar = progress.Progress(
                *columns, progress.TimeRemainingColumn(), console=console.Console(file=sys.stderr), transient=True
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.live:
            print(end="\r\033[K", file=sys.stderr, flush=True)

    def __call__(self, done: int, text: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self._title} {text}")
        elif self.live:
            print(end=f"\r\033[K{done}/{self._total} {self._title} {text}"[:79], file=sys.stderr, flush=True)
