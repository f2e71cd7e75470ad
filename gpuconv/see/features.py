"""What the features of a layer look for: their strongest patches, and beside each its deconvnet projection."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpuconv.see import pictures
from gpuconv.see.deconvnet import deconvnet, receptive_field
from gpuconv.see.layers import maps_of, run
from gpuconv.see.page import Block, Picture, Row
from gpuconv.see.patches import Patch, top_patches

_WIDTH = 150  # of three patches in a row, about


class Feature(NamedTuple):
    """One channel: its patches, and what of each made it respond."""

    channel: int
    patches: list[Patch]
    pixels: list[Tensor]  # [C, h, w] each, of the pictures to look at
    projections: list[Tensor]  # [C, h, w] each, cut to the patch


class Shown(NamedTuple):
    """A layer, and some of its features."""

    layer: str
    shape: tuple[int, ...]  # [N, K, P, Q]
    field: tuple[int, int]
    features: list[Feature]


def shown(model: nn.Module, images: Tensor, looks: Tensor, layer: str, channels: int = 3, count: int = 9) -> Shown:
    """The features of `layer` that stand out most from their own mean, of the stronger half, on images [N, C, H, W].

    looks: the same images as they are shown, [N, C, H, W] with values 0 … 1.
    """
    with torch.no_grad():
        maps = maps_of(run(model, images, layer)[0], layer)
    greatest = maps.amax((0, 2, 3))
    strength = (greatest - maps.mean((0, 2, 3))) / (maps.std((0, 2, 3)) + 1e-12)
    strength = strength.where(greatest >= greatest.median(), -1)
    features = []
    for channel in strength.argsort(descending=True, stable=True)[:channels].tolist():
        found = top_patches(model, images, layer, channel, count).found
        projections = [
            deconvnet(model, images[patch.image], layer, channel, patch.at).values[
                :, slice(*patch.rows), slice(*patch.columns)
            ]
            for patch in found
        ]
        features.append(Feature(channel, list(found), [patch.cut(looks) for patch in found], projections))
    field = receptive_field(model, (images.shape[2], images.shape[3]), layer, channels=images.shape[1])
    return Shown(layer, tuple(maps.shape), field.size, features)


def blocks(layer: Shown) -> list[Block]:
    """For each feature its patches and their projections, side by side."""
    made: list[Block] = []
    for feature in layer.features:
        values = {
            "layer": layer.layer, "channel": feature.channel, "height": layer.field[0], "width": layer.field[1],
            "count": len(feature.patches), "strongest": f"{feature.patches[0].activation:.3g}",
            "weakest": f"{feature.patches[-1].activation:.3g}",
        }  # fmt: skip
        limit = pictures.limit_of(*feature.projections)
        patches = pictures.image_tiles(torch.stack(feature.pixels))
        projections = _seen(torch.stack(feature.projections), limit)
        zoom = pictures.fitting_zoom(patches[0], _WIDTH // 2)
        signed = feature.projections[0].shape[0] != 3
        name = f"{layer.layer}-{feature.channel}"
        made.append(Row([
            Picture.of("features.patches", pictures.mosaic(patches, 3, zoom, 4), values=values, name=f"{name}-patches"),
            Picture.of(
                "features.projections" if not signed else "features.projections-signed",
                pictures.mosaic(projections, 3, zoom, 4), values=values, name=f"{name}-projections",
                limit=limit if signed else None,
            ),
        ]))  # fmt: skip
    return made


def _seen(projections: Tensor, limit: float) -> list[pictures.Pixels]:
    """One tile each: three channels as colours around grey, others as the sum of their channels."""
    if projections.shape[1] == 3:
        return pictures.filter_tiles(projections, limit)
    return [pictures.colours(projection.mean(0), limit) for projection in projections]
