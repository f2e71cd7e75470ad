"""A small grouped problem with every setting, for tests of the ops in float64."""

import torch
from lanes import INTERPRETING, Lane

import gpuconv

SETTINGS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
# Input, weight and bias, and what comes out; tiny where it takes long.
SHAPES = ((1, 2, 4, 5), (2, 1, 2, 2), (2,)) if INTERPRETING else ((2, 4, 5, 6), (4, 2, 3, 2), (4,))
OUTPUT = (1, 2, 3, 3) if INTERPRETING else (2, 4, 3, 4)


def tensors(lane: Lane, requires_grad: bool = True) -> list[torch.Tensor]:
    """input, weight, bias of a small grouped problem, float64."""
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, device=lane.device, requires_grad=requires_grad) for s in SHAPES]


def conv(lane: Lane):
    return lambda x, w, b: gpuconv.conv2d(x, w, b, **SETTINGS, backend=lane.backend)


def same(got, expected) -> None:
    """Two series of tensors are equal but for rounding in float64."""
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)
