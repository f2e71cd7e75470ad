"""The chapters of the tour on single filters: smoothing, the curve detector, the monkey."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv.see import pictures, random_search as race
from gpuconv.see.arithmetic import (
    CURVE,
    OFF_THE_CURVE,
    ON_THE_CURVE,
    ZERO_MEAN_CURVE,
    filtered,
    response,
    spectrum,
)
from gpuconv.see.page import Block, Picture, Row, Table, Words
from gpuconv.see.tour_training import photographs

_GOOD = 0.01  # the loss at which the race counts as won


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
        Words("smoothing.intro"),
        Picture.of("smoothing.photo", pictures.mosaic([pictures.grey(photo)], 1, 2), small=False),
    ]
    for name, filter in CLASSICS.items():
        seen, made = spectrum(filter), filtered(photo, filter)
        signed = bool((filter < 0).any())
        limit = pictures.limit_of(made)
        tile = pictures.colours(made, limit) if signed else pictures.grey(made)
        weights, peak = pictures.limit_of(filter), pictures.limit_of(seen.gain)
        values = {
            "kind": seen.kind, "sum": f"{float(filter.sum()):.3g}", "zero": f"{float(seen.profile[0]):.3f}",
            "fastest": f"{float(seen.profile[-1]):.3f}", "side": len(filter),
        }  # fmt: skip
        blocks += [
            Words(f"smoothing.{name}", kind="h3"),
            Words(f"smoothing.{name}.words", values),
            Picture.of(
                "smoothing.result", pictures.mosaic([tile], 1, 2), values=values, limit=limit if signed else None,
                name=f"{name}-result", small=False,
            ),
            Row([
                Picture.of(
                    "smoothing.filter", pictures.mosaic([pictures.colours(filter, weights)], 1, 140 // len(filter)),
                    values=values, limit=weights, name=f"{name}-filter",
                ),
                Picture.of(
                    "smoothing.spectrum", pictures.mosaic([pictures.colours(seen.gain, peak)], 1, 3),
                    values=values, limit=peak, name=f"{name}-spectrum",
                ),
                Picture(
                    "smoothing.profile",
                    pictures.chart([(torch.linspace(0, 1, len(seen.profile)), seen.profile)], square=True),
                    values, name=f"{name}-profile",
                ),
            ]),
        ]  # fmt: skip
    return [*blocks, Words("smoothing.outro")]


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
        tile = pictures.mosaic([pictures.colours(grid, 50)], 1, 20)
        return Picture.of(f"curve.{name}", tile, values=values, limit=50, name=name)

    drawing = pictures.mouse()
    maps = [filtered(drawing, CURVE), filtered(drawing, ZERO_MEAN_CURVE)]
    limit = pictures.limit_of(*maps)
    rows = [[f"{value:g}" for value in row] for row in (ON_THE_CURVE * CURVE).tolist()]
    return [
        Words("curve.intro", values),
        Row([small("filter", CURVE), small("on", ON_THE_CURVE), small("off", OFF_THE_CURVE)]),
        Words("curve.sum", values),
        Table("curve.products", [f"curve.column{i}" for i in range(7)], rows, values),
        Words("curve.drawing", values),
        Picture.of("curve.mouse", pictures.mosaic([pictures.grey(drawing, 50)], 1, 4), small=False),
        Picture.of("curve.map", pictures.mosaic([pictures.colours(maps[0], limit)], 1, 4), limit=limit, small=False),
        Words("curve.footnote-flip", values, "note"),
        Words("curve.footnote-uniform", values, "note"),
        Row([small("flipped", flipped), small("uniform", uniform), small("zero", ZERO_MEAN_CURVE)]),
        Picture.of(
            "curve.zero-map", pictures.mosaic([pictures.colours(maps[1], limit)], 1, 4), values=values, limit=limit,
            small=False,
        ),
    ]  # fmt: skip


def monkey(evaluations: int, seeds: int) -> list[Block]:
    found = race.race(evaluations, seeds)
    steps = torch.arange(1, evaluations + 1)
    lines, bands = [], []
    for losses in (found.monkey, found.best_so_far, found.gradient):
        shown = losses.clamp(min=1e-7)
        lines.append((steps, shown.mean(0)))
        bands.append((steps, shown.amin(0), shown.amax(0)))
    good = (found.gradient <= _GOOD).float().argmax(1).float() + 1
    mutations = 1 / race.chance(_GOOD)
    best = found.best_so_far[:, -1]
    years = mutations / 1e9 / 3.15e7
    levels = torch.linspace(0.05, 3, 60)
    measured = [level for level in (0.8, 1.0, 1.25, 1.5, 2.0, 2.5) if bool((found.monkey <= level).any())]
    values = {
        "evaluations": f"{evaluations:,}", "seeds": seeds, "counted": f"{found.evaluations[0]:,}",
        "counted_gradient": f"{found.evaluations[1]:,}",
        "best_mean": f"{best.mean():.2f}", "best_spread": f"{best.std():.2f}",
        "steps_mean": f"{good.mean():.1f}", "steps_spread": f"{good.std():.1f}", "good": f"{_GOOD:g}",
        "exponent": f"{math.log10(mutations):.0f}", "years": f"{math.log10(years):.0f}",
    }  # fmt: skip
    filters = [found.target, found.gradient_last[0], found.monkey_best[0]]
    limit = pictures.limit_of(*filters)
    photo = F.interpolate(photographs()[0].mean(0)[None, None, 60:360, 160:560], scale_factor=0.5, mode="area")[0, 0]
    seen = [filtered(photo, filter) for filter in filters]
    end = pictures.limit_of(seen[0])
    pairs = []
    for name, filter, sight in zip(("target", "gradient", "typed"), filters, seen, strict=True):
        tile, view = pictures.colours(filter, limit), pictures.colours(sight, end)
        pairs.append(
            Row(
                [
                    Picture.of(f"monkey.{name}", pictures.mosaic([tile], 1, 28), values=values, limit=limit),
                    Picture.of(
                        f"monkey.{name}-sees", pictures.mosaic([view], 1, 2), values=values, limit=end, small=False
                    ),
                ]
            )
        )
    return [
        Words("monkey.intro", values),
        Picture(
            "monkey.race", pictures.chart(lines, bands, log=(True, True)), values,
            lines=("monkey.line-now", "monkey.line-best", "monkey.line-gradient"),
        ),
        Words("monkey.result", values),
        *pairs,
        Words("monkey.how-long", values),
        Picture(
            "monkey.law",
            pictures.chart(
                [
                    (levels, [race.chance(float(level)) for level in levels]),
                    (measured, [float((found.monkey <= level).float().mean()) for level in measured]),
                ],
                log=(False, True), dots=(1,),
            ),
            values, lines=("monkey.line-law", "monkey.line-measured"), dots=(1,),
        ),
        Words("monkey.honest", values, "note"),
    ]  # fmt: skip
