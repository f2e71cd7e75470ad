"""Kernels that failed on this machine: the planner passes them over although a backend offers them.

Two kinds. A tile that could not be built or launched (`Backend.cannot_build`) is dropped for its problem, in this
process. A family of kernels that failed `gpuconv doctor --self-test` on a GPU is remembered on disk, for each direction
and number type by itself, so that a wrong float16 gradient costs nobody a right float32 forward; until a later
self-test passes, or the driver or the version of gpuconv, PyTorch, Triton or CuPy is another one.

PyTorch's own convolution is never passed over: something has to be left.
"""

import re
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpuconv import packages
from gpuconv.backends import Backend
from gpuconv.backends.base import Tile
from gpuconv.gpu import EMULATED
from gpuconv.planning.table import Table

_MOST_PROBLEMS = 4096
_dropped: dict[Hashable, dict[tuple[str, Tile | None], str]] = {}  # by what was asked
_trusting = False


class Kernels(NamedTuple):
    """The unit of judgement: a family of a backend, in one direction, on one type of numbers."""

    backend: str
    family: str  # that of its tiles; "act_backward"; "" of a backend that offers no tiles
    direction: str
    numbers: str  # "float16", …, "tf32"

    def __str__(self) -> str:
        return " ".join(dict.fromkeys(part for part in self if part))


class Failed(NamedTuple):
    """A failure that the self-test found on a device, and with what software."""

    device: str
    kernels: Kernels
    date: str
    problem: str
    message: str
    versions: dict[str, str | None]

    @property
    def reason(self) -> str:
        where = "CPU" if self.device == "cpu" else "GPU"
        return f"failed the self-test on this {where} on {self.date}: {self.message} ({self.problem})"


# ---- in this process -------------------------------------------------------------------------------------------------


def drop(asked: Hashable, what: object, backend: Backend, tile: Tile | None, error: Exception) -> bool:
    """Pass this tile over for what was `asked` from now on, with one warning. False, and nothing is done, if `error`
    says something else than that it cannot be built or launched. what: the problem, in words."""
    if not backend.cannot_build(error):
        return False
    why, kernel = in_a_line(error), "its kernel" if tile is None else f"its tile {tile}"
    if len(_dropped) >= _MOST_PROBLEMS:
        _dropped.clear()
    _dropped.setdefault(asked, {})[backend.name, tile] = why
    warnings.warn(
        f"backend {backend.name!r} cannot build or launch {kernel} for {what}, and the next is taken; {why}",
        stacklevel=2,
    )
    return True


def in_a_line(error: Exception) -> str:
    """An error in one line: its type, and the first and the last line of its message (between them compilers quote the
    source) and of its causes' messages."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    lines = [line.strip() for one in chain for line in str(one).splitlines() if line.strip(" ^~|")]
    said = " … ".join(line[:200] for line in dict.fromkeys(lines[:1] + lines[-1:]))
    return f"{type(error).__name__}: {said}"


def dropped(asked: Hashable) -> Mapping[tuple[str, Tile | None], str]:
    """Why tiles of backends are passed over for what was `asked`."""
    return _dropped.get(asked, {})


def first_call(
    again: Callable[[], Any], keep: Callable[[Callable[..., Any]], None], asked: Hashable, what: str
) -> Callable[..., Any]:
    """A function of tensors that calls the `run` of what `again` plans (now, too, so that what is wrong with a call is
    said before anything runs), and keeps the one that ran for later calls.

    This is the call that compiles: a tile that cannot be built or launched is dropped, and what is planned then tried.
    """
    first = again()

    def run(*tensors: Any) -> Any:
        plan = first
        while True:
            try:
                result = plan.run(*tensors)
            except Exception as error:
                if not drop(asked, what, plan.backend, plan.tile, error):
                    raise
            else:
                keep(plan.run)
                return result
            plan = again()

    return run


def try_again() -> None:
    """Forget what was dropped."""
    _dropped.clear()


def remember_in(dropped: dict[Hashable, dict[tuple[str, Tile | None], str]]) -> None:
    """Keep in `dropped` what is dropped from now on, and pass over what is in it."""
    global _dropped
    _dropped = dropped


def forget() -> None:
    """Forget what was dropped, and read again what is remembered."""
    try_again()
    _table.forget()


# ---- remembered ------------------------------------------------------------------------------------------------------


def failed(device: str) -> dict[Kernels, Failed]:
    """What failed, with today's software, on a device of this name (`H100` means 'NVIDIA H100 PCIe' too, but not one
    that was emulated)."""
    if _trusting:
        return {}
    entries = _table.entries()
    if not entries:
        return {}
    called = re.compile(rf"(?<!\w){re.escape(device)}(?!\w|{re.escape(EMULATED)})")
    here = [found for found in entries.values() if called.search(found.device)]
    return {found.kernels: found for found in here if found.versions == software()} if here else {}


def record(device: str, found: Mapping[Kernels, Failed | None]) -> None:
    """Remember what failed on a device, and forget of what passed (None) that it ever failed.

    Raises OSError where the file cannot be written; then it is as it was.
    """
    if any(found.values()) or _table.entries():
        _table.record({f"{device} {kernels}": outcome for kernels, outcome in found.items()})


def path() -> Path:
    """The file that remembers what failed."""
    return _table.path()


def software() -> dict[str, str | None]:
    """The versions of all software that a failure may depend on."""
    found = {package: packages.installed(package) for package in ("torch", "triton", "cupy")}
    return {"gpuconv": sys.modules["gpuconv"].__version__, "driver": packages.driver(), **found}


def sift(
    tiles: tuple[Tile, ...],
    backend: str,
    direction: str,
    numbers: str,
    failures: Mapping[Kernels, Failed],
    dropped: Mapping[tuple[str, Tile | None], str],
) -> tuple[tuple[Tile, ...], dict[str, str]]:
    """The tiles that are left, and the reasons, by family, why others are not.

    A backend without tiles has none left. A backend of which nothing is left has reasons and no tiles.
    """
    if backend == "aten" or not (failures or dropped):
        return tiles, {}
    left, reasons = [], {}
    for tile in tiles or (None,):
        family = tile.family if tile else ""
        known = failures.get(Kernels(backend, family, direction, numbers))
        if known is not None:
            reasons[family] = known.reason
        elif (backend, tile) in dropped:
            reasons.setdefault(family, dropped[backend, tile])
        elif tile is not None:
            left.append(tile)
    return tuple(left), reasons


@contextmanager
def ignored() -> Iterator[None]:
    """Within this context nothing counts as failed: for code that judges kernels itself."""
    global _trusting
    before, _trusting = _trusting, True
    try:
        yield
    finally:
        _trusting = before


def _parse(entry: dict[str, Any]) -> Failed:
    found = Failed(**{**entry, "kernels": Kernels(**entry["kernels"])})
    texts = (found.device, *found.kernels, found.date, found.problem, found.message)
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.versions, dict):
        raise ValueError("it has other fields")
    return found


def _plain(found: Failed) -> dict[str, Any]:
    return {**found._asdict(), "kernels": found.kernels._asdict()}


_table: Table[Failed] = Table("self-test.json", "failed", _parse, _plain)
