"""The problems that every backend has to solve, in the tests and in `gpuconv check`: curated ones, and random ones."""

import random
import zlib
from typing import Any

import torch

from gpuconv.problem import CHANNELS_LAST, ConvProblem
from gpuconv.text import did_you_mean

# Odd on purpose: nothing is a multiple of anything unless that is the point. input, weight, settings.
_CURATED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1x1": ((2, 5, 7, 6), (3, 5, 1, 1), {}),
    "1x1-stride2": ((2, 5, 7, 6), (3, 5, 1, 1), {"stride": 2}),
    "3x3": ((2, 3, 9, 7), (5, 3, 3, 3), {}),
    "3x3-same": ((2, 3, 9, 7), (5, 3, 3, 3), {"padding": "same"}),
    "3x3-one-image": ((1, 17, 5, 6), (19, 17, 3, 3), {"padding": 1}),
    "3x3-empty-batch": ((0, 3, 9, 7), (5, 3, 3, 3), {"padding": 1}),
    "3x3-output-is-one-pixel": ((3, 4, 3, 3), (5, 4, 3, 3), {}),
    "3x3-stride2": ((2, 3, 9, 8), (5, 3, 3, 3), {"stride": 2, "padding": 1}),
    "3x3-stride3-leftover": ((2, 3, 11, 10), (5, 3, 3, 3), {"stride": 3, "padding": 1}),
    "3x3-stride3x1": ((2, 3, 10, 7), (5, 3, 3, 3), {"stride": (3, 1), "padding": (0, 2)}),
    "3x3-dilation2": ((2, 3, 9, 8), (5, 3, 3, 3), {"dilation": 2, "padding": 2}),
    "3x3-dilation3x1": ((1, 3, 11, 5), (5, 3, 3, 3), {"dilation": (3, 1), "padding": (3, 0)}),
    "3x3-stride2-dilation2": ((2, 3, 11, 12), (5, 3, 3, 3), {"stride": 2, "dilation": 2, "padding": 1}),
    "3x3-stride2-dilation3": ((2, 3, 12, 11), (4, 3, 3, 3), {"stride": 2, "dilation": 3, "padding": 3}),
    "3x3-stride3-dilation2": ((2, 3, 13, 11), (4, 3, 3, 3), {"stride": 3, "dilation": 2, "padding": 2}),
    "3x3-padding-of-filter-size": ((2, 3, 5, 4), (5, 3, 3, 3), {"padding": 3}),
    "3x3-asymmetric-padding": ((2, 3, 6, 7), (5, 3, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "3x3-asymmetric-stride2": ((2, 3, 8, 7), (5, 3, 3, 3), {"padding": ((0, 1), (1, 0)), "stride": 2}),
    "3x3-groups2": ((2, 6, 7, 8), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    "3x3-groups2-stride2": ((2, 6, 7, 8), (4, 3, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    "3x3-depthwise": ((2, 3, 6, 9), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "3x3-depthwise-multiplier": ((2, 3, 6, 9), (6, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "2x2-same-even": ((2, 3, 5, 6), (4, 3, 2, 2), {"padding": "same"}),
    "2x2-stride2": ((2, 3, 8, 6), (4, 3, 2, 2), {"stride": 2}),
    "1x2-stride3-untouched-pixels": ((2, 3, 9, 8), (4, 3, 1, 2), {"stride": 3}),
    "5x3": ((2, 3, 9, 7), (5, 3, 5, 3), {"padding": (2, 1)}),
    "3x5-stride2x1": ((1, 5, 9, 8), (3, 5, 3, 5), {"stride": (2, 1), "padding": (1, 2)}),
    "7x7-stride2-stem": ((1, 3, 17, 15), (6, 3, 7, 7), {"stride": 2, "padding": 3}),
    "7x7-depthwise": ((2, 2, 9, 11), (2, 1, 7, 7), {"groups": 2, "padding": 3}),
    "1x7": ((2, 3, 3, 11), (5, 3, 1, 7), {"padding": (0, 3)}),
    "wide-channels": ((1, 70, 4, 5), (67, 70, 3, 3), {"padding": 1}),
    "one-channel-each": ((3, 1, 6, 5), (1, 1, 3, 3), {"padding": 1}),
    "1d": ((2, 3, 19), (5, 3, 4), {"stride": 2, "padding": 1}),
    "1d-causal": ((2, 6, 13), (6, 1, 4), {"groups": 6, "padding": ((3, 0),)}),
    "1d-dilation3": ((2, 4, 23), (6, 2, 3), {"dilation": 3, "groups": 2, "padding": 3}),
    "3d": ((2, 3, 5, 6, 4), (4, 3, 3, 2, 3), {"padding": 1}),
    "3d-strided": ((1, 4, 7, 6, 9), (6, 2, 2, 3, 3), {"stride": (2, 1, 2), "dilation": (1, 2, 1), "groups": 2}),
}  # fmt: skip
CURATED = {name: ConvProblem.of(x, w, **settings) for name, (x, w, settings) in _CURATED.items()}
# Sums so long that adding in another order gives other bits.
LONG_SUMS = {"long-sums": ConvProblem.of((3, 24, 21, 23), (19, 24, 3, 3), padding=1)}

# For kernels that need channels in vectors, as many filters as a turned weight has, long filters, or sums so long that
# they are split.
_OF_FAMILIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "vectors-1x1": ((3, 32, 20, 24), (48, 32, 1, 1), {}),
    "vectors-1x1-stride2": ((3, 40, 21, 23), (24, 40, 1, 1), {"stride": 2}),
    "vectors-1x1-long": ((7, 32, 44, 40), (40, 32, 1, 1), {}),
    "vectors-1x1-deep": ((2, 1032, 7, 5), (40, 1032, 1, 1), {}),
    "vectors-1x1-wide": ((2, 40, 7, 5), (1032, 40, 1, 1), {}),
    "vectors-3x3": ((3, 32, 21, 23), (48, 32, 3, 3), {"padding": 1}),
    "vectors-3x3-stride2": ((3, 40, 21, 22), (24, 40, 3, 3), {"padding": 1, "stride": 2}),
    "vectors-3x3-dilation2": ((2, 72, 13, 11), (40, 72, 3, 3), {"padding": ((2, 1), (0, 2)), "dilation": 2}),
    "vectors-3x3-long": ((7, 24, 44, 41), (40, 24, 3, 3), {"padding": 1}),
    "turned-1x1-wide": ((2, 40, 7, 5), (1056, 40, 1, 1), {}),
    "turned-3x3": ((3, 40, 21, 23), (96, 40, 3, 3), {"padding": 1}),
    "turned-3x3-wide": ((1, 24, 7, 5), (1056, 24, 3, 3), {"padding": 1}),
    "groups-of-4-long": ((7, 32, 44, 41), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
    "stem-long": ((5, 3, 61, 59), (24, 3, 5, 5), {"stride": 2, "padding": 2}),
    "patches-8x8": ((5, 3, 40, 48), (24, 3, 8, 8), {"stride": 8}),
    "patches-long": ((5, 3, 164, 160), (24, 3, 4, 4), {"stride": 4}),
    "11x11-depthwise": ((2, 16, 23, 25), (16, 1, 11, 11), {"groups": 16, "padding": 5}),
    "13x9-depthwise-long": ((9, 8, 45, 43), (8, 1, 13, 9), {"groups": 8, "padding": (6, 4)}),
}  # fmt: skip
OF_FAMILIES = {name: ConvProblem.of(x, w, **settings) for name, (x, w, settings) in _OF_FAMILIES.items()}


def problem_called(name: str) -> ConvProblem:
    """The curated problem of this name, or the random one that `random 7` means. Raises ValueError for another."""
    head, _, seed = name.partition(" ")
    if head == "random" and seed.isdigit():
        return random_problem(int(seed))
    known = CURATED | LONG_SUMS | OF_FAMILIES
    if name not in known:
        raise ValueError(
            f"no problem is called {name!r}{did_you_mean(name, known)}; there are 'random SEED', {', '.join(known)}"
        )
    return known[name]


def as_code(problem: ConvProblem) -> str:
    """The Python expression that makes this problem."""
    settings = {"stride": 1, "padding": ((0, 0),) * problem.ndim, "dilation": 1, "groups": 1}
    plain = {"stride": (1,) * problem.ndim, "dilation": (1,) * problem.ndim}
    given = [
        f"{name}={getattr(problem, name)}"
        for name, default in settings.items()
        if getattr(problem, name) not in (default, plain.get(name))
    ]
    if problem.dtype is not torch.float32:
        given.append(f"dtype={problem.dtype}")
    if problem.memory_format is not torch.contiguous_format:
        given.append(f"memory_format={problem.memory_format}")
    return f"ConvProblem.of({', '.join([str(problem.input_shape), str(problem.weight_shape), *given])})"


def seed_of(name: str) -> int:
    """The seed of the random data of the problem called `name`."""
    return zlib.crc32(name.encode())


def random_problem(seed: int) -> ConvProblem:
    """A small problem with everything drawn at random; the same for the same seed on every machine."""
    draw = random.Random(seed)
    ndim = draw.choice((1, 2, 2, 2, 3))
    most = {1: 24, 2: 12, 3: 7}[ndim]
    filter_size = tuple(draw.randint(1, {1: 9, 2: 5, 3: 3}[ndim]) for _ in range(ndim))
    dilation = tuple(draw.choice((1, 1, 1, 2, 3)) for _ in range(ndim))
    stride = tuple(draw.choice((1, 1, 2, 3)) for _ in range(ndim))
    padding = tuple((draw.randint(0, r), draw.randint(0, r)) for r in filter_size)
    size = tuple(
        max(1, d * (r - 1) + 1 - low - high) + draw.randint(0, most)
        for r, d, (low, high) in zip(filter_size, dilation, padding, strict=True)
    )
    groups = draw.choice((1, 1, 1, 2, 3, 5))
    c, k = draw.randint(1, 9), draw.randint(1, 9)
    return ConvProblem.of(
        (draw.randint(1, 4), groups * c, *size), (groups * k, c, *filter_size), stride, padding, dilation, groups
    )


def random_depthwise(seed: int) -> ConvProblem:
    """A random problem whose filters have one channel each, at strides 1 and 2; every fifth has long filters."""
    draw = random.Random(seed)
    ndim = draw.choice((1, 2, 2, 2))
    most = draw.choice((5, 5, 7, 7, 31))
    filter_size = tuple(draw.randint(1, most) for _ in range(ndim))
    dilation = tuple(draw.choice((1, 1, 1, 2, 3)) for _ in range(ndim))
    stride = tuple(draw.choice((1, 1, 2)) for _ in range(ndim))
    padding = tuple((draw.randint(0, r), draw.randint(0, r)) for r in filter_size)
    size = tuple(
        max(1, d * (r - 1) + 1 - low - high) + draw.randint(0, 20)
        for r, d, (low, high) in zip(filter_size, dilation, padding, strict=True)
    )
    channels, multiplier = draw.choice((1, 3, 8, 16, 24)), draw.choice((1, 1, 1, 2, 3))
    return ConvProblem.of(
        (draw.randint(1, 3), channels, *size),
        (channels * multiplier, 1, *filter_size), stride, padding, dilation, channels,
    )  # fmt: skip


LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
# The tensors that each direction takes, by their names in `tensors`.
OPERANDS = {
    "forward": ("input", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "input"),
}  # fmt: skip


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of t in another layout; 'expanded' repeats the first image (stride 0), so the values change."""
    if layout == "channels_last" and t.dim() > 3:
        return t.contiguous(memory_format=CHANNELS_LAST[t.dim()])
    if layout == "sliced":
        wide = torch.full([n + 3 for n in t.shape], float("nan"), dtype=t.dtype, device=t.device)
        inner = wide[tuple(slice(1, 1 + n) for n in t.shape)]
        return inner.copy_(t)
    if layout == "expanded" and t.shape[0] > 0:
        return t[:1].expand(t.shape)
    return t


def tensors(
    problem: ConvProblem, name: str, dtype: torch.dtype, device: str = "cpu", layout: str = "contiguous"
) -> dict[str, torch.Tensor]:
    """Zero-mean random input, weight, bias, residual and grad_output of a problem, laid out as asked."""
    generator = torch.Generator().manual_seed(seed_of(name))

    def draw(shape: tuple[int, ...], layout: str = layout) -> torch.Tensor:
        return laid_out(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype), layout)

    return {
        "input": draw(problem.input_shape),
        "weight": draw(problem.weight_shape),
        "bias": draw((problem.out_channels,), "contiguous"),
        "residual": draw(problem.output_shape),
        "grad_output": draw(problem.output_shape),
    }
