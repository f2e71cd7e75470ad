"""What a backend is: an implementation of the three functions that says which problems it can do.

To bring your own, subclass `Backend`, implement the three functions (or refuse a direction in `refuses`), and pass it to
`gpuconv.backends.register`. Tensors arrive validated, of one dtype and on one device, possibly non-contiguous; results
are fresh tensors of the problem's shape and memory format, made with `gpuconv.problem.allocate`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import Activation


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot run here, or cannot do this problem; the message says why and what to use instead."""


class Backend:
    """Base class of all backends."""

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all, or None. Called when the backend is first needed."""
        return None

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        """Why this backend cannot do `direction` of `problem` on `device`, or None if it can. Pure and quick."""
        return None

    def forward(
        self,
        problem: ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        activation: Activation,
    ) -> torch.Tensor:
        """activation(input ⋆ weight + bias + residual), rounded once.

        input: [N, C, *size]; weight: [K, C/groups, *filter]; bias: [K]; residual and result: [N, K, *output].
        """
        raise NotImplementedError(f"backend {self.name!r} has no forward")

    def grad_input(self, problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Derivative with respect to the input, [N, C, *size]."""
        raise NotImplementedError(f"backend {self.name!r} has no grad_input")

    def grad_weight(
        self, problem: ConvProblem, grad_output: torch.Tensor, input: torch.Tensor, with_bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Derivative with respect to the weight, [K, C/groups, *filter], and, if `with_bias`, to the bias, [K]."""
        raise NotImplementedError(f"backend {self.name!r} has no grad_weight")

    def bind(
        self, problem: ConvProblem, direction: Direction, device: torch.device, activation: Activation
    ) -> Callable[..., Any]:
        """What the planner keeps and calls for every call of this problem: the function with all but tensors fixed.

        A backend with work to do once for a problem (choosing a tile, preparing a launch) does it here.
        """
        if direction == "forward":
            return partial(self.forward, problem, activation=activation)
        return partial(getattr(self, direction), problem)
