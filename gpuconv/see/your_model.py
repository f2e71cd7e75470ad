"""The page on the reader's own model and images: a layer's outputs, its filters, and what features respond to."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import gpuconv
from gpuconv.errors import UserError
from gpuconv.see import features, rendering, widgets
from gpuconv.see.arithmetic import dead, duplicates, spectrum
from gpuconv.see.input_images import read_image, resized
from gpuconv.see.layers import Call, convolutions, find_module, maps_of, run
from gpuconv.see.model_sources import DEFAULT_SIDE, LoadedModel
from gpuconv.see.page import Block, Chapter, Picture, Table, TextBlock, check_writable, write
from gpuconv.see.translations import Translation

_MAPS, _FILTERS, _RUN_IMAGES = 12, 48, 256  # at most
_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class View:
    """A model, its images and the layer to be seen."""

    loaded: LoadedModel
    images: Tensor  # [N, C, H, W], 0 … 1
    inputs: Tensor  # the images as the model takes them
    layer: str


def view(loaded: LoadedModel, files: Sequence[Path], layer: str | None, side: int | None) -> View:
    """The view of a model on image files, or, where there are none, on the held-out images of its run.

    layer: by default the first convolution. side: the longer side of the images, where the model takes any size. Raises
    UserError for files that are no images, a layer that is not there, and where there are no images.
    """
    names = convolutions(loaded.model)
    layer = next(iter(names)) if layer is None else layer
    find_module(loaded.model, layer)
    if files:
        read = [read_image(file, loaded.channels) for file in files]
        first = resized(read[0], loaded.size or side or DEFAULT_SIDE)
        height, width = first.shape[1:]
        images = torch.stack([first, *(resized(image, (height, width)) for image in read[1:])])
    elif loaded.images is not None:
        images = loaded.images[:_RUN_IMAGES]
    else:
        raise UserError(f"{loaded.name} needs an image to look at: --image FILE")
    return View(loaded, images, loaded.normalized(images), layer)


def write_page(view: View, folder: Path, language: str = "en", say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page and its pictures into `folder`; returns the page's path. `say` gets the title of each chapter.

    Raises UserError for an unknown language, for a model that cannot take the images, or where it cannot write.
    """
    text, began = Translation(language), time.perf_counter()
    check_writable(folder)
    with torch.no_grad():
        output, calls = run(view.loaded.model, view.inputs[:1], view.layer)
    maps = maps_of(output, view.layer)[0]
    chapters = []
    if not view.loaded.trained:
        say(text.of("your-layer.untrained", {}))
    for name, blocks in (
        ("your-layer", lambda: layer_blocks(view, maps, calls)),
        ("your-filters", lambda: filter_blocks(maps, calls)),
        ("your-features", lambda: feature_blocks(view)),
    ):
        say(text.of(f"{name}.title", {}))
        made = blocks()
        if made:
            chapters.append(Chapter(name, made))
    values = {
        "name": view.loaded.name, "layer": view.layer, "backend": gpuconv.backends.selected(),
        "seconds": f"{time.perf_counter() - began:.0f}",
    }  # fmt: skip
    return write(folder, "your-model", values, chapters, text)


def strongest(maps: Tensor) -> list[int]:
    """Up to twelve channels of maps [K, P, Q], the one with the greatest response first."""
    return maps.abs().amax((1, 2)).argsort(descending=True, stable=True)[:_MAPS].tolist()


def layer_blocks(view: View, maps: Tensor, calls: Sequence[Call]) -> list[Block]:
    chosen = strongest(maps)
    limit = rendering.limit_of(maps[chosen])
    tiles = [rendering.colours(maps[k], limit) for k in chosen]
    image = view.images[0]
    (tile,) = rendering.image_tiles(image[None])
    channels, height, width = image.shape
    values = {
        "layer": view.layer, "count": len(chosen), "all": len(maps), "height": maps.shape[1], "width": maps.shape[2],
        "channels": ", ".join(map(str, chosen)),
    }  # fmt: skip
    blocks: list[Block] = [
        *([] if view.loaded.trained else [TextBlock("your-layer.untrained", kind="note")]),
        Picture.of(
            "your-layer.image", rendering.mosaic([tile], 1, rendering.fitting_zoom(tile, 256)),
            values={"height": height, "width": width, "channels": channels},
        ),
        Picture.of(
            "your-layer.maps", rendering.mosaic(tiles, 4, rendering.fitting_zoom(tiles[0], 160), 6), values=values,
            limit=limit,
        ),
    ]  # fmt: skip
    if not calls:
        return blocks
    call = calls[0]
    outputs = call.output[0].abs().amax((1, 2)).argsort(descending=True, stable=True)[:_MAPS].tolist()
    row, column = divmod(int(call.output[0, outputs[0]].abs().argmax()), call.output.shape[3])
    picture = image if channels == 3 else image.mean(0).expand(3, height, width)
    names = ("R", "G", "B") if call.input.shape[1] == channels == 3 else ()
    shapes = [("x", call.input[0]), ("w", call.weight), ("y", call.output[0])]
    products = call.output[0].numel() * call.weight[0].numel()
    return [
        *blocks,
        widgets.layer("layer.how", call, outputs, picture, names, (0, row, column)),
        Table(
            "your-layer.shapes", ["shapes.what", "shapes.shape", "shapes.count"],
            [[name, " × ".join(map(str, tensor.shape)), f"{tensor.numel():,}"] for name, tensor in shapes],
            {"products": f"{products:,}"},
        ),
    ]  # fmt: skip


def filter_blocks(maps: Tensor, calls: Sequence[Call]) -> list[Block]:
    if not calls:
        return []
    weight = calls[0].weight.float()
    kinds = [spectrum(filter).kind for filter in weight]
    shown = weight[:_FILTERS] if weight.shape[1] == 3 else weight[:_FILTERS, :1]
    limit = rendering.limit_of(shown)
    tiles = rendering.filter_tiles(shown, limit)
    columns = min(12, math.ceil(math.sqrt(2 * len(tiles))))
    coloured = weight.shape[1] == 3
    values = {
        "all": len(weight), "shape": " × ".join(map(str, weight.shape[1:])), "alike": len(duplicates(weight)),
        "silent": len(dead(maps[None])), "low": kinds.count("low-pass"), "band": kinds.count("band-pass"),
        "high": kinds.count("high-pass"), "flat": kinds.count("all-pass"), "last": len(shown) - 1, "count": len(shown),
        "limit": f"{limit:.3g}",
    }  # fmt: skip
    return [
        TextBlock("your-filters.words", values),
        Picture.of(
            f"your-filters.{'colours' if coloured else 'signed'}",
            rendering.mosaic(tiles, columns, rendering.fitting_zoom(tiles[0], 48), 4),
            values=values, limit=None if coloured else limit,
        ),
    ]  # fmt: skip


def feature_blocks(view: View) -> list[Block]:
    model = view.loaded.model
    blocks: list[Block] = [TextBlock("your-features.words")]
    rows = []
    for name in _layers_to_compare(model, view):
        found = features.find(model, view.inputs, view.images, name, _FEATURES)
        height, width = found.field
        blocks += [
            TextBlock("your-features.layer", {"layer": name, "height": height, "width": width}, "h3"),
            *features.blocks(found),
        ]
        rows.append([name, f"{height} × {width}", found.shape[1], f"{found.shape[2]} × {found.shape[3]}"])
    head = ["shapes.layer", "shapes.field", "shapes.channels", "shapes.maps"]
    return [*blocks, Table("your-features.fields", head, rows)]


def _layers_to_compare(model: nn.Module, view: View) -> list[str]:
    """The first convolution and the layer that was chosen, or else one from the middle and the last that is reached."""
    names = list(convolutions(model))
    if view.layer != names[0]:
        return [names[0], view.layer]
    used: list[str] = []
    for name in (names[len(names) // 2], *reversed(names)):
        try:
            with torch.no_grad():
                output, _ = run(model, view.inputs[:1], name)
        except UserError:
            continue  # a head that plays no part in evaluation, say
        if output.dim() == 4 and min(output.shape[2:]) > 1:
            used.append(name)
        if len(used) == 2:
            break
    return list(dict.fromkeys([names[0], *used]))
