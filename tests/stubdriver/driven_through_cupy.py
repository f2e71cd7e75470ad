"""CUDA C's launches through the real CuPy, on two "H100"s that are stubs of the driver and of PyTorch's runtime.

Run by tests/kernels/cuda/test_cupy_launch.py in a process of its own (`stubdriver.environment(…, "90,90", True)`), with
all that is launched compiled beforehand, by `instances`. The emulator executes what every family launches. Prints as
JSON what happened.
"""

import ctypes
import gc
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import executor
import on_host
import stubdriver
import torch

from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.backends.base import Operands, Tile
from gpuconv.backends.cuda.act_backward import launches as act_launches
from gpuconv.backends.cuda.backend import FAMILIES, CudaBackend, launches
from gpuconv.backends.cuda.cupy_runtime import CupyRuntime
from gpuconv.backends.cuda.launch import Instance, Launch
from gpuconv.backends.elementwise import Elementwise
from gpuconv.checking.problems import OPERANDS, tensors as random_tensors
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.reference import as_numpy, worst_violation

GPU, MULTIPROCESSORS = KNOWN["H100"], KNOWN["H100"].multiprocessors
LAST, HALF = torch.channels_last, torch.float16
# What every family is driven with: input, weight.
LAYERS = {
    "simt": ConvProblem.of((2, 20, 9, 10), (24, 20, 3, 3), padding=1, dtype=torch.float64, memory_format=LAST),
    "tensor": ConvProblem.of((2, 64, 15, 14), (64, 64, 3, 3), padding=1, stride=2, dtype=HALF, memory_format=LAST),
    "halo": ConvProblem.of((2, 64, 14, 14), (64, 64, 3, 3), padding=1, dtype=HALF, memory_format=LAST),
    "grouped": ConvProblem.of((8, 64, 9, 9), (64, 4, 3, 3), padding=1, groups=16, dtype=HALF, memory_format=LAST),
    "grouped_halo": ConvProblem.of((2, 64, 9, 9), (64, 4, 3, 3), padding=1, groups=16, dtype=HALF, memory_format=LAST),
    "planes": ConvProblem.of((2, 24, 9, 10), (40, 24, 1, 1), dtype=HALF),
    "depthwise": ConvProblem.of((4, 64, 17, 16), (64, 1, 3, 3), padding=1, groups=64, dtype=torch.float32),
    "banded": ConvProblem.of((4, 4, 33, 40), (4, 1, 13, 13), padding=6, groups=4, dtype=HALF),
}
ACT = Elementwise((4, 24, 7, 7), HALF, LAST, (1176, 1, 168, 24), True, Activation("silu"))
# Their kernels differ in shared memory alone: the windows of the second, with their margin, are larger.
NARROW = ConvProblem.of((2, 64, 28, 28), (64, 64, 3, 3), padding=1, dtype=HALF, memory_format=LAST)
REACHING = ConvProblem.of((2, 64, 28, 28), (64, 64, 3, 3), padding=3, dilation=3, dtype=HALF, memory_format=LAST)
UNSEEN = ConvProblem.of((2, 64, 28, 28), (64, 64, 1, 1), dtype=HALF, memory_format=LAST)
BLOCK, PLAIN = Tile(128, 64, 64, 4, 3, kernel="halo", halo=180), Tile(64, 64, 32, 4, 2, kernel="tensor")


def operands_of(problem: ConvProblem, direction: Direction) -> Operands:
    return plan.contiguous_operands(problem, direction, problem.memory_format)._replace(bias=direction == "forward")


def driven() -> Iterator[tuple[str, ConvProblem, Direction, Tile]]:
    """For every family and direction the smallest tile, in grad_weight also one whose sum is split."""
    for family, problem in LAYERS.items():
        for direction in DIRECTIONS:
            offered = FAMILIES[family].tiles(problem, direction, GPU, operands_of(problem, direction))
            tiles = sorted(offered, key=lambda t: (t.rows * t.columns, t.splits))
            for tile in (tiles[:1], [t for t in tiles if t.splits > 1][:1]):
                yield from ((family, problem, direction, t) for t in tile)


def forward(problem: ConvProblem, tile: Tile) -> Launch:
    (launch,) = launches(problem, "forward", operands_of(problem, "forward"), tile)
    return launch


def instances() -> Iterator[Instance]:
    """All that this file launches, to be compiled beforehand."""
    for _, problem, direction, tile in driven():
        for launch in launches(problem, direction, operands_of(problem, direction), tile, with_bias=True):
            yield launch.instance
    yield from (launch.instance for launch in act_launches(ACT, MULTIPROCESSORS))
    for launch in (forward(NARROW, BLOCK), forward(REACHING, BLOCK), forward(UNSEEN, PLAIN)):
        yield launch.instance


# ---- what happens ----------------------------------------------------------------------------------------------------


class Noted(CupyRuntime):
    """The runtime, which also records its launches."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Launch, tuple[torch.Tensor | None, ...]]] = []

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        self.asked.append((launch, tensors))
        super().launch(launch, device, tensors)


def on_gpu(shape: tuple[int, ...], like: ConvProblem, device: int = 0) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=f"cuda:{device}").to(memory_format=like.memory_format)


def judged(problem: ConvProblem, direction: Direction, run: Callable[..., Any]) -> float:
    """The error of what `run` computes of random tensors, as a fraction of its bound."""
    layout = "channels_last" if problem.memory_format is LAST else "contiguous"
    t = random_tensors(problem, "cupy", problem.dtype, layout=layout)
    n, on = {name: as_numpy(value) for name, value in t.items()}, {name: value.cuda() for name, value in t.items()}
    first, second = OPERANDS[direction]
    rest = {"forward": (on["bias"], None), "grad_input": (), "grad_weight": (True,)}[direction]
    results = run(on[first], on[second], *rest)
    exact = reference.results(problem, direction, n[first], n[second], n["bias"])
    results = results if isinstance(results, tuple) else (results,)
    return max(worst_violation(got, wanted)[0] for got, wanted in zip(results, exact, strict=True))


def every_family() -> dict[str, Any]:
    """Each launch as it reached the driver, beside what was expected, with the error of its values."""
    backend, runtime, stream = CudaBackend(), Noted(), torch.cuda.Stream()
    backend.runtimes["cuda"] = runtime
    families, errors = [], []
    with torch.cuda.stream(stream), executor.Executor(), on_host.all_computed():
        for family, problem, direction, tile in driven():
            run = backend.bind(
                problem, direction, torch.device("cuda"), Activation("none"), operands_of(problem, direction), tile
            )
            before = len(runtime.asked)
            errors.append((f"{family} {direction}", judged(problem, direction, run)))
            families += [f"{family} {direction}"] * (len(runtime.asked) - before)
        gy, saved = (torch.randn(ACT.shape).to(HALF, memory_format=LAST) for _ in range(2))
        results = backend.bind_act_backward(ACT, torch.device("cuda"))(gy.cuda(), saved.cuda())
        exact = reference.act_backward(ACT.activation, as_numpy(gy), as_numpy(saved))
        errors += [("act_backward", worst_violation(*both)[0]) for both in zip(results, exact, strict=True)]
        families += ["act_backward"] * (len(runtime.asked) - len(families))
    rows = []
    for family, (launch, tensors), got in zip(families, runtime.asked, stubdriver.launches(), strict=True):
        instance = launch.instance
        rows.append({
            "family": family,
            "wanted": [
                instance.function, [launch.blocks, 1, 1], [instance.threads, 1, 1], instance.shared,
                stream.cuda_stream, 0, [8] * len(tensors) + [launch.conv.nbytes],
                [0 if t is None else t.data_ptr() for t in tensors],
            ],
            "got": [
                got.name, got.grid, got.block, got.shared, got.stream, got.device, got.sizes,
                got.values[: len(tensors)],
            ],
        })  # fmt: skip
    return {"rows": rows, "errors": errors, "refusals": stubdriver.driver().stub_refusals()}


class Mistaken(CupyRuntime):
    """The runtime with a mistake in every launch."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake

    def launch(self, launch: Launch, device: torch.device, tensors: tuple[torch.Tensor | None, ...]) -> None:
        if self.mistake == "a block too few":
            launch = Launch(launch.instance, launch.blocks - 1, launch.conv)
        else:
            tensors = (tensors[1], tensors[0], *tensors[2:])
        super().launch(launch, device, tensors)


def with_mistakes() -> dict[str, Any]:
    """The outcome of launches with a mistake in them: a wrong result, or an error."""
    found: dict[str, Any] = {}
    for mistake in ("a block too few", "two tensors swapped"):
        backend = CudaBackend()
        backend.runtimes["cuda"] = Mistaken(mistake)
        operands = operands_of(NARROW, "forward")
        run = backend.bind(NARROW, "forward", torch.device("cuda"), Activation("none"), operands, BLOCK)
        try:
            with executor.Executor():
                found[mistake] = judged(NARROW, "forward", run)
        except Exception as error:
            found[mistake] = str(error)
    return found


def tensors_of(problem: ConvProblem, device: int = 0) -> tuple[torch.Tensor | None, ...]:
    x, w, y = (on_gpu(s, problem, device) for s in (problem.input_shape, problem.weight_shape, problem.output_shape))
    return x, w, None, None, y


def shared_memory() -> dict[str, Any]:
    runtime, device = CupyRuntime(), torch.device("cuda")
    narrow, reaching = forward(NARROW, BLOCK), forward(REACHING, BLOCK)
    for launch, problem in ((reaching, REACHING), (narrow, NARROW), (reaching, REACHING)):
        runtime.launch(launch, device, tensors_of(problem))
    got = stubdriver.launches()
    return {
        "options alike": narrow.instance.options == reaching.instance.options,
        "functions": len({launch.function for launch in got}),
        "shared": [launch.shared for launch in got],
    }


def in_threads() -> dict[str, Any]:
    """The same kernel in eight threads at once, none of which has called the runtime before."""
    runtime, launch = CupyRuntime(), forward(NARROW, BLOCK)
    tensors, contexts, failures = tensors_of(NARROW), [], []
    loaded, start = stubdriver.driver().stub_modules_loaded(), threading.Barrier(8)

    def run() -> None:
        contexts.append(context())
        start.wait()
        runtime.launch(launch, torch.device("cuda", 0), tensors)

    _all(run, 8, failures)
    return {
        "contexts before": contexts, "failures": failures, "launched": len(stubdriver.launches()),
        "modules": stubdriver.driver().stub_modules_loaded() - loaded,
    }  # fmt: skip


def on_the_second() -> dict[str, Any]:
    """Both GPUs in turn from one new thread, whose current device is the first."""
    runtime, launch = CupyRuntime(), forward(NARROW, BLOCK)
    tensors, failures = {device: tensors_of(NARROW, device) for device in (0, 1)}, []
    turns, current = (1, 0, 1, 1, 0, 0), []

    def run() -> None:
        for device in turns:
            runtime.launch(launch, torch.device("cuda", device), tensors[device])
            current.append(torch.cuda.current_device())

    _all(run, 1, failures)
    got = [launch.device for launch in stubdriver.launches()]
    return {"turns": turns, "got": got, "current": current, "failures": failures}


def after_clear_memo() -> dict[str, Any]:
    import cupy

    runtime, device, launch = CupyRuntime(), torch.device("cuda"), forward(NARROW, BLOCK)
    runtime.launch(launch, device, tensors_of(NARROW))
    cupy.clear_memo()
    gc.collect()
    runtime.launch(launch, device, tensors_of(NARROW))
    return {"launched": len(stubdriver.launches()), "unloaded": stubdriver.driver().stub_modules_unloaded()}


def while_capturing() -> dict[str, Any]:
    """A kernel that is loaded goes into a graph; one that is not raises an error before the driver is called."""
    runtime, device, graph = CupyRuntime(), torch.device("cuda"), torch.cuda.CUDAGraph()
    tensors, unseen = tensors_of(NARROW), tensors_of(UNSEEN)
    runtime.launch(forward(NARROW, BLOCK), device, tensors)
    said = ""
    with torch.cuda.graph(graph):
        runtime.launch(forward(NARROW, BLOCK), device, tensors)
        try:
            runtime.launch(forward(UNSEEN, PLAIN), device, unseen)
        except RuntimeError as error:
            said = str(error)
    runtime.launch(forward(UNSEEN, PLAIN), device, unseen)
    return {
        "said": said, "refusals": stubdriver.driver().stub_refusals(), "launched": len(stubdriver.launches()),
    }  # fmt: skip


def context() -> int:
    """The handle of the context that is current in this thread, 0 for none."""
    found = ctypes.c_void_p()
    stubdriver.driver().cuCtxGetCurrent(ctypes.byref(found))
    return found.value or 0


def _all(run: Callable[[], None], count: int, failures: list[str]) -> None:
    def guarded() -> None:
        try:
            run()
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    torch.manual_seed(0)
    on_host.install()
    torch.set_deterministic_debug_mode("warn")  # fills new tensors with NaN, so that what is not written is not right
    found = {}
    for part in (
        every_family,
        with_mistakes,
        shared_memory,
        in_threads,
        on_the_second,
        after_clear_memo,
        while_capturing,
    ):
        torch.cuda.synchronize()
        stubdriver.driver().stub_clear()
        try:
            found[part.__name__] = part()
        except Exception:
            found[part.__name__] = {"error": traceback.format_exc()}
    print(json.dumps(found))
