"""The tour: seven chapters, computed once and told in any language."""

import time
from collections.abc import Callable
from pathlib import Path

import gpuconv
from gpuconv.see.page import Chapter, check, write
from gpuconv.see.text import Text
from gpuconv.see.tour_filters import curve, monkey, smoothing
from gpuconv.see.tour_network import after, deeper, layer, training
from gpuconv.see.tour_training import EPOCHS, teach

EVALUATIONS, SEEDS = 1000, 5  # of the monkey's race


def tour(folder: Path, language: str = "en", say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the tour into `folder` as a page and PNG files; gives the page's path. `say` hears of each chapter.

    Raises UserError for an unknown language, or where it cannot write.
    """
    text, began = Text(language), time.perf_counter()
    check(folder)
    made = chapters(say=lambda key: say(text.of(key, {})))
    values = {"backend": gpuconv.backends.selected(), "seconds": f"{time.perf_counter() - began:.0f}"}
    return write(folder, "tour", values, made, text)


def chapters(
    epochs: int = EPOCHS,
    evaluations: int = EVALUATIONS,
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda key: None,
) -> list[Chapter]:
    """All chapters, the same in every language. `say` gets the text's key of what comes next."""
    say("say.training")
    lesson = teach(epochs)
    made = []
    for name, make in (
        ("smoothing", smoothing),
        ("curve", curve),
        ("layer", lambda: layer(lesson)),
        ("after", lambda: after(lesson)),
        ("training", lambda: training(lesson)),
        ("monkey", lambda: monkey(evaluations, seeds)),
        ("deeper", lambda: deeper(lesson)),
    ):
        say(f"{name}.title")
        made.append(Chapter(name, make()))
    return made
