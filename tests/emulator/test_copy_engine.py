"""The copy engine (TMA): boxes of one to five axes in and out, swizzled, cut off at the tensor's ends; its rules."""

from collections.abc import Sequence

import numpy as np
import pytest
from ptx import TYPES, aligned, fault, run

from gpuconv.emulator import EmulationError

ELEMENTS = {"u8": 0, "u16": 1, "u32": 2, "s32": 3, "u64": 4, "s64": 5, "f16": 6, "f32": 7, "f64": 9, "bf16": 10}
SIZES = {"u8": 1, "u16": 2, "f16": 2, "bf16": 2, "u32": 4, "s32": 4, "f32": 4, "u64": 8, "s64": 8, "f64": 8}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
REPLACE = "@%p1 tensormap.replace.tile.{field}.shared::cta.b1024.b{bits} [%at], {axis}{value};"
# What makes the descriptor visible to the copy engine, after the generic proxy has written it.
PUBLISH = """bar.warp.sync -1;
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%x1], [%at], 128;
    fence.proxy.tensormap::generic.acquire.gpu [%x1], 128;"""
WAIT = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%at+128], 0; @!%p2 bra WAIT;"
MAP = np.zeros(128, np.uint8)
DATA = 1024  # where the box lies in shared memory, after the descriptor and the mbarrier


def made(
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    kind: str,
    swizzle: int = 0,
    base: int = 0,
    fill: int = 0,
) -> str:
    """PTX of one warp that makes the descriptor of the tensor at %x0 in %x1;
    strides in bytes, of the axes after the first."""
    body = f"""setp.eq.u32 %p1, %lane, 0; shl.b32 %r0, %lane, 2; add.u32 %r0, %r0, %at; mov.u32 %r1, 0;
        st.shared.u32 [%r0], %r1; bar.warp.sync -1; add.u64 %l0, %x0, {base};"""
    one = lambda field, value, axis="", bits=32: REPLACE.format(field=field, value=value, axis=axis, bits=bits)  # noqa: E731
    body += one("global_address", "%l0", bits=64) + one("rank", len(sizes) - 1)
    for axis, (size, width) in enumerate(zip(sizes, box, strict=True)):
        body += f"mov.u32 %r1, {size}; mov.u32 %r2, {width}; mov.u32 %r3, 1;"
        body += (
            one("global_dim", "%r1", f"{axis}, ")
            + one("box_dim", "%r2", f"{axis}, ")
            + one("element_stride", "%r3", f"{axis}, ")
        )
    for axis, stride in enumerate(strides):
        body += f"mov.u64 %l1, {stride};" + one("global_stride", "%l1", f"{axis}, ", 64)
    body += one("elemtype", ELEMENTS[kind]) + one("interleave_layout", 0)
    return body + one("swizzle_mode", SWIZZLES[swizzle]) + one("fill_mode", fill)


def load(rank: int, at: Sequence[int], size: int, told: int | None = None) -> str:
    """A box to shared memory; `told` bytes are expected."""
    places = ", ".join(f"%r{20 + i}" for i in range(rank))
    return f"""@%p1 mbarrier.init.shared::cta.b64 [%at+128], 1; fence.proxy.async; bar.warp.sync -1;
        {"".join(f"mov.u32 %r{20 + i}, {v};" for i, v in enumerate(at))} add.u32 %r4, %at, {DATA};
        add.u32 %r5, %at, 128;
        @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], {size if told is None else told};
        @%p1 cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%r4],
            [%x1, {{{places}}}], [%r5]; {WAIT}"""


def store(rank: int, at: Sequence[int]) -> str:
    places = ", ".join(f"%r{20 + i}" for i in range(rank))
    return f"""{"".join(f"mov.u32 %r{20 + i}, {v};" for i, v in enumerate(at))} add.u32 %r4, %at, {DATA};
        @%p1 cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%x1, {{{places}}}], [%r4];
        @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0;"""


def copied(size: int, to_shared: bool) -> str:
    """Between shared memory and %x2, 4 bytes a lane."""
    inner = (
        "ld.global.u32 %r8, [%l3]; st.shared.u32 [%r7], %r8;"
        if to_shared
        else "ld.shared.u32 %r8, [%r7]; st.global.u32 [%l3], %r8;"
    )
    return f"""mov.u32 %r6, %lane; AGAIN: setp.ge.u32 %p3, %r6, {size // 4}; @%p3 bra DONE; shl.b32 %r7, %r6, 2;
        cvt.u64.u32 %l3, %r7; add.u64 %l3, %l3, %x2; add.u32 %r7, %r7, %at;
        add.u32 %r7, %r7, {DATA}; {inner} add.u32 %r6, %r6, 32; bra AGAIN; DONE:"""


def arranged(box: np.ndarray, swizzle: int) -> np.ndarray:
    """The bytes of a box as they lie in shared memory."""
    data = np.ascontiguousarray(box).view(np.uint8).reshape(-1)
    at = np.arange(data.size)
    at ^= (at >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]) << 4
    result = np.zeros_like(data)
    result[at] = data
    return result


def cut(tensor: np.ndarray, at: Sequence[int], box: Sequence[int]) -> tuple[np.ndarray, tuple]:
    """The box (axes in reverse, as NumPy has them) with zeros outside the tensor, and where its inside is in both."""
    result = np.zeros(tuple(reversed(box)), tensor.dtype)
    inside, there = [], []
    for n, start, width in zip(tensor.shape, reversed(at), reversed(box), strict=True):
        low, high = max(start, 0), max(min(start + width, n), max(start, 0))
        there.append(slice(low, high))
        inside.append(slice(low - start, high - start))
    if all(s.stop > s.start for s in there):
        result[tuple(inside)] = tensor[tuple(there)]
    return result, (tuple(inside), tuple(there))


def tensor_of(sizes: Sequence[int], kind: str) -> tuple[np.ndarray, list[int]]:
    """Random bytes, rows padded to 16, so that memory between the rows is there to be spoilt."""
    size = SIZES[kind]
    pitch = -(-sizes[0] * size // 16) * 16 + 16
    strides = [pitch]
    for n in sizes[1:-1]:
        strides.append(strides[-1] * n)
    memory = np.random.default_rng(len(sizes)).integers(
        1, 255, strides[-1] * sizes[-1] if len(sizes) > 1 else pitch, dtype=np.uint8
    )
    return memory, strides[: len(sizes) - 1]


def seen(memory: np.ndarray, sizes: Sequence[int], strides: Sequence[int], kind: str) -> np.ndarray:
    dtype = np.dtype(f"u{SIZES[kind]}")
    shape, steps = tuple(reversed(sizes)), (*reversed(strides), dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory.view(dtype), shape, steps)


BOXES = {
    "one_axis": ("f32", (50,), (16,), [(8,), (-4,), (44,)]),
    "two_axes": ("f16", (40, 9), (16, 4), [(8, 2), (-8, -1), (32, 7), (40, 0), (0, -4)]),
    "three_axes": ("bf16", (24, 5, 4), (8, 3, 2), [(8, 1, 1), (-3, -1, 3), (20, 4, -1)]),
    "four_axes": ("u32", (12, 4, 3, 3), (4, 2, 2, 2), [(4, 1, 0, 1), (-2, 3, 2, -1)]),
    "five_axes": ("f16", (16, 3, 3, 2, 3), (8, 2, 2, 1, 2), [(8, 1, 1, 1, 1), (12, -1, 2, 0, 2)]),
    "bytes": ("u8", (70, 6), (32, 4), [(16, 1), (-5, 4), (60, -2)]),
    "doubles": ("f64", (11, 5), (4, 4), [(3, 1), (-1, 3), (9, -2)]),
    "64_bit": ("s64", (11, 5), (2, 8), [(3, -1)]),
    "swizzle_32": ("f32", (20, 30), (8, 24), [(4, 2), (-3, 10), (16, -5)]),
    "swizzle_64": ("f16", (70, 20), (32, 16), [(10, 1), (-5, 8), (50, -3)]),
    "swizzle_128": ("bf16", (100, 20), (64, 16), [(10, 1), (-5, 8), (70, -3)]),
    "swizzle_128_four_axes": ("f16", (64, 7, 6, 2), (64, 4, 3, 1), [(0, -1, -1, 0), (32, 5, 4, 1)]),
    "swizzle_128_words": ("f32", (40, 12), (32, 8), [(8, 2), (16, 9)]),
}  # fmt: skip
CASES = [(name, i) for name, (*_, places) in BOXES.items() for i in range(len(places))]


def case(name: str, i: int) -> tuple[str, tuple, tuple, tuple, int]:
    kind, sizes, box, places = BOXES[name]
    return kind, sizes, box, places[i], int(name.split("_")[1]) if name.startswith("swizzle") else 0


@pytest.mark.parametrize(("name", "i"), CASES)
def test_boxes_loaded(name: str, i: int) -> None:
    kind, sizes, box, at, swizzle = case(name, i)
    memory, strides = tensor_of(sizes, kind)
    expected, _ = cut(seen(memory, sizes, strides, kind), at, box)
    to = np.full(expected.nbytes, 77, np.uint8)
    body = made(sizes, strides, box, kind, swizzle) + PUBLISH + load(len(box), at, to.size) + copied(to.size, False)
    run(body, memory, aligned(MAP), to, shared=DATA + to.size, schedules=i == 0)
    np.testing.assert_array_equal(to, arranged(expected, swizzle))


@pytest.mark.parametrize(("name", "i"), CASES)
def test_boxes_stored(name: str, i: int) -> None:
    """Memory outside the tensor, between its rows too, stays as it was."""
    kind, sizes, box, at, swizzle = case(name, i)
    memory, strides = tensor_of(sizes, kind)
    expected = memory.copy()
    values = (
        np.random.default_rng(9)
        .integers(0, 200, (*reversed(box), SIZES[kind]), dtype=np.uint8)
        .view(f"u{SIZES[kind]}")[..., 0]
    )
    inside, there = cut(seen(memory, sizes, strides, kind), at, box)[1]
    if all(s.stop > s.start for s in there):
        seen(expected, sizes, strides, kind)[there] = values[inside]
    data = arranged(values, swizzle)
    body = made(sizes, strides, box, kind, swizzle) + PUBLISH + copied(data.size, True)
    body += "fence.proxy.async; bar.warp.sync -1;" + store(len(box), at)
    run(body, memory, aligned(MAP), data, shared=DATA + data.size, schedules=i == 0)
    np.testing.assert_array_equal(memory, expected)


REDUCTIONS = [
    ("f32", "add"),
    ("f16", "add"),
    ("u32", "min"),
    ("s32", "max"),
    ("u32", "xor"),
    ("u64", "add"),
    ("u32", "or"),
]


@pytest.mark.parametrize(("kind", "how"), REDUCTIONS)
def test_boxes_reduced_into_a_tensor(kind: str, how: str) -> None:
    """Elements inside the tensor are combined, the others left alone."""
    dtype, sizes, box, at = TYPES[kind], (24, 6), (8, 4), (20, -1)
    random = np.random.default_rng(3)
    memory, values = random.integers(0, 99, (6, 24)).astype(dtype), random.integers(0, 99, (4, 8)).astype(dtype)
    ufunc = {"add": np.add, "min": np.minimum, "max": np.maximum, "xor": np.bitwise_xor, "or": np.bitwise_or}[how]
    expected = memory.copy()
    expected[:3, 20:] = ufunc(memory[:3, 20:], values[1:, :4])
    body = made(sizes, [memory.strides[0]], box, kind) + PUBLISH + copied(values.nbytes, True)
    reduce = store(2, at).replace("cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")
    reduce = reduce.replace("shared::cta.bulk_group", f"shared::cta.{how}.tile.bulk_group")
    body += "fence.proxy.async; bar.warp.sync -1;" + reduce
    run(body, memory, aligned(MAP), values, shared=DATA + values.nbytes, schedules=True)
    np.testing.assert_array_equal(memory, expected)


def test_nan_fill() -> None:
    """Outside a float tensor, where the descriptor says so."""
    memory, strides = tensor_of((40, 9), "f16")
    memory.view(np.float16)[...] = 1
    to = np.zeros(16 * 4, np.float16)
    body = (
        made((40, 9), strides, (16, 4), "f16", fill=1)
        + PUBLISH
        + load(2, (32, -1), to.nbytes)
        + copied(to.nbytes, False)
    )
    run(body, memory, aligned(MAP), to, shared=DATA + to.nbytes)
    nan = np.ones((4, 16), bool)
    nan[1:, :8] = False
    np.testing.assert_array_equal(np.isnan(to.reshape(4, 16)), nan)


GOOD = {"sizes": (40, 9), "strides": (96,), "box": (16, 4), "kind": "f16"}
BROKEN = {
    "box_of_nothing": {"box": (16, 0)},
    "box_of_257": {"box": (16, 257)},
    "inner_box_of_24_bytes": {"box": (12, 4)},
    "stride_of_88_bytes": {"strides": (88,)},
    "base_off_by_8": {"base": 8},
    "size_of_nothing": {"sizes": (0, 9)},
    "box_wider_than_the_swizzle": {"box": (32, 4), "swizzle": 32},
}


@pytest.mark.parametrize("name", BROKEN)
def test_rules_of_the_descriptor(name: str) -> None:
    memory = np.zeros(96 * 9, np.uint8)
    arguments = GOOD | BROKEN[name]
    size = int(np.prod(arguments["box"])) * 2
    body = made(**arguments) + PUBLISH + load(2, (0, 0), size)
    with fault("copy engine"):
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 32768)


def test_a_tensor_larger_than_its_memory() -> None:
    memory = np.zeros(96 * 8, np.uint8)
    body = made(**GOOD) + PUBLISH + load(2, (0, 6), 128)
    with fault("bounds"):
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 128)


def test_a_box_beyond_shared_memory() -> None:
    memory = np.zeros(96 * 9, np.uint8)
    body = made(**GOOD) + PUBLISH + load(2, (0, 0), 128)
    with fault("bounds"):
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 64)


def test_a_destination_off_by_16_bytes() -> None:
    memory = np.zeros(96 * 9, np.uint8)
    body = (
        made(**GOOD)
        + PUBLISH
        + load(2, (0, 0), 128).replace(f"add.u32 %r4, %at, {DATA}", f"add.u32 %r4, %at, {DATA + 16}")
    )
    with fault("alignment"):
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 256)


@pytest.mark.parametrize("told", [0, 64, 256])
def test_a_wrong_count_of_bytes_is_found(told: int) -> None:
    """Fewer would open the barrier too early or leave a count below zero, more would wait forever."""
    memory = np.zeros(96 * 9, np.uint8)
    body = made(**GOOD) + PUBLISH + load(2, (0, 0), 128, told) + copied(128, False)
    with pytest.raises(EmulationError) as found:
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 128)
    assert found.value.kind in ("barrier", "deadlock", "race", "uninitialised")


def test_bytes_that_are_no_descriptor() -> None:
    with fault("copy engine"):
        body = "setp.eq.u32 %p1, %lane, 0;" + load(2, (0, 0), 128)
        run(body, np.zeros(96 * 9, np.uint8), aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 128)


def test_a_descriptor_used_without_its_fence() -> None:
    memory = np.zeros(96 * 9, np.uint8)
    unfenced = PUBLISH.replace("fence.proxy.tensormap::generic.acquire.gpu [%x1], 128;", "")
    body = made(**GOOD) + unfenced + load(2, (0, 0), 128) + copied(128, False)
    with fault("copy engine"):
        run(body, memory, aligned(MAP), np.zeros(128, np.uint8), shared=DATA + 128)
