"""A parser of PTX: the declarations of an entry (a kernel), and its instructions with their lines.

    entry = parse(text, "kernel")
    entry.parameters, entry.statements[0].opcode, entry.statements[0].source

(NVIDIA, 'Parallel Thread Execution ISA'. `gpuconv.emulator.decode` gives the statements their meaning.)
"""

import dataclasses
import re
from typing import NamedTuple

from gpuconv.emulator.errors import UnknownInstruction

SIZES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "u32": 4, "s32": 4, "b64": 8, "u64": 8, "s64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4, "b128": 16, "pred": 1,
}  # fmt: skip

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(\([^)]*\))?([^{;]*)\{")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr(?:\s*\.(?:global|shared|const|local|generic))?(?:\s*\.align\s+\d+)?)?"
    r"(?:\s*\.align\s+\d+)?\s+([\w$]+)(?:\[(\d+)\])?\s*$"
)
_VARIABLE = re.compile(
    r"((?:\.(?:visible|extern|weak|common)\s+)*)\.(shared|local|global|const)\s+(?:\.attribute\([^)]*\)\s+)?(?:\.align\s+(\d+)\s+)?"
    r"((?:\.v[24]\s+)?)\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_LABEL = re.compile(r"([\w$]+):(?!:)")
_INLINE = re.compile(r"// begin inline asm.*?// end inline asm", re.DOTALL)
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s*"([^"]*)")?')
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
_REGISTERS = re.compile(r"\.reg\s+\.\w+\s+([^;]+);")
_NUMBERED = re.compile(r"(%?[\w$]+)<(\d+)>")
_SPACES = re.compile(r"\s+")


class Parameter(NamedTuple):
    """A parameter of a kernel."""

    offset: int  # bytes, in the memory of all parameters
    size: int  # bytes
    type: str  # "u64", "f32", …; "b8" for a struct


class Variable(NamedTuple):
    """A variable: memory that is declared by name."""

    space: str  # "shared", "local", "global" or "const"
    align: int
    size: int  # bytes; 0 for the dynamic shared memory
    data: bytes  # of global and const variables


class Statement(NamedTuple):
    """An instruction."""

    line: int  # of the PTX, from 1
    source: str | None  # "file:line" of the source, where the compiler recorded it
    guard: str  # the register of its predicate, or ""
    negated: bool
    opcode: str  # "ld.global.v4.b32"
    operands: tuple[str, ...]

    @property
    def text(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".rstrip() + ";"


@dataclasses.dataclass
class Entry:
    """A kernel, parsed."""

    name: str
    target: str  # "sm_90a"
    parameters: dict[str, Parameter]
    threads: tuple[int, int, int] | None  # of a block, where the PTX fixes them
    statements: list[Statement]
    labels: dict[str, int]  # the index of the statement that follows
    tables: dict[str, tuple[str, ...]]  # labels of each .branchtargets
    variables: dict[str, Variable]


def parse(text: str, name: str | None = None) -> Entry:
    """The entry of this name, or the only one. Raises ValueError where there is none, or the text is not PTX."""
    files = {int(number): file.rpartition("/")[2] for number, directory, file in _files(text)}
    plain = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
    # The lines of inline assembly are counted on from the line of the source: no lines of it.
    plain = _INLINE.sub(lambda m: re.sub(r"\.loc[^\n]*", "", m[0]), plain)
    plain = re.sub(r"//[^\n]*", "", plain)
    found = [m for m in _ENTRY.finditer(plain) if name in (None, m[1])]
    if not found:
        raise ValueError(
            f"name must be an entry of the PTX, but there is no {name!r}" if name else "PTX without an entry"
        )
    if len(found) > 1:
        raise ValueError(f"name must say which entry of {', '.join(m[1] for m in found)}")
    (entry,) = found
    target = re.search(r"\.target\s+(\w+)", plain)
    threads = re.search(r"\.(?:reqntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", entry[3])
    end = _closing(plain, entry.end())
    body = _Body(plain, entry.end(), end, files)
    outside = plain[: entry.start()] + plain[end:]
    for declaration in re.finditer(
        r"^[^\S\n]*((?:\.(?:visible|extern|weak|common)\s+)*\.(?:shared|global|const)\s[^;]*);", outside, re.M
    ):
        body.declare(declaration[1])
    return Entry(
        entry[1],
        target[1] if target else "",
        _parameters(entry[2] or "()"),
        (int(threads[1]), int(threads[2] or 1), int(threads[3] or 1)) if threads else None,
        body.statements,
        body.labels,
        body.tables,
        body.variables,
    )


_PRODUCTS = ("mma.", "wgmma.mma_async."), ("fma.", "mad.")  # the former count where there are any


def main_loops(entry: Entry) -> list[tuple[int, int]]:
    """The first and the last PTX line of each innermost loop that multiplies; none where no loop does.

    Products are those of tensor cores, where the kernel has any. A loop is what a branch backwards closes.
    """
    loops, statements = set(), entry.statements
    for at, statement in enumerate(statements):
        target = entry.labels.get(statement.operands[-1], at + 1) if statement.opcode.startswith("bra") else at + 1
        if target <= at:
            loops.add((target, at))
    for opcodes in _PRODUCTS:
        products = [at for at, statement in enumerate(statements) if statement.opcode.startswith(opcodes)]
        busy = {(a, b) for a, b in loops if any(a <= at <= b for at in products)}
        if products:
            inner = [(a, b) for a, b in busy if not any((a, b) != (c, d) and a <= c and d <= b for c, d in busy)]
            return sorted((statements[a].line, statements[b].line) for a, b in inner)
    return []


def split(text: str) -> tuple[str, ...]:
    """Split at commas, except inside brackets."""
    if "{" not in text and "[" not in text and "(" not in text:
        return tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return (*parts, text[start:].strip())


def _files(text: str) -> list[tuple[str, str, str]]:
    return [(m[1], m[2] if m[3] else "", m[3] or m[2]) for m in _FILE.finditer(text)]


def _closing(text: str, at: int) -> int:
    """The position of the brace that closes the one opened just before `at`."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise ValueError("PTX that ends inside an entry")


def _parameters(text: str) -> dict[str, Parameter]:
    parameters, end = {}, 0
    for part in split(text[1:-1]):
        found = _PARAMETER.match(part)
        if found is None:
            raise ValueError(f"a parameter of PTX that is not understood: {part!r}")
        align, kind, name, count = found.groups()
        size = SIZES[kind] * int(count or 1)
        step = int(align or SIZES[kind])
        offset = -(-end // step) * step
        parameters[name] = Parameter(offset, size, kind)
        end = offset + size
    return parameters


class _Body:
    """The statements between an entry's braces. Braces inside open a scope, whose registers and labels are its own."""

    def __init__(self, text: str, start: int, end: int, files: dict[int, str]) -> None:
        self.statements: list[Statement] = []
        self.labels: dict[str, int] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, Variable] = {}
        self._scopes: list[dict[str, str]] = []
        self._opened = 0
        self._label = ""
        line, at, source = text.count("\n", 0, start) + 1, start, None
        while True:
            space = _SPACES.match(text, at)
            if space:
                line += space[0].count("\n")
                at = space.end()
            if at >= end:
                return
            if text.startswith(".loc", at) and (where := _LOCATION.match(text, at)):
                source = f"{files.get(int(where[1]), '?')}:{where[2]}" if int(where[2]) else None
                at = text.index("\n", at)
            elif text[at] == "{":
                self._open(text, at + 1)
                at += 1
            elif text[at] == "}":
                self._scopes.pop()
                at += 1
            elif text[at] == ";":
                at += 1
            elif label := _LABEL.match(text, at):
                self._label = self._resolved(label[1])
                self.labels[self._label] = len(self.statements)
                at = label.end()
            else:
                stop = text.find(";", at, end)
                if stop < 0:
                    raise ValueError(f"PTX line {line}: a statement without its semicolon")
                self._statement(text[at:stop], line, source)
                line += text.count("\n", at, stop)
                at = stop + 1

    def _open(self, text: str, start: int) -> None:
        self._opened += 1
        inside = text[start : _closing(text, start)]
        names = [label[1] for label in re.finditer(r"(?:^|[;{}\n])\s*([\w$]+):(?!:)", inside)]
        for declaration in _REGISTERS.finditer(inside):
            names += _declared(declaration[1])
        names += re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.\w+\s+([\w$]+)", inside)
        self._scopes.append({name: f"{name}@{self._opened}" for name in names})

    def _resolved(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return name

    def _statement(self, text: str, line: int, source: str | None) -> None:
        text = _SPACES.sub(" ", text).strip()
        if text.startswith("."):
            self._directive(text)
            return
        guard, negated = "", False
        if text.startswith("@"):
            first, _, text = text[1:].lstrip().partition(" ")
            negated = first.startswith("!")
            guard = self._resolved(first[negated:])
        opcode, _, operands = text.strip().partition(" ")
        if self._scopes:
            operands = _NAME.sub(lambda name: self._resolved(name[0]), operands)
        self.statements.append(Statement(line, source, guard, negated, opcode, split(operands)))

    def _directive(self, text: str) -> None:
        if text.startswith(".branchtargets"):
            targets = split(text.partition(" ")[2])
            self.tables[self._label] = tuple(self._resolved(target) for target in targets)
        elif text.startswith(".param"):  # of a call: memory of the thread
            found = re.match(r"\.param (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?$", text)
            if found is None:
                raise ValueError(f"a declaration of PTX that is not understood: {text!r}")
            size = SIZES[found[2]] * int(found[4] or 1)
            self.variables[self._resolved(found[3])] = Variable("local", int(found[1] or SIZES[found[2]]), size, b"")
        elif not text.startswith(
            (".reg", ".pragma", ".file", ".section", ".maxntid", ".minnctapersm", ".callprototype")
        ):
            self.declare(text)

    def declare(self, text: str) -> None:
        """Record the declaration of a variable."""
        found = _VARIABLE.match(_SPACES.sub(" ", text))
        if found is None:
            raise ValueError(f"a declaration of PTX that is not understood: {text[:100]!r}")
        linkage, space, align, vector, kind, name, lengths, values = found.groups()
        size = SIZES[kind] * (int(vector.strip()[2:]) if vector else 1)
        step, count = int(align or size), 1
        for length in re.findall(r"\[(\d*)\]", lengths):
            count *= int(length or 0)
        size *= count
        data = _initial(values, SIZES[kind], kind) if values else b""
        if "extern" in linkage and space != "shared":
            size = 0
        self.variables.setdefault(name, Variable(space, step, size, data.ljust(size, b"\0")))


def _declared(text: str) -> list[str]:
    names = []
    for part in split(text):
        numbered = _NUMBERED.fullmatch(part)
        names += [f"{numbered[1]}{i}" for i in range(int(numbered[2]))] if numbered else [part]
    return names


def _initial(values: str, size: int, kind: str) -> bytes:
    """The bytes of an initialiser: numbers, in braces or alone."""
    numbers = re.findall(r"0[fFdD][0-9a-fA-F]+|-?0[xX][0-9a-fA-F]+|-?\d+", values)
    if re.search(r"[A-Za-z_$][\w$]*\s*[,}+]", re.sub(r"0[xXfFdD][0-9a-fA-F]+", "", values)):
        raise UnknownInstruction(f"a variable that is initialised with an address: {values[:60]!r}")
    data = b""
    for number in numbers:
        value = int(number[2:], 16) if number[:2] in ("0f", "0F", "0d", "0D") else int(number, 0)
        data += (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return data
