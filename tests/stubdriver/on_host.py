"""PyTorch's own kernels for GPUs that are none: its kernels for the CPU compute them, on the same memory.

Without `install` they do nothing there. Only those that a training step needs are replaced, and what PyTorch does
around them stays: allocation, streams, autograd. What they compute is computed when they are called: no graph repeats
it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import stubdriver
import torch
from torch.utils import _pytree as pytree

NAMES = (
    "add.Tensor", "add_.Tensor", "div.Scalar", "div.Tensor", "fill_.Scalar", "mean", "mul.Scalar", "mul.Tensor",
    "mul_.Tensor", "pow.Tensor_Scalar", "relu", "threshold_backward", "zero_",
)  # fmt: skip
_library: list[torch.library.Library] = []  # what it has replaced lasts as long as it


def install() -> None:
    """Let PyTorch's kernels of these names compute, in this process, from now on."""
    library = torch.library.Library("aten", "IMPL")
    for name in NAMES:
        packet, _, overload = name.partition(".")
        library.impl(name, _computing(getattr(getattr(torch.ops.aten, packet), overload or "default")), "CUDA")
    _library.append(library)


@contextmanager
def all_computed() -> Iterator[None]:
    """Within it no kernel of PyTorch is called that does nothing."""
    uncomputed = stubdriver.runtime().stub_runtime_kernels
    before = uncomputed()
    yield
    assert uncomputed() == before, f"{uncomputed() - before} kernels of PyTorch's own computed nothing"


def _computing(operator: Any) -> Any:
    def compute(*arguments: Any, **named: Any) -> Any:
        theirs: dict[int, torch.Tensor] = {}
        devices = []

        def on_host(t: torch.Tensor) -> torch.Tensor:
            if not t.is_cuda:
                return t
            seen = _on_host(t)
            theirs[id(seen)] = t
            devices.append(t.device)
            return seen

        arguments, named = pytree.tree_map_only(torch.Tensor, on_host, (arguments, named))
        made = operator(*arguments, **named)
        if id(made) in theirs:
            return theirs[id(made)]
        result = torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=devices[0])
        _on_host(result).copy_(made)  # at once, even where a stream is captured
        return result

    return compute


def _on_host(t: torch.Tensor) -> torch.Tensor:
    """The memory of a GPU's tensor as a tensor of the CPU."""
    storage = t.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, t.stride(), t.storage_offset())
