"""Runs each kernel of a backend once on a small problem, also under NVIDIA's compute-sanitizer.

    python -m gpuconv.checking.sanitize [--backend cuda] [--seconds 60]      # the problems alone
    python -m gpuconv.checking.sanitize --tool memcheck                      # under compute-sanitizer; or racecheck

The problems are small and odd. Together they take every kernel of the backend in each of its ways to load (16 bytes or
one element at a time), with its smallest tile, so that most blocks are at a border; each result is held to the oracle.
A backend without tiles does them too: `--device cpu --backend numpy` checks this file.

memcheck reports accesses outside a tensor, or to an address that is not a multiple of the width; for that PyTorch
allocates every tensor by itself, and no NaN surrounds it. racecheck reports accesses to shared memory without a barrier
between them. Where there is no compute-sanitizer, or it does not support the GPU, a line says so: that is no failure.
"""

import argparse
import dataclasses
import itertools
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
from gpuconv.checking.judging import exact_results
from gpuconv.checking.precision import NUMBERS
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.checking.self_test import as_planned
from gpuconv.gpu import Gpu
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction

_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {  # input, weight, settings
    "3x3": ((2, 40, 9, 10), (24, 40, 3, 3), {"padding": 1}),
    "3x3-groups2-stride2": ((2, 34, 9, 8), (22, 17, 3, 3), {"padding": 1, "groups": 2, "stride": 2}),
    "3x2-stride1x2": ((2, 24, 13, 8), (40, 24, 3, 2), {"stride": (1, 2), "padding": ((1, 1), (2, 1))}),
    "1d-dilation3": ((2, 6, 23), (10, 3, 5), {"dilation": 3, "groups": 2, "padding": 4}),
    "3d-stride2": ((1, 16, 5, 6, 7), (24, 16, 2, 3, 3), {"stride": (2, 1, 2), "padding": 1}),
}
_PROBLEMS = {name: ConvProblem.of(x, w, **settings) for name, (x, w, settings) in _SIZES.items()}
# problem, number type, layout
CASES = (
    ("3x3", "float16", "channels_last"),
    ("3x3-groups2-stride2", "bfloat16", "contiguous"),
    ("3x3", "tf32", "channels_last"),
    ("3x2-stride1x2", "float32", "channels_last"),
    ("3x3-groups2-stride2", "float32", "contiguous"),
    ("3d-stride2", "float16", "channels_last"),
    ("1d-dilation3", "float64", "contiguous"),
)
_SPLITS = 3  # of a sum over pixels
_FOUND_SOMETHING = 9  # the exit status of compute-sanitizer where it reports something
_NOT_SUPPORTED = "Device not supported"  # what compute-sanitizer prints where it does not support the GPU


class Case(NamedTuple):
    """A problem, a direction, and one of the tiles that the backend has for them (None: it has no tiles)."""

    name: str
    numbers: str
    layout: str
    direction: Direction
    tile: Tile | None = None

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        return tensors(_PROBLEMS[self.name], self.name, NUMBERS[self.numbers], str(device), self.layout)

    def as_planned(self) -> tuple[ConvProblem, Operands]:
        """The problem and the operands that a backend gets."""
        return as_planned(_PROBLEMS[self.name], self.direction, self.numbers, self.tensors(torch.device("meta")))


def cases(backend: backends.Backend, device: torch.device) -> Iterator[Case]:
    """All of CASES, in each direction, with the smallest tile of each kernel that the backend has for it."""
    for (name, numbers, layout), direction in itertools.product(CASES, DIRECTIONS):
        case = Case(name, numbers, layout, direction)
        problem, operands = case.as_planned()
        if backend.refuses(problem, direction, device) is not None:
            continue
        smallest: dict[str, Tile] = {}
        for tile in backend.tiles(problem, direction, Gpu.of(device), operands):
            least = smallest.setdefault(tile.family, tile)
            if tile.rows * tile.columns < least.rows * least.columns:
                smallest[tile.family] = tile
        for chosen in smallest.values() or [None]:
            if chosen is not None and direction == "grad_weight":
                chosen = dataclasses.replace(chosen, splits=_SPLITS)
            yield case._replace(tile=chosen)


def check(case: Case, backend: backends.Backend, device: torch.device) -> None:
    """Compute a case. Raises AssertionError unless all of the result is within the oracle's bound."""
    (problem, operands), t = case.as_planned(), case.tensors(device)
    n = {name: reference.as_numpy(value) for name, value in t.items()}
    forward = case.direction == "forward"
    activation = Activation("silu" if forward else "none")
    chosen = () if case.tile is None else (operands, case.tile)
    run = backend.bind(problem, case.direction, device, activation, *chosen)
    a, b = (t[name] for name in OPERANDS[case.direction])
    epilogue: tuple[Any, ...] = ()
    if forward:
        got, epilogue = [run(a, b, t["bias"], t["residual"])], (n["bias"], n["residual"], activation)
    else:
        got = run(a, b, True) if case.direction == "grad_weight" else [run(a, b)]
    exact = exact_results(problem, case.direction, n, *epilogue)
    for result, wanted in zip(got, exact.values(), strict=True):
        what = f"{case.name} {case.numbers} {case.direction} {case.tile}"
        reference.assert_close_to_oracle(result, wanted, what, tf32=operands.tf32)


def run_all(options: argparse.Namespace) -> int:
    """Compute all cases. Returns how many are wrong; 1 if there was nothing to compute."""
    backend, device = backends.get(options.backend), torch.device(options.device)
    start, wrong, done = time.monotonic(), 0, 0
    for case in cases(backend, device):
        if time.monotonic() - start > options.seconds:
            print(f"time is up after {done} problems", file=sys.stderr)
            break
        kernel = "" if case.tile is None else f" {case.tile.family} {case.tile.rows}×{case.tile.columns}"
        try:
            check(case, backend, device)
        except Exception as error:  # the others are still tried
            wrong += 1
            print(
                f"{case.name} {case.numbers} {case.direction}{kernel}: {type(error).__name__}: {error}", file=sys.stderr
            )
        done += 1
    print(f"{done} problems on {device} by {options.backend}, {wrong} wrong or failed")
    return wrong if done else 1


def find_sanitizer() -> str | None:
    """The path of compute-sanitizer: from $PATH, CUDA's toolkit, or the package nvidia-cuda-sanitizer-api."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [home / "bin", *sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("compute-sanitizer", path=path)


def run_under_sanitizer(options: argparse.Namespace) -> int:
    """Compute all cases under compute-sanitizer. Returns its exit status; 0, with a line that says why, without it."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(
            f"{options.tool} skipped: there is no compute-sanitizer (it comes with CUDA's toolkit, and with "
            "pip install nvidia-cuda-sanitizer-api)"
        )
        return 0
    command = [sanitizer, "--tool", options.tool, "--error-exitcode", str(_FOUND_SOMETHING)]
    if options.tool == "memcheck":
        command += ["--report-api-errors", "no"]  # PyTorch makes calls that may fail
    command += [sys.executable, "-m", "gpuconv.checking.sanitize", "--backend", options.backend]
    command += ["--device", options.device, "--seconds", str(options.seconds)]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if any(_NOT_SUPPORTED in line for line in lines):
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
    return run_all(options) if options.tool is None else run_under_sanitizer(options)


if __name__ == "__main__":
    text.print_anything()
    sys.exit(main())
