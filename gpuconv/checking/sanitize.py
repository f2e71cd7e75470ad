"""A handful of problems, each computed once and held to the oracle: what compute-sanitizer watches.

    python -m gpuconv.checking.sanitize [--backend cuda] [--seconds 60]      # the problems alone
    python -m gpuconv.checking.sanitize --tool memcheck                      # under compute-sanitizer; or racecheck

The problems are small, odd, and between them take every kernel of the backend in each of its ways to load (16 bytes or
one element at a time), with its smallest tile, so that most blocks are at a border. A backend without tiles (`numpy`)
does them too: `--device cpu --backend numpy` checks this file.

memcheck reports accesses outside a tensor, or to an address that is not a multiple of the width; for that PyTorch
allocates every tensor by itself. racecheck reports accesses to shared memory without a barrier between them. Where
there is no compute-sanitizer, or it does not support the GPU, that is said and is no failure.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpuconv import backends, reference, text
from gpuconv.activations import Activation
from gpuconv.backends import BackendUnavailable
from gpuconv.backends.base import Operands, Tile
from gpuconv.gpu import Gpu
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # by the number of axes
_PROBLEMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 40, 9, 10), (24, 40, 3, 3), {"padding": 1}),
    "3x3-groups2-stride2": ((2, 34, 9, 8), (22, 17, 3, 3), {"padding": 1, "groups": 2, "stride": 2}),
    "3x2-stride1x2": ((2, 24, 13, 8), (40, 24, 3, 2), {"stride": (1, 2), "padding": ((1, 1), (2, 1))}),
    "1d-dilation3": ((2, 6, 23), (10, 3, 5), {"dilation": 3, "groups": 2, "padding": 4}),
    "3d-stride2": ((1, 16, 5, 6, 7), (24, 16, 2, 3, 3), {"stride": (2, 1, 2), "padding": 1}),
}
# problem, number type (`tf32`: float32 on tensor cores), channels last
CASES = (
    ("3x3", "float16", True),
    ("3x3-groups2-stride2", "bfloat16", False),
    ("3x3", "tf32", True),
    ("3x2-stride1x2", "float32", True),
    ("3x3-groups2-stride2", "float32", False),
    ("3d-stride2", "float16", True),
    ("1d-dilation3", "float64", False),
)
_SPLITS = 3  # of a sum over pixels
_MARKED = 9  # exit status of compute-sanitizer if it finds something
_NOT_HERE = "Device not supported"  # how it says that it cannot look into this GPU


class Case(NamedTuple):
    """A problem, a direction, and one of the tiles that the backend has for them (None: it has no tiles)."""

    name: str
    problem: ConvProblem
    direction: Direction
    tf32: bool
    tile: Tile | None


def cases(backend: backends.Backend, device: torch.device) -> Iterator[Case]:
    """All of CASES, in each direction, with the smallest tile of each kernel that the backend has for it."""
    for name, numbers, last in CASES:
        x, w, settings = _PROBLEMS[name]
        dtype, tf32 = getattr(torch, numbers.replace("tf32", "float32")), numbers == "tf32"
        memory_format = _LAST[len(x) - 2] if last else torch.contiguous_format
        problem = ConvProblem.of(x, w, **settings, dtype=dtype, memory_format=memory_format)
        for direction in DIRECTIONS:
            if backend.refuses(problem, direction, device) is not None:
                continue
            operands = _operands(direction, _tensors(problem, torch.device("meta")), tf32)
            smallest: dict[str, Tile] = {}
            for tile in backend.tiles(problem, direction, Gpu.of(device), operands):
                least = smallest.setdefault(tile.kernel, tile)
                if tile.rows * tile.columns < least.rows * least.columns:
                    smallest[tile.kernel] = tile
            for chosen in smallest.values() or [None]:
                if chosen is not None and direction == "grad_weight":
                    chosen = dataclasses.replace(chosen, splits=_SPLITS)
                yield Case(f"{name} {numbers}", problem, direction, tf32, chosen)


def _tensors(problem: ConvProblem, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "x": problem.input_shape, "w": problem.weight_shape, "gy": problem.output_shape,
        "residual": problem.output_shape, "bias": (problem.out_channels,),
    }  # fmt: skip
    made = {name: torch.randn(shape, generator=generator).to(device, problem.dtype) for name, shape in shapes.items()}
    return {
        name: t.contiguous(memory_format=problem.memory_format) if t.dim() > 1 else t for name, t in made.items()
    }  # fmt: skip


def _operands(direction: Direction, t: dict[str, torch.Tensor], tf32: bool) -> Operands:
    first, second = {"forward": "x w", "grad_input": "gy w", "grad_weight": "gy x"}[direction].split()
    forward = direction == "forward"
    return Operands((t[first].stride(), t[second].stride()), t["residual"].stride() if forward else None, forward, tf32)


def check(case: Case, backend: backends.Backend, device: torch.device) -> None:
    """Compute a case; AssertionError unless all of the result is within the oracle's bound."""
    problem, direction, tile = case.problem, case.direction, case.tile
    t = _tensors(problem, device)
    n = {name: reference.as_numpy(value) for name, value in t.items()}
    activation = Activation("silu" if direction == "forward" else "none")
    chosen = () if tile is None else (_operands(direction, t, case.tf32), tile)
    run = backend.bind(problem, direction, device, activation, *chosen)
    exact: list[reference.Exact]
    if direction == "forward":
        got = [run(t["x"], t["w"], t["bias"], t["residual"])]
        exact = [reference.forward(problem, n["x"], n["w"], n["bias"], n["residual"], activation)]
    elif direction == "grad_input":
        got, exact = [run(t["gy"], t["w"])], [reference.grad_input(problem, n["gy"], n["w"])]
    else:
        got = run(t["gy"], t["x"], True)
        exact = [reference.grad_weight(problem, n["gy"], n["x"]), reference.grad_bias(problem, n["gy"])]
    for result, wanted in zip(got, exact, strict=True):
        reference.assert_close_to_oracle(result, wanted, f"{case.name} {direction} {tile}", tf32=case.tf32)


def compute(options: argparse.Namespace) -> int:
    """The problems alone. Gives the number of those that are wrong, 1 if the backend cannot run here."""
    backend, device = backends.get(options.backend), torch.device(options.device)
    start, wrong, done = time.monotonic(), 0, 0
    for case in cases(backend, device):
        if time.monotonic() - start > options.seconds:
            print(f"time is up after {done} problems", file=sys.stderr)
            break
        kernel = "" if case.tile is None else f" {case.tile.kernel} {case.tile.rows}×{case.tile.columns}"
        try:
            check(case, backend, device)
        except Exception as error:  # one that fails must not cost the others
            wrong += 1
            print(f"{case.name} {case.direction}{kernel}: {type(error).__name__}: {error}", file=sys.stderr)
        done += 1
    print(f"{done} problems on {device} by {options.backend}, {wrong} wrong or failed")
    return wrong if done else 1


def find_sanitizer() -> str | None:
    """compute-sanitizer: on the path, of CUDA's toolkit, or of the package nvidia-cuda-sanitizer-api."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [home / "bin", *sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("compute-sanitizer", path=path)


def watch(options: argparse.Namespace) -> int:
    """The problems under compute-sanitizer. Gives its exit status; 0, saying why, where it cannot look."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(
            f"{options.tool} skipped: there is no compute-sanitizer (it comes with CUDA's toolkit, and with "
            "pip install nvidia-cuda-sanitizer-api)"
        )
        return 0
    command = [sanitizer, "--tool", options.tool, "--error-exitcode", str(_MARKED)]
    if options.tool == "memcheck":
        command += ["--report-api-errors", "no"]  # PyTorch makes calls that may fail
    command += [sys.executable, "-m", "gpuconv.checking.sanitize", "--backend", options.backend]
    command += ["--device", options.device, "--seconds", str(options.seconds)]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    said = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if any(_NOT_HERE in line for line in said):
        print(f"{options.tool} skipped: compute-sanitizer does not support this GPU or the driver of this machine")
        return 0
    return child.returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tool", choices=("memcheck", "racecheck"), help="run under compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=60, help="start nothing new after this long")
    options = parser.parse_args(arguments)
    try:
        backends.require(options.backend)
    except BackendUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return compute(options) if options.tool is None else watch(options)


if __name__ == "__main__":
    text.print_anything()
    sys.exit(main())
