"""What all convolution functions do with a call: choose the backend, check, cast for autocast, recall its settings."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpuconv import backends, sizes

Ints = int | Sequence[int]
_Value = TypeVar("_Value")
Recalled = dict[tuple[object, ...], tuple[_Value, tuple[object, ...]]]
_MOST_RECALLED = 16_384  # a program with ever-changing shapes starts afresh beyond this


def resolve(backend: str | None, device_type: str) -> str:
    """The name of the backend of a call: its argument, else the selected one; 'aten' where 'auto' means that."""
    name = backend or backends.selected()
    return "aten" if name == "auto" and backends.auto_order(device_type)[0] == "aten" else name


def check_backend(name: str) -> None:
    """Raise ValueError unless `name` is 'auto' or a backend; for calls that PyTorch computes, whatever the backend."""
    if name != "auto":
        backends.get(name)


def check_kinds(function: str, ndim: int, input: Any, weight: Any, bias: Any, groups: Any) -> None:
    """Raise TypeError unless these are tensors and an int, RuntimeError unless the tensors have the right rank.

    function: its name, for the message. ndim: the number of spatial axes.
    """
    for name, t in (("input", input), ("weight", weight)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(t).__name__}")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None, but got {type(bias).__name__}")
    sizes.whole("groups", groups)
    if input.dim() not in (ndim + 1, ndim + 2):
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to {function}, "
            f"but got input of size: {list(input.shape)}"
        )
    if weight.dim() != ndim + 2:
        raise RuntimeError(f"Expected {ndim + 2}D weight for {function}, but got weight of size: {list(weight.shape)}")


# ---- autocast and complex tensors ------------------------------------------------------------------------------------


def autocasts(device_type: str) -> bool:
    """Whether autocast is active for tensors on this type of device."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def autocast(device_type: str, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as autocast gives them to a convolution: any floating type but float64 becomes the active one."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t for t in tensors
    )


def convolve_complex(
    conv: Callable[[Tensor, Tensor, Tensor | None], Tensor], input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A complex convolution as three real ones: (a + ib)(c + id) = ac − bd + i((a + b)(c + d) − ac − bd).

    conv: the real one, of an input, a weight and a bias.
    """
    a, b, c, d = input.real, input.imag, weight.real, weight.imag
    ac = conv(a, c, None if bias is None else bias.real)
    bd = conv(b, d, None)
    both = conv(a + b, c + d, None if bias is None else bias.real + bias.imag)
    return torch.complex(ac - bd, both - ac - bd)


# ---- what is remembered of a call ----------------------------------------------------------------------------------


def recall(
    known: Recalled[_Value], call: tuple[Any, ...], arguments: tuple[Any, ...], compute: Callable[[], _Value]
) -> _Value:
    """The result of `compute`, remembered in `known` under `call`.

    A call names its `arguments` by their ids, behind its first element: 2, 2.0 and True are equal, but not all of them
    are valid. `known` holds the arguments, so that no other object gets their ids.
    """
    if not all(_is_constant(argument) for argument in arguments):
        return compute()
    alike = (call[0], arguments, *call[1 + len(arguments) :])  # a call with other objects that are equal
    value = known[alike][0] if alike in known else compute()
    if len(known) >= _MOST_RECALLED:
        known.clear()
    known[call] = known[alike] = (value, arguments)
    return value


def _is_constant(argument: object) -> bool:
    if type(argument) is tuple:
        return all(type(item) is int for item in argument)
    return type(argument) is int or type(argument) is str
