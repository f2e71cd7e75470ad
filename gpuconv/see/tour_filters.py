"""The chapters of the tour on single filters: smoothing, the curve detector, random search."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv.see import rendering
from gpuconv.see.arithmetic import (
    CURVE,
    OFF_THE_CURVE,
    ON_THE_CURVE,
    ZERO_MEAN_CURVE,
    filtered,
    response,
    spectrum,
)
from gpuconv.see.page import Block, Picture, Row, Table, TextBlock
from gpuconv.see.random_search import compare, share_below
from gpuconv.see.tour_training import photographs

_GOOD = 0.01  # a loss that counts as success


def _gaussian(sigma: float, side: int = 7) -> Tensor:
    x = torch.arange(side) - side // 2
    bell = torch.exp(-x.double().square() / (2 * sigma * sigma))
    bell /= bell.sum()
    return torch.outer(bell, bell).float()


CLASSICS = {
    "mean": torch.full((3, 3), 1 / 9),
    "gaussian": _gaussian(1.2),
    "laplacian": torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]),
    "difference": _gaussian(0.8) - _gaussian(1.6),
}


def smoothing() -> list[Block]:
    photo = photographs()[0].mean(0)[60:360, 160:560]
    photo = F.interpolate(photo[None, None], scale_factor=0.6, mode="area")[0, 0]
    blocks: list[Block] = [
        TextBlock("smoothing.intro"),
        Picture.of("smoothing.photo", rendering.mosaic([rendering.grey(photo)], 1, 2), small=False),
    ]
    for name, filter in CLASSICS.items():
        seen, made = spectrum(filter), filtered(photo, filter)
        signed = bool((filter < 0).any())
        limit = rendering.limit_of(made)
        tile = rendering.colours(made, limit) if signed else rendering.grey(made)
        weights, peak = rendering.limit_of(filter), rendering.limit_of(seen.gain)
        values = {
            "kind": seen.kind, "sum": f"{float(filter.sum()):.3g}", "zero": f"{float(seen.profile[0]):.3f}",
            "fastest": f"{float(seen.profile[-1]):.3f}", "side": len(filter),
        }  # fmt: skip
        blocks += [
            TextBlock(f"smoothing.{name}", kind="h3"),
            TextBlock(f"smoothing.{name}.words", values),
            Picture.of(
                "smoothing.result", rendering.mosaic([tile], 1, 2), values=values, limit=limit if signed else None,
                name=f"{name}-result", small=False,
            ),
            Row([
                Picture.of(
                    "smoothing.filter", rendering.mosaic([rendering.colours(filter, weights)], 1, 140 // len(filter)),
                    values=values, limit=weights, name=f"{name}-filter",
                ),
                Picture.of(
                    "smoothing.spectrum", rendering.mosaic([rendering.colours(seen.gain, peak)], 1, 3),
                    values=values, limit=peak, name=f"{name}-spectrum",
                ),
                Picture(
                    "smoothing.profile",
                    rendering.chart([(torch.linspace(0, 1, len(seen.profile)), seen.profile)], square=True),
                    values, name=f"{name}-profile",
                ),
            ]),
        ]  # fmt: skip
    return [*blocks, TextBlock("smoothing.outro")]


def curve() -> list[Block]:
    uniform = torch.full_like(CURVE, 50)
    flipped = CURVE.flip(0, 1)
    values = {
        "on": f"{response(ON_THE_CURVE, CURVE):g}", "off": f"{response(OFF_THE_CURVE, CURVE):g}",
        "flipped": f"{response(ON_THE_CURVE, flipped):g}", "uniform": f"{response(uniform, CURVE):g}",
        "mean": f"{float(CURVE.mean()):.3f}",
        "zero_on": f"{response(ON_THE_CURVE, ZERO_MEAN_CURVE):.0f}",
        "zero_off": f"{response(OFF_THE_CURVE, ZERO_MEAN_CURVE):.0f}".replace("-", "−"),
        "zero_uniform": f"{abs(response(uniform, ZERO_MEAN_CURVE)):.0f}",
    }  # fmt: skip

    def small(name: str, grid: Tensor) -> Picture:
        tile = rendering.mosaic([rendering.colours(grid, 50)], 1, 20)
        return Picture.of(f"curve.{name}", tile, values=values, limit=50, name=name)

    drawing = _mouse()
    maps = [filtered(drawing, CURVE), filtered(drawing, ZERO_MEAN_CURVE)]
    limit = rendering.limit_of(*maps)
    rows = [[f"{value:g}" for value in row] for row in (ON_THE_CURVE * CURVE).tolist()]
    return [
        TextBlock("curve.intro", values),
        Row([small("filter", CURVE), small("on", ON_THE_CURVE), small("off", OFF_THE_CURVE)]),
        TextBlock("curve.sum", values),
        Table("curve.products", [f"curve.column{i}" for i in range(7)], rows, values),
        TextBlock("curve.drawing", values),
        Picture.of("curve.mouse", rendering.mosaic([rendering.grey(drawing, 50)], 1, 4), small=False),
        Picture.of("curve.map", rendering.mosaic([rendering.colours(maps[0], limit)], 1, 4), limit=limit, small=False),
        TextBlock("curve.footnote-flip", values, "note"),
        TextBlock("curve.footnote-uniform", values, "note"),
        Row([small("flipped", flipped), small("uniform", uniform), small("zero", ZERO_MEAN_CURVE)]),
        Picture.of(
            "curve.zero-map", rendering.mosaic([rendering.colours(maps[1], limit)], 1, 4), values=values, limit=limit,
            small=False,
        ),
    ]  # fmt: skip


def _mouse() -> Tensor:
    """A mouse in ink of 50 on 0, [100, 140]: something with curves for the curve detector."""
    from PIL import Image, ImageDraw

    times = 4  # drawn larger, then made smaller, so that lines are smooth
    sheet = Image.new("L", (140 * times, 100 * times))
    pen = ImageDraw.Draw(sheet)

    def arc(box: tuple[int, int, int, int], start: int, end: int) -> None:
        pen.arc([times * value for value in box], start, end, fill=255, width=2 * times + 1)

    def line(*points: int) -> None:
        pen.line([times * value for value in points], fill=255, width=2 * times + 1, joint="curve")

    arc((38, 30, 112, 92), 205, 360)  # the back
    line(112, 61, 108, 72, 100, 78)
    line(100, 78, 20, 80, 12, 74, 14, 64)  # what it sits on, and the chin
    arc((12, 48, 60, 92), 195, 280)  # the forehead
    arc((34, 28, 56, 50), 70, 380)  # the ear
    pen.ellipse([times * value for value in (25, 59, 30, 64)], fill=255)  # the eye
    arc((92, 50, 130, 80), 350, 450)  # the tail
    line(100, 78, 111, 80)
    arc((128, 38, 154, 78), 105, 230)
    small = sheet.resize((140, 100), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).float() / 255 * 50


def random_search(evaluations: int, seeds: int) -> list[Block]:
    found = compare(evaluations, seeds)
    steps = torch.arange(1, evaluations + 1)
    lines, bands = [], []
    for losses in (found.random, found.best_so_far, found.gradient):
        shown = losses.clamp(min=1e-7)
        lines.append((steps, shown.mean(0)))
        bands.append((steps, shown.amin(0), shown.amax(0)))
    good = (found.gradient <= _GOOD).float().argmax(1).float() + 1
    mutations = 1 / share_below(_GOOD)
    best = found.best_so_far[:, -1]
    years = mutations / 1e9 / 3.15e7
    levels = torch.linspace(0.05, 3, 60)
    measured = [level for level in (0.8, 1.0, 1.25, 1.5, 2.0, 2.5) if bool((found.random <= level).any())]
    values = {
        "evaluations": f"{evaluations:,}", "seeds": seeds, "counted": f"{found.evaluations[0]:,}",
        "counted_gradient": f"{found.evaluations[1]:,}",
        "best_mean": f"{best.mean():.2f}", "best_spread": f"{best.std():.2f}",
        "steps_mean": f"{good.mean():.1f}", "steps_spread": f"{good.std():.1f}", "good": f"{_GOOD:g}",
        "exponent": f"{math.log10(mutations):.0f}", "years": f"{math.log10(years):.0f}",
    }  # fmt: skip
    filters = [found.target, found.gradient_last[0], found.random_best[0]]
    limit = rendering.limit_of(*filters)
    photo = F.interpolate(photographs()[0].mean(0)[None, None, 60:360, 160:560], scale_factor=0.5, mode="area")[0, 0]
    seen = [filtered(photo, filter) for filter in filters]
    end = rendering.limit_of(seen[0])
    pairs = []
    for name, filter, sight in zip(("target", "gradient", "typed"), filters, seen, strict=True):
        tile, view = rendering.colours(filter, limit), rendering.colours(sight, end)
        pairs.append(
            Row(
                [
                    Picture.of(f"random-search.{name}", rendering.mosaic([tile], 1, 28), values=values, limit=limit),
                    Picture.of(
                        f"random-search.{name}-sees",
                        rendering.mosaic([view], 1, 2),
                        values=values,
                        limit=end,
                        small=False,
                    ),
                ]
            )
        )
    return [
        TextBlock("random-search.intro", values),
        Picture(
            "random-search.race", rendering.chart(lines, bands, log=(True, True)), values,
            lines=("random-search.line-now", "random-search.line-best", "random-search.line-gradient"),
        ),
        TextBlock("random-search.result", values),
        *pairs,
        TextBlock("random-search.how-long", values),
        Picture(
            "random-search.law",
            rendering.chart(
                [
                    (levels, [share_below(float(level)) for level in levels]),
                    (measured, [float((found.random <= level).float().mean()) for level in measured]),
                ],
                log=(False, True), dots=(1,),
            ),
            values, lines=("random-search.line-law", "random-search.line-measured"), dots=(1,),
        ),
        TextBlock("random-search.honest", values, "note"),
    ]  # fmt: skip
