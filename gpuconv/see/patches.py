"""The strongest patches: the windows of images to which a feature responds most."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpuconv.errors import UserError
from gpuconv.see import rendering
from gpuconv.see.deconvnet import ReceptiveField, receptive_field
from gpuconv.see.input_images import Image
from gpuconv.see.layers import images_of, maps_of, run

_BATCH = 64


class Patch(NamedTuple):
    """A window of an image, and how strongly the feature responds to it."""

    image: int
    rows: tuple[int, int]  # first, one past the last
    columns: tuple[int, int]
    at: tuple[int, int]  # of the activation in the feature's map
    activation: float

    def cut(self, images: Tensor) -> Tensor:
        """The window [C, h, w] of `images` [N, C, H, W]."""
        return images[self.image, :, slice(*self.rows), slice(*self.columns)]


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patches, strongest first; all of one size."""

    found: tuple[Patch, ...]
    values: Tensor  # [count, C, h, w], from the images that were given

    def figure(self) -> Any:
        """A matplotlib figure of the patches, three to a row."""
        return rendering.figure(rendering.image_tiles(self.values), columns=3)


def top_patches(model: nn.Module, images: Image | Sequence[Image], layer: str, channel: int, count: int = 9) -> Patches:
    """The `count` windows of images that make a channel of a layer respond most.

    images: [N, C, H, W], or a list of images of one size, each as `activation_maps` takes it.

    A window is the receptive field of an activation, moved to lie in the image where it extends beyond it. With `count`
    images or more each gives at most one window; with fewer an image gives several that overlap by less than half.
    Raises UserError as `deconvnet` does.
    """
    images = images_of(model, images)
    field = receptive_field(model, (images.shape[2], images.shape[3]), layer, channels=images.shape[1])
    with torch.no_grad():
        maps = torch.cat([maps_of(run(model, batch, layer)[0], layer) for batch in images.split(_BATCH)])
    if not 0 <= channel < maps.shape[1]:
        raise UserError(f"channel must be from 0 to {maps.shape[1] - 1} in layer {layer!r}, but got {channel}")
    maps = maps[:, channel]
    step = _field_step(model, images, layer, field)
    found: list[Patch] = []
    for place in maps.flatten().argsort(descending=True, stable=True).tolist():
        image, rest = divmod(place, maps[0].numel())
        at = divmod(rest, maps.shape[2])
        rows, columns = (
            _shifted(start, stop, (i - middle) * pixels, size)
            for (start, stop), i, middle, pixels, size in zip(
                (field.rows, field.columns), at, field.at, step, images.shape[2:], strict=True
            )
        )
        patch = Patch(image, rows, columns, at, float(maps[image, at[0], at[1]]))
        if all(_apart(patch, other, len(images) >= count) for other in found):
            found.append(patch)
        if len(found) == count:
            break
    return Patches(tuple(found), torch.stack([patch.cut(images) for patch in found]))


def _field_step(model: nn.Module, images: Tensor, layer: str, field: ReceptiveField) -> tuple[int, int]:
    """The pixels (down, right) from the receptive field of one output to that of the next; 0 where it is the image."""
    before = (max(field.at[0] - 1, 0), max(field.at[1] - 1, 0))
    size = (images.shape[2], images.shape[3])
    other = receptive_field(model, size, layer, before, images.shape[1])
    # Where the field is cut off on one side, the other side moves.
    down = max(field.rows[0] - other.rows[0], field.rows[1] - other.rows[1])
    right = max(field.columns[0] - other.columns[0], field.columns[1] - other.columns[1])
    return down, right


def _shifted(start: int, stop: int, by: int, size: int) -> tuple[int, int]:
    """The window start … stop shifted by `by` pixels, but kept within 0 … size."""
    length = stop - start
    start = min(max(start + by, 0), size - length)
    return start, start + length


def _apart(a: Patch, b: Patch, one_an_image: bool) -> bool:
    if a.image != b.image:
        return True
    if one_an_image:
        return False
    height, width = a.rows[1] - a.rows[0], a.columns[1] - a.columns[0]
    return 2 * abs(a.rows[0] - b.rows[0]) >= height or 2 * abs(a.columns[0] - b.columns[0]) >= width
