"""The records that `gpuconv bench` writes: reading them, pairing them with the baseline, comparing two runs."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

_MEASURED = ("layer", "direction", "numbers", "batch", "layout", "backend")
_MACHINE = ("device", "threads", "torch", "triton", "cudnn", "source")
COLUMNS = (
    "suite", "layer", "direction", "numbers", "batch", "layout", "backend", "role", "ms", "ms_20", "ms_80", "runs",
    "tflops", "gbs", "roofline", "bound", "error", "right", "refused", "failed", "graph_ms", "host_us", "first_call_ms",
    "compile_ms", "copy_gbs", "matmul_tflops", "device", "driver", "cuda", "cudnn", "torch", "triton", "gpuconv",
    "commit", "date",
)  # fmt: skip


def key(row: Row) -> tuple[Any, ...]:
    """What a row measures, and on which machine with which versions: rows with the same key measure the same."""
    return tuple(row.get(name) for name in (*_MEASURED, *_MACHINE))


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of these files; of several that measure the same, the last.

    A last line that an interruption cut short is left out. Raises ValueError for a file that cannot be read, or that
    holds something else.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"{path} cannot be read: {why}") from error
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or any(name not in row for name in _MEASURED):
                    raise ValueError("not a result")
            except ValueError as error:
                if number == len(lines):
                    continue
                raise ValueError(f"{path}, line {number}, is not a result of gpuconv bench: {error}") from error
            found[key(row)] = row
    return list(found.values())


class Line(NamedTuple):
    """All rows of one layer, direction, number type and batch: a line of the report."""

    layer: str
    direction: str
    numbers: str
    batch: int
    rows: tuple[Row, ...]

    def best(self, backend: str) -> Row | None:
        """The row of a backend's faster layout; where none has a time, one that says why."""
        mine = [row for row in self.rows if row["backend"] == backend]
        return min(mine, key=lambda row: (row.get("ms", math.inf), "failed" not in row), default=None)

    def speedup(self, backend: str, baseline: str = "aten", layout: str | None = None) -> float | None:
        """The baseline's best time over the backend's best, or their times in one layout."""
        rows = [row for row in self.rows if layout in (None, row["layout"])]
        base, mine = (self._replace(rows=tuple(rows)).best(name) for name in (baseline, backend))
        if base is None or mine is None or "ms" not in base or "ms" not in mine:
            return None
        return base["ms"] / mine["ms"]


def lines(rows: Iterable[Row]) -> list[Line]:
    """The rows by what they compute, in their order; of different versions of one thing, the last."""
    latest = {tuple(row[name] for name in _MEASURED): row for row in rows}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for measured, row in latest.items():
        groups.setdefault(measured[:4], []).append(row)
    return [
        Line(layer, direction, numbers, batch, tuple(found))
        for (layer, direction, numbers, batch), found in groups.items()
    ]


def backends_of(found: Iterable[Line]) -> list[str]:
    """The backends in these lines, baselines first."""
    names = {row["backend"]: row["role"] for line in found for row in line.rows}
    return sorted(names, key=lambda name: (names[name] != "baseline", name != "aten"))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def times_text(speedup: float) -> str:
    """'1.30× faster', '2.15× slower'."""
    if 0.995 < speedup < 1.005:
        return "as fast"
    return f"{speedup:.2f}× faster" if speedup > 1 else f"{1 / speedup:.2f}× slower"


def as_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, with a line of column names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Change(NamedTuple):
    """A result that changed between two runs."""

    kind: str  # slower, faster, wrong, failed
    row: Row
    before: Row

    def __str__(self) -> str:
        new, old = self.row, self.before
        what = f"{new['layer']} {new['direction']} {new['numbers']} {new['layout']} {new['backend']}"
        if self.kind in ("slower", "faster"):
            a, b = (f"{row['ms']:.4g} ms [{row['ms_20']:.4g}, {row['ms_80']:.4g}]" for row in (old, new))
            return f"{self.kind:6} {new['ms'] / old['ms']:5.2f} × the time  {what}: {a} → {b}"
        why = new.get("failed") or new.get("refused") or f"error {new['error']} × the bound"
        return f"{self.kind:6} {what}: {why}"


class Comparison(NamedTuple):
    """The results that two runs have in common, and how they changed."""

    compared: int
    missing: int  # in the new run
    changes: list[Change]

    @property
    def regressions(self) -> list[Change]:
        """What got worse, baselines aside: a baseline that got slower is the machine's or PyTorch's doing."""
        return [c for c in self.changes if c.kind != "faster" and c.row["role"] != "baseline"]


def compare(old: Iterable[Row], new: Iterable[Row], least: float = 0.05) -> Comparison:
    """Compare two runs. A time has changed if the 20-to-80 % ranges do not overlap and the medians differ by `least`.

    Raises ValueError where the runs are of different devices or have nothing in common.
    """
    before, after = ({tuple(r[name] for name in _MEASURED): r for r in rows} for rows in (old, new))
    common = [measured for measured in after if measured in before]
    if not common:
        raise ValueError("the two files have no measurement in common")
    devices = [sorted({str(rows[one].get("device")) for one in common}) for rows in (before, after)]
    if devices[0] != devices[1]:
        raise ValueError(f"the two files are of different devices: {', '.join(devices[0])} and {', '.join(devices[1])}")
    changes = []
    for measured in common:
        a, b = before[measured], after[measured]
        if "ms" not in a:
            continue
        if "ms" not in b:
            changes.append(Change("wrong" if b.get("right") is False else "failed", b, a))
        elif b["ms_20"] > a["ms_80"] and b["ms"] > a["ms"] * (1 + least):
            changes.append(Change("slower", b, a))
        elif b["ms_80"] < a["ms_20"] and b["ms"] * (1 + least) < a["ms"]:
            changes.append(Change("faster", b, a))
    changes.sort(key=lambda c: -c.row["ms"] / c.before["ms"] if "ms" in c.row else -math.inf)
    return Comparison(len(common), len(before) - len(common), changes)
