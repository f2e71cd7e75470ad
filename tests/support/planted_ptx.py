"""Kernels whose compiled text is made wrong in one place, run on the emulator: what finds it?

kernel = Kernel("tensor forward", problem, "forward", "cuda", "A100", Tile(…))
kernel.found(without(kernel.text, line))  # 'race', 'values', …; None: nothing does
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from gpuconv import backends, plan, reference
from gpuconv.backends.base import Tile
from gpuconv.bench.problems import tensors
from gpuconv.emulator import EmulationError, load
from gpuconv.emulator.device import VirtualGpu
from gpuconv.gpu import KNOWN
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import IDENTITY, as_numpy

SCHEDULES = (("early", 0), ("late", 0), ("random", 1), ("random", 2))


class _Planted(VirtualGpu):
    """A GPU that runs another text in place of that of a kernel."""

    schedule, seed = SCHEDULES[0]
    original: Any = None  # the first program that is launched
    instead: str | None = None

    def run(self, compiled: Any, blocks: int, arguments: list[Any]) -> None:
        self.original = self.original or compiled.program
        program = compiled.program
        if program is self.original and self.instead is not None:
            program = load(self.instead, program.name)
        program.run(blocks, compiled.threads, compiled.shared, arguments, schedule=self.schedule, seed=self.seed)


class Kernel:
    """One call of a backend whose first launch is the kernel of this name, on random data."""

    def __init__(
        self, name: str, problem: ConvProblem, direction: Direction, backend: str, gpu: str, tile: Tile
    ) -> None:
        self.name = name
        layout = "contiguous" if problem.memory_format == torch.contiguous_format else "channels_last"
        given = tensors(problem, name, problem.dtype, "cpu", layout)
        x, w, gy, bias = (given[each] for each in ("input", "weight", "grad_output", "bias"))
        x_, w_, gy_, bias_ = map(as_numpy, (x, w, gy, bias))
        self._gpu = _Planted(KNOWN[gpu], keeps=False)
        world = plan.emulate(self._gpu)
        try:
            operands = plan.contiguous_operands(problem, direction, problem.memory_format)
            operands = operands._replace(bias=direction == "forward")
            run = backends.get(backend).bind(problem, direction, x.device, IDENTITY, operands, tile)
        finally:
            plan.leave(world)
        if direction == "forward":
            self._run, self._exact = lambda: (run(x, w, bias, None),), [reference.forward(problem, x_, w_, bias_)]
        elif direction == "grad_input":
            self._run, self._exact = lambda: (run(gy, w),), [reference.grad_input(problem, gy_, w_)]
        else:
            self._run = lambda: run(gy, x, True)
            self._exact = [reference.grad_weight(problem, gy_, x_), reference.grad_bias(problem, gy_)]

    @functools.cached_property
    def text(self) -> str:
        """The PTX of the kernel, as compiled. It is run for that, and right."""
        found = self.found(None)
        assert found is None, f"{self.name}: as it is, {found}"
        return self._gpu.original.ptx

    def found(self, text: str | None) -> str | None:
        """What finds the fault of a text that is run in place of the kernel's: the check of the emulator that fires,
        'values' beyond the oracle's bound (or never written), 'bits' that differ between schedules; None: nothing."""
        self._gpu.instead = text
        before = None
        for self._gpu.schedule, self._gpu.seed in SCHEDULES:
            try:
                results = self._run()
            except EmulationError as error:
                assert error.kind != "unknown instruction", error
                return error.kind
            for result, exact in zip(results, self._exact, strict=True):
                if not reference.worst_violation(result, exact)[0] <= 1:
                    return "values"
            bits = [result.contiguous().view(torch.uint8) for result in results]
            if before is not None and not all(map(torch.equal, bits, before)):
                return "bits"
            before = bits
        return None


class Site(NamedTuple):
    """An instruction in a text."""

    start: int
    end: int
    text: str  # without spaces around it
    line: int  # from 1

    @property
    def opcode(self) -> str:
        return re.sub(r"^@!?%\w+\s+", "", self.text).split()[0].rstrip(";")


def sites(text: str, pattern: str) -> Iterator[Site]:
    """The instructions whose opcode matches a pattern from its start."""
    for m in re.finditer(rf"(?m)^[^\S\n]*(?:\{{[^\S\n]*)?((?:@!?%\w+\s+)?(?:{pattern})[^;\n]*;)", text):
        yield Site(m.start(1), m.end(1), m[1], text.count("\n", 0, m.start(1)) + 1)


def without(text: str, *gone: Site) -> str:
    """The text without these instructions."""
    for site in gone:
        text = text[: site.start] + " " * (site.end - site.start) + text[site.end :]
    return text


def instead(text: str, site: Site, other: str) -> str:
    """The text with other instructions in the place of one."""
    return text[: site.start] + other + text[site.end :]
