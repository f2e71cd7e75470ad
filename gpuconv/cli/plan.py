"""The command `gpuconv plan`; `gpuconv.cli.main` puts it on the command line."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gpuconv import backends
from gpuconv.backends import packing
from gpuconv.backends.base import contiguous_operands
from gpuconv.backends.roofline import Prediction
from gpuconv.cli.layers import Batch, Layers, Layout, Numbers, problems_of
from gpuconv.cli.options import AsJson, Directions, checked
from gpuconv.gpu import KNOWN, Gpu, named
from gpuconv.planning import ranking
from gpuconv.problem import ConvProblem, Direction
from gpuconv.text import printable


def plan(
    layer: Layers,
    gpu: Annotated[
        list[str],
        typer.Option(
            "--gpu",
            "--arch",
            show_default=False,
            help=f"GPUs to plan for: {', '.join(KNOWN)}, or sm_90 and so on. Repeatable.",
        ),
    ],
    direction: Directions = None,
    dtype: Numbers = "float16",
    layout: Layout = "channels_last",
    batch: Batch = None,
    most: Annotated[
        int, typer.Option(min=1, help="How many candidates to show for each layer, direction and GPU.")
    ] = 8,
    as_json: AsJson = False,
) -> None:
    """Show which kernel and tile the planner would choose for a layer on a GPU, which others there are, and why.

    Needs no GPU. Times are predicted by a closed formula, not measured.
    """
    gpus = [checked(named, name) for name in gpu]
    tf32 = dtype == "tf32"
    rows: list[dict[str, Any]] = []
    for name, problem, where in problems_of(layer, direction, dtype, layout, batch):
        for device in gpus:
            operands = contiguous_operands(problem, where, problem.memory_format)._replace(tf32=tf32)
            found, refused = ranking.candidates(problem, where, device, operands)
            chosen = next((c for c in found if c.backend in backends.auto_order("cuda")), None)
            rows += [
                {
                    "layer": name, "direction": where, "dtype": dtype, "layout": layout, "batch": problem.batch,
                    "gpu": device.name, "backend": c.backend, "tile": dataclasses.asdict(c.tile),
                    **{f"predicted_{key}": value for key, value in c.prediction._asdict().items()},
                    "predicted_parts": dict(c.prediction.parts),
                    "packed_bytes": packing.bytes_of(problem, where, c.tile.packs),
                    "predicted_packing_seconds": packing.seconds(problem, where, c.tile.packs, device),
                    "chosen": c is chosen,
                }
                for c in found
            ]  # fmt: skip
            if not as_json:
                print(
                    *map(printable, _lines(name, problem, where, dtype, device, found, chosen, refused, most)),
                    sep="\n",
                )
    if as_json:
        print(json.dumps(rows, indent=2))


def _lines(
    name: str,
    problem: ConvProblem,
    direction: Direction,
    dtype: str,
    gpu: Gpu,
    found: list[ranking.Candidate],
    chosen: ranking.Candidate | None,
    refused: dict[str, str],
    most: int,
) -> Iterator[str]:
    major, minor = gpu.capability
    layout = str(problem.memory_format).removeprefix("torch.")
    yield (
        f"{name} {direction}, batch {problem.batch}, {dtype}, {layout}, on {gpu.name} (sm_{major}{minor}); "
        "times are predicted, not measured"
    )
    yield f"    {'backend':8}{'kernel':20}{'tile':38}{'programs':>9}{'waves':>7}{'predicted':>15}  bound by"
    first = {(c.backend, c.tile.family): c for c in reversed(found)}  # of each kind of kernel
    shown = found[:most] + [c for c in found[most:] if c is chosen or c is first[c.backend, c.tile.family]]
    for c in shown:
        p = c.prediction
        yield (
            f"  {'→' if c is chosen else ' '} {c.backend:8}{c.tile.family:20}{c.tile.sizes:38}{p.programs:9,}"
            f"{p.waves:7,}{p.seconds * 1e6:12,.1f} µs  {p.bound}"
        )
    for packs in dict.fromkeys(c.tile.packs for c in shown if c.tile.packs):
        sizes = packing.bytes_of(problem, direction, packs)
        result = sizes.pop(packing.RESULT, 0)
        operands = " and ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in sizes.items())
        copied = [f"{operands} copied to channels last first"] * bool(operands)
        copied += [f"result ({result / 1e6:,.1f} MB) copied from channels last after"] * bool(result)
        seconds = packing.seconds(problem, direction, packs, gpu)
        yield f"    packed: {', '.join(copied)}, {seconds * 1e6:,.1f} µs of the time"
    if len(found) > len(shown):
        yield f"    … and {len(found) - len(shown)} more"
    if chosen:
        yield from _why(chosen.prediction)
    for backend, reason in refused.items():
        if backend.split()[0] in backends.auto_order("cuda") and backend != "aten":
            yield f"    {backend}: {reason}"
    yield "  → what backend 'auto' takes" if chosen else "  no kernel of gpuconv supports it: backend 'auto' takes aten"


def _why(p: Prediction) -> Iterator[str]:
    """Where the predicted time of the chosen tile comes from."""
    yield f"    chosen: {p.steps:.4g} steps of {p.programs:,} programs, {p.together} at a time on a multiprocessor"
    if p.bytes:
        fetched = f"{p.bytes / 1e6:,.1f} MB in {p.sectors / 1e6:,.2f} M sectors"
        yield f"    fetches {fetched}, {p.intensity:.0f} operations a byte; {p.instructions / 1e6:,.2f} M instructions"
    if p.parts:
        yield "    alone, in µs: " + ", ".join(f"{name} {seconds * 1e6:,.1f}" for name, seconds in p.parts)
