"""`__torch_function__`: PyTorch's convolutions become ours within a context, and tensor-likes that have their own way
with a convolution are asked, as PyTorch asks them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_overloaded_args

from gpuconv import backends

ROUTES: dict[Any, Callable[..., Any]] = {}
"""What computes each of PyTorch's functions: `gpuconv.functional` fills it. torch.nn.functional has the very same."""


class Routing(TorchFunctionMode):
    """PyTorch leaves the mode while `__torch_function__` runs, so what a backend calls is not routed again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        route = func if torch.jit.is_tracing() else ROUTES.get(func, func)  # torch.jit.trace cannot record ours
        return route(*args, **(kwargs or {}))


def opinionated(*arguments: Any) -> list[Any]:
    """Those of them, each type once, whose type has a `__torch_function__` of its own, in the order in which PyTorch
    asks them. The one that all subclasses of Tensor have, which keeps the subclass, is not meant."""
    return [t for t in _get_overloaded_args(arguments) if not _is_tensors_own(type(t))]


def _is_tensors_own(cls: type) -> bool:
    method: Any = getattr(cls, "__torch_function__", None)
    return getattr(method, "__func__", None) is torch.Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


def ask(askable: list[Any], function: Callable[..., Any], arguments: tuple[Any, ...], backend: str | None) -> Any:
    """What the first of the `askable` that knows says `function`, one of PyTorch's, of these arguments is.

    What it has convolved on the way is convolved by us. Raises TypeError, as PyTorch does, if none knows.
    """
    types = tuple(type(t) for t in askable)
    with backends.use_backend(backend or backends.selected()), Routing():
        for t in askable:
            result = t.__torch_function__(function, types, arguments, {})
            if result is not NotImplemented:
                return result
    names = ", ".join(t.__qualname__ for t in types)
    raise TypeError(
        f"no implementation found for {function.__name__} on types that implement __torch_function__: {names}"
    )
