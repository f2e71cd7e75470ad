"""A few lines of PTX wrapped into a kernel and run on the emulator, and rounding stated with rational numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import inf, ldexp

import numpy as np
import pytest
from schedules import SCHEDULES

from gpuconv.emulator import EmulationError, run_ptx

TYPES = {
    "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "u16": np.dtype(np.uint16), "s16": np.dtype(np.int16),
    "u32": np.dtype(np.uint32), "s32": np.dtype(np.int32), "u64": np.dtype(np.uint64), "s64": np.dtype(np.int64),
    "f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64),
}  # fmt: skip

# Registers that every body may use, and values that are read at its start where it names them.
REGISTERS = """.reg .pred %p<32>; .reg .b16 %h<64>; .reg .b32 %r<288>; .reg .b64 %l<64>; .reg .b64 %x<8>;
.reg .b32 %n<8>; .reg .b32 %thread, %lane, %warp, %at, %block;"""
AT_START = {
    "%thread": "mov.u32 %thread, %tid.x;",
    "%lane": "mov.u32 %lane, %laneid;",
    "%warp": "mov.u32 %warp, %tid.x; shr.u32 %warp, %warp, 5;",
    "%block": "mov.u32 %block, %ctaid.x;",
    "%at": "mov.u32 %at, shared;",
}


def text(body: str, args: tuple, shared: int = 0, target: str = "sm_90a") -> str:
    """The kernel `k`: argument i is %x{i}, its address, where it is an array or a tensor map, else %n{i}, 32 bits."""
    parameters, start = [], []
    for i, a in enumerate(args):
        if isinstance(a, (int, np.integer)):
            parameters.append(f".param .u32 p{i}")
            start.append(f"ld.param.u32 %n{i}, [p{i}];")
        elif isinstance(a, np.ndarray) or a is None:
            parameters.append(f".param .u64 p{i}")
            start.append(f"ld.param.u64 %x{i}, [p{i}];")
        else:
            parameters.append(f".param .align 64 .b8 p{i}[128]")
            start.append(f"mov.b64 %x{i}, p{i}; cvta.param.u64 %x{i}, %x{i};")
    start += [line for name, line in AT_START.items() if re.search(rf"{name}\b", body)]
    memory = f".shared .align 1024 .b8 shared[{shared}];\n" if shared else ""
    return (
        f".version 8.3\n.target {target}\n.address_size 64\n{memory}"
        f".visible .entry k({', '.join(parameters)})\n{{\n{REGISTERS}\n{' '.join(start)}\n{body}\nret;\n}}\n"
    )


def run(
    body: str,
    *args: object,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    target: str = "sm_90a",
    schedules: bool = False,
    **named: object,
) -> None:
    """Runs a body on arrays in place; with `schedules` from the same start under each of them, all to the same bits."""
    made = text(body, args, shared, target)
    if not schedules:
        run_ptx(made, "k", blocks, threads, 0, args, **named)
        return
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    before = [a.copy() for a in arrays]
    after: list[bytes] = []
    for schedule, seed in SCHEDULES:
        for a, b in zip(arrays, before, strict=True):
            a[...] = b
        run_ptx(made, "k", blocks, threads, 0, args, schedule=schedule, seed=seed, **named)
        results = [a.tobytes() for a in arrays]
        assert results == (after := after or results), f"schedule {schedule}, seed {seed} gives other bits"


def apply(lines: str, out: str, *inputs: np.ndarray, threads: int = 128, **named: object) -> np.ndarray:
    """The lines for each element, one a thread: %a, %b, %c, %e in, %d out, each as wide as its element."""
    inputs = tuple(np.ascontiguousarray(a).reshape(-1) for a in inputs)
    n = inputs[0].size
    inputs = tuple(np.concatenate([a, np.repeat(a[-1:], -n % threads)]) for a in inputs)  # whole blocks
    result = np.zeros(inputs[0].size, TYPES[out])
    body = ["mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r0, %r0, %r2, %r1;"]
    for i, (name, a) in enumerate(zip("abce", inputs, strict=False)):
        body.append(f".reg .b{max(8 * a.itemsize, 16)} %{name}; mad.wide.u32 %l0, %r0, {a.itemsize}, %x{i};")
        body.append(f"ld.global.{'u' if a.itemsize == 1 else 'b'}{8 * a.itemsize} %{name}, [%l0];")
    size, last = result.itemsize, len(inputs)
    body += [f".reg .b{max(8 * size, 16)} %d;", lines, f"mad.wide.u32 %l0, %r0, {size}, %x{last};"]
    body.append(f"st.global.{'u' if size == 1 else 'b'}{8 * size} [%l0], %d;")
    run("\n".join(body), *inputs, result, threads=threads, blocks=result.size // threads, **named)
    return result[:n]


def aligned(array: np.ndarray, to: int = 128) -> np.ndarray:
    """A copy at a multiple of so many bytes."""
    memory = np.zeros(array.nbytes + to, np.uint8)
    start = -memory.ctypes.data % to
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@contextmanager
def fault(*kinds: str, match: str | None = None) -> Iterator[None]:
    """Inside, the emulator must find a fault of one of these kinds."""
    with pytest.raises(EmulationError, match=match) as found:
        yield
    assert found.value.kind in kinds, f"{found.value.kind}: {found.value}"


def pairs(edges: list, dtype: np.dtype, seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Each edge with each, then random bits."""
    a, b = np.meshgrid(np.array(edges, dtype), np.array(edges, dtype))
    more = np.frombuffer(np.random.default_rng(seed).bytes(2 * count * dtype.itemsize), dtype).reshape(2, count)
    return np.concatenate([a.ravel(), more[0]]), np.concatenate([b.ravel(), more[1]])


# Fraction bits, least exponent of a normal number, largest finite number.
FORMATS = {
    "f64": (52, -1022, ldexp(2**53 - 1, 971)),
    "f32": (23, -126, ldexp(2**24 - 1, 104)),
    "f16": (10, -14, 65504.0),
    "bf16": (7, -126, ldexp(2**8 - 1, 120)),
    "e5m2": (2, -14, 57344.0),
    "e4m3": (3, -6, 448.0),
}


def rounded(exact: Fraction, form: str, mode: str = "rn") -> float:
    """The number of a format that a rounding mode (rn, rz, rm, rp) gives for an exact number; zero is positive."""
    bits, least, largest = FORMATS[form]
    if exact == 0:
        return 0.0
    n, d = abs(exact.numerator), exact.denominator
    exponent = n.bit_length() - d.bit_length()
    exponent -= n << max(-exponent, 0) < d << max(exponent, 0)  # now 2^exponent ≤ n / d < 2^(exponent + 1)
    power = max(exponent, least) - bits  # of a step
    step = d << max(power, 0)
    below, rest = divmod(n << max(-power, 0), step)
    beyond = {"rn": 2 * rest > step or (2 * rest == step and below % 2 == 1), "rz": False, "rm": exact < 0}
    steps = below + int(beyond.get(mode, exact > 0) and rest > 0)
    sign = -1.0 if exact < 0 else 1.0
    if power + steps.bit_length() > 1024 or (size := ldexp(steps, power)) > largest:
        return sign * (inf if beyond.get(mode, exact > 0) or mode == "rn" else largest)
    return sign * size


def same_numbers(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, except that a NaN may be any NaN."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    bits = f"u{got.itemsize}"
    np.testing.assert_array_equal(got[~nan].view(bits), expected.astype(got.dtype)[~nan].view(bits))


def bf16(values: np.ndarray) -> np.ndarray:
    """Patterns of bfloat16 for numbers that it holds."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def from_bf16(patterns: np.ndarray) -> np.ndarray:
    """float32 of patterns of bfloat16."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)
