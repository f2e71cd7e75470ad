"""Decoding of the instructions of tensor cores, of asynchronous copies and of barriers."""

import re

from gpuconv.emulator.decode.base import SHARED, TYPES, Decoding, Opcode, decodes
from gpuconv.emulator.ptx import split

# In the order of `tensormap_replace` in core/asynchronous.h.
_FIELDS = {
    name: number
    for number, name in enumerate(
        (
            "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype",
            "interleave_layout", "swizzle_mode", "fill_mode",
        )
    )
}  # fmt: skip
_REDUCTIONS = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "inc": 8, "dec": 9}
_SMALL = ("f16", "bf16", "tf32", "f64")


# ---- tensor cores ----------------------------------------------------------------------------------------------------


@decodes("mma")
def _mma(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    shape = next(word for word in op.qualifiers if re.fullmatch(r"m\d+n\d+k\d+", word))
    m, n, k = map(int, re.findall(r"\d+", shape))
    kinds = [word for word in op.qualifiers if word in (*_SMALL, "f32", "s8", "u8", "s32")]
    if n != 8 or m not in (8, 16) or len(kinds) != 4 or op.has("sp") or not (op.has("row") and op.has("col")):
        raise d.unknown()
    result, a, b, c = kinds
    if a not in (*_SMALL, "s8", "u8") or (m == 8 and a != "f64") or result != c:
        raise d.unknown()
    if op.has("satfinite") and result != "s32":
        raise d.unknown()
    registers = [d.vector(operand) for operand in operands]
    modifiers = [m, k, TYPES[result], *(len(registers[i]) for i in (1, 2, 0))]
    d.emit(
        "mma", registers[0], [*registers[1], *registers[2], *registers[3]], a, b, modifiers, int(op.has("satfinite"))
    )


@decodes("ldmatrix", "stmatrix")
def _matrices(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if not (op.has("m8n8") and op.has("b16")):
        raise d.unknown()
    count = op.one_of({"x1": 1, "x2": 2, "x4": 4})
    registers, memory = operands if op.base == "ldmatrix" else operands[::-1]
    base, offset = d.address(memory)
    values, slot = d.vector(registers), d.operand(base)
    modifiers = [count, int(op.has("trans"))]
    if op.base == "ldmatrix":
        d.emit("ldmatrix", values, [slot], "b16", modifiers=modifiers, immediate=offset)
    else:
        d.emit("stmatrix", [], [*values, slot], "b16", modifiers=modifiers, immediate=offset)


@decodes("wgmma")
def _wgmma(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.has("fence"):
        d.emit("wgmma.fence")
    elif op.has("commit_group"):
        d.emit("wgmma.commit")
    elif op.has("wait_group"):
        d.emit("wgmma.wait", modifiers=[int(operands[0], 0)])
    else:
        shape = next(word for word in op.qualifiers if re.fullmatch(r"m64n\d+k\d+", word))
        n, k = map(int, re.findall(r"\d+", shape)[1:])
        kinds = [word for word in op.qualifiers if word in (*_SMALL, "f32", "s32", "s8", "u8")]
        if (
            len(kinds) != 3
            or (kinds[0] == "s32") != (kinds[1] in ("s8", "u8"))
            or kinds[0] not in ("f32", "f16", "s32")
        ):
            raise d.unknown()
        if op.has("satfinite") and kinds[0] != "s32":
            raise d.unknown()
        results = d.vector(operands[0])
        in_registers = operands[1].startswith("{")
        rest = list(operands[3:]) or ["1"]
        added = d.operand(rest[0], "pred")
        sign_a, sign_b = (int(rest[i]) if len(rest) > i else 1 for i in (1, 2))
        transposed = [int(flag) for flag in rest[3:]]
        a_t, b_t = (0, *transposed, 0)[:2] if in_registers else (*transposed, 0, 0)[:2]
        flags = int(in_registers) | 2 * a_t | 4 * b_t | 8 * (kinds[0] == "f16") | 16 * op.has("satfinite")
        sources = [*d.vector(operands[1]), d.operand(operands[2]), added]
        d.emit("wgmma", results, sources, kinds[1], kinds[2], modifiers=[n, k, flags, sign_a, sign_b])


# ---- asynchronous copies ---------------------------------------------------------------------------------------------


@decodes("cp")
def _copy(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.qualifiers[:1] == ("reduce",) or op.has("bulk"):
        _bulk(d, op, operands)
    elif op.qualifiers[:1] != ("async",):
        raise d.unknown()
    elif op.has("commit_group"):
        d.emit("cp.async.commit")
    elif op.has("wait_group"):
        d.emit("cp.async.wait", modifiers=[int(operands[0], 0)])
    elif op.has("wait_all"):
        d.emit("cp.async.wait", modifiers=[-1])
    elif op.has("mbarrier"):
        base, offset = d.address(operands[0])
        d.emit("cp.async.arrive", [], [d.operand(base)], modifiers=[int(op.has("noinc"))], immediate=offset)
    else:
        (to, to_offset), (source, source_offset) = d.address(operands[0]), d.address(operands[1])
        optional = operands[3:-1] if op.has("L2::cache_hint") else operands[3:]
        size = d.operand(optional[0], "u32") if optional else -1  # bytes that are read
        d.emit(
            "cp.async", [], [d.operand(to), d.operand(source), size],
            modifiers=[int(operands[2], 0), source_offset], immediate=to_offset,
        )  # fmt: skip


def _bulk(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.has("commit_group"):
        d.emit("bulk commit")
        return
    if op.has("wait_group"):
        d.emit("bulk wait", modifiers=[int(operands[0], 0)])
        return
    to_shared = next(word for word in op.qualifiers if word.startswith(("shared", "global"))).startswith("shared")
    if op.has("prefetch"):
        d.emit("nothing")
    elif op.has("tensor"):
        rank = op.one_of({f"{axes}d": axes for axes in range(1, 6)})
        if (
            not rank
            or op.has("im2col")
            or any(word.startswith(("tile::", "im2col", "cta_group")) for word in op.qualifiers)
        ):
            raise d.unknown()
        tensor = operands[0] if not to_shared else operands[1]
        map_, coordinates = split(tensor[1:-1])
        map_, map_offset = d.address(f"[{map_}]")
        at = d.vector(coordinates, "s32")
        if to_shared:
            (to, to_offset), (counted, counted_offset) = d.address(operands[0]), d.address(operands[2])
            multicast = op.has("multicast::cluster")
            blocks = [d.operand(operands[3], "u16")] if multicast else []
            d.emit(
                "tensor load", [], [d.operand(to), d.operand(map_), d.operand(counted), *at, *blocks],
                modifiers=[rank, int(multicast), to_offset, map_offset, counted_offset],
            )  # fmt: skip
        else:
            how = op.one_of(_REDUCTIONS) if op.qualifiers[0] == "reduce" else -1
            source, offset = d.address(operands[1])
            d.emit(
                "tensor store", [], [d.operand(map_), d.operand(source), *at], modifiers=[rank, how, map_offset, offset]
            )
    elif op.qualifiers[0] == "reduce":
        raise d.unknown()
    else:
        (to, to_offset), (source, offset) = d.address(operands[0]), d.address(operands[1])
        sources = [d.operand(to), d.operand(source), d.operand(operands[2], "u32")]
        if not to_shared:
            d.emit("bulk copy", [], sources, modifiers=[1, to_offset, offset])
        else:
            between = op.qualifiers.count("shared::cta") and not op.has("global")
            counted, counted_offset = d.address(operands[3])
            sources.append(d.operand(counted))
            d.emit("bulk copy", [], sources, modifiers=[2 if between else 0, to_offset, offset, counted_offset])


@decodes("tensormap")
def _tensormap(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.has("cp_fenceproxy"):
        (to, to_offset), (source, offset) = d.address(operands[0]), d.address(operands[1])
        d.emit("tensormap.publish", [], [d.operand(to), d.operand(source)], modifiers=[to_offset, offset])
        return
    base, offset = d.address(operands[0])
    axis = int(operands[1], 0) if len(operands) == 3 else 0
    field = next(_FIELDS[word] for word in op.qualifiers if word in _FIELDS)
    d.emit(
        "tensormap.replace", [], [d.operand(base), d.operand(operands[-1], op.type)],
        modifiers=[field, axis, int(op.space != SHARED)], immediate=offset,
    )  # fmt: skip


# ---- barriers --------------------------------------------------------------------------------------------------------


@decodes("mbarrier")
def _mbarrier(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    kind = op.qualifiers[0]
    if kind in ("init", "inval", "expect_tx", "complete_tx"):
        base, offset = d.address(operands[0])
        slot = d.operand(base)
        if kind == "init":
            d.emit("mbarrier.init", [], [slot, d.operand(operands[1], "u32")], immediate=offset)
        elif kind == "inval":
            d.emit("mbarrier.inval", [], [slot], immediate=offset)
        elif kind == "expect_tx":
            d.emit("mbarrier.arrive", [-1], [slot, d.operand(operands[1], "u32")], modifiers=[0, 1], immediate=offset)
        else:
            raise d.unknown()
    elif kind == "arrive":
        if op.has("noComplete"):
            raise d.unknown()
        state, memory, *value = operands if operands[0][0] != "[" else ("_", *operands)
        base, offset = d.address(memory)
        expects = op.has("expect_tx")
        d.emit(
            "mbarrier.arrive", [d.operand(state)], [d.operand(base), d.operand(value[0], "u32") if value else -1],
            modifiers=[1, int(expects)], immediate=offset,
        )  # fmt: skip
    elif kind in ("try_wait", "test_wait"):
        base, offset = d.address(operands[1])
        d.emit(
            "mbarrier.wait", [d.operand(operands[0])], [d.operand(base), d.operand(operands[2], "u32")],
            modifiers=[int(kind == "try_wait")], immediate=offset,
        )  # fmt: skip
    else:
        raise d.unknown()


@decodes("bar", "barrier")
def _barrier(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.has("warp"):
        d.emit("warp barrier", [], [d.operand(operands[0], "b32")])
        return
    if op.has("cluster"):
        d.emit("cluster barrier", modifiers=[1 if op.has("arrive") else 2])
        return
    mode = op.one_of({"sync": 0, "arrive": 1, "red": 2})
    together = "bar" if op.base == "bar" or op.has("aligned") else "barrier"
    if mode == 2:
        result, number, *rest = operands
        predicate, negated = d.predicate(rest[-1])
        count = d.operand(rest[0], "u32") if len(rest) == 2 else -1
        how = op.one_of({"popc": 0, "and": 1, "or": 2})
        d.emit(
            together, [d.operand(result)], [d.operand(number, "u32"), count, predicate], modifiers=[2, how, negated]
        )  # fmt: skip
    else:
        number, *rest = operands
        count = d.operand(rest[0], "u32") if rest else -1
        d.emit(together, [-1], [d.operand(number, "u32"), count, -1], modifiers=[mode])


@decodes("fence")
def _fence(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    if op.has("proxy") and op.has("tensormap::generic"):
        if op.has("acquire"):
            base, offset = d.address(operands[0])
            d.emit("tensormap.acquire", [], [d.operand(base)], immediate=offset)
        else:
            d.emit("nothing")
    elif op.has("proxy") and any(word.startswith("async") for word in op.qualifiers):
        if not any(word.startswith("global") for word in op.qualifiers):
            d.emit("fence.proxy.async")
        else:
            d.emit("nothing")
    else:
        d.emit("nothing")


@decodes("setmaxnreg")
def _registers(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    d.emit("together")
