"""The arithmetic of filters: a curve detector, spectra, one output explained, filters that are dead or alike."""

import dataclasses
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gpuconv
from gpuconv.errors import UserError
from gpuconv.see import rendering
from gpuconv.see.input_images import Image
from gpuconv.see.layers import Call, first_call

# ---- the curve detector ---------------------------------------------------------------------------------------------


def _grid(values: dict[tuple[int, int], int]) -> Tensor:
    grid = torch.zeros(7, 7)
    for (row, column), value in values.items():
        grid[row, column] = value
    return grid


CURVE = _grid(dict.fromkeys([(0, 5), (1, 4), (2, 3), (3, 3), (4, 3), (5, 3)], 30))
ON_THE_CURVE = _grid(
    {(0, 6): 30, (1, 4): 50, (1, 5): 50, (1, 6): 50, (2, 3): 20, (2, 4): 50}
    | {(row, column): 50 for row in range(3, 7) for column in (3, 4)}
)
OFF_THE_CURVE = _grid(
    {(1, 1): 40, (2, 0): 40, (2, 2): 40, (3, 0): 40, (3, 1): 20, (4, 1): 50, (5, 2): 50}
    | {(6, 0): 25, (6, 1): 25, (6, 3): 50}
)
ZERO_MEAN_CURVE = CURVE - CURVE.mean()


def response(patch: Tensor, filter: Tensor) -> float:
    """The one output of convolving `patch` with `filter`, both [R, S]."""
    return gpuconv.conv2d(patch[None, None], filter[None, None]).item()


def filtered(image: Tensor, filter: Tensor) -> Tensor:
    """`image` [H, W] convolved with `filter` [R, S], R and S odd; the border repeats its pixels."""
    rows, columns = filter.shape
    around = (columns // 2, columns // 2, rows // 2, rows // 2)
    padded = F.pad(image[None, None], around, mode="replicate")
    return gpuconv.conv2d(padded, filter[None, None])[0, 0]


# ---- spectra --------------------------------------------------------------------------------------------------------

_BINS, _RINGS = 64, 24
_HALF_POWER = math.sqrt(0.5)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The gain of a filter at each frequency."""

    gain: Tensor  # [64, 64] ≥ 0, frequency 0 at [32, 32], a step of π/32 a cell
    profile: Tensor  # [24]: the mean gain on rings of radius 0 … π
    kind: str  # 'low-pass', 'band-pass', 'high-pass', 'all-pass', or 'none' for a filter of zeros

    def figure(self) -> Any:
        """A matplotlib figure of the gain, its middle frequency 0."""
        return rendering.figure([self.gain])


def spectrum(filter: Tensor) -> Spectrum:
    """The spectrum of a filter [R, S], or of [C, R, S] as the root of the channels' mean power; R, S ≤ 64.

    Its kind is read from the profile. A frequency passes at half the greatest power or more. Passing 0 but not the
    highest is low-pass, the highest but not 0 high-pass, both all-pass, neither band-pass.
    """
    if filter.dim() not in (2, 3) or max(filter.shape[-2:]) > _BINS:
        raise UserError(f"filter must be [R, S] or [C, R, S] with sides up to {_BINS}, but got {list(filter.shape)}")
    power = torch.fft.fft2(filter.detach().double(), s=(_BINS, _BINS)).abs().square()
    gain = torch.fft.fftshift(power.mean(0) if filter.dim() == 3 else power).sqrt()
    frequency = torch.arange(_BINS, dtype=torch.float64) / (_BINS / 2) - 1  # in units of π
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    ring = (radius * (_RINGS - 1)).round().long()
    inside = ring < _RINGS
    profile = torch.bincount(ring[inside], gain[inside], _RINGS) / torch.bincount(ring[inside], minlength=_RINGS)
    passes = profile >= profile.max() * _HALF_POWER
    kinds = {(True, False): "low-pass", (False, True): "high-pass", (True, True): "all-pass"}
    kind = kinds.get((bool(passes[0]), bool(passes[-1])), "band-pass") if profile.max() > 0 else "none"
    return Spectrum(gain, profile, kind)


# ---- one output -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One output of a convolution: `window` × `filter` = `products`, whose sum and the bias are `sum`."""

    at: tuple[int, int, int]  # channel, row, column
    window: Tensor  # [C/groups, R, S]: what the filter sees, padding included; this and the next two in float64
    filter: Tensor
    products: Tensor
    bias: float
    sum: float
    output: float  # what the layer returned

    def figure(self) -> Any:
        """A matplotlib figure: a row each for window, filter and products, a tile a channel, one scale a row."""
        rows = (self.window, self.filter, self.products)
        limits = [rendering.limit_of(row) for row in rows for _ in row]
        return rendering.figure([tile for row in rows for tile in row], len(self.window), limits)


def explain_output(model: nn.Module, image: Image, layer: str, at: tuple[int, int, int]) -> Explanation:
    """The products and the sum that make output `at` (channel, row, column) of a convolution layer for an image.

    image: as `activation_maps` takes it. Raises UserError where there is no such layer or output.
    """
    return explain(first_call(model, image, layer), at)


def explain(call: Call, at: tuple[int, int, int]) -> Explanation:
    """The explanation of output `at` of a recorded call. Raises UserError where there is no such output."""
    k, p, q = at
    outputs = call.output.shape[1:]
    if not all(0 <= i < size for i, size in zip(at, outputs, strict=True)):
        raise UserError(f"at must lie within the output {list(outputs)} (channel, row, column), but got {list(at)}")
    (stride_h, stride_w), (dilation_h, dilation_w) = call.stride, call.dilation
    channels, rows, columns = call.weight.shape[1:]
    first = k // (outputs[0] // call.groups) * channels
    (top, bottom), (left, right) = call.padding
    padded = F.pad(call.input[0, first : first + channels], (left, right, top, bottom))
    window = padded[
        :,
        p * stride_h : p * stride_h + (rows - 1) * dilation_h + 1 : dilation_h,
        q * stride_w : q * stride_w + (columns - 1) * dilation_w + 1 : dilation_w,
    ].double()
    filter = call.weight[k].double()
    products = window * filter
    bias = 0.0 if call.bias is None else float(call.bias[k])
    return Explanation(
        at, window, filter, products, bias, float(products.sum()) + bias, float(call.output[0, k, p, q])
    )  # fmt: skip


# ---- filters among each other ---------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two filters that point almost the same way."""

    first: int
    second: int
    cosine: float


def duplicates(weight: Tensor, cosine: float = 0.9) -> list[Pair]:
    """The pairs among filters [K, …] whose cosine is at least `cosine`, the most alike first."""
    flat = F.normalize(weight.detach().flatten(1).double(), dim=1)
    alike = flat @ flat.T
    pairs = [Pair(i, j, float(alike[i, j])) for i, j in (alike >= cosine).triu(diagonal=1).nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair.cosine)


def dead(maps: Tensor) -> list[int]:
    """The channels of maps [N, K, P, Q] that are nowhere positive: behind a ReLU they contribute nothing."""
    return (maps.amax((0, 2, 3)) <= 0).nonzero()[:, 0].tolist()
