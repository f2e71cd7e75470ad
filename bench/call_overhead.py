"""Measures the host-side cost of one forward call on the CPU, with gradients, beside `torch.nn.functional.conv2d`.

    python -m gpuconv.bench.call_overhead [--json]

The image is 4×4, so nearly all the time is the call itself. `aten` is a direct call of PyTorch. `trivial` is gpuconv's
op with a backend that only makes the output: validation, plan look-up, registration, autograd and allocation are all
there, only the arithmetic is not. Each round times all variants one after the other; the fastest of all rounds is
reported for each, in µs, so that other work on the machine matters little.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import gpuconv
from gpuconv import text
from gpuconv.activations import Activation
from gpuconv.backends import Backend
from gpuconv.problem import ConvProblem, allocate


class TrivialBackend(Backend):
    """Makes outputs of the right kind and computes nothing."""

    name = "trivial"

    def forward(
        self,
        problem: ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation,
    ) -> torch.Tensor:
        return allocate(problem.output_shape, input, problem.memory_format)


def measure(rounds: int = 200, calls: int = 100) -> dict[str, float]:
    """Microseconds a call of each variant."""
    gpuconv.backends.register(TrivialBackend())
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    w = torch.randn(4, 4, 3, 3, requires_grad=True)
    b = torch.randn(4, requires_grad=True)
    variants: dict[str, Callable[..., Any]] = {
        "torch": partial(torch.nn.functional.conv2d, x, w, b, padding=1),
        "auto": partial(gpuconv.conv2d, x, w, b, padding=1),
        "aten": partial(gpuconv.conv2d, x, w, b, padding=1, backend="aten"),
        "trivial": partial(gpuconv.conv2d, x, w, b, padding=1, backend="trivial"),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    result = measure()
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:>8}  {value:6.2f} µs  {value - result['torch']:+6.2f}")


if __name__ == "__main__":
    text.print_anything()
    main()
