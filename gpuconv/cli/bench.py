"""The command `gpuconv bench`; `gpuconv.cli.main` puts it on the command line."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpuconv import packages
from gpuconv.bench import records, runner
from gpuconv.bench.plots import plot
from gpuconv.bench.report import comparison, table
from gpuconv.bench.suites import SUITES
from gpuconv.bench.workloads import CPU_BATCH, LAYOUTS, TIMED, Workload, combinations, layers_of
from gpuconv.checking.precision import NUMBERS
from gpuconv.checking.self_test import usable
from gpuconv.cli.options import BACKENDS, AsJson, Device, device_to_time, each_of
from gpuconv.cli.progress import Progress
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.problem import DIRECTIONS
from gpuconv.text import printable, printable_lines

_SUITE = "resnet18"


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"{', '.join(SUITES)}. Repeatable. Default: {_SUITE}."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(show_default=False, help="A layer, suite.name. Repeatable.")
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help=f"{', '.join(TIMED)} (forward, bias and ReLU). Repeatable. Default: all but fused.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False, help=f"{', '.join(NUMBERS)}. Repeatable. Default: bfloat16; float32 on a CPU."
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(show_default=False, help=f"{', '.join(LAYOUTS)}. Repeatable. Default: both."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help=f"{BACKENDS}, or inductor (torch.compile). Repeatable. PyTorch's own (aten) is always measured beside "
            "them. Default: gpuconv's backends that run on the device.",
        ),
    ] = None,
    device: Device = None,
    batch: Annotated[
        int | None,
        typer.Option(
            show_default=False, min=1, help=f"Images. Default: the layer's own; on a CPU {CPU_BATCH} at most."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            show_default=False, help="Start no new measurement after so many seconds; --out goes on from there later."
        ),
    ] = None,
    first_call: Annotated[
        bool, typer.Option("--first-call", help="Also time first calls in new processes, and compilation. Slow.")
    ] = False,
    compile_first: Annotated[
        int,
        typer.Option(min=0, help="First compile everything in so many processes, in half of --seconds at most."),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="File for the results, lines of JSON. A file that exists is continued. "
            "Default: runs/bench-<time>.jsonl.",
        ),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="Measure nothing; report on this file of results. Repeatable."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            show_default=False,
            metavar="OLD NEW",
            help="Measure nothing; compare two files of results, and exit with 1 if NEW is worse beyond the noise.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(show_default=False, help="Also write the results as CSV.")] = None,
    plots: Annotated[
        Path | None, typer.Option(show_default=False, help="Also draw rooflines and speed-ups into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Time convolutions beside PyTorch's on layers of real networks. Every result is checked before it is timed.

    Exits with 1 if a result of gpuconv, or of a backend under test, is wrong or fails.
    """
    try:
        if compare is not None:
            found = records.compare(records.read([compare[0]]), records.read([compare[1]]))
            print(printable_lines(comparison(found)))
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
            where = device_to_time(device)
            numbers = each_of("dtype", dtype or ["float32" if where.type == "cpu" else "bfloat16"], NUMBERS)
            if where.type == "cpu" and "tf32" in numbers:
                raise UserError("tf32 is how GPUs multiply float32; on a CPU ask for float32")
            subjects = {runner.register(name): name for name in backend or usable(runner.OURS, where)[0]}
            options = runner.Options(
                where, list(dict.fromkeys(("aten", *subjects))), each_of("layout", layout, LAYOUTS), seconds,
                first_call, subjects, compile_first,
            )  # fmt: skip
            layers = layers_of(suite or ([] if layer else [_SUITE]), layer or ())
            directions = each_of("direction", direction or [*DIRECTIONS], TIMED)
            status = _measure(list(combinations(layers, directions, numbers, batch, where.type)), options, out)
            rows = [row for row in records.read([out]) if row["on"] == where.type]
        if csv is not None:
            csv.parent.mkdir(parents=True, exist_ok=True)
            csv.write_text(records.as_csv(rows), encoding="utf-8")
    except ValueError as error:
        raise UserError(str(error)) from error
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(printable_lines(table(rows)))
        if not report:
            print(printable(f"results  {out}"))
    if plots is not None:
        drawn = plot(rows, plots)
        print(*(printable(f"plot     {path}") for path in drawn), sep="\n", file=sys.stderr if as_json else sys.stdout)
    return status


def _measure(workloads: Sequence[Workload], options: runner.Options, out: Path) -> int:
    """Measure, and show how far it is. Returns the exit status. Ctrl-C keeps what was measured."""
    status, start = 0, time.monotonic()
    with Progress(len(workloads), "") as show:
        try:
            for row in runner.run(workloads, options, out, show):
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
