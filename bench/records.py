"""Results as `gpuconv bench` writes them: reading, pairing with the baseline, comparing two runs."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

_CASE = ("layer", "direction", "numbers", "batch", "layout", "backend")
_MACHINE = ("device", "threads", "torch", "triton", "cudnn", "source")
COLUMNS = (
    "suite", "layer", "direction", "numbers", "batch", "layout", "backend", "role", "ms", "ms_20", "ms_80", "runs",
    "tflops", "gbs", "roofline", "bound", "error", "right", "refused", "failed", "graph_ms", "host_us", "first_call_ms",
    "compile_ms", "copy_gbs", "matmul_tflops", "device", "driver", "cuda", "cudnn", "torch", "triton", "gpuconv",
    "commit", "date",
)  # fmt: skip


def key(row: Row) -> tuple[Any, ...]:
    """What a row measures, and with what: rows of one key measure the same."""
    return tuple(row.get(name) for name in (*_CASE, *_MACHINE))


def read(paths: Iterable[Path]) -> list[Row]:
    """All rows of these files; of those that measure the same, the last. A last line cut short by an interruption is
    left out. Raises ValueError for a file that cannot be read or is not of results."""
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
                if not isinstance(row, dict) or any(name not in row for name in _CASE):
                    raise ValueError("not a result")
            except ValueError as error:
                if number == len(lines):
                    continue
                raise ValueError(f"{path}, line {number}, is not a result of gpuconv bench: {error}") from error
            found[key(row)] = row
    return list(found.values())


class Line(NamedTuple):
    """All rows of one layer, direction, kind of numbers and batch."""

    layer: str
    direction: str
    numbers: str
    batch: int
    rows: tuple[Row, ...]

    def best(self, backend: str) -> Row | None:
        """The fastest row of a backend over layouts; one without a time where there is none with."""
        mine = [row for row in self.rows if row["backend"] == backend]
        return min(mine, key=lambda row: (row.get("ms", math.inf), "failed" not in row), default=None)

    def speedup(self, backend: str, baseline: str = "aten") -> float | None:
        """The baseline's best time over the backend's best."""
        base, mine = self.best(baseline), self.best(backend)
        if base is None or mine is None or "ms" not in base or "ms" not in mine:
            return None
        return base["ms"] / mine["ms"]


def lines(rows: Iterable[Row]) -> list[Line]:
    """Rows by what they compute, in their order; of different versions of one thing, the last."""
    latest = {tuple(row[name] for name in _CASE): row for row in rows}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for case, row in latest.items():
        groups.setdefault(case[:4], []).append(row)
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
    """The rows as CSV, with a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Change(NamedTuple):
    """How a result changed between two runs."""

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
    """What two runs have in common, and what changed."""

    compared: int
    missing: int  # in the new run
    changes: list[Change]

    @property
    def regressions(self) -> list[Change]:
        """What got worse, of ours and of kernels under test: a baseline that got slower is the machine's doing."""
        return [c for c in self.changes if c.kind != "faster" and c.row["role"] != "baseline"]


def compare(old: Iterable[Row], new: Iterable[Row], least: float = 0.05) -> Comparison:
    """What changed beyond the noise: the ranges from 20 % to 80 % do not meet, and the medians differ by `least`.

    Raises ValueError where the runs are of different devices or have nothing in common.
    """
    before, after = ({tuple(r[name] for name in _CASE): r for r in rows} for rows in (old, new))
    common = [case for case in after if case in before]
    if not common:
        raise ValueError("the two files have no measurement in common")
    devices = [sorted({str(rows[case].get("device")) for case in common}) for rows in (before, after)]
    if devices[0] != devices[1]:
        raise ValueError(f"the two files are of different devices: {', '.join(devices[0])} and {', '.join(devices[1])}")
    changes = []
    for case in common:
        a, b = before[case], after[case]
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
