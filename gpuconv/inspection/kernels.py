"""The kernels that a backend would launch for a problem: `gpuconv inspect`.

They are compiled for any GPU, without one, and can be run and counted on a virtual one.

    for kernel in inspect_kernels(problem, "forward", "triton", KNOWN["H100"], run=True):
        print(kernel.text())

Compiled by Triton, and by the NVRTC that CuPy uses; read by `gpuconv.inspection.machine_code`, run by
`gpuconv.emulator`.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from gpuconv import backends, reference
from gpuconv.activations import IDENTITY
from gpuconv.backends import BackendUnavailable
from gpuconv.backends.base import Operands, Tile, contiguous_operands, numbers
from gpuconv.backends.roofline import Prediction
from gpuconv.gpu import Gpu
from gpuconv.inspection.machine_code import MachineCode, cuda_architecture, cuda_machine_code, cuda_ptx, machine_code
from gpuconv.planning.ranking import ranked
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy, worst_violation

if TYPE_CHECKING:
    from gpuconv.emulator.counters import Counters

BACKENDS = ("triton", "cuda")
# The instructions of the main loop that the text names: products, then those that move data.
_SHOWN = (
    "HGMMA", "UTCHMMA", "HMMA", "DMMA", "FFMA", "DFMA", "UTMALDG", "LDGSTS", "LDG", "LDSM", "LDS", "STS", "LDL", "STL",
)  # fmt: skip
# Kernels that run before or after the one that multiplies.
_ROLES = {
    "pack": "copies operands to channels last, or a result from there",
    "pack_cells": "writes the weight as filters of cells",
    "pack_runs": "copies the input with four channels and its padding",
    **dict.fromkeys(("sum_partials", "window_sum"), "adds partial sums in order"),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as it would be launched, compiled. Its times are predicted, not measured."""

    name: str
    backend: str
    direction: Direction
    problem: ConvProblem
    operands: Operands
    gpu: Gpu
    architecture: str
    tile: Tile
    threads: int  # of a block
    code: MachineCode
    ptx: str
    prediction: Prediction | None  # of the whole call; None for the kernels before and after the one with the tile
    # After a run: its counters, and the largest error of all results, as a fraction of the bound.
    counters: "Counters | None" = None
    error: float | None = None

    @property
    def wrong(self) -> bool:
        """Whether it was run and gave a result beyond the error bound."""
        return self.error is not None and not self.error <= 1

    @property
    def blocks(self) -> int:
        """Blocks that fit on a multiprocessor at once."""
        return self.gpu.resident(self.threads, self.code.registers, self.code.shared)

    def facts(self) -> dict[str, Any]:
        """All facts about the kernel, as plain values for JSON."""
        predicted = self.prediction
        return {
            "kernel": self.name,
            "backend": self.backend,
            "direction": self.direction,
            "dtype": numbers(self.problem.dtype, self.operands.tf32),
            "memory_format": str(self.problem.memory_format).removeprefix("torch."),
            "arch": self.architecture,
            "gpu": self.gpu.name,
            "tile": dataclasses.asdict(self.tile),
            "registers": self.code.registers,
            "spill_bytes": self.code.stack,
            "shared_bytes": self.code.shared,
            "threads": self.threads,
            "blocks_per_multiprocessor": self.blocks,
            "occupancy": self.blocks * self.threads / self.gpu.threads,
            "instructions": dict(self.code.instructions.most_common()),
            "loop_instructions": dict(self.code.loop_instructions.most_common()),
            "operations_per_byte_fetched": predicted and predicted.intensity,
            "predicted_seconds": predicted and predicted.seconds,
            "predicted_bound": predicted and predicted.bound,
            **self._counted(),
        }

    def _counted(self) -> dict[str, Any]:
        if self.counters is None or self.error is None:
            return {}
        error = self.error if math.isfinite(self.error) else "inf"  # JSON has no infinity
        return {"batch": self.problem.batch, "error_of_bound": error, "counters": self.counters.facts()}

    def text(self) -> str:
        """The main facts, in a few lines for people."""
        code, tile, predicted = self.code, self.tile, self.prediction
        loop = code.loop_instructions
        lines = [
            f"{self.name}  {self.backend} {self.direction} {numbers(self.problem.dtype, self.operands.tf32)}"
            f"  {self.architecture} ({self.gpu.name})"
            + (f"  tile {tile.sizes}" if predicted else f"  {_ROLES[self.name]}"),
            f"  {code.registers} registers, {code.stack} bytes spilled, {code.shared:,} bytes of shared memory:"
            f" {self.blocks} blocks of {self.threads} threads a multiprocessor"
            f" ({self.blocks * self.threads / self.gpu.threads:.0%} of its threads)",
            "  main loop: "
            + "".join(f"{loop[name]} {name}, " for name in _SHOWN if loop[name])
            + f"{sum(count for name, count in loop.items() if name not in _SHOWN)} others",
        ]
        if predicted:
            lines.append(
                f"  {predicted.intensity:.0f} operations for a byte fetched;"
                f" predicted {predicted.seconds * 1e6:,.1f} µs, bound by {predicted.bound}"
            )
        if self.counters is not None:
            lines.append(
                f"  run on a virtual {self.gpu.name}, batch {self.problem.batch}, random data: "
                + ("WRONG, " if self.wrong else "right, ")
                + f"error {self.error:.3g} of its bound"
            )
            lines += [f"  {line}" for line in self.counters.text().splitlines()]
        return "\n".join(lines)


def inspect_kernels(
    problem: ConvProblem,
    direction: Direction,
    backend: str,
    gpu: Gpu,
    tf32: bool = False,
    ptx: bool = False,
    run: bool = False,
    tile: Tile | None = None,
    bias: bool = True,
) -> list[Kernel]:
    """The kernels that `backend` would launch for `direction` of `problem` on `gpu`, all tensors in the problem's
    memory format and aligned.

    ptx: keep the PTX of CUDA C kernels too, which takes one more compilation. run: launch them once on a virtual GPU,
    with random data, compare the result with the oracle and keep the counters. tile: not the one that is predicted to
    be quickest, but this one of the backend's tiles. bias: add one, or in grad_weight give its gradient.

    Raises BackendUnavailable where the backend has no kernels for this GPU, their compiler or the emulator is missing,
    they do not fit, or they have an instruction that the emulator does not know; `gpuconv.emulator.EmulationError`
    where one of its checks finds a fault in them.
    """
    if backend not in BACKENDS:
        raise BackendUnavailable(
            f"backend must be one of {', '.join(BACKENDS)} to look at kernels, but got {backend!r}"
        )
    chosen = backends.get(backend)
    reason = chosen.refuses_gpu(gpu)
    if reason is not None:
        raise BackendUnavailable(f"backend {backend!r} on {gpu.name}: {reason}")
    operands = contiguous_operands(problem, direction, problem.memory_format)
    operands = operands._replace(tf32=tf32, bias=bias and direction == "forward")
    tiles = chosen.tiles(problem, direction, gpu, operands) if tile is None else (tile,)
    tile, prediction = ranked(chosen, tiles, problem, direction, gpu, tf32)[0]
    compiled = (_triton if backend == "triton" else _cuda)(problem, direction, operands, tile, gpu, ptx, bias)
    kernels = [
        Kernel(
            name, backend, direction, problem, operands, gpu, architecture, tile, threads, code, text,
            None if name in _ROLES else prediction,
        )
        for name, architecture, threads, code, text in compiled
    ]  # fmt: skip
    return _run(kernels, bias) if run else kernels


def _run(kernels: list[Kernel], with_bias: bool) -> list[Kernel]:
    """Run the launches of one call once on a virtual GPU; gives the kernels with counters and error."""
    from gpuconv import emulator

    first = kernels[0]
    problem, direction, gpu = first.problem, first.direction, first.gpu
    reason = emulator.why_not()
    if reason is not None:
        raise BackendUnavailable(f"kernels cannot be run on a virtual GPU: {reason}")
    random = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        drawn = torch.randn(shape, generator=random, dtype=torch.float64).to(problem.dtype)
        return drawn.contiguous(memory_format=problem.memory_format) if len(shape) > 1 else drawn

    a, b = map(draw, problem.operand_shapes(direction))
    bias = draw((problem.out_channels,))
    rest = {
        "forward": (bias if with_bias else None, None), "grad_input": (), "grad_weight": (with_bias,),
    }[direction]  # fmt: skip
    backend = backends.get(first.backend)
    with emulator.on(gpu.name) as virtual:
        try:
            bound = backend.bind(problem, direction, torch.device("cpu"), IDENTITY, first.operands, first.tile)
            got = bound(a, b, *rest)
        except Exception as error:
            if not isinstance(error, emulator.UnknownInstruction) and not backend.cannot_build(error):
                raise
            raise BackendUnavailable(f"backend {first.backend!r} on {gpu.name}: {error}") from error
    counted = virtual.counters()
    if [counters.kernel for counters in counted] != [kernel.name for kernel in kernels]:
        raise RuntimeError(f"expected launches of {[k.name for k in kernels]}, got {[c.kernel for c in counted]}")
    exact = reference.results(problem, direction, as_numpy(a), as_numpy(b), as_numpy(bias) if with_bias else None)
    results = [result for result in (got if isinstance(got, tuple) else (got,)) if result is not None]
    worst = max(
        worst_violation(*pair, tf32=first.operands.tf32)[0] for pair in zip(results, exact, strict=False)
    )  # no gb
    return [
        dataclasses.replace(kernel, counters=counters, error=worst)
        for kernel, counters in zip(kernels, counted, strict=True)
    ]


_Compiled = tuple[str, str, int, MachineCode, str]  # name, architecture, threads, code, PTX


def _triton(
    problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile, gpu: Gpu, _ptx: bool, bias: bool
) -> list[_Compiled]:
    from gpuconv.backends.triton import backend as triton

    capability = 10 * gpu.capability[0] + gpu.capability[1]
    found: list[_Compiled] = []
    for launch in triton.launches(problem, direction, operands, tile, with_bias=bias):
        code = machine_code(launch, capability)
        found.append((launch.kernel.__name__, f"sm_{capability}", code.threads, code, code.ptx))
    return found


def _cuda(
    problem: ConvProblem, direction: Direction, operands: Operands, tile: Tile, gpu: Gpu, ptx: bool, bias: bool
) -> list[_Compiled]:
    from gpuconv.backends.cuda import backend as cuda

    architecture = cuda_architecture(gpu)
    found: list[_Compiled] = []
    try:
        for launch in cuda.launches(problem, direction, operands, tile, with_bias=bias):
            instance = launch.instance
            code = cuda_machine_code(instance, architecture)
            text = cuda_ptx(instance, architecture) if ptx else ""
            found.append((instance.function, architecture, instance.threads, code, text))
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"CUDA C is compiled by the NVRTC of CuPy, and {error}") from error
    return found
