"""PyTorch's module database: each convolution layer gives PyTorch's result and gradients for each of its inputs."""

import functools
from typing import Any

import pytest
import torch
from lanes import Lane, each_lane

import gpuconv

LAYERS = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


@functools.cache
def database() -> dict[str, Any]:
    """The entries by name. Imported when needed: it takes seconds."""
    from torch.testing._internal.common_modules import module_db

    return {entry.name.removeprefix("nn."): entry for entry in module_db}


@each_lane
@pytest.mark.parametrize("layer", [*LAYERS, *(f"Lazy{layer}" for layer in LAYERS)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["float64", "complex128"])
def test_every_input_gives_pytorchs_output_and_gradients(lane: Lane, layer: str, dtype: torch.dtype) -> None:
    entry = database()[layer]
    inputs = entry.module_inputs_func(entry, lane.device, dtype, True, True)
    assert inputs
    for given in inputs:
        results = []
        for layers in (torch.nn, gpuconv.nn):
            torch.manual_seed(5)
            settings = dict(given.constructor_input.kwargs) | {"dtype": dtype, "device": lane.device}
            module = getattr(layers, layer)(*given.constructor_input.args, **settings)
            x = given.forward_input.args[0].detach().requires_grad_()
            torch.manual_seed(5)  # lazy layers draw their parameters now
            with gpuconv.use_backend(lane.backend):
                y = module(x)
                y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype, device=lane.device).view(y.shape))
            assert type(module) is getattr(layers, layer.removeprefix("Lazy"))
            results.append([y, x.grad, module.weight.grad, module.bias.grad])
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
