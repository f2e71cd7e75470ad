"""Tensors that do not begin at multiples of 16 bytes, where a kernel reads through descriptors: what is done then."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

Run = Callable[..., Any]
# For the names of tensors that are not aligned, '' if all are: functions that bind a function of tensors each, the one
# that is predicted to be quickest first.
Ways = Callable[[str], Iterator[Callable[[], Run]]]


def by_alignment(names: tuple[str, str], ways: Ways, cannot_build: Callable[[Exception], bool]) -> Run:
    """A function of tensors that calls, for those of the operands called `names` (and of the residual) that are not
    aligned, the first of `ways` that can be built. It is looked for in the first such call, and kept.

    The very first call of all raises what its aligned way raises: the planner catches that, and plans another tile.
    """
    kept: dict[str, Run] = {}

    def call(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> Any:
        residual = rest[1] if len(rest) == 2 else None
        together = a.data_ptr() | b.data_ptr() | (0 if residual is None else residual.data_ptr())
        which = "" if together % 16 == 0 else _not_aligned(names, a, b, residual)
        run = kept.get(which)
        return first(which, a, b, *rest) if run is None else run(a, b, *rest)

    def first(which: str, *arguments: Any) -> Any:
        failed: Exception | None = None
        for bind in ways(which):
            try:
                run = bind()
                result = run(*arguments)
            except Exception as error:
                if not cannot_build(error) or not (which or kept):
                    raise
                warnings.warn(f"a kernel cannot be built, and the next is taken; {error}", stacklevel=2)
                failed = error
            else:
                kept[which] = run
                return result
        assert failed is not None, "there is no way"
        raise failed

    return call


def _not_aligned(names: tuple[str, str], a: torch.Tensor, b: torch.Tensor, residual: torch.Tensor | None) -> str:
    """The names of those that do not begin at multiples of 16 bytes."""
    given = zip((*names, "residual"), (a, b, residual), strict=True)
    return "+".join(name for name, tensor in given if tensor is not None and tensor.data_ptr() % 16)
