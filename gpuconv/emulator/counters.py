"""Counters of a run on the virtual GPU: for each instruction, for each source line, and for the kernel.

    counters = run_ptx(text, None, grid, block, 0, args)
    counters.global_sectors, counters.global_sectors_least
    print(counters.text())

Global memory moves in sectors of 32 bytes: an instruction takes as many as its lanes touch, and the least is what their
bytes would fill, each counted once. Shared memory has 32 banks of 4 bytes, and a pass takes one word from each: an
instruction takes as many as its busiest bank has words to give, and the least is what its bytes need at 128 a pass.
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np

_NAMES = (
    "runs",  # by warps, with at least one active lane
    "lanes",  # active ones, of all runs
    "bytes",  # of global memory that lanes read or write; without the copy engine's
    "sectors",
    "sectors_least",  # that those bytes would fill, of each run; a byte that several lanes access counts once
    "passes",
    "passes_least",
    "tma_bytes",  # by the copy engine, of whole boxes
    "tensor_operations",  # of tensor cores: 2 for each product and its addition to a sum
    "waits",  # at barriers, and for copies that have not arrived yet
)
COUNTS = np.dtype([(name, "u8") for name in _NAMES])
_UNITS = ("sectors", "passes")
_UNKNOWN = "(source line unknown)"
_MOST = 8  # rows of a list in the text

_PIPES = {
    "tensor": "mma wmma",
    "lsu": "ld ldu st atom red ldmatrix stmatrix prefetch shfl",
    "xu": "rcp sqrt rsqrt ex2 lg2 sin cos tanh div rem popc clz bfind brev",
    "fma": "mul mad fma mul24 mad24 dp4a dp2a",
    "branch": "bra brx call ret exit trap",
    "barrier": "bar barrier mbarrier fence membar wgmma griddepcontrol nanosleep",
    "copy engine": "tensormap",
    "move": "mov cvta isspacep mapa getctarank activemask elect setmaxnreg",
}
_PIPE_OF_BASE = {base: pipe for pipe, bases in _PIPES.items() for base in bases.split()}
_FLOATS = frozenset({"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2"})
_WAITING = frozenset({"commit_group", "wait_group", "wait_all", "mbarrier"})


def pipe_of(opcode: str) -> str:
    """The pipe of a multiprocessor that an instruction of PTX goes to: fma, alu, fp64, xu, lsu, tensor, copy engine,
    barrier, branch or move.

    opcode: with all its qualifiers, as "fma.rn.f32". The pipes are those of sm_80 and later, where ptxas makes one
    machine instruction of it: products of whole numbers are on fma, transcendental functions and conversions between
    whole and floating-point numbers on xu. Division is many instructions there, and is counted as one on xu.
    """
    base, *words = opcode.split(".")
    if base == "cp":
        return "barrier" if _WAITING & set(words[:3]) else "copy engine" if "bulk" in words else "lsu"
    if base == "wgmma" and "mma_async" in words:
        return "tensor"
    if base in ("ld", "st") and any(word.startswith("param") for word in words):
        return "move"  # constant memory
    if base == "cvt":
        kinds = {word[0] in "su" for word in words[-2:]}  # of the two types: is it a whole number?
        return "xu" if len(kinds) == 2 else "fp64" if "f64" in words[-2:] else "alu"
    pipe = _PIPE_OF_BASE.get(base, "alu")
    if words and words[-1] == "f64" and pipe in ("alu", "fma", "xu") and base != "selp":
        return "fp64"
    return "fma" if base in ("add", "sub") and words[-1] in _FLOATS else pipe


class Instruction(NamedTuple):
    """One instruction of a kernel, as it is shown to people."""

    ptx_line: int  # from 1
    text: str
    source: str | None  # "file:line", where the compiler said it
    pipe: str
    main: bool = False  # in an innermost loop that multiplies

    @property
    def opcode(self) -> str:
        """The opcode with all its qualifiers, without predicate and operands."""
        first, *others = self.text.rstrip("; ").split()
        return others[0] if first.startswith("@") else first


@dataclasses.dataclass(frozen=True)
class SourceLine:
    """The counts of all instructions of a source line together."""

    source: str | None  # "file:line"; None: instructions of which the compiler did not say it
    counts: dict[str, int]  # by the names of `COUNTS`

    @property
    def wasted(self) -> int:
        """Sectors of global memory and passes of shared memory beyond the least."""
        return sum(self.counts[unit] - self.counts[f"{unit}_least"] for unit in _UNITS)


@dataclasses.dataclass(frozen=True, eq=False)
class Counters:
    """Counts of a kernel's run, exact for that run: a row of `table` for each of `lines`, the instructions.

    table: of type `COUNTS`. Runs of the same program can be added.
    """

    kernel: str
    table: np.ndarray = dataclasses.field(repr=False)
    lines: tuple[Instruction, ...] = dataclasses.field(repr=False)

    @property
    def instructions(self) -> int:
        """Instructions executed by warps."""
        return self._total("runs")

    @property
    def global_bytes(self) -> int:
        """Bytes of global memory that lanes read or wrote; the copy engine's are `tma_bytes`."""
        return self._total("bytes")

    @property
    def global_sectors(self) -> int:
        """Sectors of 32 bytes that these bytes took."""
        return self._total("sectors")

    @property
    def global_sectors_least(self) -> int:
        """Sectors that they would have filled."""
        return self._total("sectors_least")

    @property
    def shared_passes(self) -> int:
        """Passes over the 32 banks of shared memory."""
        return self._total("passes")

    @property
    def shared_passes_least(self) -> int:
        """Passes without bank conflicts, at 128 bytes each."""
        return self._total("passes_least")

    @property
    def tma_bytes(self) -> int:
        """Bytes that the copy engine moved; those outside the tensor, which are read as zero, included."""
        return self._total("tma_bytes")

    @property
    def tensor_operations(self) -> int:
        """Floating-point operations of tensor cores: two for each product."""
        return self._total("tensor_operations")

    @property
    def waits(self) -> int:
        """Waits at barriers, and for copies that had not arrived yet."""
        return self._total("waits")

    @property
    def by_pipe(self) -> dict[str, int]:
        """Instructions executed by warps, by pipe, the busiest first."""
        found: Counter[str] = Counter()
        for line, runs in zip(self.lines, self.table["runs"].tolist(), strict=True):
            found[line.pipe] += runs
        return {pipe: runs for pipe, runs in found.most_common() if runs}

    def by_source(self) -> list[SourceLine]:
        """The counts of each source line, in the order of the program; instructions that never ran are left out."""
        found: dict[str | None, np.ndarray] = {}
        numbers = self.table.view(np.uint64).reshape(len(self.lines), len(_NAMES))
        for line, row in zip(self.lines, numbers, strict=True):
            if row.any():
                found[line.source] = found.get(line.source, 0) + row
        return [SourceLine(source, dict(zip(_NAMES, row.tolist(), strict=True))) for source, row in found.items()]

    @property
    def main_loop(self) -> "Counters":
        """The counts of the innermost loops that multiply; of the whole kernel, where none does."""
        inside = np.array([line.main for line in self.lines], bool)
        if not inside.any():
            return self
        return Counters(self.kernel, self.table[inside], tuple(line for line in self.lines if line.main))

    def facts(self) -> dict[str, int]:
        """The totals that `gpuconv inspect --run --json` prints."""
        return {
            "instructions": self.instructions,
            "global_sectors": self.global_sectors,
            "global_sectors_least": self.global_sectors_least,
            "shared_passes": self.shared_passes,
            "shared_passes_least": self.shared_passes_least,
            "tma_bytes": self.tma_bytes,
            "tensor_operations": self.tensor_operations,
        }

    def text(self, most: int = _MOST) -> str:
        """Totals, the source lines with most instructions, and the instructions furthest beyond the least, `most` of
        each, for people."""
        shares = {pipe: f"{runs / self.instructions:.0%}" for pipe, runs in self.by_pipe.items()}
        pipes = ", ".join(f"{pipe} {share}" for pipe, share in shares.items() if share != "0%")
        sectors = _beside(self.global_sectors, self.global_sectors_least, "sectors")
        totals = {
            "instructions": (self.instructions, pipes),
            "global memory": (self.global_sectors, f"{sectors}, for {self.global_bytes:,} bytes"),
            "shared memory": (
                self.shared_passes, _beside(self.shared_passes, self.shared_passes_least, "passes")
            ),
            "copy engine": (self.tma_bytes, "bytes"),
            "tensor cores": (self.tensor_operations, "operations"),
            "waits": (self.waits, ""),
        }  # fmt: skip
        lines = [f"  {name:13} {count:>14,} {rest}".rstrip() for name, (count, rest) in totals.items() if count]
        return "\n".join([self.kernel, *lines, *self._busiest(most), *self._wasteful(most)])

    def __add__(self, other: "Counters") -> "Counters":
        """The sum of both runs. Raises ValueError unless they are of the same program."""
        if not isinstance(other, Counters):
            return NotImplemented
        if (self.kernel, self.lines) != (other.kernel, other.lines):
            raise ValueError(f"counters of {self.kernel} and {other.kernel}, which are not the same program")
        table = np.zeros_like(self.table)
        for name in _NAMES:
            table[name] = self.table[name] + other.table[name]
        return Counters(self.kernel, table, self.lines)

    def _total(self, name: str) -> int:
        return int(self.table[name].sum())

    def _busiest(self, most: int) -> list[str]:
        rows = sorted(self.by_source(), key=lambda line: line.counts["runs"], reverse=True)[:most]
        return ["  most instructions"] * bool(rows) + [
            f"{line.counts['runs']:>18,} {line.counts['runs'] / self.instructions:.0%}, {line.source or _UNKNOWN}"
            for line in rows
        ]

    def _wasteful(self, most: int) -> list[str]:
        # Instructions of one kind on one source line are one row: loops are unrolled.
        rows: dict[tuple[str, str | None, str], list[int]] = {}
        for unit in _UNITS:
            counts = zip(self.table[unit].tolist(), self.table[f"{unit}_least"].tolist(), strict=True)
            for line, (used, least) in zip(self.lines, counts, strict=True):
                if used > least:
                    row = rows.setdefault((unit, line.source, line.opcode), [0, 0, 0, line.ptx_line])
                    row[:3] = row[0] + used, row[1] + least, row[2] + 1
        worst = sorted(rows.items(), key=lambda row: row[1][0] - row[1][1], reverse=True)
        return ["  most beyond the least"] * bool(rows) + [
            f"{used:>18,} {_beside(used, least, unit)}, {source or _UNKNOWN}: {count} × {opcode} (PTX line {first}…)"
            for (unit, source, opcode), (used, least, count, first) in worst[:most]
        ]


def _beside(used: int, least: int, unit: str) -> str:
    """The text behind the number used: `sectors, least 4 (16 times)`."""
    return f"{unit}, the least" if used == least else f"{unit}, least {least:,} ({used / max(1, least):.3g} times)"
