"""Compiles what a bench will time, in several processes at once: `gpuconv bench --compile-first N`.

Each process calls its share once. Triton and CuPy keep what they compile on disk, where the bench finds it. What fails
here fails there too, and is reported there.

    python -m gpuconv.bench.compile_first      # started by `compile_first`; its share comes as JSON on stdin
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from gpuconv import backends
from gpuconv.bench.workloads import Workload
from gpuconv.checking.precision import float32_as


def compile_first(
    what: Sequence[tuple[Workload, str, str]],
    specs: Mapping[str, str],
    device: torch.device,
    processes: int,
    seconds: float | None,
) -> None:
    """Call each (workload, backend, layout) once, in so many processes, which are stopped after `seconds`.

    specs: of backends from elsewhere, name → package.module:Class.
    """
    command = [sys.executable, "-m", "gpuconv.bench.compile_first"]
    shares = [share for share in (what[i::processes] for i in range(processes)) if share]
    deadline = None if seconds is None else time.monotonic() + seconds
    children: list[subprocess.Popen[str]] = []
    quiet = subprocess.DEVNULL
    try:
        for share in shares:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, text=True)
            children.append(child)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                json.dump([[spec for spec in specs.values() if ":" in spec], str(device), share], child.stdin)
        for child in children:
            child.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for child in children:
            child.kill()
            child.wait()


def main() -> None:
    specs, device_name, share = json.load(sys.stdin)
    device = torch.device(device_name)
    for spec in specs:
        backends.load(spec)
    for fields, backend, layout in share:
        workload = Workload(*fields)
        with contextlib.suppress(Exception), float32_as(workload.numbers):
            if workload.refusal(backend, layout, device) is None:
                memory_format = workload.problem(layout).memory_format
                a, b = (t.contiguous(memory_format=memory_format) for t in workload.operands(device))
                workload.bound_call(backend, layout, a, b)()


if __name__ == "__main__":
    main()
