"""Faults planted in compiled kernels, one at a time: the emulator finds each, or a test shows why it is none.

- Each synchronising instruction of six families is taken away in turn: a check fires, or values are beyond the oracle's
  bound. Where nothing notices, it is redundant: such instructions can be gone all at once, and then each of the others
  is needed, so it is these that order what is accessed. `REASONS` has what that does not show.
- Swizzles, phases, descriptors, masks, waits, counts and bounds are changed.

Run with -s for the tables: kernel, line of the PTX, instruction, what finds it or why it is redundant.
"""

import bisect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from planted_kernels import COPYING, KERNELS, TILED, WINDOWS, kernel, runs_here
from planted_ptx import (
    Kernel,
    Site,
    altered,
    comes_before,
    instead,
    reads_shared_memory,
    sites,
    spoils_shared_memory,
    without,
)

from gpuconv.emulator.tensor_map import TensorMap

pytestmark = runs_here

# ---- synchronising instructions --------------------------------------------------------------------------------------

SYNCHRONISING = (
    r"bar\.|barrier\.|fence|membar|mbarrier\.|tensormap\.cp_fenceproxy|wgmma\.(?:fence|commit|wait)"
    r"|cp\.async\.(?:bulk\.)?(?:commit|wait)"
)
BULK_STORES = r"cp\.(?:reduce\.)?async\.bulk\.(?:tensor\.\dd\.)?global"
UNIT = 16  # bytes of a copy
GENERIC_WRITES = r"st\.shared|stmatrix|cp\.async\.c[ag]|(?:atom|red)\.shared"


def barrier_is_redundant(kernel: Kernel, site: Site) -> str:
    return "others order the same"


def no_bulk_store(kernel: Kernel, site: Site) -> str:
    assert not comes_before(kernel.text, kernel.entry, site.line, BULK_STORES)
    return "there is no bulk store before it"


def nothing_is_under_way(kernel: Kernel, site: Site) -> str:
    """Each thread could read all shared memory there, without the wait and with the barrier after it, or all up to
    where spoilt memory is nobody's any more; where other waits are, reading all would be a race."""
    shared = kernel.launched.shared

    def read(site: Site, end: int) -> str | None:
        barrier = next(each for each in sites(kernel.text, r"bar\.sync") if each.line > site.line)
        probe = barrier.text + reads_shared_memory(0, end) + barrier.text
        return kernel.found(without(instead(kernel.text, barrier, probe), site))

    others = [each for each in sites(kernel.text, r"cp\.async\.wait") if each.line != site.line]
    assert others
    assert all(read(other, shared) == "race" for other in others)
    if read(site, shared) is None:
        return "no copy is under way any more"
    ends = range(UNIT, shared + 1, UNIT)
    settled = UNIT * bisect.bisect_left(ends, True, key=lambda end: read(site, end) is not None)
    barrier = next(each for each in sites(kernel.text, r"bar\.sync") if each.line > site.line)
    found = [
        kernel.found(instead(kernel.text, barrier, barrier.text + spoils_shared_memory(first, shared)))
        for first in (settled, 0)
    ]
    assert found[0] is None and found[1]
    return f"copies under way go to bytes {settled} to {shared}, which nobody accesses any more"


def never_touched_again(kernel: Kernel, site: Site) -> str:
    """Anything else than an mbarrier there would be found."""
    guard, place = re.match(r"(@!?%\w+ )?.*(\[[^]]*\])", site.text).groups()
    assert kernel.found(instead(kernel.text, site, f"{guard or ''}st.shared.b32 {place}, 0;")) == "barrier"
    return "nothing else ever lies in its place"


def nothing_is_written(kernel: Kernel, site: Site) -> str:
    assert not comes_before(kernel.text, kernel.entry, site.line, GENERIC_WRITES, stop=r"fence\.proxy\.async")
    return "no thread has written to shared memory since the fence before"


def next_does_the_same(kernel: Kernel, site: Site) -> str:
    """Products on the same sums are done in order: the next group holds this one's too, the next wait is for both."""
    what = re.escape(site.opcode)
    after = next(each.line for each in sites(kernel.text, what) if each.line > site.line)
    assert not any(site.line < each.line < after for each in sites(kernel.text, r"bar\."))
    return "the next one, with no barrier between, does the same"


def sums_are_untouched(kernel: Kernel, site: Site) -> str:
    """The product before has the same sums as the one after, and nothing names them between."""
    there = sites(kernel.text, r"wgmma\.mma_async")
    before = [each for each in there if each.line < site.line][-1]
    after = next(each for each in there if each.line > site.line)
    sums, same = (re.findall(r"%\w+", re.search(r"\{([^}]*)\}", each.text)[1]) for each in (before, after))
    between = re.sub(r"//[^\n]*", "", kernel.text[before.end : after.start])
    assert sums and sums == same and not {*sums} & {*re.findall(r"%\w+", between)}
    assert not re.search(r"(?m)^\$\w+:", between)
    return "its product goes on with the sums of the one before"


REASONS: dict[str, Callable[[Kernel, Site], str]] = {
    r"bar\.": barrier_is_redundant,
    r"cp\.async\.bulk\.(?:commit|wait)": no_bulk_store,
    r"cp\.async\.wait": nothing_is_under_way,
    r"wgmma\.(?:commit|wait)": next_does_the_same,
    r"wgmma\.fence": sums_are_untouched,
    r"mbarrier\.inval": never_touched_again,
    r"fence\.proxy\.async": nothing_is_written,
}


@pytest.mark.parametrize("name", KERNELS)
def test_as_they_are_nothing_is_found(name: str) -> None:
    assert kernel(name).found(None) is None  # under each schedule


def test_what_comes_before() -> None:
    """The analysis behind `no_bulk_store` and `nothing_is_written`: the way through the kernel, its loops included."""
    k = kernel(WINDOWS[0])
    waits = [site.line for site in sites(k.text, r"cp\.async\.bulk\.wait_group")]
    assert [comes_before(k.text, k.entry, line, BULK_STORES) for line in waits[-2:]] == [True, True]
    fences = [site.line for site in sites(k.text, r"fence\.proxy\.async")]
    assert fences
    for line in fences:
        assert comes_before(k.text, k.entry, line, GENERIC_WRITES, stop=r"fence\.proxy\.async")
    assert comes_before(k.text, k.entry, waits[-1], r"fence\.proxy\.async")
    assert not comes_before(k.text, k.entry, waits[-1], r"fence\.proxy\.async", stop=r"cp\.async\.bulk|bar\.sync")


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


MADE_THERE = WINDOWS[1:]  # tensor maps, by the kernel; see MAP_FAULTS for those that the host makes

# wgmma's descriptors: swizzle in bits 62 and 63 (1: 128 bytes, 2: 64), the stride in units of 16 bytes from bit 32 on.
OPERAND = r"(?:or|add)\.[bs]64\s+%\w+, %\w+, -?\d{18,}"
FAULTS = {
    "another swizzle in wgmma's descriptor": Fault(WINDOWS, OPERAND, other(r"\d+", plus(1 << 62))),
    "another stride in wgmma's descriptor": Fault(WINDOWS, OPERAND, other(r"\d+", plus(1 << 32))),
    "no swizzle in a tensor map": Fault(MADE_THERE, field("swizzle_mode"), other("0x3", "0x0")),
    "a swizzle too narrow for the box": Fault(MADE_THERE, field("swizzle_mode"), other("0x3", "0x2")),
    "fragments from unswizzled places": Fault(
        TILED, r"xor\.b32\s+%\w+, %\w+, %\w+", other(r"xor(.*), %\w+;", r"mov\1;")
    ),
    "a phase that is flipped": Fault(WINDOWS, r"mbarrier\.try_wait", of_last("xor.b32 %faulty, {}, 1;")),
    "a wait that does not wait": Fault(
        WINDOWS, r"mbarrier\.try_wait", other(r"mbarrier\S+ ([%\w]+),.*", r"setp.eq.b32 \1, 0, 0;")
    ),
    "a phase that never flips": Fault(
        WINDOWS, r"xor\.b32\s+(?P<same>%r\d+), (?P=same), %r\d+", other(r"xor(.*), %\w+;", r"mov\1;")
    ),
    "a stage too many in the ring": Fault(WINDOWS, r"setp\.gt\.s32\s+%p\d+, %r\d+, 2", other("2;", "3;")),
    "a box one too large": Fault(MADE_THERE, field("box_dim", "0-4"), of_last("add.s32 %faulty, {}, 1;")),
    "a tensor one too large": Fault(MADE_THERE, field("global_dim", "012"), of_last("add.s32 %faulty, {}, 1;")),
    "a tensor one too small": Fault(MADE_THERE, field("global_dim", "0-4"), of_last("add.s32 %faulty, {}, -1;")),
    "a stride 16 bytes too large": Fault(
        MADE_THERE, field("global_stride", "012"), of_last("add.s64 %faulty, {}, 16;", 64)
    ),
    "an address 16 bytes too large": Fault(
        MADE_THERE, field("global_address"), of_last("add.s64 %faulty, {}, 16;", 64)
    ),
    "another element type": Fault(MADE_THERE, field("elemtype"), other("0xa", "0x7")),
    "an axis too few": Fault(MADE_THERE, field("rank"), other(r"0x([234])", lambda m: f"0x{int(m[1]) - 1}")),
    "filled with NaN": Fault(MADE_THERE, field("fill_mode"), other("0x0;", "0x1;")),
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
def test_planted_fault_is_found(name: str, fault: str, pytestconfig: pytest.Config) -> None:
    """At some three places; with --full at all that there are."""
    _, pattern, edit = FAULTS[fault]
    k, table = kernel(name), {}
    places = list(enumerate(sites(k.text, pattern)))
    every = 1 if pytestconfig.getoption("--full") else max(1, len(places) // 3)
    for number, site in places[::every]:
        assert edit(site) != site.text
        found = k.found(instead(k.text, site, edit(site)))
        if found is None and re.match(
            r"(?:cp\.async|wgmma).*wait", site.opcode
        ):  # it needs not be there at all: see above
            assert k.found(without(k.text, site)) is None
            found = "redundant, as the instruction is"
        print(f"{name}, {fault}, {number}: line {site.line}, {site.text[:70]}: {found}")
        table[site.line] = found
    assert table and all(table.values()), table
    assert not all(found.startswith("redundant") for found in table.values())


def along(name: str, by: int, *axes: int) -> Callable[[TensorMap], list[dict[str, Any]]]:
    """Other values of a tensor map's field, changed on each of these axes (none: of all), one at a time."""

    def changes(map_: TensorMap) -> list[dict[str, Any]]:
        values = getattr(map_, name)
        wanted = [axis for axis in range(len(values)) if not axes or axis in axes]
        return [{name: (*values[:axis], values[axis] + by, *values[axis + 1 :])} for axis in wanted]

    return changes


# The same in tensor maps that the host makes.
MAP_FAULTS: dict[str, Callable[[TensorMap], list[dict[str, Any]]]] = {
    "no swizzle": lambda _: [{"swizzle": 0}],
    "a swizzle too narrow for the box": lambda _: [{"swizzle": 64}],
    "a box one too large": along("box", 1),
    "a tensor one too large": along("sizes", 1, 0, 1, 3),
    "a tensor one too small": along("sizes", -1),
    "a stride 16 bytes too large": along("strides", 16, 0, 2, 3),
    "an address 16 bytes too large": lambda map_: [{"address": map_.address + 16}],
    "another element type": lambda _: [{"element_type": "f32"}],
    "an axis too few": lambda map_: [{name: getattr(map_, name)[:-1] for name in ("sizes", "strides", "box")}],
    "filled with NaN": lambda _: [{"fill": "nan"}],
}


@pytest.mark.parametrize("fault", MAP_FAULTS)
def test_fault_in_a_tensor_map_is_found(fault: str) -> None:
    k = kernel(WINDOWS[0])
    assert len(k.maps) == 3  # image, filters, result
    for number, map_ in enumerate(k.maps):
        for at, changes in enumerate(MAP_FAULTS[fault](map_)):
            found = k.found(k.text, (number, lambda now, at=at: MAP_FAULTS[fault](now)[at]))
            if fault == "filled with NaN" and map_.name == "p_y":  # nothing is read through it
                assert found is None
                continue
            print(f"{WINDOWS[0]}, {fault}: {map_.name}, {changes}: {found}")
            assert found


def loops_of_products(text: str) -> list[Site]:
    """Where the loops around products ask whether they go on."""
    found = []
    for site in sites(text, r"setp\.(?:lt|ne|gt|ge)\.\w+\s+%p\d+, %r\d+, %r\d+"):
        (predicate,) = re.findall(r"%p\d+", site.text)
        between = r"(?:\s*\.loc[^\n]*|\s*mov\.[^\n]*|\s*\n)*"
        branch = re.match(rf"{between}\s*@!?{predicate} bra\s+([$\w]+);", text[site.end :])
        start = text.find(f"\n{branch[1]}:", 0, site.start) if branch else -1
        if start >= 0 and re.search(r"mma\.(?:sync|mma_async)|mma_async", text[start : site.start]):
            found.append(site)
    return found


def products(k: Kernel, text: str) -> int:
    runs = k.runs_of(text)
    return sum(runs[site.line] for site in sites(text, r"mma\."))


@pytest.mark.parametrize("name", [*WINDOWS, *TILED, "banded grad_weight"])
@pytest.mark.parametrize("by", [1, -1])
def test_a_step_too_many_and_one_too_few(name: str, by: int) -> None:
    k = kernel(name)
    loops = loops_of_products(k.text)
    for number, site in enumerate(loops):
        text = altered(site, re.findall(r"%r\d+", site.text)[0], f"add.s32 %faulty, {{}}, {by};")
        found = k.found(instead(k.text, site, text))
        if found is None:  # what is copied beyond the last step is zeros
            assert name in TILED and by < 0 and products(k, instead(k.text, site, text)) > products(k, k.text)
            found = "products with zeros, no others"
        print(f"{name}, a step more or less ({by}), {number}: line {site.line}, {site.text}: {found}")
    assert loops


@pytest.mark.parametrize("name", TILED)
def test_copies_that_fill_nothing_with_zeros(name: str) -> None:
    """Each is found: what would be read instead is padding that is multiplied, or lies outside a tensor."""
    k = kernel(name, poisoned=True)
    copies = sites(k.text, r"cp\.async\.cg\.shared\.global \[.*\], 16, %")
    assert len(copies) >= 4  # image and filters, before the loop and in it
    for number, site in enumerate(copies):
        found = k.found(instead(k.text, site, re.sub(r", %\w+;", ";", site.text)))
        print(f"{name}, filled with nothing, {number}: line {site.line}, {site.text[:70]}: {found}")
        assert found


@pytest.mark.parametrize(("name", "pattern"), [(WINDOWS[0], r"wgmma\."), (TILED[0], r"cp\.async\.")])
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
