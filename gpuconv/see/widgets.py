"""The data of the two interactive parts of a page."""

import base64
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv.see.layers import Call
from gpuconv.see.page import Widget, encoded
from gpuconv.see.rendering import filter_tiles, limit_of, rgb
from gpuconv.see.tour_training import TrainingRecord

_FLOATS = 400_000  # of a layer's input and outputs, each; a larger one is cut to its middle
_LAYER_WORDS = (
    "maps", "map", "input", "output", "window", "filter", "products", "total", "channel", "others", "sum", "place",
    "details",
)  # fmt: skip
_FILM_WORDS = ("play", "pause", "epoch", "filters", "example", "readout")


def layer(
    key: str, call: Call, chosen: Sequence[int], picture: Tensor, names: Sequence[str], at: tuple[int, int, int]
) -> Widget:
    """The outputs of a convolution, to be clicked: channels `chosen` of `call`, beside a picture [3, H, W], 0 … 1.

    names: of the input's channels, or none. at: the output that is shown first (index in `chosen`, row, column).
    """
    outputs, channels = call.weight.shape[0], call.weight.shape[1]
    group = outputs // call.groups
    firsts = sorted({k // group * channels for k in chosen})
    used = [channel for first in firsts for channel in range(first, first + channels)]
    (top, bottom), (left, right) = call.padding
    padded = F.pad(call.input[0, used], (left, right, top, bottom))
    span = [d * (r - 1) + 1 for d, r in zip(call.dilation, call.weight.shape[2:], strict=True)]
    side = _side(call, len(used), len(chosen))
    windows = [_middle(size, side, place) for size, place in zip(call.output.shape[2:], at[1:], strict=True)]
    (p0, p1), (q0, q1) = windows
    rows, columns = (
        slice(first * stride, (last - 1) * stride + length)
        for (first, last), stride, length in zip(windows, call.stride, span, strict=True)
    )
    input, output = padded[:, rows, columns], call.output[0, list(chosen), p0:p1, q0:q1]
    bias = torch.zeros(outputs) if call.bias is None else call.bias
    data = {
        "input": encoded(input.float()),
        "weight": encoded(call.weight[list(chosen)].float()),
        "bias": encoded(bias[list(chosen)].float()),
        "output": encoded(output.float()),
        "input_shape": list(input.shape),
        "weight_shape": list(call.weight[list(chosen)].shape),
        "output_shape": list(output.shape),
        "stride": call.stride,
        "dilation": call.dilation,
        "first": [used.index(k // group * channels) for k in chosen],  # of the input's channels that a filter sees
        "names": list(chosen),
        "channels": list(names),
        "at": [at[0], at[1] - p0, at[2] - q0],
        "corner": [p0, q0],
        "origin": [rows.start - top, columns.start - left],  # of the first window, in the layer's input
        "pixels": list(call.input.shape[2:]),
        "picture": base64.b64encode(rgb(picture).tobytes()).decode(),
        "picture_shape": list(picture.shape[1:]),
    }
    return Widget("layer", key, data, [f"layer.{word}" for word in _LAYER_WORDS], {"count": len(chosen)})


def _side(call: Call, channels: int, filters: int) -> int:
    """The greatest number of rows and columns of outputs that fit into a page."""
    for side in range(max(call.output.shape[2:]), 8, -1):
        inputs = [
            (side - 1) * s + d * (r - 1) + 1
            for s, d, r in zip(call.stride, call.dilation, call.weight.shape[2:], strict=True)
        ]
        if max(channels * inputs[0] * inputs[1], filters * side * side) <= _FLOATS:
            return side
    return 8


def _middle(size: int, side: int, place: int) -> tuple[int, int]:
    """A range of at most `side` out of `size` places, with `place` near its middle."""
    first = min(max(place - side // 2, 0), max(size - side, 0))
    return first, min(first + side, size)


def film(key: str, record: TrainingRecord, example: int) -> Widget:
    """The filters of the first layer and the outputs for one held-out picture, epoch by epoch, on one scale."""
    limit = limit_of(*(snapshot.filters for snapshot in record.snapshots))
    tiles = b"".join(tile.tobytes() for snapshot in record.snapshots for tile in filter_tiles(snapshot.filters, limit))
    count, _, side, _ = record.snapshots[0].filters.shape
    data = {
        "filters": base64.b64encode(tiles).decode(),
        "filter_shape": [count, side],
        "outputs": [[round(value, 4) for value in snapshot.outputs[example].tolist()] for snapshot in record.snapshots],
        "cross_entropy": [round(snapshot.cross_entropy, 4) for snapshot in record.snapshots],
        "mse": [round(snapshot.mse, 5) for snapshot in record.snapshots],
        "accuracy": [round(snapshot.accuracy, 4) for snapshot in record.snapshots],
        "label": int(record.labels[example]),
        "picture": base64.b64encode(rgb(record.pictures[example]).tobytes()).decode(),
    }
    return Widget("film", key, data, [f"film.{word}" for word in _FILM_WORDS])
