"""Calls of Triton kernels where there is no GPU: what Triton's interpreter cannot judge, and what it needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from gpuconv.backends import BackendUnavailable

_NO_GPU = ("0 active drivers", "cannot be accessed from Triton (cpu tensor?)")  # in Triton's words


class Unjudged(NotImplementedError):
    """A right kernel may give a wrong result here; the message says why."""


class NoInterpreter(BackendUnavailable):
    """There is no GPU to compile a Triton kernel for, and it is not, or cannot be, interpreted."""


@contextmanager
def calls_of(backend: str) -> Iterator[None]:
    """A context for calling the kernels of `backend`, of which any may be Triton kernels.

    Raises Unjudged where Triton's interpreter gets a bfloat16 tensor: it computes with the bits of such numbers as if
    they were integers. gpuconv's kernels work around that; others cannot be expected to. Raises NoInterpreter for a
    kernel that is not interpreted and has no GPU, and where the interpreter does not work.
    """
    try:
        with np.errstate(all="ignore"), _watched(backend):  # NumPy, which interprets, would warn of every NaN
            yield
    except (RuntimeError, ValueError) as error:
        if any(words in str(error) for words in _NO_GPU):
            raise NoInterpreter(
                f"backend {backend!r} launches Triton kernels, which need an NVIDIA GPU; to have them interpreted on "
                "the CPU, set TRITON_INTERPRET=1"
            ) from error
        raise


@contextmanager
def _watched(backend: str) -> Iterator[None]:
    if not os.environ.get("TRITON_INTERPRET"):
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    from gpuconv.backends.triton.launch import why_no_interpreter

    run = InterpretedFunction.run

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        broken = why_no_interpreter()
        if broken:
            raise NoInterpreter(f"backend {backend!r} launches Triton kernels, and {broken}")
        given = (getattr(value, "base", value) for value in (*arguments, *named.values()))  # a descriptor has a base
        own = self.fn.__module__.startswith("gpuconv.kernels.")
        if not own and any(isinstance(t, torch.Tensor) and t.dtype is torch.bfloat16 for t in given):
            raise Unjudged(
                "Triton's interpreter (TRITON_INTERPRET=1) computes with bfloat16 as with integers; only a GPU can tell"
            )
        return run(self, *arguments, **named)

    with patch.object(InterpretedFunction, "run", watched):
        yield
