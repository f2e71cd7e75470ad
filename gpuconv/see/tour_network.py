"""The chapters of the tour on a network: one layer, what follows, training, deeper layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpuconv.see import features, rendering, widgets
from gpuconv.see.arithmetic import duplicates, spectrum
from gpuconv.see.layers import first_call
from gpuconv.see.page import Block, Picture, Row, Table, TextBlock
from gpuconv.see.tour_training import TourNetwork, TrainingRecord, centred, train_recorded

_EXAMPLE = 6  # which held-out picture is followed through the network
_LARGE_LR_FACTOR, _LARGE_LR_EPOCHS = 20, 2  # a training that makes filters die


def layer(record: TrainingRecord) -> list[Block]:
    picture = record.pictures[_EXAMPLE]
    call = first_call(record.network, centred(picture), "conv1")
    maps = call.output[0]
    limit = rendering.limit_of(maps)
    inside = maps[:, 8:24, 8:24]
    k, rest = divmod(int(inside.argmax()), inside[0].numel())
    row, column = divmod(rest, inside.shape[2])
    return [
        TextBlock("layer.intro", {"weights": call.weight[0].numel()}),
        Picture.of("layer.input-picture", rendering.mosaic([rendering.rgb(picture)], 1, 8)),
        Picture.of(
            "layer.filters-picture", rendering.mosaic(rendering.filter_tiles(call.weight), 6, 12, 4),
            values={"limit": f"{rendering.limit_of(call.weight):.2f}"},
        ),
        Picture.of(
            "layer.maps-picture",
            rendering.mosaic([rendering.colours(values, limit) for values in maps], 4, 4, 6), limit=limit,
        ),
        TextBlock("layer.play"),
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


def after(record: TrainingRecord) -> list[Block]:
    network, steps = record.network, {}
    value = centred(record.pictures[_EXAMPLE : _EXAMPLE + 1])
    with torch.no_grad():
        for name, module in network.named_children():
            value = module(value)
            steps[name] = value
    k, top, left = _mixed_corner(steps["conv1"][0])
    parts = [steps["conv1"][0, k, top : top + 6, left : left + 6], steps["relu1"][0, k, top : top + 6, left : left + 6]]
    pooled = steps["pool1"][0, k, top // 2 : top // 2 + 3, left // 2 : left // 2 + 3]
    limit = rendering.limit_of(*parts)

    def part(key: str, values: Tensor, zoom: int) -> Picture:
        return Picture.of(key, rendering.mosaic([rendering.colours(values, limit)], 1, zoom), limit=limit)

    blocks: list[Block] = [
        TextBlock("after.intro"),
        Row([part("after.before", parts[0], 24), part("after.relu", parts[1], 24), part("after.pool", pooled, 48)]),
        TextBlock("after.words"),
    ]
    for name, columns, zoom in (("pool1", 6, 4), ("pool2", 8, 6), ("pool3", 8, 10)):
        maps = steps[name][0]
        end = rendering.limit_of(maps)
        tiles = [rendering.colours(values, end) for values in maps]
        shape = {"channels": len(maps), "side": maps.shape[1]}
        blocks.append(
            Picture.of(f"after.{name}", rendering.mosaic(tiles, columns, zoom, 4), values=shape, limit=end)
        )  # fmt: skip
    scores = steps["fc"][0]
    shares = scores.softmax(0)
    inputs, weights = steps["flatten"].numel(), network.fc.weight.numel()
    blocks += [
        TextBlock("after.connected", {"inputs": inputs, "weights": f"{weights:,}"}),
        Table(
            "after.numbers", ["after.class", "after.score", "after.likely"],
            [
                [i, f"{score:.2f}".replace("-", "−"), f"{share:.1%}"]
                for i, (score, share) in enumerate(zip(scores.tolist(), shares.tolist(), strict=True))
            ],
            {"label": int(record.labels[_EXAMPLE]), "answer": int(scores.argmax())},
        ),
        Table("after.shapes", ["shapes.layer", "shapes.shape", "shapes.parameters"], _shapes(network, steps)),
    ]  # fmt: skip
    return blocks


def _mixed_corner(maps: Tensor) -> tuple[int, int, int]:
    """The (map, row, column) of 6×6 outputs, at even places, in which both signs are strong."""
    inside = maps[:, 4:-4, 4:-4]
    both = torch.minimum(*(F.avg_pool2d((sign * inside).clamp(min=0)[None], 6, 2)[0] for sign in (1, -1)))
    k, rest = divmod(int(both.argmax()), both[0].numel())
    row, column = divmod(rest, both.shape[2])
    return k, 4 + 2 * row, 4 + 2 * column


def _shapes(network: TourNetwork, steps: dict[str, Tensor]) -> list[list[str]]:
    rows = [["x", "32 × 32 × 3", "0"]]
    for name, module in network.named_children():
        shape = steps[name].shape[1:]
        shown = f"{shape[1]} × {shape[2]} × {shape[0]}" if len(shape) == 3 else str(shape[0])
        rows.append([name, shown, f"{sum(p.numel() for p in module.parameters()):,}"])
    return rows


def training(record: TrainingRecord) -> list[Block]:
    snapshots = record.snapshots
    first, middle, last = snapshots[0], snapshots[len(snapshots) // 4], snapshots[-1]
    limit = rendering.limit_of(*(snapshot.filters for snapshot in snapshots))
    epochs = torch.arange(len(snapshots))
    kinds = [[spectrum(filter).kind for filter in snapshot.filters] for snapshot in (first, last)]
    values = {
        "epochs": len(snapshots) - 1, "middle": len(snapshots) // 4,
        "chance": f"{first.accuracy:.1%}", "accuracy": f"{last.accuracy:.1%}", "pictures": len(record.labels),
        "low_before": kinds[0].count("low-pass"), "low_after": kinds[1].count("low-pass"),
        "ce_first": f"{first.cross_entropy:.3f}", "mse_first": f"{first.mse:.4f}",
        "ce_last": f"{last.cross_entropy:.3f}", "mse_last": f"{last.mse:.4f}",
        "certain": f"{last.outputs.amax(1).mean():.2f}", "uncertain": f"{first.outputs.amax(1).mean():.2f}",
        "limit": f"{limit:.2f}",
    }  # fmt: skip
    return [
        TextBlock("training.intro", values),
        *(
            Picture.of(
                f"training.{when}", rendering.mosaic(rendering.filter_tiles(snapshot.filters, limit), 6, 10, 4),
                values=values,
            )
            for when, snapshot in zip(("before", "during", "end"), (first, middle, last), strict=True)
        ),
        TextBlock("training.film", values),
        widgets.film("film.how", record, _EXAMPLE),
        TextBlock("training.losses", values),
        Picture(
            "training.cross-entropy",
            rendering.chart([
                (epochs[1:], record.training_loss), (epochs, [snapshot.cross_entropy for snapshot in snapshots]),
            ]),
            values, lines=("training.on-training", "training.on-held-out"),
        ),
        Picture("training.mse", rendering.chart([(epochs, [snapshot.mse for snapshot in snapshots])]), values),
        TextBlock("training.dead", kind="h3"),
        *_dead_and_alike(record),
    ]  # fmt: skip


def _dead_and_alike(record: TrainingRecord) -> list[Block]:
    last = record.snapshots[-1]
    large_lr = train_recorded(_LARGE_LR_EPOCHS, lr_factor=_LARGE_LR_FACTOR).snapshots[-1]
    closest = duplicates(last.filters, -1)[0]
    values = {
        "alike": len(last.alike), "first": closest.first, "second": closest.second, "cosine": f"{closest.cosine:.2f}",
        "lr_factor": _LARGE_LR_FACTOR, "large_lr_epochs": _LARGE_LR_EPOCHS, "large_lr_alike": len(large_lr.alike),
        "large_lr_accuracy": f"{large_lr.accuracy:.1%}",
    }  # fmt: skip
    sizes = [module.out_channels for module in record.network.children() if isinstance(module, nn.Conv2d)]
    rows = [[f"conv{i + 1}", size, last.dead[i], large_lr.dead[i]] for i, size in enumerate(sizes)]
    return [
        TextBlock("training.dead.words", values),
        Table(
            "training.dead.table",
            ["shapes.layer", "shapes.filters", "training.usual-lr", "training.large-lr"],
            rows,
            values,
        ),
    ]


def deeper(record: TrainingRecord) -> list[Block]:
    images = centred(record.pictures)
    blocks: list[Block] = [TextBlock("deeper.intro")]
    fields = []
    for name in ("relu1", "relu2", "relu3"):
        found = features.find(record.network, images, record.pictures, name, channels=3)
        fields.append(
            [name, f"{found.field[0]} × {found.field[1]}", str(found.shape[1]), f"{found.shape[2]} × {found.shape[3]}"]
        )
        blocks += [TextBlock(f"deeper.{name}", {"side": found.field[0]}, "h3"), *features.blocks(found)]
    return [
        *blocks,
        Table("deeper.fields", ["shapes.layer", "shapes.field", "shapes.channels", "shapes.maps"], fields),
        TextBlock("deeper.how"),
        TextBlock("deeper.honest", kind="note"),
    ]  # fmt: skip
