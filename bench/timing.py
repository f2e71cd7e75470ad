"""Measures times of one call: on the device, replayed from a CUDA graph, on the host; and the ceilings of the machine.

A GPU is timed by events, after runs to warm up, with the L2 cache flushed before each run. A CPU is timed by the wall
clock, with its caches flushed as far as writing a buffer of 64 MiB does.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gpuconv.checking.precision import NUMBERS, float32_as

BUDGET = {"cuda": 0.1, "cpu": 0.15}  # seconds of runs for one measurement
_FEWEST = {"cuda": 10, "cpu": 5}
_MOST = 100
_PATIENCE = 20  # after so many budgets two runs are enough


@functools.cache
def _flush(device: torch.device) -> torch.Tensor:
    return torch.empty(1 << (28 if device.type == "cuda" else 26), dtype=torch.uint8, device=device)


def times(run: Callable[[], Any], device: torch.device, budget: float | None = None) -> list[float]:
    """Milliseconds of each of several runs, for about `budget` seconds."""
    budget = BUDGET[device.type] if budget is None else budget
    on_gpu, fewest = device.type == "cuda", _FEWEST[device.type]
    flush = _flush(device)
    found: list[float] = []
    events: list[tuple[Any, Any]] = []
    for _ in range(3 if on_gpu else 1):
        run()
    _wait(device)
    start = time.perf_counter()
    while True:
        spent = time.perf_counter() - start
        enough = len(found) >= _MOST or (spent >= budget and len(found) >= fewest) or spent >= _PATIENCE * budget
        if enough and len(found) >= 2:
            break
        flush.zero_()
        if on_gpu:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            run()
            after.record()
            events.append((before, after))
            found.append(0.0)
            if len(found) % 10 == 0:
                _wait(device)
        else:
            before_ns = time.perf_counter_ns()
            run()
            found.append((time.perf_counter_ns() - before_ns) / 1e6)
    _wait(device)
    return [before.elapsed_time(after) for before, after in events] if on_gpu else found


def summary(found: list[float], prefix: str = "ms") -> dict[str, float]:
    """The median, the 20 % and 80 % quantiles, and the number of runs."""
    low, *_, high = statistics.quantiles(found, n=5, method="inclusive")
    return {prefix: statistics.median(found), f"{prefix}_20": low, f"{prefix}_80": high, "runs": len(found)}


def graph_times(run: Callable[[], Any], device: torch.device) -> list[float]:
    """Milliseconds of each replay of a CUDA graph of one call."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    found = times(graph.replay, device)
    del kept
    return found


def host_microseconds(run: Callable[[], Any], device: torch.device, calls: int = 30) -> float:
    """Microseconds of one call on the host, while the GPU is busy with earlier calls: the fastest of three rounds."""
    best = float("inf")
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - start) / calls * 1e6)
    _wait(device)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def ceilings(device: torch.device, numbers: str) -> dict[str, float]:
    """This machine's best rates: of a copy (bytes read and written), and of a large matrix product."""
    big = device.type == "cuda"
    source = torch.randn(1 << (26 if big else 24), device=device)
    target = torch.empty_like(source)
    copy = min(times(lambda: target.copy_(source), device))
    dtype, n = NUMBERS[numbers], (8192 if NUMBERS[numbers].itemsize == 2 else 4096) if big else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    with float32_as(numbers):
        product = min(times(lambda: a @ b, device))
    return {"copy_gbs": 2 * source.nbytes / copy / 1e6, "matmul_tflops": 2 * n**3 / product / 1e9}
