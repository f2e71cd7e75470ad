"""The page on a model and images of one's own: the layer at work, its filters, and what features look for."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import gpuconv
from gpuconv.errors import UserError
from gpuconv.see import features, pictures, widgets
from gpuconv.see.arithmetic import dead, duplicates, spectrum
from gpuconv.see.layers import Call, convolutions, find, maps_of, run
from gpuconv.see.models import SIDE, Subject, fitted, read_image
from gpuconv.see.page import Block, Chapter, Picture, Table, Words, check, write
from gpuconv.see.text import Text

_MAPS, _FILTERS, _OWN_IMAGES = 12, 48, 256
_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class View:
    """A model and what it looks at."""

    subject: Subject
    looks: Tensor  # [N, C, H, W], 0 … 1
    images: Tensor  # the same as the model takes them
    layer: str


def view(subject: Subject, files: Sequence[Path], layer: str | None, side: int | None) -> View:
    """The model with its images: the files, or, where there are none, a run's own held-out ones.

    layer: by default the first convolution. side: the longer one of the image, where the model takes any size. Raises
    UserError for files that are no images, a layer that is not there, and where there are no images.
    """
    names = convolutions(subject.model)
    layer = next(iter(names)) if layer is None else layer
    find(subject.model, layer)
    if files:
        read = [read_image(file, subject.channels) for file in files]
        first = fitted(read[0], subject.size or side or SIDE)
        height, width = first.shape[1:]
        looks = torch.stack([first, *(fitted(image, (height, width)) for image in read[1:])])
    elif subject.images is not None:
        looks = subject.images[:_OWN_IMAGES]
    else:
        raise UserError(f"{subject.name} needs an image to look at: --image FILE")
    return View(subject, looks, subject.normalized(looks), layer)


def page(view: View, folder: Path, language: str = "en", say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page and its pictures into `folder`; gives the page's path. `say` hears of each chapter.

    Raises UserError for an unknown language, for a model that cannot take the images, or where it cannot write.
    """
    text, began = Text(language), time.perf_counter()
    check(folder)
    with torch.no_grad():
        output, calls = run(view.subject.model, view.images[:1], view.layer)
    maps = maps_of(output, view.layer)[0]
    chapters = []
    if not view.subject.trained:
        say(text.of("own-layer.untrained", {}))
    for name, blocks in (
        ("own-layer", lambda: at_work(view, maps, calls)),
        ("own-filters", lambda: own_filters(maps, calls)),
        ("own-deeper", lambda: deeper(view)),
    ):
        say(text.of(f"{name}.title", {}))
        made = blocks()
        if made:
            chapters.append(Chapter(name, made))
    values = {
        "name": view.subject.name, "layer": view.layer, "backend": gpuconv.backends.selected(),
        "seconds": f"{time.perf_counter() - began:.0f}",
    }  # fmt: skip
    return write(folder, "own", values, chapters, text)


def strongest(maps: Tensor) -> list[int]:
    """Up to twelve channels of maps [K, P, Q], those with the greatest response first."""
    return maps.abs().amax((1, 2)).argsort(descending=True, stable=True)[:_MAPS].tolist()


def at_work(view: View, maps: Tensor, calls: Sequence[Call]) -> list[Block]:
    chosen = strongest(maps)
    limit = pictures.limit_of(maps[chosen])
    tiles = [pictures.colours(maps[k], limit) for k in chosen]
    look = view.looks[0]
    (tile,) = pictures.image_tiles(look[None])
    channels, height, width = look.shape
    values = {
        "layer": view.layer, "count": len(chosen), "all": len(maps), "height": maps.shape[1], "width": maps.shape[2],
        "channels": ", ".join(map(str, chosen)),
    }  # fmt: skip
    blocks: list[Block] = [
        *([] if view.subject.trained else [Words("own-layer.untrained", kind="note")]),
        Picture.of(
            "own-layer.image", pictures.mosaic([tile], 1, pictures.fitting_zoom(tile, 256)),
            values={"height": height, "width": width, "channels": channels},
        ),
        Picture.of(
            "own-layer.maps", pictures.mosaic(tiles, 4, pictures.fitting_zoom(tiles[0], 160), 6), values=values,
            limit=limit,
        ),
    ]  # fmt: skip
    if not calls:
        return blocks
    call = calls[0]
    heard = call.output[0].abs().amax((1, 2)).argsort(descending=True, stable=True)[:_MAPS].tolist()
    row, column = divmod(int(call.output[0, heard[0]].abs().argmax()), call.output.shape[3])
    seen = look if channels == 3 else look.mean(0).expand(3, height, width)
    names = ("R", "G", "B") if call.input.shape[1] == channels == 3 else ()
    shapes = [("x", call.input[0]), ("w", call.weight), ("y", call.output[0])]
    products = call.output[0].numel() * call.weight[0].numel()
    return [
        *blocks,
        widgets.layer("layer.how", call, heard, seen, names, (0, row, column)),
        Table(
            "own-layer.shapes", ["shapes.what", "shapes.shape", "shapes.count"],
            [[name, " × ".join(map(str, tensor.shape)), f"{tensor.numel():,}"] for name, tensor in shapes],
            {"products": f"{products:,}"},
        ),
    ]  # fmt: skip


def own_filters(maps: Tensor, calls: Sequence[Call]) -> list[Block]:
    if not calls:
        return []
    weight = calls[0].weight.float()
    kinds = [spectrum(filter).kind for filter in weight]
    some = weight[:_FILTERS] if weight.shape[1] == 3 else weight[:_FILTERS, :1]
    limit = pictures.limit_of(some)
    tiles = pictures.filter_tiles(some, limit)
    columns = min(12, math.ceil(math.sqrt(2 * len(tiles))))
    coloured = weight.shape[1] == 3
    values = {
        "all": len(weight), "shape": " × ".join(map(str, weight.shape[1:])), "alike": len(duplicates(weight)),
        "silent": len(dead(maps[None])), "low": kinds.count("low-pass"), "band": kinds.count("band-pass"),
        "high": kinds.count("high-pass"), "flat": kinds.count("all-pass"), "last": len(some) - 1, "count": len(some),
        "limit": f"{limit:.3g}",
    }  # fmt: skip
    return [
        Words("own-filters.words", values),
        Picture.of(
            f"own-filters.{'colours' if coloured else 'signed'}",
            pictures.mosaic(tiles, columns, pictures.fitting_zoom(tiles[0], 48), 4),
            values=values, limit=None if coloured else limit,
        ),
    ]  # fmt: skip


def deeper(view: View) -> list[Block]:
    model = view.subject.model
    blocks: list[Block] = [Words("own-deeper.words")]
    rows = []
    for name in _compared(model, view):
        shown = features.shown(model, view.images, view.looks, name, _FEATURES)
        height, width = shown.field
        blocks += [
            Words("own-deeper.layer", {"layer": name, "height": height, "width": width}, "h3"),
            *features.blocks(shown),
        ]
        rows.append([name, f"{height} × {width}", shown.shape[1], f"{shown.shape[2]} × {shown.shape[3]}"])
    head = ["shapes.layer", "shapes.field", "shapes.channels", "shapes.maps"]
    return [*blocks, Table("own-deeper.fields", head, rows)]


def _compared(model: nn.Module, view: View) -> list[str]:
    """The first convolution, and the layer that was asked for; or one from the middle and the last that is reached."""
    names = list(convolutions(model))
    if view.layer != names[0]:
        return [names[0], view.layer]
    used: list[str] = []
    for name in (names[len(names) // 2], *reversed(names)):
        try:
            with torch.no_grad():
                output, _ = run(model, view.images[:1], name)
        except UserError:
            continue  # a head that plays no part in evaluation, say
        if output.dim() == 4 and min(output.shape[2:]) > 1:
            used.append(name)
        if len(used) == 2:
            break
    return list(dict.fromkeys([names[0], *used]))
