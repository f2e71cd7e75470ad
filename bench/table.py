"""Times our kernels beside PyTorch's on twenty layers: every result is checked before it is timed.

    python -m gpuconv.bench.table [--backend triton] [--seconds 240] [--out FILE.jsonl]
    python -m gpuconv.bench.table --device cpu --backend numpy        # the logic alone, on tiny layers

For each layer, direction, number type and memory format, both implementations compute the same problem. Each result is
held against the same sum in float64 (PyTorch's, on the device) and the bound of `gpuconv.reference`; one of ours that
misses it is reported and not timed, PyTorch's is timed all the same. Times are of the device, by events, with the L2
cache flushed before each run, after runs to warm up: median, 20 % and 80 % quantiles. PyTorch runs with
`cudnn.benchmark` on, and its backward computes the one gradient that is compared.

Writes a line of JSON for each measurement as soon as it is made, with GPU, driver, versions and date, and prints a
table of what it has when it is done or its time is up.
"""

import argparse
import datetime
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gpuconv
from gpuconv import ops, plan, reference
from gpuconv.gpu import Gpu
from gpuconv.plan import Settings
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

# channels in, filters, image, filter size, settings; the batch is 32
LAYERS: dict[str, tuple[int, int, int, int, dict[str, int]]] = {
    "resnet50-stem": (3, 64, 224, 7, {"stride": 2, "padding": 3}),
    "resnet50-56-reduce": (256, 64, 56, 1, {}),
    "resnet50-56-3x3": (64, 64, 56, 3, {"padding": 1}),
    "resnet50-56-expand": (64, 256, 56, 1, {}),
    "resnet50-28-3x3-stride2": (128, 128, 56, 3, {"stride": 2, "padding": 1}),
    "resnet50-28-3x3": (128, 128, 28, 3, {"padding": 1}),
    "resnet50-28-shortcut": (256, 512, 56, 1, {"stride": 2}),
    "resnet50-14-3x3": (256, 256, 14, 3, {"padding": 1}),
    "resnet50-14-expand": (256, 1024, 14, 1, {}),
    "resnet50-7-3x3": (512, 512, 7, 3, {"padding": 1}),
    "resnet50-7-reduce": (2048, 512, 7, 1, {}),
    "vgg-112-3x3": (64, 128, 112, 3, {"padding": 1}),
    "vgg-28-3x3": (512, 512, 28, 3, {"padding": 1}),
    "mobilenetv2-depthwise": (144, 144, 56, 3, {"padding": 1, "groups": 144}),
    "mobilenetv2-project": (144, 24, 56, 1, {}),
    "convnext-depthwise-7x7": (96, 96, 56, 7, {"padding": 3, "groups": 96}),
    "convnext-downsample": (96, 192, 56, 2, {"stride": 2}),
    "resnext50-14-groups32": (512, 512, 14, 3, {"padding": 1, "groups": 32}),
    "unet-decoder": (128, 64, 128, 3, {"padding": 1}),
    "deeplab-dilated": (512, 256, 28, 3, {"padding": 12, "dilation": 12}),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NUMBERS = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float16": torch.float16, "float32": torch.float32}


class Case(NamedTuple):
    """One thing to measure."""

    layer: str
    direction: Direction
    numbers: str
    format: str
    problem: ConvProblem

    @property
    def tf32(self) -> bool:
        return self.numbers == "tf32"


def cases(numbers: list[str], tiny: bool) -> Iterator[Case]:
    """All that is to be measured, the most telling first."""
    for kind in numbers:
        for layer, (c, k, size, r, settings) in LAYERS.items():
            batch = 32
            if tiny:
                groups = settings.get("groups", 1)
                c, k, batch = (c, k, 2) if groups > 1 else (min(c, 12), min(k, 8), 2)
                size = max(7, size // 16)
            for name, memory_format in FORMATS.items():
                weight = (k, c // settings.get("groups", 1), r, r)
                problem = ConvProblem.of(
                    (batch, c, size, size), weight, **settings, dtype=NUMBERS[kind], memory_format=memory_format
                )
                for direction in DIRECTIONS:
                    yield Case(layer, direction, kind, name, problem)


class Subject(NamedTuple):
    """The two tensors of a case, and the two implementations."""

    tensors: tuple[torch.Tensor, torch.Tensor]
    ours: Callable[[], torch.Tensor]
    theirs: Callable[[], torch.Tensor]


def operands(case: Case, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tensors of a case in its memory format."""
    p = case.problem
    shapes = {
        "forward": (p.input_shape, p.weight_shape),
        "grad_input": (p.output_shape, p.weight_shape),
        "grad_weight": (p.output_shape, p.input_shape),
    }[case.direction]
    generator = torch.Generator(device).manual_seed(1)
    a, b = (
        torch.randn(shape, generator=generator, device=device).to(p.dtype, memory_format=p.memory_format)
        for shape in shapes
    )
    return a, b


def pytorch(case: Case, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What PyTorch computes for a case."""
    p = case.problem
    settings = (p.stride, [low for low, _ in p.padding], p.dilation, False, [0] * p.ndim, p.groups)
    if case.direction == "forward":
        return torch.ops.aten.convolution(a, b, None, *settings)
    backward = torch.ops.aten.convolution_backward
    if case.direction == "grad_input":
        x = torch.empty(p.input_shape, dtype=a.dtype, device=a.device, memory_format=p.memory_format)
        return backward(a, x, b, None, *settings, [True, False, False])[0]
    w = torch.empty(p.weight_shape, dtype=a.dtype, device=a.device, memory_format=p.memory_format)
    return backward(a, b, w, None, *settings, [False, True, False])[1]


def subject(case: Case, backend: str, device: torch.device) -> Subject:
    p = case.problem
    a, b = operands(case, device)
    key = Settings(p.stride, p.padding, p.dilation, p.groups, "none", backend).encode()

    def ours() -> torch.Tensor:
        if case.direction == "forward":
            return ops.forward(a, b, None, None, key)
        if case.direction == "grad_input":
            return ops.grad_input(a, b, p.input_shape, key)
        return ops.grad_weight(a, b, p.weight_shape, False, key)[0]

    return Subject((a, b), ours, lambda: pytorch(case, a, b))


def error(case: Case, got: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor) -> float:
    """The largest error as a fraction of its bound (`gpuconv.reference.error_bound`, on the device)."""
    p = case.problem
    info = torch.finfo(got.dtype)
    accumulator = 2.0**-53 if got.dtype is torch.float64 else 2.0**-24
    gamma = reference.BOUND_CONSTANT * accumulator * math.sqrt(p.products(case.direction))
    gamma += reference.TF32_OPERANDS if case.tf32 else 0.0
    bound = reference.ONE_OUTPUT_ROUNDING[got.dtype] * exact.abs() + info.smallest_normal * info.eps / 2
    ratio = ((got.double() - exact).abs() / (bound + gamma * magnitude)).nan_to_num(nan=math.inf)
    return float(ratio.max())


def measure(run: Callable[[], Any], device: torch.device, flush: torch.Tensor, budget: float = 0.15) -> list[float]:
    """Milliseconds on the device of each of several runs, for about `budget` seconds."""
    on_gpu = device.type == "cuda"

    def once() -> float:
        flush.zero_()
        if not on_gpu:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        events.append((before, after))
        return 0.0

    events: list[tuple[Any, Any]] = []
    for _ in range(3):
        once()
    if on_gpu:
        torch.cuda.synchronize()
    events.clear()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - start < budget and len(times) < 100):
        times.append(once())
        if on_gpu and len(times) % 10 == 0:
            torch.cuda.synchronize()
    if on_gpu:
        torch.cuda.synchronize()
        times = [before.elapsed_time(after) for before, after in events]
    return times


def summary(times: list[float]) -> dict[str, float]:
    quantiles = statistics.quantiles(times, n=5)
    return {"ms": statistics.median(times), "ms_20": quantiles[0], "ms_80": quantiles[3], "runs": len(times)}


def environment(device: torch.device) -> dict[str, Any]:
    """GPU, driver, versions, date: in every line."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    smi = shutil.which("nvidia-smi")
    driver = "unknown"
    if device.type == "cuda" and smi is not None:
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0].strip() or "unknown"
    return {
        "gpu": Gpu.of(device).name if device.type == "cuda" else "none: CPU, logic check only",
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "triton": triton_version,
        "gpuconv": gpuconv.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def compare(case: Case, backend: str, device: torch.device, flush: torch.Tensor) -> dict[str, Any]:
    """One line of results: checked, then timed, ours and PyTorch's in turn."""
    if device.type == "cuda":
        precision = "tf32" if case.tf32 else "ieee"
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]  # made at run time
    s = subject(case, backend, device)
    wide = [t.double() for t in s.tensors]
    exact = pytorch(case, *wide)
    magnitude = pytorch(case, *(t.abs() for t in wide))
    del wide
    row: dict[str, Any] = {
        "layer": case.layer,
        "direction": case.direction,
        "numbers": case.numbers,
        "format": case.format,
        "problem": str(case.problem),
        "gflop": case.problem.flops / 1e9,
    }
    row["error"] = error(case, s.ours(), exact, magnitude)
    row["theirs_error"] = error(case, s.theirs(), exact, magnitude)
    row["right"] = row["error"] <= 1
    del exact, magnitude
    settings = Settings(
        case.problem.stride, case.problem.padding, case.problem.dilation, case.problem.groups, backend=backend
    )
    layout = plan.contiguous_operands(case.problem, case.direction, case.problem.memory_format)
    tile = plan.choose(case.problem, case.direction, device, settings, layout._replace(tf32=case.tf32)).tile
    row["tile"] = None if tile is None else list(vars(tile).values())
    row["theirs"] = summary(measure(s.theirs, device, flush))
    if row["right"]:
        row["ours"] = summary(measure(s.ours, device, flush))
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table: for each layer and direction, both formats of both, the fastest of PyTorch's as the baseline."""
    found: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["numbers"], row["layer"], row["direction"]), {})[row["format"]] = row
    print(
        f"\n{'ms (median)':46}{'ours':>10}{'ours':>10}{'PyTorch':>10}{'PyTorch':>10}   best of PyTorch / best of ours"
    )
    print(f"{'':46}{'NCHW':>10}{'NHWC':>10}{'NCHW':>10}{'NHWC':>10}")
    for (numbers, layer, direction), by_format in found.items():
        line = f"{numbers:9}{layer:25}{direction:12}"
        best = {}
        for who in ("ours", "theirs"):
            times = [by_format.get(name, {}).get(who, {}).get("ms") for name in FORMATS]
            line += "".join(f"{'-' if ms is None else format(ms, '.4f'):>10}" for ms in times)
            best[who] = min((ms for ms in times if ms is not None), default=None)
        if best["ours"] and best["theirs"]:
            line += f"   {best['theirs'] / best['ours']:.2f}"
        if not all(row["right"] for row in by_format.values()):
            line += "   WRONG"
        print(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--device", default="cuda", help="cpu: tiny layers, to check the logic")
    parser.add_argument("--numbers", default="bfloat16,tf32,float16", help=f"of {', '.join(NUMBERS)}; in this order")
    parser.add_argument("--seconds", type=float, default=240, help="start nothing new after this long")
    parser.add_argument("--layers", default="", help="only layers with this in their name")
    parser.add_argument("--out", type=Path, help="file to append lines of JSON to")
    options = parser.parse_args(arguments)
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    numbers = options.numbers.split(",")
    torch.backends.cudnn.benchmark = True
    here = environment(device)
    print(json.dumps(here))
    flush = torch.empty(1 << (28 if device.type == "cuda" else 10), dtype=torch.uint8, device=device)
    rows: list[dict[str, Any]] = []
    start, failed = time.monotonic(), 0
    for case in cases(numbers, tiny=device.type != "cuda"):
        if options.layers not in case.layer:
            continue
        if time.monotonic() - start > options.seconds:
            print(f"time is up after {len(rows)} measurements", file=sys.stderr)
            break
        try:
            row = compare(case, options.backend, device, flush)
        except Exception as problem:  # one case that fails must not cost the others
            failed += 1
            print(f"{case}: {type(problem).__name__}: {problem}", file=sys.stderr)
            continue
        if not row["right"]:
            failed += 1
            print(f"{case}: error {row['error']:.3g} times the bound", file=sys.stderr)
        rows.append(row)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps({**row, **here, "backend": options.backend}) + "\n")
    show(rows)
    print(f"\n{len(rows)} measurements, {failed} wrong or failed, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
