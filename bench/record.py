"""Records what was measured on a GPU, and renews what the pages say of it.

    python -m gpuconv.bench.record BENCH.jsonl SELF-TEST.json

BENCH.jsonl is of `gpuconv bench`, SELF-TEST.json what `gpuconv doctor --self-test --json` printed. Both are copied to
bench/results/, and the passages of README.md and docs/measure.md between `<!-- measured -->` and `<!-- end -->` written
anew, from nothing but these files; a test holds the pages to them. `bash bench/on_gpu.sh check bench` makes both.
"""

import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpuconv.bench.records import Line, Row, lines, read
from gpuconv.bench.report import Mean, mean_in
from gpuconv.bench.workloads import LAYOUTS
from gpuconv.problem import DIRECTIONS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
BACKENDS, NUMBERS = ("triton", "cuda"), ("bfloat16", "tf32")
BATCH = 32
LAYERS = {"resnet50": "layers of ResNet-50", "stems": "ResNet's first layer"}
_DIRECTIONS = dict(zip(DIRECTIONS, ("forward", "gradient of the input", "gradient of the weight"), strict=True))
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


class Record(NamedTuple):
    """The files of a GPU."""

    bench: Path
    self_test: Path

    @property
    def rows(self) -> list[Row]:
        return read([self.bench])

    @property
    def machine(self) -> str:
        """The GPU and the versions of all that matters."""
        row = self.rows[-1]
        major, minor = divmod(row["cudnn"] // 100, 100)
        versions = {"torch": row["torch"].partition("+")[0], "cuDNN": f"{major}.{minor}"}
        versions |= {"Triton": row["triton"], "CuPy": row["cupy"]}
        known = ", ".join(f"{name} {version}" for name, version in versions.items())
        return f"one {row['device']} ({row['date'][:10]}, commit {row['commit'][:7]}; {known})"

    @property
    def tiles(self) -> Path | None:
        """The times of many tiles on the same GPU, if there are such: a line that says what they are, then one each."""
        path = self.bench.with_name(self.bench.name.replace("-bench.jsonl", "-tiles.jsonl"))
        return path if path.exists() else None

    @property
    def quickest(self) -> list[Row]:
        """For each layer, direction, number type, layout and backend the quickest tile; and the baseline."""
        if self.tiles is None:
            return []
        _, *tiles = map(json.loads, self.tiles.read_text(encoding="utf-8").splitlines())
        tiles.sort(key=lambda row: -row["ms"])  # of those that measure one thing, `lines` takes the last
        return [*(row for row in self.rows if row["role"] == "baseline"), *({"role": "ours", **row} for row in tiles)]


def newest() -> Record:
    """The record whose file names come last."""
    (*_, bench) = sorted(RESULTS.glob("*-bench.jsonl"))
    return Record(bench, bench.with_name(bench.name.replace("-bench.jsonl", "-self-test.json")))


def copied(bench: Path, self_test: Path) -> Record:
    """Copies in bench/results/, named by date and GPU. Paths of the machine are left out."""
    rows, tested = read([bench]), json.loads(self_test.read_text(encoding="utf-8"))
    name = f"{rows[-1]['date'][:10]}-{rows[-1]['device'].split()[1].lower()}"
    new = Record(RESULTS / f"{name}-bench.jsonl", RESULTS / f"{name}-self-test.json")
    new.bench.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    tested.pop("remembered_in", None)
    new.self_test.write_text(json.dumps(tested, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return new


# ---- what the pages say ----------------------------------------------------------------------------------------------


def _mean(found: Sequence[Line], suite: str, backend: str, layout: str, direction: str, numbers: str) -> Mean | None:
    mine = [line for line in found if line.layer.startswith(f"{suite}.") and line.batch == BATCH]
    mine = [line for line in mine if (line.direction, line.numbers) == (direction, numbers)]
    return mean_in(layout, backend, mine)


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _tested(record: Record) -> str:
    """Where, and what the self-test found there."""
    found = json.loads(record.self_test.read_text(encoding="utf-8"))
    families = [family for family in found["families"] if family["status"] != "measured, not judged"]
    # A family whose operands are packed launches the kernels of the one without.
    failed = dict.fromkeys(
        f"`{one['backend']}` {one['family'].removeprefix('packed ')} {one['direction']} {one['numbers']}"
        for one in found["failed"]
    )
    unjudged = [f"`{one['backend']}` {one['family']}" for one in families if one["status"] == "not judged"]
    return (
        f"On {record.machine}, `gpuconv doctor --self-test` tried {sum(family['problems'] for family in families)} "
        f"problems with {len(families)} families of kernels; "
        + (f"these failed: {', '.join(failed)}" if failed else "all were within the error bound")
        + (f"; not judged: {', '.join(unjudged)}" if unjudged else "")
    )


def _table(corner: str, columns: Sequence[str], cells: dict[str, list[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    rows = [[corner, *columns], ["---"] * (1 + len(columns)), *([name, *each] for name, each in cells.items())]
    return ["| " + " | ".join(row) + " |" for row in rows]


def front_page(record: Record) -> str:
    """The passage of README.md."""
    columns = [(backend, layout) for backend in BACKENDS for layout in reversed(LAYOUTS)]
    runs = [lines(rows) for rows in (record.rows, record.quickest) if rows]
    cells = {
        _DIRECTIONS[direction]: [
            [_mean(run, "resnet50", *one, direction, "bfloat16") for run in runs] for one in columns
        ]
        for direction in DIRECTIONS
    }
    count = max(mean.layers for row in cells.values() for means in row for mean in means if mean)
    say = (
        f"{_tested(record)}. PyTorch's time divided by ours there (above 1 we are faster), geometric means of {count} "
        f"{LAYERS['resnet50']}, batch {BATCH}, bfloat16"
        + (
            ", as planned → with the quickest tile, later that day and partly of mended kernels:"
            if record.tiles
            else ":"
        )
    )
    shown = {
        name: [" → ".join(f"{mean.speedup:.2f}" if mean else "–" for mean in means) for means in row]
        for name, row in cells.items()
    }
    heads = [f"`{backend}`, {layout.replace('_', ' ')}" for backend, layout in columns]
    return "\n".join([_filled(say), *_table("", heads, shown), ""])


def table(record: Record) -> str:
    """The passage of docs/measure.md."""
    planned, quickest = lines(record.rows), lines(record.quickest)
    out = [line for suite in LAYERS for line in _of_suite(suite, planned, planned)]
    say = f"{_tested(record)}. PyTorch's time divided by ours, both in the layout named, batch {BATCH}: above 1 we are \
faster. Geometric means, and on how many of the layers we are faster:"
    bench, tested = (f"[{path.name}](../bench/results/{path.name})" for path in record)
    end = f"From {bench}, where `gpuconv bench --report` also prints each layer's times, and {tested}."
    if record.tiles is not None:
        first, *rest = record.tiles.read_text(encoding="utf-8").splitlines()
        named = f"[{record.tiles.name}](../bench/results/{record.tiles.name})"
        then = f"With the quickest of {len(rest):,} tiles, which is what `gpuconv tune` would choose ({named}: \
{json.loads(first)['what'].rpartition('; ')[2]}), beside PyTorch's times of before:"
        end += f"\n\n{then}"
    text = [_filled(say), *out, *(_filled(part) for part in end.split("\n\n"))]
    return "\n".join([*text, *(line for suite in LAYERS for line in _of_suite(suite, quickest, planned) if quickest)])


def _of_suite(suite: str, found: Sequence[Line], planned: Sequence[Line]) -> list[str]:
    """The table of a suite, of the layers that were planned, and an empty line."""
    columns = [(kind, layout) for kind in NUMBERS for layout in reversed(LAYOUTS)]
    heads = [f"{'TF32' if kind == 'tf32' else kind}, {layout.replace('_', ' ')}" for kind, layout in columns]
    count = len({line.layer for line in planned if line.layer.startswith(f"{suite}.") and line.batch == BATCH})
    cells = {
        f"`{backend}`, {_DIRECTIONS[direction]}": [
            _cell(_mean(found, suite, backend, layout, direction, kind)) for kind, layout in columns
        ]
        for backend in BACKENDS
        for direction in DIRECTIONS
    }
    return [*_table(f"{f'{count} ' if count > 1 else ''}{LAYERS[suite]}", heads, cells), ""]


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    return f"{mean.speedup:.2f}" + (f" ({mean.faster} of {mean.layers})" if mean.layers > 1 else "")


PAGES: dict[str, Callable[[Record], str]] = {"README.md": front_page, "docs/measure.md": table}


def main() -> None:
    record = copied(*map(Path, sys.argv[1:3])) if len(sys.argv) == 3 else newest()
    for page, says in PAGES.items():
        before, _, rest = (ROOT / page).read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        (ROOT / page).write_text(before + BEGIN + says(record) + end + after, encoding="utf-8")
        print(f"{page} is renewed")


if __name__ == "__main__":
    main()
