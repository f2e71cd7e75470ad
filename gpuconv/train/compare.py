"""Comparison of backends in training: accuracy, seconds per epoch, images per second, and the parts of a step."""

import dataclasses
import io
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from gpuconv import backends
from gpuconv.errors import UserError
from gpuconv.train import checkpoint, data as datasets, loop, networks, run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import ProgressLines

TABLE, PICTURE = "compare.json", "compare.png"
STAGES = ("data", "forward", "backward", "optimizer")
_WARMUP, _TIMED = 5, 20  # steps


def compare(config: Config, names: Sequence[str], seeds: int, path: Path, stream: TextIO) -> list[dict[str, Any]]:
    """Train with each backend of `names` and each of `seeds` seeds; write the runs, a table and a chart to `path`.

    Two names of one backend are measured once: on a CPU `auto` is `aten`. Returns a row for each backend: its values
    are means, those called `…_spread` standard deviations over seeds. Accuracy is that of the runs' results, on images
    by which nothing was chosen. The speed is the median over a run's epochs except the first. Raises as `runs.train`
    does.
    """
    names = _different(names, config.device, stream)
    configs = {name: dataclasses.replace(config, backend=name) for name in names}
    for each in configs.values():
        each.check()
    for name, seed in itertools.product(names, range(config.seed, config.seed + seeds)):
        runs.check_new(path / f"{name}-{seed}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed, name in itertools.product(range(config.seed, config.seed + seeds), names):
        progress = ProgressLines(stream, f"{name}, seed {seed}")
        result = runs.train(dataclasses.replace(configs[name], seed=seed), path / f"{name}-{seed}", [progress])
        if result["stopped_by"]:
            raise UserError(f"stopped by {result['stopped_by']}; the runs that ended are in {path}")
        epochs = [line for line in runs.metrics(path / f"{name}-{seed}") if line["kind"] == "epoch"]
        rate = statistics.median(line["images_per_second"] for line in epochs[1:] or epochs)
        images = json.loads((path / f"{name}-{seed}" / runs.CONFIG).read_text())["images"]
        found[name].append({"accuracy": result["accuracy"], "epoch_seconds": images / rate, "images_per_second": rate})
    rows = []
    for name, results in found.items():
        row: dict[str, Any] = {"backend": name, "seeds": seeds}
        for key in results[0]:
            values = [result[key] for result in results]
            row |= {key: statistics.mean(values), f"{key}_spread": statistics.stdev(values) if seeds > 1 else None}
        rows.append(row | {"step_ms": step_times(configs[name])})
    checkpoint.write(path / TABLE, json.dumps({"config": dataclasses.asdict(config), "rows": rows}, indent=2).encode())
    checkpoint.write(path / PICTURE, _picture(rows, f"{config.model} on {config.data}, {config.device}"))
    return rows


def _different(names: Sequence[str], device: str, stream: TextIO) -> list[str]:
    """The different backends among `names`; prints where a name stands for another."""
    order = backends.auto_order(torch.device(device).type)
    found: list[str] = []
    for name in map(str.strip, names):
        real = order[0] if name == "auto" and len(order) == 1 else name
        if real != name:
            print(f"on {device}, {name} is {real}, which is measured once", file=stream)
        if real not in found:
            found.append(real)
    return found


def step_times(config: Config) -> dict[str, float]:
    """Milliseconds of each stage of a training step, medians; the device is synchronised after each stage."""
    device = torch.device(config.device)
    data = datasets.load(config).to(device)
    network = networks.build(config.model, data.image_shape, len(data.classes), config.channels_last)
    config = dataclasses.replace(config, steps=_WARMUP + _TIMED, epochs=None)
    network.to(device, config.weight_dtype)
    networks.measure(network, data.images, data.top)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    last = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        times[stage].append((now - last) * 1e3)
        last = now

    with runs.computing(config, data.image_shape):
        training = loop.Training(network, config, len(data.labels), loop.dry_run(network, data, config))
        for _ in loop.fit(training, data, config, mark):
            last = time.perf_counter()
    return {stage: statistics.median(values[_WARMUP:]) for stage, values in times.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""

    def cell(row: dict[str, Any], key: str, form: str) -> str:
        spread = row[f"{key}_spread"]
        return f"{row[key]:{form}}" + ("" if spread is None else f" ± {spread:{form}}")

    cells = [["backend", "accuracy", "s an epoch", "images/s", *(f"{stage} ms" for stage in STAGES)]]
    for row in rows:
        measured = [
            cell(row, "accuracy", ".2%"),
            cell(row, "epoch_seconds", ".2f"),
            cell(row, "images_per_second", ",.0f"),
        ]
        cells.append([row["backend"], *measured, *(f"{row['step_ms'][stage]:.2f}" for stage in STAGES)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)) for line in cells)


def _picture(rows: Sequence[dict[str, Any]], title: str) -> bytes:
    from matplotlib.figure import Figure  # no pyplot: no state, no display

    names = [row["backend"] for row in rows]
    figure = Figure(figsize=(9, 3), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    for axes, key in zip(panels, ("accuracy", "images_per_second"), strict=False):
        axes.bar(names, [row[key] for row in rows], yerr=[row[f"{key}_spread"] or 0 for row in rows], color="#56B4E9")
        axes.set_title(key.replace("_per_second", "/s"))
    low = [0.0] * len(rows)
    for stage in STAGES:
        heights = [row["step_ms"][stage] for row in rows]
        panels[2].bar(names, heights, bottom=low, label=stage)
        low = [a + b for a, b in zip(low, heights, strict=True)]
    panels[2].set_title("a step, ms")
    panels[2].legend(fontsize="small")
    png = io.BytesIO()
    figure.savefig(png, dpi=90)
    return png.getvalue()
