"""Measures workloads, and writes a record for each result, a line of JSON, as soon as it is there.

A result is first compared with the exact one. A wrong result of gpuconv, or of a backend under test, is recorded and
not timed; a baseline is timed, and its error recorded. A file that exists is continued: what it has from the same
machine, versions and sources is not measured again.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from gpuconv import backends
from gpuconv.bench import timing
from gpuconv.bench.compile_first import compile_first
from gpuconv.bench.environment import environment, source
from gpuconv.bench.records import Row, key, read
from gpuconv.bench.verdict import ExactResult
from gpuconv.bench.workloads import BASELINES, LAYOUTS, Workload
from gpuconv.checking import interpreted, self_test
from gpuconv.checking.precision import float32_as
from gpuconv.planning import plan
from gpuconv.settings import Settings

OURS = ("triton", "cuda", "numpy")


class Options(NamedTuple):
    """How to measure each workload."""

    device: torch.device
    subjects: Sequence[str]  # backends, including baselines
    layouts: Sequence[str] = tuple(LAYOUTS)
    seconds: float | None = None  # start nothing new after this long
    first_call: bool = False  # also time first calls, in new processes: slow
    specs: Mapping[str, str] | None = None  # of backends from elsewhere: name → package.module:Class
    compile_first: int = 0  # processes that compile everything before; they take half of `seconds` at most


class Lost(RuntimeError):
    """The GPU no longer answers this process."""


def run(
    workloads: Sequence[Workload], options: Options, out: Path, progress: Callable[[int, str], None]
) -> Iterator[Row]:
    """Rows as they are measured, each already written to `out`. Raises Lost where the GPU can no longer be used."""
    here, start = environment(options.device), time.monotonic()
    done = {key(row): row for row in (read([out]) if out.exists() else []) if "failed" not in row or row.get("fatal")}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+", encoding="utf-8") as file:
        _drop_cut_line(out, file)
        todo = [
            [
                (backend, layout)
                for layout in options.layouts
                for backend in options.subjects
                if key({**_what(workload, backend, layout), **here}) not in done
            ]
            for workload in workloads
        ]
        if options.compile_first:
            what = [
                (workload, *one)
                for workload, left in zip(workloads, todo, strict=True)
                for one in left
                if one[0] not in BASELINES
            ]
            progress(0, "compiling")
            most = None if options.seconds is None else options.seconds / 2
            compile_first(what, options.specs or {}, options.device, options.compile_first, most)
        for number, (workload, left) in enumerate(zip(workloads, todo, strict=True)):
            progress(number, f"{workload.layer} {workload.direction} {workload.numbers}")
            if not left:
                continue
            for row in _measure_each(left, workload, options):
                if options.seconds is not None and time.monotonic() - start > options.seconds:
                    return
                line = {**row, **here}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                yield line
                if row.get("fatal"):
                    raise Lost(f"the GPU is lost after {row['layer']} {row['direction']} by {row['backend']}: "
                               f"{row['failed']}; the same command goes on after it")  # fmt: skip


def _drop_cut_line(path: Path, file: TextIO) -> None:
    """Shorten a file whose last line was cut short by an interruption."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def _what(workload: Workload, backend: str, layout: str) -> Row:
    """The fields that say what is measured."""
    role = "baseline" if backend in BASELINES else "ours" if backend in OURS else "under test"
    suite = workload.layer.partition(".")[0]
    return {**workload._asdict(), "suite": suite, "layout": layout, "backend": backend, "role": role,
            "source": source(backend)}  # fmt: skip


def _measure_each(what: list[tuple[str, str]], workload: Workload, options: Options) -> Iterator[Row]:
    """A row for each (backend, layout)."""
    device = options.device
    with float32_as(workload.numbers):
        exact, operands = None, None
        for backend, layout in what:
            row = _what(workload, backend, layout)
            try:
                reason = workload.refusal(backend, layout, device)
                if reason is not None:
                    yield {**row, "refused": reason}
                    continue
                if operands is None or exact is None:
                    operands = workload.operands(device)
                    tf32, bias = workload.numbers == "tf32", workload.bias(device)
                    exact = ExactResult(workload.problem("contiguous"), workload.computes, *operands, tf32, bias)
                with interpreted.calls_of(backend):
                    found = _measure(workload, backend, layout, exact, operands, options)
                yield row | found
            except interpreted.Unjudged as reason:
                yield {**row, "refused": str(reason)}
            except interpreted.NoInterpreter:
                raise
            except Exception as error:  # the others are still measured
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                yield {**row, "failed": text, **({"fatal": True} if self_test.lost(device) else {})}
            finally:
                if device.type == "cuda" and workload.problem(layout).flops > 1e12:
                    torch.cuda.empty_cache()


def _measure(
    workload: Workload,
    backend: str,
    layout: str,
    exact: ExactResult,
    operands: tuple[torch.Tensor, torch.Tensor],
    options: Options,
) -> Row:
    device, p = options.device, workload.problem(layout)
    a, b = (t.contiguous(memory_format=p.memory_format) for t in operands)
    call = workload.bound_call(backend, layout, a, b)
    with _poisoned() if backend not in BASELINES else contextlib.nullcontext():
        error = exact.error_of(call())
    least = p.least_bytes(workload.computes)
    row: Row = {
        "problem": str(p), "gflop": p.flops / 1e9, "gbyte": least / 1e9, "tf32": workload.numbers == "tf32",
        "cudnn_benchmark": True, "error": error if error < float("inf") else "inf", "right": error <= 1,
        "judged_by": exact.computed_by, "tile": _tile(workload, backend, layout, device),
    }  # fmt: skip
    if not row["right"] and backend not in BASELINES:
        return row
    row |= timing.summary(timing.times(call, device))
    if device.type == "cuda":
        row["host_us"] = timing.host_microseconds(call, device)
        try:
            row |= timing.summary(timing.graph_times(call, device), "graph_ms") | {"runs": row["runs"]}
        except Exception as error:
            row["graph_failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    row |= _against_ceilings(row, timing.ceilings(device, workload.numbers))
    if options.first_call:
        row |= first_call(workload, (options.specs or {}).get(backend, backend), layout, device)
    return row


def _against_ceilings(row: Row, ceilings: dict[str, float]) -> Row:
    """The rates of a row, and what part of its roofline it reaches: the time that the ceilings allow over its time."""
    arithmetic, memory = row["gflop"] / ceilings["matmul_tflops"], row["gbyte"] * 1e3 / ceilings["copy_gbs"]  # ms
    return {
        "tflops": row["gflop"] / row["ms"], "gbs": row["gbyte"] * 1e3 / row["ms"], **ceilings,
        "bound": "arithmetic" if arithmetic > memory else "memory", "roofline": max(arithmetic, memory) / row["ms"],
    }  # fmt: skip


def _tile(workload: Workload, backend: str, layout: str, device: torch.device) -> list[Any] | None:
    """The tile that the planner chose, or None for a backend without tiles."""
    if backend in BASELINES:
        return None
    p = workload.problem(layout)
    settings = Settings(p.stride, p.padding, p.dilation, p.groups, backend=backend)
    operands = plan.contiguous_operands(p, workload.computes, p.memory_format)._replace(tf32=workload.numbers == "tf32")
    tile = plan.choose(p, workload.computes, device, settings, operands).tile
    return None if tile is None else list(vars(tile).values())


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Within this context PyTorch's new tensors are NaN, so that an element that is not written is wrong."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# ---- the first call of a process -------------------------------------------------------------------------------------


def first_call(workload: Workload, spec: str, layout: str, device: torch.device) -> Row:
    """Milliseconds of the first call in a new process with empty caches of compiled code, and how much is compilation.

    That is what a second process, which finds the caches filled, does not need. What was tuned is in no such cache: the
    tile is the one that is timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            name: str(Path(folder) / name) for name in ("TRITON_CACHE_DIR", "CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        }
        command = [sys.executable, "-m", "gpuconv.bench.first_call", *map(str, workload), spec, layout, str(device)]
        found = []
        for _ in range(2):
            run = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True)
            if run.returncode:
                return {"first_call_failed": run.stderr.strip().splitlines()[-1][:300] if run.stderr.strip() else "?"}
            found.append(json.loads(run.stdout.splitlines()[-1]))
    return {"first_call_ms": found[0], "compile_ms": max(0.0, found[0] - found[1])}


def register(spec: str) -> str:
    """Load what is to be measured, a baseline or a backend as `backends.load` reads it, and return its name."""
    return spec if spec in BASELINES else backends.load(spec)
