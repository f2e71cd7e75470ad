"""Decoding of moves, of loads and stores, and of atomics."""

from gpuconv.emulator.decode.base import (
    ATOMIC,
    GENERIC,
    LOCAL,
    LOCAL_WINDOW,
    PARAMETER,
    PARAMETER_WINDOW,
    SHARED,
    SHARED_WINDOW,
    Decoding,
    Opcode,
    decodes,
)
from gpuconv.emulator.ptx import SIZES


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
        modifiers=[space, op.one_of(ATOMIC), 2 * acquires | 4 * releases, int(old is not None), len(values)],
        immediate=offset,
    )  # fmt: skip
