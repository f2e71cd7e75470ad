"""Subnormal numbers in the PTX of every family, direction and number type: nothing flushes them to zero."""

import re

import pytest
import torch

from gpuconv.activations import Activation
from gpuconv.backends.base import contiguous_operands
from gpuconv.backends.cuda import act_backward as cuda_act, compiler as cuda_compile
from gpuconv.backends.cuda.backend import FAMILIES, launches
from gpuconv.backends.cuda.launch import Instance
from gpuconv.backends.elementwise import Elementwise
from gpuconv.gpu import KNOWN
from gpuconv.problem import DIRECTIONS, ConvProblem

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy, whose NVRTC compiles these, is not installed")

# A layer that each family is for: input, weight.
LAYERS = {
    "simt": ((2, 40, 9, 9), (24, 40, 3, 3)),
    "tensor": ((2, 40, 9, 9), (24, 40, 3, 3)),
    "halo": ((2, 40, 9, 9), (24, 40, 3, 3)),
    "grouped": ((2, 64, 9, 9), (64, 4, 3, 3)),
    "grouped_halo": ((2, 64, 9, 9), (64, 4, 3, 3)),
    "depthwise": ((2, 64, 9, 9), (64, 1, 3, 3)),
    "banded": ((2, 8, 20, 20), (8, 1, 13, 13)),
}
# exp of CUDA, where it has brought its argument to a range in which nothing is subnormal; and tanh's quotient.
HARMLESS = {"ex2.approx.ftz.f32", "rcp.approx.ftz.f32"}


def instances(kernel: str, dtype: torch.dtype, activation: str) -> list[Instance]:
    """One of each direction, with the smallest tile."""
    x, w = LAYERS[kernel]
    problem = ConvProblem.of(x, w, padding=1, groups=x[1] // w[1], dtype=dtype, memory_format=torch.channels_last)
    found = []
    for direction in DIRECTIONS if activation == "none" else DIRECTIONS[:1]:
        tf32 = dtype is torch.float32 and kernel not in ("simt", "depthwise")
        operands = contiguous_operands(problem, direction, torch.channels_last)._replace(tf32=tf32)
        tiles = FAMILIES[kernel].tiles(problem, direction, KNOWN["A100"], operands)
        if tiles:
            tile = min(tiles, key=lambda tile: (tile.rows * tile.columns, tile.splits))
            found.append(launches(problem, direction, operands, tile, Activation.parse(activation))[0].instance)
    return found


def flushing(instance: Instance) -> set[str]:
    return set(re.findall(r"\b[\w.]+\.ftz[\w.]*", cuda_compile.ptx(instance, "sm_80")))


@pytest.mark.parametrize("kernel", LAYERS)
def test_no_convolution_flushes_subnormal_numbers(kernel: str) -> None:
    multiplying = torch.float32 if kernel in ("simt", "depthwise") else torch.bfloat16
    found = instances(kernel, multiplying, "none")
    assert len(found) >= 2
    for instance in found:
        assert flushing(instance) == set(), instance


def test_a_flush_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    (instance, *_) = instances("simt", torch.float32, "none")
    monkeypatch.setattr(cuda_compile, "_OPTIONS", ("-std=c++17", "-ftz=true"))  # as cupy.RawModule compiles
    assert flushing(instance) - HARMLESS


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh"])
def test_activations_flush_nothing_that_is_subnormal(activation: str) -> None:
    (instance,) = instances("simt", torch.float32, activation)
    assert flushing(instance) <= HARMLESS
    strides = torch.empty(4, 24, 7, 7, device="meta").stride()
    shape = Elementwise((4, 24, 7, 7), torch.float32, torch.contiguous_format, strides, True, Activation(activation))
    for launch in cuda_act.launches(shape, 108):
        assert flushing(launch.instance) <= HARMLESS
