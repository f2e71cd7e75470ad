"""Compile beforehand what a run will need: `gpuconv.warmup`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from gpuconv.files import alone, cache_folder


def warmup(
    model: torch.nn.Module,
    example_input: torch.Tensor | tuple[Any, ...],
    *,
    backward: bool = True,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> None:
    """Run one step of `model`, so that its first real step plans and compiles nothing.

    example_input: what the model is called with, a tensor or a tuple of arguments, of the sizes that will come.
    backward: also the gradients of what requires them; of `loss(output)`, or of the sum of squares of all outputs.

    Autocast, memory format and backend are those that are active. Buffers, gradients and the random state are what they
    were, afterwards; nothing else of the model may change in a forward pass. Processes of one machine take turns (where
    they can write to the cache folder): the first compiles, and the others find its kernels in the cache of Triton and
    in ours, so that each is compiled once. Raises TypeError for a model that is none, and whatever the model raises.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    devices = sorted(
        {t.device for t in (*model.parameters(), *tree_leaves(arguments)) if isinstance(t, torch.Tensor)}, key=str
    )
    gpus = [device for device in devices if device.type == "cuda"]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with _turn(), torch.random.fork_rng(gpus):
            with nullcontext() if backward else torch.no_grad():
                output = model(*arguments)
            if backward:
                _loss(output, loss).backward()
            for device in gpus:
                torch.cuda.synchronize(device)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _turn() -> AbstractContextManager[None]:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return alone(cache_folder() / "warmup.lock")
    except OSError:
        return nullcontext()


def _loss(output: Any, loss: Callable[[Any], torch.Tensor] | None) -> torch.Tensor:
    if loss is not None:
        return loss(output)
    tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not tensors:
        raise ValueError("no output of the model has a gradient; pass backward=False, or a loss")
    return torch.stack([t.float().square().sum() for t in tensors]).sum()  # not t.sum(): its gradient is one number
