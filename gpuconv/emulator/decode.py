"""From statements to the numbers that the core executes: registers become slots, opcodes operations with modifiers.

Every operand is a slot, a register of all lanes: immediates and addresses of variables are slots too, filled when a
thread starts. What the modifiers of an operation mean is said in the core, beside its handler. `decode_matrix` has the
instructions of tensor cores, of the copy engine and of barriers.
"""

import dataclasses
import functools
import re
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpuconv.emulator.errors import UnknownInstruction
from gpuconv.emulator.ptx import SIZES, Entry, Statement, split
from gpuconv.emulator.words import unknown_word

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
_ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
_INTEGRAL = {"rni", "rzi", "rmi", "rpi"}
_COMPARE = {
    "eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5, "lo": 2, "ls": 3, "hi": 4, "hs": 5, "num": 6, "nan": 7,
    "equ": 8, "neu": 9, "ltu": 10, "leu": 11, "gtu": 12, "geu": 13,
}  # fmt: skip
_ATOMIC = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "exch": 6, "cas": 7, "inc": 8, "dec": 9}
_ADDRESS = re.compile(r"\[\s*([^\s+\]]+?)\s*(?:\+\s*(-?\w+)\s*)?\]$")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_DECIMAL = re.compile(r"-?\d*\.\d+(?:[eE][-+]?\d+)?$|-?\d+\.\d*(?:[eE][-+]?\d+)?$")


class Opcode(NamedTuple):
    """An opcode, taken apart."""

    base: str
    words: tuple[str, ...]
    types: tuple[str, ...]  # of the words, those that are types

    @property
    def type(self) -> str:
        return self.types[-1] if self.types else "none"

    def has(self, word: str) -> bool:
        return word in self.words

    def one_of(self, table: dict[str, int], default: int = 0) -> int:
        """The value of the first word that is in the table."""
        return next((table[word] for word in self.words if word in table), default)

    @property
    def space(self) -> int:
        return self.one_of(_SPACES, GENERIC)

    @property
    def float_modifiers(self) -> tuple[int, int, int, int]:
        """Rounding, saturation, NaN or ReLU, flushing: what arithmetic on floats may say."""
        saturated = self.has("sat") or self.has("satfinite")
        special = self.has("NaN") or self.has("relu")
        return self.one_of(_ROUNDING), int(saturated), int(special), int(self.has("ftz"))


@functools.lru_cache(maxsize=4096)
def opcode(text: str) -> Opcode:
    """An opcode by its text."""
    base, *words = text.split(".")
    return Opcode(base, tuple(words), tuple(word for word in words if word in TYPES))


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
    globals: list[bytes]  # memory of its own, which is there before a launch


Decoder = Callable[["Decoding", Opcode, tuple[str, ...]], None]
DECODERS: dict[str, Decoder] = {}


def decodes(*bases: str) -> Callable[[Decoder], Decoder]:
    """The function decodes opcodes with these first words."""

    def note(function: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(bases, function))
        return function

    return note


def decode(entry: Entry) -> Code:
    """Decode an entry. Raises UnknownInstruction, which names the instruction and its line."""
    from gpuconv.emulator import decode_matrix  # fills DECODERS

    assert decode_matrix
    return Decoding(entry).code()


class Decoding:
    """What is known while an entry is decoded."""

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
            if (word := unknown_word(op.base, op.words, op.types)) is not None:
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
        """The error that the statement at hand is not known."""
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
        """The space of a variable or parameter; None for another name."""
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
            value = _integer(text)
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
        return found[1], _integer(found[2]) if found[2] else 0

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
        """Add an instruction."""
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


def _integer(text: str) -> int:
    text = text.rstrip("U")
    digits = text.lstrip("-")
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    value = int(digits, 8 if octal else 0)
    return -value if text.startswith("-") else value


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _plain(name: str) -> Decoder:
    def decoder(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
        first, *rest = d.operands(operands, op.type)
        d.emit(name, [first], rest, op.type, modifiers=op.float_modifiers)

    return decoder


for _name in ("min", "max", "abs", "neg", "copysign", "not", "cnot", "popc", "clz", "brev", "sad", "rem", "rcp",
              "sqrt", "rsqrt", "ex2", "lg2", "tanh", "sin", "cos", "shl", "shr", "bfe", "bfi"):  # fmt: skip
    DECODERS[_name] = _plain(_name)
DECODERS["div"] = _plain("div")


@decodes("add", "sub", "addc", "subc")
def _sum(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    carries = op.base.endswith("c")
    if carries or op.has("cc"):
        result, a, b = d.operands(operands, op.type)
        flag = d.register("carry flag")
        d.emit(
            "carry", [result, flag if op.has("cc") else -1], [a, b, flag if carries else -1], op.type,
            modifiers=[int(op.base.startswith("sub"))],
        )  # fmt: skip
    elif len(op.types) == 2 and op.types[0] == "f32":  # of a float and a small one
        small, wide = d.operand(operands[1], op.types[1]), d.register(f"{operands[1]} as f32")
        d.emit("cvt", [wide], [small], "f32", op.types[1])
        result, other = d.operand(operands[0]), d.operand(operands[2], "f32")
        d.emit(op.base, [result], [wide, other], "f32", modifiers=op.float_modifiers)
    else:
        _plain(op.base)(d, op, operands)


@decodes("mul", "mad", "fma", "mul24", "mad24", "madc")
def _product(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    first, *rest = d.operands(operands, op.type)
    if op.base in ("madc", "mad") and (op.has("cc") or op.base == "madc"):
        a, b, c = rest
        product, flag = d.register("product before a carry"), d.register("carry flag")
        d.emit("mul.hi" if op.has("hi") else "mul", [product], [a, b], op.type)
        d.emit(
            "carry", [first, flag if op.has("cc") else -1], [product, c, flag if op.base == "madc" else -1], op.type
        )  # fmt: skip
        return
    if op.base.endswith("24"):
        raise d.unknown()
    if op.type[0] in "fb" and op.type != "b32":
        name = "mul" if op.base == "mul" else "fma"
        if len(op.types) == 2:  # fma.rn.f32.f16: of small factors
            wide = [d.register(f"{text} as f32") for text in operands[1:3]]
            for slot, text in zip(wide, operands[1:3], strict=True):
                d.emit("cvt", [slot], [d.operand(text, op.types[1])], "f32", op.types[1])
            d.emit(name, [first], [*wide, *rest[2:]], "f32", modifiers=op.float_modifiers)
            return
        d.emit(name, [first], rest, op.type, modifiers=op.float_modifiers)
        return
    half = next(word for word in op.words if word in ("lo", "hi", "wide"))
    name = op.base if half == "lo" else f"{op.base}.{half}"
    d.emit(name, [first], rest, op.type, modifiers=[0, int(op.has("sat"))])


@decodes("and", "or", "xor")
def _logic(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, *rest = d.operands(operands, op.type)
    name = f"{op.base}.pred" if op.type == "pred" and op.base != "xor" else op.base
    d.emit(name, [result], rest, op.type)


@decodes("bfind")
def _find_bit(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a = d.operands(operands, op.type)
    d.emit("bfind", [result], [a], op.type, modifiers=[int(op.has("shiftamt"))])


@decodes("shf", "prmt", "lop3", "dp4a")
def _words(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a, b, c = d.operands(operands[:4], op.type)
    modifiers = {
        "shf": lambda: [int(op.has("r")), int(op.has("clamp"))],
        "prmt": lambda: [op.one_of({"f4e": 1, "b4e": 2, "rc8": 3, "ecl": 4, "ecr": 5, "rc16": 6})],
        "lop3": lambda: [_integer(operands[4])],
        "dp4a": lambda: [int(kind == "s32") for kind in op.types],
    }[op.base]()
    d.emit(op.base, [result], [a, b, c], op.type, modifiers=modifiers)


@decodes("testp")
def _test(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    kinds = {"finite": 0, "infinite": 1, "number": 2, "notanumber": 3, "normal": 4, "subnormal": 5}
    d.emit(
        "testp", [d.operand(operands[0])], [d.operand(operands[1], op.type)], op.type,
        modifiers=[0, 0, 0, 0, op.one_of(kinds)],
    )  # fmt: skip


@decodes("setp", "set")
def _compare(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    how = op.one_of(_COMPARE)
    combine = op.one_of({"and": 1, "or": 2, "xor": 3})
    kind = op.types[-1]
    a, b = d.operands(operands[1:3], kind)
    c, negated = d.predicate(operands[3]) if combine else (-1, 0)
    modifiers = [how, combine, negated, int(op.has("ftz"))]
    if op.base == "setp":
        d.emit("setp", d.pair(operands[0]), [a, b, c], kind, modifiers=modifiers)
    else:
        sources = [a, b, c] if combine else [a, b]
        d.emit("set", [d.operand(operands[0])], sources, op.types[0], kind, modifiers)


@decodes("selp")
def _select(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a, b = d.operands(operands[:3], op.type)
    d.emit("selp", [result], [a, b, d.operand(operands[3], "pred")], op.type)


@decodes("slct")
def _select_by_sign(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a, b = d.operands(operands[:3], op.types[0])
    d.emit("slct", [result], [a, b, d.operand(operands[3], op.types[1])], op.types[0], op.types[1])


@decodes("cvt")
def _convert(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if len(op.types) != 2:
        raise d.unknown()
    to, source = op.types
    if op.has("satfinite") and not to.endswith("x2"):
        raise d.unknown()
    rounding, saturated, special, flush = op.float_modifiers
    integral = int(to in ("f16", "bf16", "f32", "f64") and any(word in _INTEGRAL for word in op.words))
    if to[0] in "usb" and to not in ("bf16", "bf16x2") and source[0] in "fb" and source != "b32":
        saturated = 1  # floats are always clamped
        if not any(word in _ROUNDING for word in op.words):
            rounding = 1
    result, *rest = d.operands(operands, source)
    d.emit("cvt", [result], rest, to, source, [rounding, saturated, special, flush, integral])


# ---- moves and memory ------------------------------------------------------------------------------------------------


@decodes("mov")
def _move(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    to, source = operands
    if to.startswith("{"):
        d.emit("unpack", d.vector(to), [d.operand(source, op.type)], op.type)
    elif source.startswith("{"):
        parts = d.vector(source)
        d.emit("pack", [d.operand(to)], parts, op.type)
    elif source in ("%clock", "%clock64", "%globaltimer", "%clock_hi", "%globaltimer_lo"):
        d.emit("clock", [d.operand(to)], [], op.type)
    elif source.startswith("%envreg") or source in ("%smid", "%nsmid", "%gridid", "%dynamic_smem_size"):
        raise d.unknown()
    else:
        base, _, offset = source.partition("+")
        slot = d.operand(base.strip(), op.type)
        if offset:
            d.emit("add", [d.operand(to)], [slot, d.operand(offset.strip(), op.type)], "u64")
        else:
            d.emit("mov", [d.operand(to)], [slot], op.type)


@decodes("cvta")
def _to_generic(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a = d.operands(operands)
    window = {SHARED: SHARED_WINDOW, LOCAL: LOCAL_WINDOW, PARAMETER: PARAMETER_WINDOW}.get(op.space, 0)
    if d.space_of(operands[1]) in (LOCAL, PARAMETER):  # the address of a variable of these is generic already
        window = 0
    if op.space in (LOCAL, PARAMETER):
        d.emit("address", [result], [a], modifiers=[0])  # as above: such addresses are generic ones everywhere
    else:
        d.emit("address", [result], [a], modifiers=[(2 if op.has("to") else 1) if window else 0], immediate=window)


@decodes("mapa")
def _map_address(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a, rank = d.operands(operands)
    d.emit("address", [result], [a, rank], modifiers=[3])


@decodes("isspacep")
def _is_space(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a = d.operands(operands)
    d.emit("isspacep", [result], [a], modifiers=[op.space])


@decodes("ld", "ldu", "st")
def _memory(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    loads = op.base != "st"
    if op.has("L2::cache_hint"):
        operands = operands[:-1]
    registers, memory = operands if loads else operands[::-1]
    base, offset = d.address(memory)
    space = d.space_of(base)
    if space is None:
        space = op.space
    values = d.vector(registers, op.type)
    if op.has("v8") and len(values) != 8:
        raise d.unknown()
    slot = d.operand(base)
    order = 2 if op.has("acquire") or op.has("release") else 1 if op.has("relaxed") or op.has("volatile") else 0
    bytes_ = len(values) * SIZES[op.type]
    if space in (SHARED, GENERIC):
        d.granule = min(d.granule, bytes_)
    modifiers = [space, len(values), order]
    if loads:
        d.emit("ld", values, [slot], op.type, modifiers=modifiers, immediate=offset)
    else:
        d.emit("st", [], [*values, slot], op.type, modifiers=modifiers, immediate=offset)


@decodes("atom", "red")
def _atomic(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    old = operands[0] if op.base == "atom" else None
    memory, *rest = operands[1:] if old else operands
    base, offset = d.address(memory)
    values = d.vector(rest[0], op.type)
    space = d.space_of(base)
    if space is None:
        space = op.space
    if space in (SHARED, GENERIC):
        d.granule = min(d.granule, SIZES[op.type])
    acquires = op.has("acquire") or op.has("acq_rel")
    releases = op.has("release") or op.has("acq_rel")
    sources = [d.operand(base), *values, *(d.operand(c, op.type) for c in rest[1:2] if op.has("cas"))]
    d.emit(
        "atom", d.vector(old) if old else [], sources, op.type,
        modifiers=[space, op.one_of(_ATOMIC), 2 * acquires | 4 * releases, int(old is not None), len(values)],
        immediate=offset,
    )  # fmt: skip


# ---- lanes and control -----------------------------------------------------------------------------------------------

_EVERYBODY = "-1"


@decodes("shfl")
def _shuffle(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    mode = op.one_of({"up": 0, "down": 1, "bfly": 2, "idx": 3})
    sources = d.operands((*operands[1:], *(_EVERYBODY,) * (5 - len(operands))), "b32")
    d.emit("shfl", d.pair(operands[0]), sources, op.type, modifiers=[mode])


@decodes("vote")
def _vote(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    a, negated = d.predicate(operands[1])
    members = d.operand(operands[2] if len(operands) > 2 else _EVERYBODY, "b32")
    mode = op.one_of({"all": 0, "any": 1, "uni": 2, "ballot": 3})
    d.emit("vote", [d.operand(operands[0])], [a, members], op.type, modifiers=[mode, negated])


@decodes("match", "redux")
def _across_lanes(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    sources = d.operands(operands[1:], op.type)
    if op.base == "match":
        d.emit("match", d.pair(operands[0]), sources, op.type, modifiers=[int(op.has("all"))])
    else:
        d.emit("redux", [d.operand(operands[0])], sources, op.type, modifiers=[0, op.one_of(_ATOMIC)])


@decodes("elect")
def _elect(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("elect", d.pair(operands[0]), [d.operand(operands[1], "b32")])


@decodes("activemask")
def _active_mask(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("activemask", d.operands(operands), [])


@decodes("bra")
def _branch(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("bra", target=operands[0])


@decodes("brx")
def _indexed_branch(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("brx", [], [d.operand(operands[0])], target=operands[1])


@decodes("ret", "exit")
def _exit(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("exit")


@decodes("trap")
def _trap(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("trap")


@decodes("call")
def _call(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    """Of the two functions that the device's own library has: printing, which prints nothing here, and assertions."""
    name = next(operand for operand in operands if not operand.startswith("("))
    if name not in ("vprintf", "__assertfail"):
        raise d.unknown(" (calls of functions are not)")
    d.emit("nothing" if name == "vprintf" else "trap")


@decodes("nanosleep")
def _yield(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("yield")


@decodes("membar", "griddepcontrol", "prefetch", "prefetchu", "discard", "applypriority", "createpolicy", "brkpt",
         "pmevent")  # fmt: skip
def _nothing(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    """What changes nothing that is modelled. (A cache policy is a number that nobody reads.)"""
    if op.base == "createpolicy":
        d.emit("mov", [d.operand(operands[0])], [d.constant(0)], "b64")
    else:
        d.emit("nothing")
