"""The chapters of the tour on a network: one layer, what follows, training, deeper layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpuconv.see import features, pictures, widgets
from gpuconv.see.arithmetic import duplicates, spectrum
from gpuconv.see.layers import first_call
from gpuconv.see.page import Block, Picture, Row, Table, Words
from gpuconv.see.tour_training import Lesson, Pupil, centred, teach

_EXAMPLE = 6  # of the held-out pictures: the one that is followed through the network
_HURRY, _RUSHED_EPOCHS = 20, 2  # a lesson that kills filters


def layer(lesson: Lesson) -> list[Block]:
    picture = lesson.pictures[_EXAMPLE]
    call = first_call(lesson.network, centred(picture), "conv1")
    maps = call.output[0]
    limit = pictures.limit_of(maps)
    inside = maps[:, 8:24, 8:24]
    k, rest = divmod(int(inside.argmax()), inside[0].numel())
    row, column = divmod(rest, inside.shape[2])
    return [
        Words("layer.intro", {"weights": call.weight[0].numel()}),
        Picture.of("layer.input-picture", pictures.mosaic([pictures.rgb(picture)], 1, 8)),
        Picture.of(
            "layer.filters-picture", pictures.mosaic(pictures.filter_tiles(call.weight), 6, 12, 4),
            values={"limit": f"{pictures.limit_of(call.weight):.2f}"},
        ),
        Picture.of(
            "layer.maps-picture",
            pictures.mosaic([pictures.colours(values, limit) for values in maps], 4, 4, 6), limit=limit,
        ),
        Words("layer.play"),
        widgets.layer(
            "layer.how", call, range(len(maps)), picture, ("R", "G", "B"), (k, row + 8, column + 8)
        ),
        Table(
            "layer.shapes", ["shapes.what", "shapes.shape", "shapes.count"],
            [
                ["x", "32 × 32 × 3", f"{call.input[0].numel():,}"],
                ["w", "12 × 7 × 7 × 3", f"{call.weight.numel():,}"],
                ["b", "12", "12"],
                ["y", "32 × 32 × 12", f"{maps.numel():,}"],
            ],
            {"products": f"{maps.numel() * call.weight[0].numel():,}"},
        ),
    ]  # fmt: skip


def after(lesson: Lesson) -> list[Block]:
    network, steps = lesson.network, {}
    value = centred(lesson.pictures[_EXAMPLE : _EXAMPLE + 1])
    with torch.no_grad():
        for name, module in network.named_children():
            value = module(value)
            steps[name] = value
    k, top, left = _mixed_corner(steps["conv1"][0])
    parts = [steps["conv1"][0, k, top : top + 6, left : left + 6], steps["relu1"][0, k, top : top + 6, left : left + 6]]
    pooled = steps["pool1"][0, k, top // 2 : top // 2 + 3, left // 2 : left // 2 + 3]
    limit = pictures.limit_of(*parts)

    def part(key: str, values: Tensor, zoom: int) -> Picture:
        return Picture.of(key, pictures.mosaic([pictures.colours(values, limit)], 1, zoom), limit=limit)

    blocks: list[Block] = [
        Words("after.intro"),
        Row([part("after.before", parts[0], 24), part("after.relu", parts[1], 24), part("after.pool", pooled, 48)]),
        Words("after.words"),
    ]
    for name, columns, zoom in (("pool1", 6, 4), ("pool2", 8, 6), ("pool3", 8, 10)):
        maps = steps[name][0]
        end = pictures.limit_of(maps)
        tiles = [pictures.colours(values, end) for values in maps]
        shape = {"channels": len(maps), "side": maps.shape[1]}
        blocks.append(
            Picture.of(f"after.{name}", pictures.mosaic(tiles, columns, zoom, 4), values=shape, limit=end)
        )  # fmt: skip
    scores = steps["fc"][0]
    likely = scores.softmax(0)
    inputs, weights = steps["flatten"].numel(), network.fc.weight.numel()
    blocks += [
        Words("after.connected", {"inputs": inputs, "weights": f"{weights:,}"}),
        Table(
            "after.numbers", ["after.class", "after.score", "after.likely"],
            [
                [i, f"{score:.2f}".replace("-", "−"), f"{share:.1%}"]
                for i, (score, share) in enumerate(zip(scores.tolist(), likely.tolist(), strict=True))
            ],
            {"label": int(lesson.labels[_EXAMPLE]), "answer": int(scores.argmax())},
        ),
        Table("after.shapes", ["shapes.layer", "shapes.shape", "shapes.parameters"], _shapes(network, steps)),
    ]  # fmt: skip
    return blocks


def _mixed_corner(maps: Tensor) -> tuple[int, int, int]:
    """(map, row, column) of the 6×6 outputs, at even places, that have most of both signs."""
    inside = maps[:, 4:-4, 4:-4]
    both = torch.minimum(*(F.avg_pool2d((sign * inside).clamp(min=0)[None], 6, 2)[0] for sign in (1, -1)))
    k, rest = divmod(int(both.argmax()), both[0].numel())
    row, column = divmod(rest, both.shape[2])
    return k, 4 + 2 * row, 4 + 2 * column


def _shapes(network: Pupil, steps: dict[str, Tensor]) -> list[list[str]]:
    rows = [["x", "32 × 32 × 3", "0"]]
    for name, module in network.named_children():
        shape = steps[name].shape[1:]
        shown = f"{shape[1]} × {shape[2]} × {shape[0]}" if len(shape) == 3 else str(shape[0])
        rows.append([name, shown, f"{sum(p.numel() for p in module.parameters()):,}"])
    return rows


def training(lesson: Lesson) -> list[Block]:
    film = lesson.film
    last, first = film[-1], film[0]
    shown = [film[0], film[len(film) // 4], film[-1]]
    limit = pictures.limit_of(*(frame.filters for frame in film))
    epochs = torch.arange(len(film))
    kinds = [[spectrum(filter).kind for filter in frame.filters] for frame in (first, last)]
    values = {
        "epochs": len(film) - 1, "middle": len(film) // 4,
        "chance": f"{first.accuracy:.1%}", "accuracy": f"{last.accuracy:.1%}", "pictures": len(lesson.labels),
        "low_before": kinds[0].count("low-pass"), "low_after": kinds[1].count("low-pass"),
        "ce_first": f"{first.cross_entropy:.3f}", "mse_first": f"{first.mse:.4f}",
        "ce_last": f"{last.cross_entropy:.3f}", "mse_last": f"{last.mse:.4f}",
        "certain": f"{last.outputs.amax(1).mean():.2f}", "uncertain": f"{first.outputs.amax(1).mean():.2f}",
        "limit": f"{limit:.2f}",
    }  # fmt: skip
    return [
        Words("training.intro", values),
        *(
            Picture.of(
                f"training.{when}", pictures.mosaic(pictures.filter_tiles(frame.filters, limit), 6, 10, 4),
                values=values,
            )
            for when, frame in zip(("before", "during", "end"), shown, strict=True)
        ),
        Words("training.film", values),
        widgets.film("film.how", lesson, _EXAMPLE),
        Words("training.losses", values),
        Picture(
            "training.cross-entropy",
            pictures.chart([
                (epochs[1:], lesson.training_loss), (epochs, [frame.cross_entropy for frame in film]),
            ]),
            values, lines=("training.on-training", "training.on-held-out"),
        ),
        Picture("training.mse", pictures.chart([(epochs, [frame.mse for frame in film])]), values),
        Words("training.dead", kind="h3"),
        *_dead_and_alike(lesson),
    ]  # fmt: skip


def _dead_and_alike(lesson: Lesson) -> list[Block]:
    last, rushed = lesson.film[-1], teach(_RUSHED_EPOCHS, hurry=_HURRY).film[-1]
    closest = duplicates(last.filters, -1)[0]
    values = {
        "alike": len(last.alike), "first": closest.first, "second": closest.second, "cosine": f"{closest.cosine:.2f}",
        "hurry": _HURRY, "rushed_epochs": _RUSHED_EPOCHS, "rushed_alike": len(rushed.alike),
        "rushed_accuracy": f"{rushed.accuracy:.1%}",
    }  # fmt: skip
    sizes = [module.out_channels for module in lesson.network.children() if isinstance(module, nn.Conv2d)]
    rows = [[f"conv{i + 1}", size, last.dead[i], rushed.dead[i]] for i, size in enumerate(sizes)]
    return [
        Words("training.dead.words", values),
        Table(
            "training.dead.table", ["shapes.layer", "shapes.filters", "training.calm", "training.rushed"], rows, values
        ),
    ]


def deeper(lesson: Lesson) -> list[Block]:
    images = centred(lesson.pictures)
    blocks: list[Block] = [Words("deeper.intro")]
    fields = []
    for name in ("relu1", "relu2", "relu3"):
        shown = features.shown(lesson.network, images, lesson.pictures, name, channels=3)
        fields.append(
            [name, f"{shown.field[0]} × {shown.field[1]}", str(shown.shape[1]), f"{shown.shape[2]} × {shown.shape[3]}"]
        )
        blocks += [Words(f"deeper.{name}", {"side": shown.field[0]}, "h3"), *features.blocks(shown)]
    return [
        *blocks,
        Table("deeper.fields", ["shapes.layer", "shapes.field", "shapes.channels", "shapes.maps"], fields),
        Words("deeper.how"),
        Words("deeper.honest", kind="note"),
    ]  # fmt: skip
