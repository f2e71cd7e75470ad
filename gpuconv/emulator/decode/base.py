"""The decoding that all instructions share: registers become slots, opcodes operations with modifiers.

Every operand is a slot, a register of all lanes: immediates and addresses of variables are slots too, filled when a
thread starts. The core says, beside its handler, what the modifiers of an operation mean. The modules beside this
one register the functions that decode each instruction.
"""

import dataclasses
import functools
import re
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpuconv.emulator.decode.qualifiers import unknown_qualifier
from gpuconv.emulator.errors import UnknownInstruction
from gpuconv.emulator.ptx import SIZES, Entry, Statement, split

# In the order of `Type` in core/numbers.h.
TYPES = {
    name: number
    for number, name in enumerate(
        (
            "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f16", "bf16", "f32",
            "f64", "f16x2", "bf16x2", "f32x2", "u16x2", "s16x2", "tf32", "e4m3x2", "e5m2x2", "pred", "none",
        )
    )
}  # fmt: skip
# `Packed` and `Constant` in core/program.h.
INSTRUCTION = np.dtype(
    [(name, "i4") for name in ("code", "type", "type2", "guard", "operands", "results", "sources")]
    + [("modifier", "i4", 6), ("target", "i4"), ("immediate", "i8")]
)
CONSTANT = np.dtype([("slot", "i4"), ("pad", "i4"), ("value", "u8")])
# In the order of `Special` there.
SPECIAL = (
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    "%laneid", "%warpid", "%nwarpid", "%cluster_ctarank", "%cluster_nctarank",
    *(f"%{name}.{axis}" for name in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid") for axis in "xyz"),
    "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%lanemask_eq",
)  # fmt: skip
SHARED_WINDOW, LOCAL_WINDOW, PARAMETER_WINDOW, RANGE_SHIFT = 1 << 60, 1 << 61, 1 << 62, 40
GENERIC, GLOBAL, SHARED, LOCAL, PARAMETER = range(5)
_SPACES = {
    "global": GLOBAL, "const": GLOBAL, "shared": SHARED, "shared::cta": SHARED, "shared::cluster": SHARED,
    "local": LOCAL, "param": PARAMETER, "param::entry": PARAMETER, "param::func": LOCAL,
}  # fmt: skip
ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
ATOMIC = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "exch": 6, "cas": 7, "inc": 8, "dec": 9}
_ADDRESS = re.compile(r"\[\s*([^\s+\]]+?)\s*(?:\+\s*(-?\w+)\s*)?\]$")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_DECIMAL = re.compile(r"-?\d*\.\d+(?:[eE][-+]?\d+)?$|-?\d+\.\d*(?:[eE][-+]?\d+)?$")


class Opcode(NamedTuple):
    """An opcode, taken apart: "ld.global.v4.b32" has the base "ld"."""

    base: str
    qualifiers: tuple[str, ...]
    types: tuple[str, ...]  # those qualifiers that are types

    @property
    def type(self) -> str:
        return self.types[-1] if self.types else "none"

    def has(self, word: str) -> bool:
        return word in self.qualifiers

    def one_of(self, table: dict[str, int], default: int = 0) -> int:
        """The value of the first qualifier that is in the table."""
        return next((table[word] for word in self.qualifiers if word in table), default)

    @property
    def space(self) -> int:
        return self.one_of(_SPACES, GENERIC)

    @property
    def float_modifiers(self) -> tuple[int, int, int, int]:
        """Rounding, saturation, NaN or ReLU, flushing of subnormals: the modifiers of float arithmetic."""
        saturated = self.has("sat") or self.has("satfinite")
        special = self.has("NaN") or self.has("relu")
        return self.one_of(ROUNDING), int(saturated), int(special), int(self.has("ftz"))


@functools.lru_cache(maxsize=4096)
def opcode(text: str) -> Opcode:
    """An opcode by its text."""
    base, *qualifiers = text.split(".")
    return Opcode(base, tuple(qualifiers), tuple(word for word in qualifiers if word in TYPES))


@dataclasses.dataclass
class Code:
    """A decoded entry."""

    instructions: np.ndarray  # INSTRUCTION; `code` is an index into `operations`
    operations: list[str]
    pool: np.ndarray
    tables: np.ndarray
    constants: np.ndarray
    special: np.ndarray
    statements: list[Statement]  # one for each instruction
    slots: int
    local: int  # bytes a thread
    shared: int  # bytes of static shared memory
    dynamic: int  # where dynamic shared memory begins
    granule: int
    globals: list[bytes]  # its variables in global memory, initialised


Decoder = Callable[["Decoding", Opcode, tuple[str, ...]], None]
DECODERS: dict[str, Decoder] = {}


def decodes(*bases: str) -> Callable[[Decoder], Decoder]:
    """Register the decorated function as the decoder of opcodes with these bases."""

    def note(function: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(bases, function))
        return function

    return note


class Decoding:
    """The state of decoding one entry."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.statement: Statement | None = None
        self._slots: dict[str, int] = {}
        self._constants: dict[int, int] = {}
        self._operations: dict[str, int] = {}
        self._rows: list[tuple[object, ...]] = []
        self._targets: list[tuple[int, str]] = []
        self._pool: list[int] = []
        self._tables: list[int] = []
        self._statements: list[Statement] = []
        self._guard = -1
        self._place_variables()
        self.granule = 4

    def code(self) -> Code:
        starts = []  # of the statements, in instructions
        for statement in self.entry.statements:
            starts.append(len(self._rows))
            self.statement = statement
            self._guard = -1
            if statement.guard:
                self._guard = 2 * self.register(statement.guard) + statement.negated
            op = opcode(statement.opcode)
            decoder = DECODERS.get(op.base)
            if decoder is None:
                raise self.unknown()
            if (word := unknown_qualifier(op.base, op.qualifiers, op.types)) is not None:
                raise self.unknown(f" (what .{word} means is not)")
            try:
                decoder(self, op, statement.operands)
            except UnknownInstruction:
                raise
            except (ValueError, KeyError, IndexError, StopIteration) as error:
                raise self.unknown(f" ({type(error).__name__}: {error})") from error
        starts.append(len(self._rows))
        self.statement = self._statements[-1] if self._statements else None
        self.emit("exit")  # what an entry ends with, if it says nothing else
        rows = np.array(self._rows, dtype=INSTRUCTION)
        labels = {name: starts[at] for name, at in self.entry.labels.items()}
        for row, label in self._targets:
            if label in self.entry.tables:  # a label of the code too
                targets = [labels[target] for target in self.entry.tables[label]]
                rows["target"][row] = len(self._tables)
                self._tables += [len(targets), *targets]
            elif label in labels:
                rows["target"][row] = labels[label]
            else:
                self.statement = self._statements[row]
                raise self.unknown(f" (there is no label {label})")
        constants = np.zeros(len(self._constants), CONSTANT)
        constants["value"] = list(self._constants)
        constants["slot"] = list(self._constants.values())
        return Code(
            rows,
            list(self._operations),
            np.array(self._pool or [0], np.int32),
            np.array(self._tables or [0], np.int32),
            constants,
            np.array([self._slots.get(name, -1) for name in SPECIAL], np.int32),
            self._statements,
            len(self._slots) + len(self._constants),
            self._local,
            self._shared,
            self._dynamic,
            self.granule,
            self._globals,
        )

    def unknown(self, why: str = "") -> UnknownInstruction:
        """The error for a statement that the emulator does not know: the current one."""
        at = self.statement
        assert at is not None
        where = f", {at.source}" if at.source else ""
        return UnknownInstruction(
            f"{self.entry.name}: PTX line {at.line}{where}: {at.text[:160]} is not known to the emulator{why}",
            kernel=self.entry.name,
            ptx_line=at.line,
            source=at.source,
        )

    # ---- variables ---------------------------------------------------------------------------------------------------

    def _place_variables(self) -> None:
        self._shared = self._local = 0
        self._globals: list[bytes] = []
        self._addresses: dict[str, tuple[int, int]] = {}  # space, offset or address
        dynamic = []
        for name, variable in self.entry.variables.items():
            if variable.space == "shared" and variable.size == 0:
                dynamic.append((name, variable.align))
            elif variable.space == "shared":
                at = _up(self._shared, variable.align)
                self._addresses[name], self._shared = (SHARED, at), at + variable.size
            elif variable.space == "local":
                at = _up(self._local, variable.align)
                self._addresses[name], self._local = (LOCAL, at), at + variable.size
            else:
                self._globals.append(variable.data)
                self._addresses[name] = (GLOBAL, len(self._globals) << RANGE_SHIFT)
        self._local = _up(self._local, 16)
        self._dynamic = _up(self._shared, max([16, *(align for _, align in dynamic)])) if self._shared else 0
        self._addresses |= {name: (SHARED, self._dynamic) for name, _ in dynamic}

    def space_of(self, name: str) -> int | None:
        """The memory space of a variable or parameter; None for another name."""
        if name in self._addresses:
            return self._addresses[name][0]
        return PARAMETER if name in self.entry.parameters else None

    # ---- operands ----------------------------------------------------------------------------------------------------

    def register(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = len(self._slots) + len(self._constants)
        return self._slots[name]

    def constant(self, value: int) -> int:
        value &= (1 << 64) - 1
        if value not in self._constants:
            self._constants[value] = len(self._slots) + len(self._constants)
        return self._constants[value]

    def operand(self, text: str, kind: str = "none") -> int:
        """The slot of an operand; kind: the type that an immediate is read as. −1 for `_`."""
        slot = self._slots.get(text)
        if slot is not None:
            return slot
        if text == "_":
            return -1
        first = text[0]
        if first == "%":
            return self.register(text)
        if first == "0" and text[1:2] in ("f", "F", "d", "D") and len(text) > 3:
            bits = int(text[2:], 16)
            if text[1] in "fF" and kind == "f64":
                (bits,) = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))
            elif text[1] in "dD" and kind == "f32":
                (bits,) = struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", bits))[0]))
            return self.constant(bits)
        if _INTEGER.match(text):
            value = integer(text)
            if kind in ("f32", "f64"):
                return self._float(float(value), kind)
            return self.constant(value & (1 << 8 * SIZES.get(kind, 8)) - 1 if kind in SIZES else value)
        if _DECIMAL.match(text):
            return self._float(float(text), kind)
        if text in self._addresses:
            space, at = self._addresses[text]
            return self.constant(at + (LOCAL_WINDOW if space == LOCAL else 0))
        if text in self.entry.parameters:
            return self.constant(PARAMETER_WINDOW + self.entry.parameters[text].offset)
        if text == "WARP_SZ":
            return self.constant(32)
        if re.fullmatch(r"[\w$@]+", text):  # a register that a scope of inline assembly has declared
            return self.register(text)
        raise ValueError(f"operand {text!r}")

    def _float(self, value: float, kind: str) -> int:
        packed = struct.pack("<d", value) if kind == "f64" else struct.pack("<f", value)
        return self.constant(int.from_bytes(packed, "little"))

    def operands(self, texts: Sequence[str], kind: str = "none") -> list[int]:
        return [self.operand(text, kind) for text in texts]

    def vector(self, text: str, kind: str = "none") -> list[int]:
        """The slots of `{a, b}`, or of one operand."""
        if text.startswith("{"):
            return [self.operand(part, kind) for part in split(text[1:-1])]
        return [self.operand(text, kind)]

    def address(self, text: str) -> tuple[str, int]:
        """The base and the offset of `[base + offset]`."""
        found = _ADDRESS.match(text)
        if found is None:
            raise ValueError(f"address {text!r}")
        return found[1], integer(found[2]) if found[2] else 0

    def pair(self, text: str) -> tuple[int, int]:
        """The slots of `a|b`, the second −1 where it is only `a`."""
        first, _, second = text.partition("|")
        return self.operand(first.strip()), self.operand(second.strip()) if second else -1

    def predicate(self, text: str) -> tuple[int, int]:
        """The slot of a predicate, and whether it is negated."""
        negated = text.startswith("!")
        return self.operand(text[negated:].strip(), "pred"), int(negated)

    # ---- instructions ------------------------------------------------------------------------------------------------

    def emit(
        self,
        operation: str,
        results: Sequence[int] = (),
        sources: Sequence[int] = (),
        kind: str = "none",
        kind2: str = "none",
        modifiers: Sequence[int] = (),
        immediate: int = 0,
        target: str = "",
    ) -> None:
        """Append an instruction. modifiers, immediate: as the operation's handler in the core says; target: a label."""
        code = self._operations.setdefault(operation, len(self._operations))
        if target:
            self._targets.append((len(self._rows), target))
        self._rows.append(
            (
                code, TYPES[kind], TYPES[kind2], self._guard, len(self._pool), len(results), len(sources),
                (*modifiers, *(0,) * (6 - len(modifiers))), 0, immediate,
            )
        )  # fmt: skip
        self._pool += results
        self._pool += sources
        assert self.statement is not None
        self._statements.append(self.statement)


def _up(at: int, align: int) -> int:
    return -(-at // align) * align


def integer(text: str) -> int:
    """The integer that a literal of PTX is."""
    text = text.rstrip("U")
    digits = text.lstrip("-")
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    value = int(digits, 8 if octal else 0)
    return -value if text.startswith("-") else value
