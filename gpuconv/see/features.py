"""The features of a layer: their strongest patches, and beside each its deconvnet projection."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpuconv.see import rendering
from gpuconv.see.deconvnet import deconvnet, receptive_field
from gpuconv.see.layers import maps_of, run
from gpuconv.see.page import Block, Picture, Row
from gpuconv.see.patches import Patch, top_patches

_WIDTH = 150  # of three patches in a row, about


class Feature(NamedTuple):
    """One channel: its strongest patches, and the pixels of each that made it respond."""

    channel: int
    patches: list[Patch]
    pixels: list[Tensor]  # [C, h, w] each, from the images as they are shown
    projections: list[Tensor]  # [C, h, w] each, cut to the patch


class LayerFeatures(NamedTuple):
    """A layer and some of its features."""

    layer: str
    shape: tuple[int, ...]  # [N, K, P, Q]
    field: tuple[int, int]
    features: list[Feature]


def find(
    model: nn.Module, inputs: Tensor, images: Tensor, layer: str, channels: int = 3, count: int = 9
) -> LayerFeatures:
    """The features of `layer` that stand out most from their own mean, of the stronger half, on inputs [N, C, H, W].

    images: the inputs as they are shown, with values 0 … 1.
    """
    with torch.no_grad():
        maps = maps_of(run(model, inputs, layer)[0], layer)
    greatest = maps.amax((0, 2, 3))
    strength = (greatest - maps.mean((0, 2, 3))) / (maps.std((0, 2, 3)) + 1e-12)
    strength = strength.where(greatest >= greatest.median(), -1)
    features = []
    for channel in strength.argsort(descending=True, stable=True)[:channels].tolist():
        found = top_patches(model, inputs, layer, channel, count).found
        projections = [
            deconvnet(model, inputs[patch.image], layer, channel, patch.at).values[
                :, slice(*patch.rows), slice(*patch.columns)
            ]
            for patch in found
        ]
        features.append(Feature(channel, list(found), [patch.cut(images) for patch in found], projections))
    field = receptive_field(model, (inputs.shape[2], inputs.shape[3]), layer, channels=inputs.shape[1])
    return LayerFeatures(layer, tuple(maps.shape), field.size, features)


def blocks(layer: LayerFeatures) -> list[Block]:
    """For each feature a row with its patches and their projections."""
    made: list[Block] = []
    for feature in layer.features:
        values = {
            "layer": layer.layer, "channel": feature.channel, "height": layer.field[0], "width": layer.field[1],
            "count": len(feature.patches), "strongest": f"{feature.patches[0].activation:.3g}",
            "weakest": f"{feature.patches[-1].activation:.3g}",
        }  # fmt: skip
        limit = rendering.limit_of(*feature.projections)
        patches = rendering.image_tiles(torch.stack(feature.pixels))
        projections = _tiles(torch.stack(feature.projections), limit)
        zoom = rendering.fitting_zoom(patches[0], _WIDTH // 2)
        signed = feature.projections[0].shape[0] != 3
        name = f"{layer.layer}-{feature.channel}"
        made.append(Row([
            Picture.of(
                "features.patches", rendering.mosaic(patches, 3, zoom, 4), values=values, name=f"{name}-patches",
            ),
            Picture.of(
                "features.projections" if not signed else "features.projections-signed",
                rendering.mosaic(projections, 3, zoom, 4), values=values, name=f"{name}-projections",
                limit=limit if signed else None,
            ),
        ]))  # fmt: skip
    return made


def _tiles(projections: Tensor, limit: float) -> list[rendering.Pixels]:
    """A tile for each projection: three channels as colours around grey, others as the mean of their channels."""
    if projections.shape[1] == 3:
        return rendering.filter_tiles(projections, limit)
    return [rendering.colours(projection.mean(0), limit) for projection in projections]
