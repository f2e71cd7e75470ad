"""The records of `gpuconv bench` as PNG files, for each suite and number type: a roofline, and speed-ups over PyTorch.

Series differ in marker or hatch as well as in colour (Okabe and Ito's, safe for colour-blind readers), so that they
differ in grey, too. Needs matplotlib: pip install 'gpuconv[bench]'.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuconv.bench.records import Line, Row, backends_of, geometric_mean, lines
from gpuconv.bench.workloads import TIMED

# colour, marker, hatch: dark and light in turn
_STYLES = (
    ("#000000", "o", ""),
    ("#E69F00", "^", "///"),
    ("#0072B2", "s", "..."),
    ("#56B4E9", "D", "xxx"),
    ("#D55E00", "v", "\\\\\\"),
    ("#009E73", "P", "|||"),
)


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the plots of these rows into `folder`, and return their paths. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure  # no pyplot: no state, no display

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    found = [line for line in lines(rows) if any("ms" in row for row in line.rows)]
    for suite, numbers in dict.fromkeys((line.layer.partition(".")[0], line.numbers) for line in found):
        mine = [line for line in found if line.layer.startswith(f"{suite}.") and line.numbers == numbers]
        for name, draw in (("roofline", _roofline), ("speedup", _speedup)):
            batches = {line.batch for line in mine}
            batch = f", batch {batches.pop()}" if len(batches) == 1 else ""
            figure = draw(Figure, mine, f"{suite}, {numbers}{batch}, {_machine(rows[-1])}")
            if figure is not None:
                written.append(folder / f"{suite}-{numbers}-{name}.png")
                figure.savefig(written[-1], dpi=130)
    return written


def _machine(row: Row) -> str:
    threads = f", {row['threads']} threads" if row["on"] == "cpu" else ""
    return f"{row['device']}{threads}\ntorch {row['torch']}, {row['date'][:10]}"


def _label(line: Line, among: list[Line]) -> str:
    """A layer's name; with its batch, where the layers have different ones."""
    name = line.layer.partition(".")[2]
    return name if len({other.batch for other in among}) == 1 else f"{name} ×{line.batch}"


def _style(names: Sequence[str], name: str) -> tuple[str, str, str]:
    return _STYLES[names.index(name) % len(_STYLES)]


def _roofline(make: Any, found: list[Line], title: str) -> Any:
    """Each backend's best rate on each layer, under this machine's ceilings; a panel for each direction."""
    names = backends_of(found)
    directions = [d for d in TIMED if any(line.direction == d for line in found)]
    best = [row for line in found for name in names if (row := line.best(name)) is not None and "ms" in row]
    last = best[-1]
    unit, scale = ("GFLOP/s", 1e3) if max(row["tflops"] for row in best) < 1 else ("TFLOP/s", 1.0)
    memory, arithmetic = last["copy_gbs"] * scale / 1e3, last["matmul_tflops"] * scale
    intensities = [row["gflop"] / row["gbyte"] for row in best]
    ridge = arithmetic / memory
    low, high = min(*intensities, ridge) / 3, max(*intensities, ridge) * 2
    figure = make(figsize=(4.4 * len(directions) + 0.8, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(directions), sharex=True, sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=True):
        panel.plot([low, ridge, high], [low * memory, arithmetic, arithmetic], color="#555555", linewidth=1.5)
        small: Any = {"textcoords": "offset points", "fontsize": 8, "color": "#333333"}
        panel.annotate("copy", (low, low * memory), (10, 0), **small)
        panel.annotate("matrix product", (high, arithmetic), (-2, 4), ha="right", **small)
        for name in names:
            colour, marker, _ = _style(names, name)
            series = [row for row in best if (row["backend"], row["direction"]) == (name, direction)]
            xs, ys = [row["gflop"] / row["gbyte"] for row in series], [row["tflops"] * scale for row in series]
            panel.scatter(xs, ys, label=name, c=colour, marker=marker, s=34, edgecolors="black", linewidths=0.6)
        panel.set(xscale="log", yscale="log", xlabel="operations a byte")
        panel.set_title(direction, fontsize=9)
        panel.grid(True, which="major", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel(unit)
    panels[0].legend(loc="lower right", fontsize=9)
    return figure


def _speedup(make: Any, found: list[Line], title: str) -> Any:
    """Each backend's best speed over PyTorch's best; left of the line it is slower."""
    from matplotlib.ticker import NullLocator

    names = backends_of(found)
    others = [name for name in names if name != "aten" and any(line.speedup(name) for line in found)]
    if not others:
        return None
    directions = [d for d in TIMED if any(line.direction == d for line in found)]
    labels = list(dict.fromkeys(_label(line, found) for line in found))
    height = 2.0 + 0.24 * len(labels) * max(1.0, 0.6 * len(others)) + 0.4
    figure = make(figsize=(3.4 * len(directions) + 2.4, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(directions), sharey=True, sharex=True, squeeze=False)[0]
    thickness = 0.8 / len(others)
    for panel, direction in zip(panels, directions, strict=True):
        means = []
        for i, name in enumerate(others):
            colour, _, hatch = _style(names, name)
            speedups = {
                labels.index(_label(line, found)): speedup
                for line in found
                if line.direction == direction and (speedup := line.speedup(name)) is not None
            }
            if not speedups:
                continue
            panel.barh(
                [at - 0.4 + thickness * (i + 0.5) for at in speedups],
                [s - 1 for s in speedups.values()], thickness, 1, label=name, color=colour, hatch=hatch,
                edgecolor="black", linewidth=0.6,
            )  # fmt: skip
            for at, s in speedups.items():
                panel.annotate(
                    f"{s:.2f}", (s, at - 0.4 + thickness * (i + 0.5)), (3 if s >= 1 else -3, 0), va="center",
                    textcoords="offset points", ha="left" if s >= 1 else "right", fontsize=7,
                )  # fmt: skip
            means.append(f"{name} {geometric_mean(list(speedups.values())):.2f}")
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        pairs = [", ".join(means[i : i + 2]) for i in range(0, len(means), 2)]
        panel.set_title("\n".join((direction, *pairs, "(geometric mean)")), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(True, axis="x", which="major", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.set_xlabel("← slower   × PyTorch's speed   faster →", fontsize=8)
    all_speedups = [known for line in found for name in others if (known := line.speedup(name)) is not None]
    low, high = min(*all_speedups, 0.9), max(*all_speedups, 1.1)
    room = (high / low) ** 0.18
    panels[0].set_xlim(low / room, high * room)
    few = (0.001, 0.01, 0.1, 1, 10, 100, 1000) if high / low > 200 else (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    ticks = [t for t in few if low / room <= t <= high * room]
    panels[0].set_xticks(ticks, [f"{t:g}×" for t in ticks], fontsize=8)
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].invert_yaxis()
    if len(others) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=len(others))
    return figure
