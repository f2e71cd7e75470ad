"""The records of `gpuconv bench` as text: a table for each suite, with geometric means of all its layers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gpuconv.bench.records import Comparison, Line, Row, backends_of, geometric_mean, lines, times_text

_LAYOUT_LETTER = {"contiguous": "c", "channels_last": "l"}


def table(rows: Sequence[Row]) -> str:
    """A table for each suite and number type, with geometric means, and then notes on what is wrong or missing."""
    found = lines(rows)
    if not found:
        return "no results"
    out = [_machine(rows[-1])]
    for suite, numbers in dict.fromkeys((line.layer.partition(".")[0], line.numbers) for line in found):
        mine = [line for line in found if line.layer.startswith(f"{suite}.") and line.numbers == numbers]
        out += ["", *_suite(suite, numbers, mine)]
    out += ["", *_notes(found)]
    return "\n".join(out)


def _machine(row: Row) -> str:
    versions = "".join(f", {name} {row[name]}" for name in ("driver", "cudnn", "torch", "triton") if row.get(name))
    threads = f", {row['threads']} threads" if row["on"] == "cpu" else ""
    note = " (no GPU: this says nothing about the speed of the GPU kernels)" if row["on"] == "cpu" else ""
    return f"{row['device']}{threads}{note}{versions}, gpuconv {row['gpuconv']} {row['commit'] or ''}, {row['date']}"


def _suite(suite: str, numbers: str, found: list[Line]) -> list[str]:
    names = backends_of(found)
    batches = sorted({line.batch for line in found})
    batch = f"batch {batches[0]}" if len(batches) == 1 else "batch as listed"
    width = max(24, *(len(_label(line, len(batches) > 1)) for line in found))
    head = f"{'':{width}} {'direction':11} {'roofline':>9}" + "".join(f" {_ms_head(name):>12}" for name in names)
    others = [name for name in names if name != "aten"]
    head += "".join(f"  {f'{name} is':14}" for name in others)
    numbers = {"float32": "float32 (IEEE)", "tf32": "float32 as TF32"}.get(numbers, numbers)
    out = [f"{suite}, {numbers}, {batch}: ms (median) in the faster layout, c contiguous or l channels last", head]
    for line in found:
        text = f"{_label(line, len(batches) > 1):{width}} {line.direction:11} {_allowed(line):>9}"
        text += "".join(f" {_time(line.best(name)):>12}" for name in names)
        for name in others:
            speedup = line.speedup(name)
            text += f"  {'' if speedup is None else times_text(speedup):14}"
        out.append(text.rstrip())
    for name in others:
        for direction in dict.fromkeys(line.direction for line in found):
            out += _mean(name, direction, [line for line in found if line.direction == direction])
    return out + _by_layout(others, found)


def _by_layout(names: list[str], found: list[Line]) -> list[str]:
    """The means again, of times in one layout, where there are two."""
    layouts = [layout for layout in _LAYOUT_LETTER if any(r["layout"] == layout for line in found for r in line.rows)]
    out = []
    for name in names:
        for direction in dict.fromkeys(line.direction for line in found):
            means = [
                mean_in(layout, name, [line for line in found if line.direction == direction]) for layout in layouts
            ]
            if len(layouts) > 1 and all(means):
                out.append([f"{name} {direction}", *map(str, means)])
    table = [["aten's time over theirs in one layout", *layouts], *out]
    return [
        "  " + "  ".join(f"{cell:{38 if i == 0 else 22}}" for i, cell in enumerate(row)).rstrip()
        for row in table
        if out
    ]


class Mean(NamedTuple):
    """A geometric mean of how much faster a backend is than the baseline."""

    speedup: float
    faster: int  # of the layers
    layers: int

    def __str__(self) -> str:
        return f"{self.speedup:.2f} (faster on {self.faster}/{self.layers})"


def mean_in(layout: str, backend: str, found: Sequence[Line]) -> Mean | None:
    """The mean of these lines in one layout; None where no line has both times."""
    known = [s for line in found if (s := line.speedup(backend, layout=layout)) is not None]
    return Mean(geometric_mean(known), sum(s > 1 for s in known), len(known)) if known else None


def _label(line: Line, with_batch: bool) -> str:
    name = line.layer.partition(".")[2]
    return f"{name} ×{line.batch}" if with_batch else name


def _ms_head(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    if "ms" in row:
        mark = "" if row["right"] else "!"
        return f"{row['ms']:.{3 if row['ms'] < 100 else 1}f} {_LAYOUT_LETTER[row['layout']]}{mark:1}"
    if row.get("right") is False:
        return "WRONG"
    return "failed" if "failed" in row else "refused"


def _allowed(line: Line) -> str:
    """What part of the roofline the fastest result reaches, and whether memory or arithmetic limits it."""
    timed = [row for row in line.rows if "roofline" in row]
    if not timed:
        return "-"
    best = min(timed, key=lambda row: row["ms"])
    return f"{best['roofline']:.0%} {best['bound'][:3]}"


def _mean(name: str, direction: str, found: list[Line]) -> list[str]:
    speedups = {line.layer.partition(".")[2]: line.speedup(name) for line in found}
    known = {layer: s for layer, s in speedups.items() if s is not None}
    if not known:
        return []
    if len(known) == 1:
        return []
    slowest, fastest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    faster = sum(s > 1 for s in known.values())
    text = (
        f"  {name}, {direction}: {times_text(geometric_mean(list(known.values())))} than aten "
        f"(geometric mean of {len(known)}; faster on {faster}, slower on {len(known) - faster}; "
        f"worst {times_text(known[slowest])}: {slowest}; best {times_text(known[fastest])}: {fastest})"
    )
    missing = len(speedups) - len(known)
    return [text + (f"; {missing} without a time" if missing else "")]


def _notes(found: list[Line]) -> list[str]:
    """What a column means, and what is wrong, was refused or has failed."""
    rows = [row for line in found for row in line.rows]
    out = ["roofline: the least time that this machine's rates of copying (mem) and of matrix products (ari) allow, "
           "measured in the same run, as a part of the fastest time; and which of the two is the limit"]  # fmt: skip
    missed: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("right") is False and row["role"] == "baseline":
            missed.setdefault(row["backend"], []).append(row)
    for name, wrong in missed.items():
        worst = max(float(row["error"]) for row in wrong)
        out.append(f"! {name} misses the error bound on {len(wrong)} of these, by up to {worst:.3g} times")
    for row in rows:
        what = f"{row['layer']} {row['direction']} {row['numbers']} {row['layout']} {row['backend']}"
        if row.get("right") is False and row["role"] != "baseline":
            out.append(f"WRONG  {what}: error {row['error']} × the bound; not timed")
        elif "failed" in row:
            out.append(f"failed {what}: {row['failed']}")
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if "refused" in row:
            reasons[row["backend"], row["refused"]] = reasons.get((row["backend"], row["refused"]), 0) + 1
    return out + [f"refused by {name} {count}×: {reason}" for (name, reason), count in reasons.items()]


def comparison(found: Comparison) -> str:
    """What changed between two runs, the worst first, and a line with the totals."""
    out = [str(change) for change in found.changes if change.row["role"] != "baseline"]
    noise = [c for c in found.changes if c.row["role"] == "baseline"]
    if noise:
        ratios = [c.row["ms"] / c.before["ms"] for c in noise if "ms" in c.row and math.isfinite(c.row["ms"])]
        mean = f", by {geometric_mean(ratios):.2f} × in the geometric mean" if ratios else ""
        out.append(
            f"the baseline changed on {len(noise)}{mean}: that is due to the machine or PyTorch, and does not count"
        )
    worse = len(found.regressions)
    better = sum(c.kind == "faster" and c.row["role"] != "baseline" for c in found.changes)
    missing = f", {found.missing} not measured again" if found.missing else ""
    out.append(f"{found.compared} compared{missing}: {worse} worse, {better} better beyond the noise")
    return "\n".join(out)
