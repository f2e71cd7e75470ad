"""The tour: seven chapters, computed once and written in any language."""

import time
from collections.abc import Callable
from pathlib import Path

import gpuconv
from gpuconv.see.page import Chapter, check_writable, write
from gpuconv.see.tour_filters import curve, random_search, smoothing
from gpuconv.see.tour_network import after, deeper, layer, training
from gpuconv.see.tour_training import EPOCHS, train_recorded
from gpuconv.see.translations import Translation

EVALUATIONS, SEEDS = 1000, 5  # of random search and gradient descent


def write_page(folder: Path, language: str = "en", say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the tour into `folder` as a page and PNG files; returns the page's path.

    `say` gets the title of each chapter. Raises UserError for an unknown language, or where it cannot write.
    """
    text, began = Translation(language), time.perf_counter()
    check_writable(folder)
    made = chapters(say=lambda key: say(text.of(key, {})))
    values = {"backend": gpuconv.backends.selected(), "seconds": f"{time.perf_counter() - began:.0f}"}
    return write(folder, "tour", values, made, text)


def chapters(
    epochs: int = EPOCHS,
    evaluations: int = EVALUATIONS,
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda key: None,
) -> list[Chapter]:
    """All chapters, the same in every language. `say` gets the key of each chapter's title before it is computed."""
    say("say.training")
    record = train_recorded(epochs)
    made = []
    for name, make in (
        ("smoothing", smoothing),
        ("curve", curve),
        ("layer", lambda: layer(record)),
        ("after", lambda: after(record)),
        ("training", lambda: training(record)),
        ("random-search", lambda: random_search(evaluations, seeds)),
        ("deeper", lambda: deeper(record)),
    ):
        say(f"{name}.title")
        made.append(Chapter(name, make()))
    return made
