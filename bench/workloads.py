"""The workloads that `gpuconv bench` times: layers of the suites, each in a direction and a number type."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from gpuconv import backends, ops
from gpuconv.bench import suites
from gpuconv.checking.precision import NUMBERS
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.settings import Settings

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BASELINES = ("aten", "inductor")  # PyTorch's own convolutions: timed even where they miss the bound
FUSED = "fused"  # beside the three directions: forward with a bias and a ReLU, y = relu(x ⋆ w + bias)
TIMED = (*DIRECTIONS, FUSED)
CPU_BATCH = 2  # the largest batch on a CPU, unless one is asked for

Call = Callable[[], torch.Tensor]


class Workload(NamedTuple):
    """A layer, a direction, a number type and a batch. Layout and backend are chosen when it is computed."""

    layer: str  # suite.layer
    direction: str  # of TIMED
    numbers: str
    batch: int

    def problem(self, layout: str) -> ConvProblem:
        return suites.layer(self.layer, self.batch, NUMBERS[self.numbers], LAYOUTS[layout])

    @property
    def computes(self) -> Direction:
        """Which of the three functions it is."""
        return "forward" if self.direction == FUSED else self.direction  # type: ignore[return-value]  # no other is left

    def operands(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Two random operands, contiguous, with the same values every time."""
        p = self.problem("contiguous")
        generator = torch.Generator(device).manual_seed(1)
        a, b = (
            torch.randn(shape, generator=generator, device=device, dtype=p.dtype)
            for shape in p.operand_shapes(self.computes)
        )
        return a, b

    def bias(self, device: torch.device) -> torch.Tensor | None:
        """The bias of a fused workload."""
        if self.direction != FUSED:
            return None
        return torch.linspace(-1, 1, suites.layer(self.layer).out_channels, device=device, dtype=NUMBERS[self.numbers])

    def refusal(self, backend: str, layout: str, device: torch.device) -> str | None:
        """Why `backend` does not compute this, or None."""
        if backend in BASELINES:
            return None
        found = backends.get(backend)
        return found.unavailable() or found.refuses(self.problem(layout), self.computes, device)

    def bound_call(self, backend: str, layout: str, a: torch.Tensor, b: torch.Tensor) -> Call:
        """A function that computes this, as a user of PyTorch or of the ops would; a and b lie in `layout`."""
        p, bias = self.problem(layout), self.bias(a.device)
        if backend in BASELINES:
            run = pytorch(p, self.computes, a, bias)
            if backend == "inductor":
                run = torch.compile(run, mode="max-autotune-no-cudagraphs", dynamic=False)
            return functools.partial(run, a, b)
        activation = "none" if bias is None else "relu"
        key = Settings(p.stride, p.padding, p.dilation, p.groups, activation, backend).encode()
        if self.computes == "forward":
            return lambda: ops.forward(a, b, bias, None, key)
        if self.direction == "grad_input":
            return lambda: ops.grad_input(a, b, p.input_shape, key)
        return lambda: ops.grad_weight(a, b, p.weight_shape, False, key)[0]


def combinations(
    layers: Sequence[str], directions: Sequence[str], numbers: Sequence[str], batch: int | None, device: str
) -> Iterator[Workload]:
    """The workloads of every combination; without `batch` that of each layer, on a CPU `CPU_BATCH` at most."""
    for kind in numbers:
        for name in layers:
            own = suites.layer(name).batch
            n = batch or (min(own, CPU_BATCH) if device == "cpu" else own)
            for direction in directions:
                yield Workload(name, direction, kind, n)


def layers_of(names: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The names, `suite.layer`, of these suites' layers and of these layers. Raises ValueError for unknown ones."""
    found = [f"{name}.{layer}" for name in names for layer in suites.suite(name).layers]
    for name in layers:
        suites.find(name)
    return list(dict.fromkeys((*found, *layers)))


def pytorch(
    p: ConvProblem, direction: Direction, like: torch.Tensor, bias: torch.Tensor | None = None
) -> Callable[..., torch.Tensor]:
    """PyTorch's own function for one direction of a problem, of two operands. Computes no other gradient.

    With a bias: the convolution adds it, and a ReLU in place follows, as in networks.
    """
    settings = (p.stride, [low for low, _ in p.padding], p.dilation, False, [0] * p.ndim, p.groups)
    if direction == "forward":
        if bias is not None:
            return lambda x, w: torch.ops.aten.convolution(x, w, bias, *settings).relu_()
        return lambda x, w: torch.ops.aten.convolution(x, w, None, *settings)
    backward: Any = torch.ops.aten.convolution_backward
    if direction == "grad_input":  # only the shape and layout of the other tensor matter
        x = torch.empty(p.input_shape, dtype=like.dtype, device=like.device, memory_format=p.memory_format)
        return lambda gy, w: backward(gy, x, w, None, *settings, [True, False, False])[0]
    w = torch.empty(p.weight_shape, dtype=like.dtype, device=like.device, memory_format=p.memory_format)
    return lambda gy, x: backward(gy, x, w, None, *settings, [False, True, False])[1]
