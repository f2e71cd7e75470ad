"""Kernels whose compiled text is made wrong in one place and run on the emulator, to see which check finds it.

kernel = Kernel("tensor forward", problem, "forward", "cuda", "A100", tile)
kernel.found(without(kernel.text, site))  # 'race', 'values', …; None: nothing does
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from schedules import SCHEDULES

from gpuconv import backends, reference
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Tile
from gpuconv.backends.cuda import backend as cuda
from gpuconv.backends.cuda.launch import Instance
from gpuconv.checking.problems import OPERANDS, tensors
from gpuconv.emulator import EmulationError, load
from gpuconv.emulator.device import VirtualGpu
from gpuconv.emulator.ptx import parse
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy


class _Planted(VirtualGpu):
    """A GPU that runs another text in the place of that of a kernel, the first that is launched."""

    schedule, seed = SCHEDULES[0]
    original: Any = None  # what is launched as compiled
    instead: str | None = None
    counted: Any = None  # the counters of its last run

    def run(self, compiled: Any, blocks: int, arguments: list[Any], **more: Any) -> None:
        self.original = self.original or compiled
        program, planted = compiled.program, compiled.program is self.original.program
        if planted and self.instead is not None:
            program = load(self.instead, program.name)
        how = {"schedule": self.schedule, "seed": self.seed}
        counted = program.run(blocks, compiled.threads, compiled.shared, arguments, **more, **how)
        if planted:
            self.counted = counted


class Kernel:
    """A call of a backend on random data; its first launch is what faults are planted in."""

    def __init__(
        self,
        name: str,
        problem: ConvProblem,
        direction: Direction,
        backend: str,
        gpu: str,
        tile: Tile,
        poisoned: bool = False,
    ) -> None:
        """poisoned: the first elements of its tensors are NaN."""
        self.name = name
        contiguous = problem.memory_format == torch.contiguous_format
        given = tensors(problem, name, problem.dtype, "cpu", "contiguous" if contiguous else "channels_last")
        x, w, gy, b = (given[each] for each in ("input", "weight", "grad_output", "bias"))
        for tensor in (x, w, gy) if poisoned else ():
            tensor[(0,) * tensor.dim()] = float("nan")
        self._gpu = _Planted(KNOWN[gpu], keeps=False)
        world = plan.emulate(self._gpu)
        try:
            operands = plan.contiguous_operands(problem, direction, problem.memory_format)
            operands = operands._replace(bias=direction == "forward")
            self._planned = problem, direction, operands, tile
            run = backends.get(backend).bind(problem, direction, x.device, IDENTITY, operands, tile)
        finally:
            plan.leave(world)
        self._run: Callable[[], tuple[torch.Tensor, ...]] = {
            "forward": lambda: (run(x, w, b, None),),
            "grad_input": lambda: (run(gy, w),),
            "grad_weight": lambda: run(gy, x, True),
        }[direction]
        exact = (as_numpy(given[each]) for each in (*OPERANDS[direction], "bias"))
        self._exact = reference.results(problem, direction, *exact)

    @functools.cached_property
    def text(self) -> str:
        """The PTX of the kernel, as compiled. It is right, under every schedule."""
        found = self.found(None)
        assert found is None, f"{self.name}: as it is, {found} finds a fault"
        return self._gpu.original.program.ptx

    @property
    def entry(self) -> str:
        """Its name in the text."""
        return self._gpu.original.program.name

    @property
    def launched(self) -> Any:
        """The launch: threads and bytes of shared memory of a block."""
        return self._gpu.original

    @property
    def instance(self) -> Instance:
        """The kernel as NVRTC compiles it."""
        return cuda.launches(*self._planned, with_bias=True)[0].instance

    @functools.cached_property
    def runs(self) -> dict[int, int]:
        """The runs of each instruction, by its line in the text."""
        assert self.found(self.text) is None
        counted = self._gpu.counted
        return {line.ptx_line: int(n) for line, n in zip(counted.lines, counted.table["runs"], strict=True)}

    def shared_passes(self, text: str) -> int:
        """Passes over the banks of shared memory."""
        assert self.found(text) is None
        return self._gpu.counted.shared_passes

    def found(self, text: str | None) -> str | None:
        """The check that finds a fault in a text that is run in place of the kernel's; None if none does.

        The check of the emulator, or 'values' beyond the oracle's bound (or never written), or 'bits' that differ
        between schedules.
        """
        self._gpu.instead = text
        before: list[bytes] = []
        for self._gpu.schedule, self._gpu.seed in SCHEDULES:
            try:
                results = self._run()
            except EmulationError as error:
                assert error.kind != "unknown instruction", error
                return error.kind
            for result, exact in zip(results, self._exact, strict=True):
                if not reference.worst_violation(result, exact)[0] <= 1:
                    return "values"
            bits = [as_numpy(result.double()).tobytes() for result in results]
            if bits != (before := before or bits):
                return "bits"
        return None


# ---- texts -----------------------------------------------------------------------------------------------------------


class Site(NamedTuple):
    """An instruction in a text."""

    start: int
    end: int
    text: str  # without spaces around it
    line: int  # from 1

    @property
    def opcode(self) -> str:
        return re.sub(r"^@!?%\w+\s+", "", self.text).split()[0].rstrip(";")


def sites(text: str, pattern: str) -> list[Site]:
    """The instructions that match a pattern from their start, a predicate aside unless the pattern has it."""
    found = re.finditer(rf"(?m)^[^\S\n]*((?:@!?%\w+\s+)??(?:{pattern})[^;\n]*;)", text)
    return [Site(m.start(1), m.end(1), m[1], text.count("\n", 0, m.start(1)) + 1) for m in found]


def without(text: str, *gone: Site) -> str:
    """The text without these instructions."""
    for site in gone:
        text = text[: site.start] + " " * (site.end - site.start) + text[site.end :]
    return text


def instead(text: str, site: Site, other: str) -> str:
    """The text with other instructions in the place of one."""
    return text[: site.start] + other + text[site.end :]


def altered(site: Site, register: str, by: str, bits: int = 32) -> str:
    """An instruction that is given another value than its register holds: `by` makes %faulty of {}."""
    other = re.sub(rf"{re.escape(register)}\b", "%faulty", site.text)
    return f"{{ .reg .b{bits} %faulty; {by.format(register)} {other} }}"


def reads_shared_memory(first: int, end: int) -> str:
    """Instructions by which each thread reads all words of shared memory, for nothing."""
    return f"""{{ .reg .b32 %at, %word; .reg .pred %more; mov.u32 %at, {first};
        EACH: ld.shared.b32 %word, [%at]; add.u32 %at, %at, 4; setp.lt.u32 %more, %at, {end}; @%more bra EACH; }}"""


def comes_before(text: str, name: str, line: int, what: str, stop: str = "(?!)") -> bool:
    """Whether, on some way through the entry, an instruction whose opcode matches `what` comes before the one in this
    line, with none that matches `stop` between."""
    entry = parse(text, name)
    before: list[list[int]] = [[] for _ in entry.statements]
    for i, statement in enumerate(entry.statements):
        base = statement.opcode.split(".")[0]
        goes_on = base not in ("ret", "exit", "trap", "brx") and (base != "bra" or statement.guard)
        targets = [entry.labels[o] for o in statement.operands if base == "bra" and o in entry.labels]
        targets += [entry.labels[t] for o in statement.operands if base == "brx" for t in entry.tables.get(o, ())]
        for after in [*targets, *[i + 1] * bool(goes_on)]:
            if after < len(before):
                before[after].append(i)
    (at,) = (i for i, statement in enumerate(entry.statements) if statement.line == line)
    reached, ahead = set(), [*before[at]]
    while ahead:
        i = ahead.pop()
        opcode = entry.statements[i].opcode
        if i in reached or re.match(stop, opcode):
            continue
        if re.match(what, opcode):
            return True
        reached.add(i)
        ahead += before[i]
    return False
