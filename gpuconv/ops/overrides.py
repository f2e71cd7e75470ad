"""`__torch_function__`: PyTorch's convolutions become gpuconv's within a context, and tensor-likes may override ours.

A tensor-like whose class has a `__torch_function__` of its own computes a convolution itself, as it does in PyTorch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_overloaded_args

from gpuconv import backends

ROUTES: dict[Any, Callable[..., Any]] = {}
"""gpuconv's function for each of PyTorch's; `gpuconv.functional` and `gpuconv.transposed` fill it. (The functions of
torch.nn.functional are the same objects as those of torch.)"""


class Routing(TorchFunctionMode):
    """The mode in which PyTorch's convolutions are gpuconv's.

    PyTorch leaves it while `__torch_function__` runs, so what a backend calls is not routed again.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        route = func if torch.jit.is_tracing() else ROUTES.get(func, func)  # torch.jit.trace cannot record ours
        return route(*args, **(kwargs or {}))


def overriding(*arguments: Any) -> list[Any]:
    """The arguments, one of each type, whose type has a `__torch_function__` of its own, in PyTorch's order.

    The method that all subclasses of Tensor inherit, which keeps the subclass, does not count.
    """
    return [t for t in _get_overloaded_args(arguments) if not _is_tensors_own(type(t))]


def _is_tensors_own(cls: type) -> bool:
    method: Any = getattr(cls, "__torch_function__", None)
    return getattr(method, "__func__", None) is torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


def call(overriding: list[Any], function: Callable[..., Any], arguments: tuple[Any, ...], backend: str | None) -> Any:
    """Call `function`, one of PyTorch's, by the `__torch_function__` of the first of `overriding` that implements it.

    Convolutions within it are gpuconv's. Raises TypeError, as PyTorch does, if none implements it.
    """
    types = tuple(type(t) for t in overriding)
    with backends.use_backend(backend or backends.selected()), Routing():
        for t in overriding:
            result = t.__torch_function__(function, types, arguments, {})
            if result is not NotImplemented:
                return result
    names = ", ".join(t.__qualname__ for t in types)
    raise TypeError(
        f"no implementation found for {function.__name__} on types that implement __torch_function__: {names}"
    )
