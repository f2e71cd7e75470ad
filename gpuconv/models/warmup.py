"""`gpuconv.warmup`: compile in advance the kernels that a run will need."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
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
    backward: also compute the gradients, of `loss(output)` or else of the sum of squares of all outputs. loss: the loss
    of the training, whose gradient has the memory layout that the training will meet. The gradient of the default has
    that of the outputs; a loss that flattens a channels-last output, say, gives a contiguous one, which other kernels
    take. Targets go into it: `loss=lambda output: cross_entropy(output, targets)`.

    Autocast, memory format and backend are those that are active. No trace is left: parameters' and inputs' gradients
    (None stays None), buffers, modes, inputs, and the random states of PyTorch, of its GPUs, of NumPy and of Python are
    what they were, also after an error; what a forward pass changes elsewhere, parameters' values included, is not
    undone, and lazy modules take their shapes. Processes of one machine take turns (where they can write to the cache
    folder, and the model waits for no other process): the first compiles, and the others find its kernels in the cache
    of Triton and in gpuconv's, so that each is compiled once. Raises TypeError for a model that is no module or a loss
    that is no function, ValueError for a loss that gives no gradient, and whatever the model and the loss raise.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of the model's output, but got {type(loss).__name__}")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    inputs = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    gpus = sorted({t.device.index for t in (*model.parameters(), *inputs) if t.device.type == "cuda"})
    modules = [*model.modules(), *(loss.modules() if isinstance(loss, torch.nn.Module) else ())]
    waits = any(isinstance(module, (DistributedDataParallel, torch.nn.SyncBatchNorm)) for module in modules)
    with ExitStack() as undo:
        undo.enter_context(nullcontext() if waits else _turn())
        undo.enter_context(_random_states(gpus))
        undo.enter_context(_modules(modules))
        undo.enter_context(_values(inputs))
        undo.enter_context(_gradients((*model.parameters(), *inputs)))
        with nullcontext() if backward else torch.no_grad():
            output = model(*arguments)
        if backward:
            value = _loss(output, loss)
            with _gradients(_leaves(value)):  # whatever else the loss knows
                value.backward()
        for gpu in gpus:
            torch.cuda.synchronize(gpu)


def _turn() -> AbstractContextManager[None]:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return alone(cache_folder() / "warmup.lock")
    except OSError:
        return nullcontext()


def _loss(output: Any, loss: Callable[[Any], torch.Tensor] | None) -> torch.Tensor:
    if loss is not None:
        value = loss(output)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            what = f"one of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"loss must give a tensor of one number that has a gradient, but gave {what}")
        return value
    tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not tensors:
        raise ValueError("no output of the model has a gradient; pass backward=False, or a loss")
    return torch.stack([t.float().square().sum() for t in tensors]).sum()  # not t.sum(): its gradient is one number


# ---- leaving no trace ------------------------------------------------------------------------------------------------


@contextmanager
def _random_states(gpus: list[int]) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _modules(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Restore the modules' buffers, the objects and their values, and training modes afterwards."""
    before = [(module, dict(module._buffers), module.training) for module in modules]
    buffers = {id(b): b for _, named, _ in before for b in named.values() if b is not None}
    lazy = torch.nn.parameter.UninitializedBuffer
    values = [(buffer, buffer.clone()) for buffer in buffers.values() if not isinstance(buffer, lazy)]
    try:
        yield
    finally:
        for module, named, training in before:
            module.training = training
            for name in set(module._buffers) - set(named):
                del module._buffers[name]
            module._buffers.update(named)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


@contextmanager
def _values(tensors: list[torch.Tensor]) -> Iterator[None]:
    """Restore the values of the tensors, which a module may change in place."""
    before = [(t, t._version, t.detach().clone()) for t in tensors if not t.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, version, value in before:
                if t._version != version:
                    t.copy_(value)


@contextmanager
def _gradients(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Restore the gradients of leaves afterwards; they are None meanwhile."""
    before = [(t, t.grad) for t in tensors if t.is_leaf]
    try:
        for t, _ in before:
            t.grad = None
        yield
    finally:
        for t, gradient in before:
            t.grad = gradient


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The leaves that receive a gradient of `value`."""
    found: dict[int, torch.Tensor] = {}
    todo: list[Any] = [value.grad_fn]
    seen: set[Any] = {None}
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        todo.extend(following for following, _ in node.next_functions)
    return list(found.values())
