"""`Backend`: an implementation of the three functions, which says for each problem whether it can do it.

To bring your own, subclass `Backend`, give it a `name`, and implement those of the three functions that you have. Then

    gpuconv check --backend package.module:Class     # is it right? Everything that the oracle suite asks
    gpuconv bench --backend package.module:Class     # is it quick? Beside the others, each result checked first
    gpuconv.backends.register(Class())               # use it: gpuconv.conv2d(…, backend=name), use_backend(name)

What holds for every call: the problem is validated; tensors are of its dtype, on one device, with any strides (sliced,
channels last, stride 0); the device is current; work goes to PyTorch's current stream. What a backend owes: a fresh
tensor of the problem's shape and memory format (`gpuconv.problem.allocate` makes it), every element written, inputs
untouched, the same bits for the same inputs, values within the bound of `gpuconv.reference`. What it cannot do it says
in `refuses`, with the reason; an epilogue that it lacks it may answer with NotImplementedError.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from gpuconv.activations import Activation
from gpuconv.backends.elementwise import Elementwise, Run, by_pytorch
from gpuconv.backends.roofline import Prediction, implicit_gemm
from gpuconv.backends.tile import Tile as Tile  # here for all who write backends
from gpuconv.gpu import Gpu
from gpuconv.problem import ConvProblem, Direction


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot run here, or cannot do this problem. Says why, and what to use instead."""


class Operands(NamedTuple):
    """How the tensors of a call lie in memory, and the float32 setting: what a plan depends on beside the problem."""

    strides: tuple[tuple[int, ...], tuple[int, ...]]  # of the two tensors that the op multiplies, in its order
    residual: tuple[int, ...] | None = None  # its strides
    bias: bool = False  # forward adds one
    tf32: bool = False  # float32 may be multiplied as TF32


def numbers(dtype: torch.dtype, tf32: bool) -> str:
    """The name of a type of numbers that are multiplied: 'float16', …, 'tf32'."""
    return "tf32" if tf32 else str(dtype).removeprefix("torch.")


def contiguous_operands(
    problem: ConvProblem, direction: Direction, memory_format: torch.memory_format = torch.contiguous_format
) -> Operands:
    """The operands of a call whose tensors all lie in `memory_format` (and are not TF32): to plan without tensors."""
    first, second = (
        torch.empty(shape, device="meta", memory_format=memory_format).stride()
        for shape in problem.operand_shapes(direction)
    )
    return Operands((first, second))


class Backend:
    """Base class of all backends."""

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine at all, or None. Called when the backend is first needed."""
        return None

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        """Why this backend cannot do `direction` of `problem` on `device`, or None if it can. Pure and quick."""
        return None

    def refuses_gpu(self, gpu: Gpu) -> str | None:
        """Why this backend has no kernels to plan for on `gpu`, which need not be here, or None."""
        return "it has no kernels for the planner to choose from"

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

    def tiles(self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands) -> tuple[Tile, ...]:
        """The tiles that this backend could use on `gpu`, for the planner to choose from. Empty: nothing to choose."""
        return ()

    def predict(self, problem: ConvProblem, direction: Direction, tile: Tile, gpu: Gpu, tf32: bool) -> Prediction:
        """How long `direction` takes on `gpu` with one of `tiles`, and why: the planner takes the quickest.

        It has to compare tiles well; it need not tell the time. By default the roofline of an implicit GEMM.
        """
        return implicit_gemm(problem, direction, tile, gpu, tf32)

    def refused_families(
        self, problem: ConvProblem, direction: Direction, gpu: Gpu, operands: Operands
    ) -> dict[str, str]:
        """Why families of its kernels have no tiles for this problem, by their names; a backend without families has
        nothing to say."""
        return {}

    def bind(
        self,
        problem: ConvProblem,
        direction: Direction,
        device: torch.device,
        activation: Activation,
        operands: Operands | None = None,
        tile: Tile | None = None,
    ) -> Callable[..., Any]:
        """The function with all but tensors fixed: what the planner keeps, and calls for every call of this problem.

        A backend with work to do once for a problem (preparing a launch) does it here. `operands` holds for every call,
        and `tile` is one of `tiles`; a backend without `tiles` is given neither and need not take them.
        """
        if direction == "forward":
            return partial(self.forward, problem, activation=activation)
        return partial(getattr(self, direction), problem)

    def cannot_build(self, error: Exception) -> bool:
        """Whether `error`, which binding or the first call of what is bound has raised, says no more than that this
        kernel cannot be compiled or launched here: with another tile, or by another backend, the call may do."""
        return False

    def bind_act_backward(self, elementwise: Elementwise, device: torch.device) -> Run:
        """The function that computes an activation's backward pass: grad_output, saved → gz, gb (None without bias).

        It is no convolution, and a backend need not have a kernel for it: PyTorch's own functions do it otherwise.
        """
        return by_pytorch(elementwise)
