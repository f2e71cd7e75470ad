"""Measures the host-side cost of a repeated call of the `triton` backend, stage by stage. Needs no GPU.

    python -m gpuconv.bench.launch_overhead [--json]

Everything runs as on a GPU, except that tensors lie on the CPU, and that the innermost launch, Triton's C function that
passes the arguments to the driver, is replaced by a null launch that does nothing (so its one or two µs are missing).
The stages, each including the one before it:

    pointers     data_ptr() of every tensor, and whether all are aligned
    launch       `Launch` called with tensors: pointers, arguments, Triton's launcher, the null launch
    bound        what the planner keeps and calls: current stream, allocation of the result, launch
    planned      looking that up for the tensors at hand, and calling it

The fastest of all rounds is reported for each, in µs, so that other work on the machine matters little.
"""

import argparse
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher

from gpuconv import text
from gpuconv.activations import Activation
from gpuconv.backends.base import Tile
from gpuconv.backends.triton import backend, launch as triton_launch
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan, ranking
from gpuconv.problem import ConvProblem, Direction
from gpuconv.settings import Settings

PROBLEM = ConvProblem.of((2, 64, 8, 8), (64, 64, 3, 3), padding=1, dtype=torch.float16)


def _null_launcher() -> CudaLauncher:
    """Triton's launcher with all its Python, but without the C function at its end."""
    launcher = object.__new__(CudaLauncher)
    launcher.__dict__.update(
        launch=lambda *arguments: None,
        arg_annotations=[],
        kernel_signature=b"",
        num_ctas=1,
        global_scratch_size=0,
        global_scratch_align=1,
        profile_scratch_size=0,
        profile_scratch_align=1,
        launch_cooperative_grid=False,
        launch_pdl=False,
        gsan_enabled=False,
    )
    return launcher


def _fastest(call: Callable[[], Any], rounds: int, calls: int) -> float:
    """Microseconds a call in the fastest round."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - start)
    return best / calls * 1e6


def measure(direction: Direction, rounds: int = 50, calls: int = 200) -> dict[str, float]:
    """Microseconds a call of each stage."""
    shapes = {"x": PROBLEM.input_shape, "w": PROBLEM.weight_shape, "y": PROBLEM.output_shape}
    first, second = {"forward": ("x", "w"), "grad_input": ("y", "w"), "grad_weight": ("y", "x")}[direction]
    a, b = (torch.randn(shapes[name]).half() for name in (first, second))
    operands = plan.contiguous_operands(PROBLEM, direction)
    gpu = KNOWN["H100"]
    triton_backend = backend.TritonBackend()
    tiles = triton_backend.tiles(PROBLEM, direction, gpu, operands)
    tile = ranking.best_tile(triton_backend, tiles, PROBLEM, direction, gpu, False)
    assert tile is not None
    tile = Tile(tile.rows, tile.columns, tile.depth, tile.warps, tile.stages)  # one launch, whatever the direction
    (launch,) = backend.launches(PROBLEM, direction, operands, tile)
    tensors = [torch.empty(64) if dtype is not None else None for dtype in launch.dtypes]
    extra: tuple[Any, ...] = {"forward": (None, None), "grad_input": (), "grad_weight": (False,)}[direction]
    settings = Settings(PROBLEM.stride, PROBLEM.padding, PROBLEM.dilation, PROBLEM.groups, backend="triton")
    key = settings.encode()
    look_up: dict[Direction, Callable[[], Callable[..., Any]]] = {
        "forward": lambda: plan.forward(a, b, None, None, key),
        "grad_input": lambda: plan.grad_input(a, b, PROBLEM.input_shape, key),
        "grad_weight": lambda: plan.grad_weight(a, b, PROBLEM.weight_shape, False, key),
    }

    null = SimpleNamespace(run=_null_launcher(), function=0, packed_metadata=())
    with (
        mock.patch.object(triton.runtime.driver, "_active", object()),
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True),
        mock.patch.object(triton_launch.Launch, "__call__", _prepared(null)),
        mock.patch.dict(plan._plans, clear=True),
        mock.patch.object(backend, "INTERPRETING", False),
    ):
        bound = triton_backend.bind(PROBLEM, direction, torch.device("cuda", 0), Activation("none"), operands, tile)
        with mock.patch.object(plan, "choose", lambda *_: SimpleNamespace(run=bound)):
            look_up[direction]()(a, b, *extra)  # which leaves it to be found
        launch.use(null)
        result = {
            "pointers": _fastest(
                lambda: triton_launch._all_aligned([0 if t is None else t.data_ptr() for t in tensors]), rounds, calls
            ),
            "launch": _fastest(lambda: launch(0, *tensors), rounds, calls),
            "bound": _fastest(lambda: bound(a, b, *extra), rounds, calls),
            "planned": _fastest(lambda: look_up[direction]()(a, b, *extra), rounds, calls),
        }
    return result


def _prepared(null: Any) -> Callable[..., None]:
    """`Launch.__call__` of a launch that has already been compiled when it is first called."""
    original = triton_launch.Launch.__call__

    def call(self: triton_launch.Launch, stream: int | None, *tensors: torch.Tensor | None) -> None:
        if self._short is None:
            self.use(null)
        original(self, stream, *tensors)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    directions: tuple[Direction, ...] = ("forward", "grad_input", "grad_weight")
    results = {direction: measure(direction) for direction in directions}
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"µs a call on the host, null launch (torch {torch.__version__}, triton {triton.__version__})")
    for direction, stages in results.items():
        print(f"  {direction:12}", "  ".join(f"{stage} {us:5.2f}" for stage, us in stages.items()))


if __name__ == "__main__":
    text.print_anything()
    main()
