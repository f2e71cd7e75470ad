"""Faults planted in compiled kernels, one at a time: the emulator finds each, or a test shows why it is none.

- Each synchronising instruction of six families is taken away in turn: a check fires, or values are beyond the oracle's
  bound. Where nothing notices, it is redundant: such instructions can be gone all at once, and then each of the others
  is needed, so it is these that order what is accessed. `REASONS` has what that does not show.
- Swizzles, phases, descriptors, masks, waits, counts and bounds are changed.
- Faults in the text of CUDA C, which the host check finds too (tests/kernels/cuda), are compiled with it.

Run with -s for the tables: kernel, line of the PTX, instruction, what finds it or why it is redundant.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import planted_cuda
import pytest
import torch
from planted_ptx import Kernel, Site, altered, comes_before, instead, reads_shared_memory, sites, without

from gpuconv import backends, emulator, plan
from gpuconv.backends import cuda_compile
from gpuconv.backends.triton_launch import INTERPRETING
from gpuconv.gpu import KNOWN
from gpuconv.problem import ConvProblem, Direction

pytestmark = [
    pytest.mark.skipif(emulator.why_not() is not None, reason=f"no GPU can be emulated: {emulator.why_not()}"),
    pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled"),
]


class Planned(NamedTuple):
    """A kernel, its tile the smallest of a family that it is offered."""

    backend: str
    gpu: str
    direction: Direction
    family: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    settings: dict[str, object]
    tile: dict[str, int] = {}  # what is different in the tile  # noqa: RUF012
    contiguous: bool = False
    least: int = 0  # synchronising instructions that run
    also: str = ""  # the kernel of the same text that runs the others
    dtype: torch.dtype = torch.bfloat16


# Small, none of a tile's sizes whole; more steps than stages, so that each stage is filled again, and phases flip; one
# program of the window kernel, which takes two tiles.
KERNELS = {
    "window forward": Planned(
        "triton", "H100", "forward", "window", (2, 72, 5, 7), (72, 72, 3, 1), {"padding": (1, 0)},
        {"stages": 3, "persistent": 1}, least=40,
    ),
    "window grad_weight": Planned(
        "triton", "H100", "grad_weight", "window", (2, 40, 9, 7), (40, 40, 3, 1), {"padding": (1, 0)}, {"stages": 3},
        least=40,
    ),
    "tensor forward": Planned(
        "cuda", "A100", "forward", "tensor", (1, 72, 3, 5, 5), (24, 72, 3, 3, 3), {"padding": 1}, least=10
    ),
    "halo forward": Planned("cuda", "A100", "forward", "halo", (1, 72, 9, 8), (24, 72, 3, 3), {"padding": 1}, least=10),
    "depthwise forward": Planned(
        "cuda", "A100", "forward", "depthwise", (1, 40, 9, 7), (40, 1, 3, 3), {"padding": 1, "groups": 40},
        {"warps": 2}, least=3,
    ),
    "banded forward": Planned(
        "cuda", "A100", "forward", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, contiguous=True, least=5
    ),
    "banded grad_weight": Planned(
        "cuda", "A100", "grad_weight", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, contiguous=True, least=8,
        also="banded grad_weight in splits",
    ),
    "banded grad_weight in splits": Planned(
        "cuda", "A100", "grad_weight", "banded", (1, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, {"splits": 2}, True, 8,
        "banded grad_weight",
    ),
}  # fmt: skip


@functools.cache
def kernel(name: str, poisoned: bool = False) -> Kernel:
    """`poisoned`: the first elements of its tensors are NaN."""
    return planned(name, KERNELS[name], poisoned)


def planned(name: str, p: Planned, poisoned: bool = False) -> Kernel:
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[len(p.input) - 2]
    memory_format = torch.contiguous_format if p.contiguous else last
    problem = ConvProblem.of(p.input, p.weight, dtype=p.dtype, memory_format=memory_format, **p.settings)
    operands = plan.contiguous_operands(problem, p.direction, memory_format)
    menu = backends.get(p.backend).tiles(problem, p.direction, KNOWN[p.gpu], operands)
    warps = p.tile.get("warps")
    offered = [tile for tile in menu if tile.kernel == p.family and warps in (None, tile.warps)]
    if not offered:
        pytest.skip(f"on this release of Triton there is no {name} kernel in bfloat16")
    tile = min(offered, key=lambda t: (t.splits, t.persistent, t.rows * t.columns, t.depth, t.warps))
    tile = dataclasses.replace(tile, **p.tile)
    return Kernel(name, problem, p.direction, p.backend, p.gpu, tile, poisoned)


# ---- synchronising instructions --------------------------------------------------------------------------------------

SYNCHRONISING = (
    r"bar\.|barrier\.|fence|membar|mbarrier\.|tensormap\.cp_fenceproxy|wgmma\.(?:fence|commit|wait)"
    r"|cp\.async\.(?:bulk\.)?(?:commit|wait)"
)
BULK_STORES = r"cp\.(?:reduce\.)?async\.bulk\.(?:tensor\.\dd\.)?global"
GENERIC_WRITES = r"st\.shared|stmatrix|cp\.async\.c[ag]|(?:atom|red)\.shared"


def barrier_is_redundant(kernel: Kernel, site: Site) -> str:
    return "others order the same"


def no_bulk_store(kernel: Kernel, site: Site) -> str:
    assert not comes_before(kernel.text, kernel.entry, site.line, BULK_STORES)
    return "there is no bulk store before it"


def nothing_is_under_way(kernel: Kernel, site: Site) -> str:
    """Each thread could read all shared memory there, without the wait and with the barrier after it; where other waits
    are, that would be a race."""
    shared = kernel.launched.shared
    barrier = next(each for each in sites(kernel.text, r"bar\.sync") if each.line > site.line)
    probe = barrier.text + reads_shared_memory(0, shared) + barrier.text
    assert kernel.found(without(instead(kernel.text, barrier, probe), site)) is None
    others = [each for each in sites(kernel.text, r"cp\.async\.wait") if each.line != site.line]
    assert others
    for other in others:
        barrier = next(each for each in sites(kernel.text, r"bar\.sync") if each.line > other.line)
        assert kernel.found(without(instead(kernel.text, barrier, probe), other)) == "race"
    return "no copy is under way any more"


def never_touched_again(kernel: Kernel, site: Site) -> str:
    """Anything else than an mbarrier there would be found."""
    guard, place = re.match(r"(@!?%\w+ )?.*(\[[^]]*\])", site.text).groups()
    assert kernel.found(instead(kernel.text, site, f"{guard or ''}st.shared.b32 {place}, 0;")) == "barrier"
    return "nothing else ever lies in its place"


def nothing_is_written(kernel: Kernel, site: Site) -> str:
    assert not comes_before(kernel.text, kernel.entry, site.line, GENERIC_WRITES, stop=r"fence\.proxy\.async")
    return "no thread has written to shared memory since the fence before"


REASONS: dict[str, Callable[[Kernel, Site], str]] = {
    r"bar\.": barrier_is_redundant,
    r"cp\.async\.bulk\.(?:commit|wait)": no_bulk_store,
    r"cp\.async\.wait": nothing_is_under_way,
    r"mbarrier\.inval": never_touched_again,
    r"fence\.proxy\.async": nothing_is_written,
}


@pytest.mark.parametrize("name", KERNELS)
def test_each_synchronising_instruction_is_needed_or_redundant(name: str) -> None:
    k = kernel(name)
    there, also = sites(k.text, SYNCHRONISING), KERNELS[name].also
    table = {site: k.found(without(k.text, site)) for site in there if k.runs[site.line]}
    assert len(table) >= KERNELS[name].least
    for site in there:
        assert site in table or (kernel(also).text == k.text and kernel(also).runs[site.line])
    gone: list[Site] = []
    for site, found in table.items():
        if found is None and k.found(without(k.text, *gone, site)) is None:
            gone.append(site)
    alone = [site for site in table if site not in gone]
    for site in alone:
        found = table[site] or k.found(without(k.text, *gone, site))
        assert found, f"{name}, PTX line {site.line}: {site.text} is missed by nothing"
        table[site] = table[site] or f"redundant: it can stand in for others ({found} without those)"
    for site in gone:
        reason = [reason for pattern, reason in REASONS.items() if re.match(pattern, site.opcode)]
        assert reason, f"{name}, PTX line {site.line}: nothing finds that {site.text} is gone"
        table[site] = f"redundant: {reason[0](k, site)}"
    for number, (site, found) in enumerate(table.items()):
        print(f"{name} {number}: line {site.line}, {site.text[:70]}: {found}")
    assert all(table.values())


# ---- swizzles, phases, descriptors, masks, counts, bounds ------------------------------------------------------------


class Fault(NamedTuple):
    """One kind, planted at each instruction that matches, one at a time."""

    kernels: tuple[str, ...]
    pattern: str
    edit: Callable[[Site], str]


def other(pattern: str, by: str | Callable[[re.Match[str]], str]) -> Callable[[Site], str]:
    """The instruction with the last that matches a pattern replaced."""

    def edit(site: Site) -> str:
        *_, last = re.finditer(pattern, site.text)
        return (
            site.text[: last.start()] + (last.expand(by) if isinstance(by, str) else by(last)) + site.text[last.end() :]
        )

    return edit


def of_last(by: str, bits: int = 32) -> Callable[[Site], str]:
    """The instruction with another value in its last register."""
    return lambda site: altered(site, re.findall(r"%\w+", site.text)[-1], by, bits)


def plus(n: int) -> Callable[[re.Match[str]], str]:
    return lambda number: str(int(number[0]) + n)


def field(name: str, axes: str = "") -> str:
    """Where a field of a descriptor is set."""
    return rf"@%\w+ tensormap\.replace\.tile\.{name}\..*" + (f", 0x[{axes}], " if axes else "")


# wgmma's descriptors: swizzle in bits 62 and 63 (1: 128 bytes, 2: 64), the stride in units of 16 bytes from bit 32 on.
OPERAND = r"(?:or|add)\.[bs]64\s+%\w+, %\w+, -?\d{18,}"
WINDOWS, TILED = ("window forward", "window grad_weight"), ("tensor forward", "halo forward")
COPYING = tuple(name for name in KERNELS if name not in WINDOWS)
FAULTS = {
    "another swizzle in wgmma's descriptor": Fault(WINDOWS, OPERAND, other(r"\d+", plus(1 << 62))),
    "another stride in wgmma's descriptor": Fault(WINDOWS, OPERAND, other(r"\d+", plus(1 << 32))),
    "no swizzle in a tensor map": Fault(WINDOWS, field("swizzle_mode"), other("0x3", "0x0")),
    "a swizzle too narrow for the box": Fault(WINDOWS, field("swizzle_mode"), other("0x3", "0x2")),
    "fragments from unswizzled places": Fault(
        TILED, r"xor\.b32\s+%\w+, %\w+, %\w+", other(r"xor(.*), %\w+;", r"mov\1;")
    ),
    "a phase that is flipped": Fault(WINDOWS, r"mbarrier\.try_wait", of_last("xor.b32 %faulty, {}, 1;")),
    "a phase that never flips": Fault(
        WINDOWS, r"xor\.b32\s+(?P<same>%r\d+), (?P=same), %r\d+", other(r"xor(.*), %\w+;", r"mov\1;")
    ),
    "a stage too many in the ring": Fault(WINDOWS, r"setp\.gt\.s32\s+%p\d+, %r\d+, 2", other("2;", "3;")),
    "a box one too large": Fault(WINDOWS, field("box_dim", "0-4"), of_last("add.s32 %faulty, {}, 1;")),
    "a tensor one too large": Fault(WINDOWS, field("global_dim", "013"), of_last("add.s32 %faulty, {}, 1;")),
    "a tensor one too small": Fault(WINDOWS, field("global_dim", "0-4"), of_last("add.s32 %faulty, {}, -1;")),
    "a stride 16 bytes too large": Fault(
        WINDOWS, field("global_stride", "023"), of_last("add.s64 %faulty, {}, 16;", 64)
    ),
    "an address 16 bytes too large": Fault(WINDOWS, field("global_address"), of_last("add.s64 %faulty, {}, 16;", 64)),
    "another element type": Fault(WINDOWS, field("elemtype"), other("0xa", "0x7")),
    "an axis too few": Fault(WINDOWS, field("rank"), other(r"0x([24])", lambda m: f"0x{int(m[1]) - 1}")),
    "filled with NaN": Fault(WINDOWS[1:], field("fill_mode"), other("0x0;", "0x1;")),
    "16 bytes too many expected": Fault(WINDOWS, r"@%\w+ mbarrier\.arrive\.expect_tx", other(r"\d+", plus(16))),
    "16 bytes too few expected": Fault(WINDOWS, r"@%\w+ mbarrier\.arrive\.expect_tx", other(r"\d+", plus(-16))),
    "an mbarrier for one more": Fault(WINDOWS, r"@%\w+ mbarrier\.init", other(r"\d+", plus(1))),
    "one group of products too many under way": Fault(WINDOWS, r"wgmma\.wait_group", other(r"\d+", plus(1))),
    "one group of stores too many under way": Fault(
        WINDOWS[:1], r"cp\.async\.bulk\.wait_group", other(r"\d+", plus(1))
    ),
    "one group of copies too many under way": Fault(
        COPYING, r"cp\.async\.wait_group", other(r"\d+", plus(1))
    ),
    "a barrier of half the block": Fault(TILED, r"bar\.sync\s+0", other("0;", "0, 64;")),
    "loads without their mask": Fault(WINDOWS[:1], r"@%\w+ ld\.global", other(r"^@%\w+ ", "")),
    "stores without their mask": Fault(WINDOWS[1:], r"@%\w+ st\.global", other(r"^@%\w+ ", "")),
    "a minimum that is not taken": Fault(TILED[1:], r"min\.s32\s+%\w+, %\w+, 0", other(r"min(.*), 0;", r"mov\1;")),
}  # fmt: skip


PLANTED = [(name, fault) for fault, (names, *_) in FAULTS.items() for name in names]


@pytest.mark.parametrize(("name", "fault"), PLANTED)
def test_planted_fault_is_found(name: str, fault: str) -> None:
    _, pattern, edit = FAULTS[fault]
    k, table = kernel(name), {}
    for number, site in enumerate(sites(k.text, pattern)):
        assert edit(site) != site.text
        found = k.found(instead(k.text, site, edit(site)))
        if found is None and re.match(r"cp\.async.*wait", site.opcode):  # it needs not be there at all: see above
            assert k.found(without(k.text, site)) is None
            found = "redundant, as the instruction is"
        print(f"{name}, {fault}, {number}: line {site.line}, {site.text[:70]}: {found}")
        table[site.line] = found
    assert table and all(table.values()), table
    assert not all(found.startswith("redundant") for found in table.values())


@pytest.mark.parametrize("name", TILED)
def test_copies_that_fill_nothing_with_zeros(name: str) -> None:
    """Each is found in the image. In the filters none is: what they multiply is zero, or not stored. Without padding
    that holds the other way round too, and both at once are found."""
    k, bare = kernel(name, poisoned=True), planned(name, KERNELS[name]._replace(settings={}), poisoned=True)
    assert k.text == bare.text
    copies = sites(k.text, r"cp\.async\.cg\.shared\.global \[.*\], 16, %")

    def unfilled(*planted: Site) -> str:
        text = k.text
        for site in reversed(planted):
            text = instead(text, site, re.sub(r", %\w+;", ";", site.text))
        return text

    found = {site: k.found(unfilled(site)) for site in copies}
    image, filters = ([site for site in copies if bool(found[site]) == asked] for asked in (True, False))
    assert len(filters) == 2 and len(image) > 2  # before the loop and in it
    for some, finds in ((image, None), (filters, None), (copies, "values")):
        assert bare.found(unfilled(*some)) == finds
    for number, site in enumerate(copies):
        print(
            f"{name}, filled with nothing, {number}: line {site.line}, {site.text[:70]}: {found[site] or 'redundant'}"
        )


@pytest.mark.parametrize(("name", "pattern"), [(WINDOWS[0], r"wgmma\."), *((name, r"cp\.async\.") for name in TILED)])
def test_a_group_that_is_closed_twice_is_waited_for_too_long(name: str, pattern: str) -> None:
    """The second is empty. That is no fault: as many groups more may be under way."""
    k = kernel(name)

    def loosened(text: str) -> str:
        return re.sub(rf"({pattern}wait_group[^;]*?)([1-9])\s*;", lambda m: f"{m[1]}{int(m[2]) * 2};", text)

    for site in sites(k.text, rf"{pattern}commit_group"):
        assert k.found(instead(k.text, site, site.text * 2)) is None
    twice = re.sub(rf"{pattern}commit_group[^;]*;", r"\g<0> \g<0>", k.text)
    assert k.found(twice) is None and k.found(loosened(twice)) is None
    assert k.found(loosened(k.text)) == "race"


# ---- the host check's faults -----------------------------------------------------------------------------------------

TENSOR = Planned(
    "cuda", "", "forward", "tensor", (1, 40, 5, 6), (24, 40, 3, 3), {"padding": 1}, {}, dtype=torch.float16
)  # fmt: skip
BANDED = Planned(
    "cuda", "", "grad_weight", "banded", (3, 1, 17, 24), (2, 1, 9, 9), {"padding": 4}, {}, True, dtype=torch.float16
)  # fmt: skip
SIMT = Planned(
    "cuda", "", "forward", "simt", (2, 24, 13, 8), (136, 24, 3, 2), {"stride": (1, 2), "padding": ((1, 1), (2, 1))},
    dtype=torch.float32,
)  # fmt: skip


@functools.cache
def kernel_of(kind: str, gpu: str) -> Kernel:
    direction, family = kind.split("-")
    like = {"simt": SIMT, "banded": BANDED}.get(family, TENSOR)
    return planned(kind, like._replace(gpu=gpu, direction=direction, family=family))


HOST_FAULTS = [
    pytest.param(name, gpu, marks=[] if (number + at) % 2 else pytest.mark.full)
    for number, name in enumerate(planted_cuda.FAULTS)
    for at, gpu in enumerate(("A100", "H100"))
]


@pytest.mark.parametrize(("name", "gpu"), HOST_FAULTS)
def test_faults_of_the_host_check_are_found(name: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = planted_cuda.FAULTS[name]
    k = kernel_of(fault.kind, gpu)
    before = k.text
    monkeypatch.setattr(cuda_compile, "source", fault.planted)
    text = cuda_compile.ptx(k.instance, cuda_compile.architecture(KNOWN[gpu].capability), lines=True)
    if fault.emulated == "shared passes":  # right, and slower
        assert k.shared_passes(text) > 1.5 * k.shared_passes(before)
    else:
        assert k.found(text) == fault.emulated
