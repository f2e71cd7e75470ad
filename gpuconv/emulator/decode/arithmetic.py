"""Decoding of arithmetic, logic, comparisons and conversions."""

from gpuconv.emulator.decode.base import DECODERS, ROUNDING, Decoder, Decoding, Opcode, decodes, integer

_COMPARE = {
    "eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5, "lo": 2, "ls": 3, "hi": 4, "hs": 5, "num": 6, "nan": 7,
    "equ": 8, "neu": 9, "ltu": 10, "leu": 11, "gtu": 12, "geu": 13,
}  # fmt: skip
_INTEGRAL = {"rni", "rzi", "rmi", "rpi"}


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
    half = next(word for word in op.qualifiers if word in ("lo", "hi", "wide"))
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


@decodes("shf", "prmt", "lop3", "dp4a", "dp2a")
def _words(d: Decoding, op: Opcode, operands: tuple[str, ...]) -> None:
    result, a, b, c = d.operands(operands[:4], op.type)
    modifiers = {
        "shf": lambda: [int(op.has("r")), int(op.has("clamp"))],
        "prmt": lambda: [op.one_of({"f4e": 1, "b4e": 2, "rc8": 3, "ecl": 4, "ecr": 5, "rc16": 6})],
        "lop3": lambda: [integer(operands[4])],
        "dp4a": lambda: [int(kind == "s32") for kind in op.types],
        "dp2a": lambda: [*(int(kind == "s32") for kind in op.types), int(op.has("hi"))],
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
    integral = int(to in ("f16", "bf16", "f32", "f64") and any(word in _INTEGRAL for word in op.qualifiers))
    if to[0] in "usb" and to not in ("bf16", "bf16x2") and source[0] in "fb" and source != "b32":
        saturated = 1  # floats are always clamped
        if not any(word in ROUNDING for word in op.qualifiers):
            rounding = 1
    result, *rest = d.operands(operands, source)
    d.emit("cvt", [result], rest, to, source, [rounding, saturated, special, flush, integral])
