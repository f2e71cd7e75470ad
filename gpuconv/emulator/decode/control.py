"""Decoding of exchanges between lanes, of branches, and of instructions without effect here."""

from gpuconv.emulator.decode.base import ATOMIC, Decoding, Opcode, decodes

_ALL_LANES = "-1"


@decodes("shfl")
def _shuffle(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    mode = op.one_of({"up": 0, "down": 1, "bfly": 2, "idx": 3})
    sources = d.operands((*operands[1:], *(_ALL_LANES,) * (5 - len(operands))), "b32")
    d.emit("shfl", d.pair(operands[0]), sources, op.type, modifiers=[mode])


@decodes("vote")
def _vote(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    a, negated = d.predicate(operands[1])
    members = d.operand(operands[2] if len(operands) > 2 else _ALL_LANES, "b32")
    mode = op.one_of({"all": 0, "any": 1, "uni": 2, "ballot": 3})
    d.emit("vote", [d.operand(operands[0])], [a, members], op.type, modifiers=[mode, negated])


@decodes("match", "redux")
def _across_lanes(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    sources = d.operands(operands[1:], op.type)
    if op.base == "match":
        d.emit("match", d.pair(operands[0]), sources, op.type, modifiers=[int(op.has("all"))])
    else:
        d.emit("redux", [d.operand(operands[0])], sources, op.type, modifiers=[0, op.one_of(ATOMIC)])


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
    """Calls of the device library's two functions: vprintf, which prints nothing here, and __assertfail."""
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
    """Instructions that change nothing that is modelled. (A cache policy is a number that is never read.)"""
    if op.base == "createpolicy":
        d.emit("mov", [d.operand(operands[0])], [d.constant(0)], "b64")
    else:
        d.emit("nothing")
