"""Measures cases and writes a line of JSON for each result as soon as it is there.

A result is judged first (`Judge`). A wrong one of ours, or of a kernel under test, is written down and not timed; a
baseline is timed, and its error written down. A file that is given again is continued: what it has from the same
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
from gpuconv.bench import timing, workloads as todo
from gpuconv.bench.environment import environment, source
from gpuconv.bench.records import Row, key, read
from gpuconv.bench.verdict import Judge
from gpuconv.bench.workloads import BASELINES, LAYOUTS, Case
from gpuconv.checking import interpreted, self_test
from gpuconv.checking.precision import float32_as
from gpuconv.planning import plan
from gpuconv.settings import Settings

OURS = ("triton", "cuda", "numpy")


class Options(NamedTuple):
    """What to measure of each case, and how."""

    device: torch.device
    subjects: Sequence[str]  # backends, baselines among them
    layouts: Sequence[str] = tuple(LAYOUTS)
    seconds: float | None = None  # start nothing new after this long
    first_call: bool = False  # in fresh processes: slow
    specs: Mapping[str, str] | None = None  # of backends that are not ours: name → package.module:Class


class Lost(RuntimeError):
    """The GPU no longer answers this process."""


def run(cases: Sequence[Case], options: Options, out: Path, say: Callable[[int, str], None]) -> Iterator[Row]:
    """Rows as they are measured, each already written to `out`. Raises Lost where the GPU can no longer be used."""
    here, start = environment(options.device), time.monotonic()
    done = {key(row): row for row in (read([out]) if out.exists() else []) if "failed" not in row or row.get("fatal")}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+", encoding="utf-8") as file:
        _drop_cut_line(out, file)
        for number, case in enumerate(cases):
            say(number, f"{case.layer} {case.direction} {case.numbers}")
            todo_here = [
                (backend, layout)
                for layout in options.layouts
                for backend in options.subjects
                if key({**_what(case, backend, layout), **here}) not in done
            ]
            if not todo_here:
                continue
            for row in _measure_case(case, todo_here, options):
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


def _what(case: Case, backend: str, layout: str) -> Row:
    role = "baseline" if backend in BASELINES else "ours" if backend in OURS else "under test"
    return {**case._asdict(), "suite": case.layer.partition(".")[0], "layout": layout, "backend": backend, "role": role,
            "source": source(backend)}  # fmt: skip


def _measure_case(case: Case, what: list[tuple[str, str]], options: Options) -> Iterator[Row]:
    """A row for each (backend, layout) of a case."""
    device = options.device
    with float32_as(case.numbers):
        judge, operands = None, None
        for backend, layout in what:
            row = _what(case, backend, layout)
            try:
                reason = todo.refusal(case, backend, layout, device)
                if reason is not None:
                    yield {**row, "refused": reason}
                    continue
                if operands is None or judge is None:
                    operands = todo.tensors(case, device)
                    tf32, bias = case.numbers == "tf32", case.bias(device)
                    judge = Judge(case.problem("contiguous"), case.computes, *operands, tf32, bias)
                with interpreted.guarded(backend):
                    found = _measure(case, backend, layout, judge, operands, options)
                yield row | found
            except interpreted.Unjudged as reason:
                yield {**row, "refused": str(reason)}
            except interpreted.NoInterpreter:
                raise
            except Exception as error:  # one case that fails must not cost the others
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                yield {**row, "failed": text, **({"fatal": True} if self_test.lost(device) else {})}
            finally:
                if device.type == "cuda" and case.problem(layout).flops > 1e12:
                    torch.cuda.empty_cache()


def _measure(
    case: Case, backend: str, layout: str, judge: Judge, operands: tuple[torch.Tensor, torch.Tensor], options: Options
) -> Row:
    device, p = options.device, case.problem(layout)
    a, b = (t.contiguous(memory_format=p.memory_format) for t in operands)
    call = todo.call(case, backend, layout, a, b)
    with _poisoned() if backend not in BASELINES else contextlib.nullcontext():
        error = judge.error(call())
    least = p.least_bytes(case.computes)
    row: Row = {
        "problem": str(p), "gflop": p.flops / 1e9, "gbyte": least / 1e9, "tf32": case.numbers == "tf32",
        "cudnn_benchmark": True, "error": error if error < float("inf") else "inf", "right": error <= 1,
        "judged_by": judge.by, "tile": _tile(case, backend, layout, device),
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
    row |= _against_ceilings(row, timing.ceilings(device, case.numbers))
    if options.first_call:
        row |= first_call(case, (options.specs or {}).get(backend, backend), layout, device)
    return row


def _against_ceilings(row: Row, ceilings: dict[str, float]) -> Row:
    """Rates, and the part of its roofline that a row reaches: the time that the ceilings allow over the time taken."""
    arithmetic, memory = row["gflop"] / ceilings["matmul_tflops"], row["gbyte"] * 1e3 / ceilings["copy_gbs"]  # ms
    return {
        "tflops": row["gflop"] / row["ms"], "gbs": row["gbyte"] * 1e3 / row["ms"], **ceilings,
        "bound": "arithmetic" if arithmetic > memory else "memory", "roofline": max(arithmetic, memory) / row["ms"],
    }  # fmt: skip


def _tile(case: Case, backend: str, layout: str, device: torch.device) -> list[Any] | None:
    """The tile that the planner chose, for a backend that has tiles."""
    if backend in BASELINES:
        return None
    p = case.problem(layout)
    settings = Settings(p.stride, p.padding, p.dilation, p.groups, backend=backend)
    operands = plan.contiguous_operands(p, case.computes, p.memory_format)._replace(tf32=case.numbers == "tf32")
    tile = plan.choose(p, case.computes, device, settings, operands).tile
    return None if tile is None else list(vars(tile).values())


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """PyTorch's uninitialised tensors are NaN, so that an element that is not written is wrong."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# ---- the first call of a process -------------------------------------------------------------------------------------


def first_call(case: Case, spec: str, layout: str, device: torch.device) -> Row:
    """Milliseconds of the first call in a fresh process whose caches of compiled code are empty, and how much of that a
    second such process, which finds them filled, does not need: compilation. What was tuned is no such cache: the tile
    is the one that is timed."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            name: str(Path(folder) / name) for name in ("TRITON_CACHE_DIR", "CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        }
        command = [sys.executable, "-m", "gpuconv.bench.first_call", *map(str, case), spec, layout, str(device)]
        found = []
        for _ in range(2):
            run = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True)
            if run.returncode:
                return {"first_call_failed": run.stderr.strip().splitlines()[-1][:300] if run.stderr.strip() else "?"}
            found.append(json.loads(run.stdout.splitlines()[-1]))
    return {"first_call_ms": found[0], "compile_ms": max(0.0, found[0] - found[1])}


def register(spec: str) -> str:
    """The name of a subject: a baseline, or a backend as `backends.load` reads it."""
    return spec if spec in BASELINES else backends.load(spec)
