"""What the functions of `gpuconv.see` give is drawn by matplotlib: every array, on symmetric scales, without words."""

import io
from typing import Any

import pytest
import torch
from matplotlib.text import Text
from torch import nn

from gpuconv import see
from gpuconv.see import rendering


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    torch.manual_seed(0)
    model, image = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)), torch.rand(3, 14, 12)
    return {
        "maps": see.activation_maps(model, image, "0"),
        "coloured filters": see.filters(model, "0"),
        "filters": see.filters(model, "2"),
        "spectrum": see.spectrum(model[0].weight[0]),
        "output": see.explain_output(model, image, "0", (1, 2, 3)),
        "deconvnet": see.deconvnet(model, image, "2"),
        "patches": see.top_patches(model, image, "2", 0, count=4),
        "field": see.receptive_field(model, (14, 12), "2"),
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [("maps", 5), ("coloured filters", 5), ("filters", 20), ("spectrum", 1), ("output", 9), ("deconvnet", 1),
     ("patches", 4), ("field", 1)],
)  # fmt: skip
def test_everything_is_drawn(made: dict[str, Any], name: str, count: int) -> None:
    figure = made[name].figure()
    figure.savefig(io.BytesIO(), format="png")
    drawn = [image for axes in figure.axes for image in axes.get_images()]
    assert len(drawn) == count
    for image in drawn:
        if image.get_array().ndim == 2:
            assert image.norm.vmin == -image.norm.vmax < 0
    words = [text.get_text() for text in figure.findobj(Text)]
    assert not any(character.isalpha() for word in words for character in word)


def test_what_is_compared_shares_its_limit(made: dict[str, Any]) -> None:
    limits = {
        name: {image.norm.vmax for axes in made[name].figure().axes for image in axes.get_images()}
        for name in ("maps", "output")
    }
    assert limits["maps"] == {rendering.limit_of(made["maps"].values)}
    parts = (made["output"].window, made["output"].filter, made["output"].products)
    assert limits["output"] == {rendering.limit_of(part) for part in parts}


def test_the_arrays_are_there_too(made: dict[str, Any]) -> None:
    assert made["maps"].values.shape == (5, 12, 10) and made["filters"].weight.shape == (4, 5, 3, 3)
    assert made["deconvnet"].values.shape == (3, 14, 12) and made["field"].size == (5, 5)
    assert made["patches"].values.shape == (4, 3, 5, 5)
