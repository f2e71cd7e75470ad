"""What `gpuconv bench` times: a layer, a direction, a kind of numbers, a layout and who computes it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from gpuconv import backends, ops
from gpuconv.bench import suites
from gpuconv.problem import DIRECTIONS, ConvProblem, Direction
from gpuconv.settings import Settings

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NUMBERS = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32,
    "float64": torch.float64,
}  # fmt: skip
BASELINES = ("aten", "inductor")  # PyTorch's own: timed even where they miss the bound
FUSED = "fused"  # beside the three directions: forward with a bias and a ReLU, y = relu(x ⋆ w + bias)
TIMED = (*DIRECTIONS, FUSED)
CPU_BATCH = 2  # the largest batch on a CPU, unless one is asked for

Call = Callable[[], torch.Tensor]


class Case(NamedTuple):
    """A layer and what is computed of it; `tensors` and `call` say the rest."""

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

    def bias(self, device: torch.device) -> torch.Tensor | None:
        """The bias of a fused case."""
        if self.direction != FUSED:
            return None
        return torch.linspace(-1, 1, suites.layer(self.layer).out_channels, device=device, dtype=NUMBERS[self.numbers])


def cases(
    layers: Sequence[str], directions: Sequence[str], numbers: Sequence[str], batch: int | None, device: str
) -> Iterator[Case]:
    """Every combination; the batch is the layer's own where none is given (`CPU_BATCH` at most on a CPU)."""
    for kind in numbers:
        for name in layers:
            own = suites.layer(name).batch
            n = batch or (min(own, CPU_BATCH) if device == "cpu" else own)
            for direction in directions:
                yield Case(name, direction, kind, n)


def layers_of(names: Sequence[str], layers: Sequence[str]) -> list[str]:
    """`suite.layer` of all layers of the suites called so, and of the layers. Raises ValueError for unknown names."""
    found = [f"{name}.{layer}" for name in names for layer in suites.suite(name).layers]
    for name in layers:
        suites.find(name)
    return list(dict.fromkeys((*found, *layers)))


def tensors(case: Case, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The two random operands of a case, contiguous; the same values every time."""
    p = case.problem("contiguous")
    generator = torch.Generator(device).manual_seed(1)
    a, b = (
        torch.randn(shape, generator=generator, device=device, dtype=p.dtype)
        for shape in p.operand_shapes(case.computes)
    )
    return a, b


def call(case: Case, backend: str, layout: str, a: torch.Tensor, b: torch.Tensor) -> Call:
    """What computes a case from its operands, which lie in `layout`, as a user of PyTorch or of the ops would."""
    p, bias = case.problem(layout), case.bias(a.device)
    if backend in BASELINES:
        run = pytorch(p, case.computes, a, bias)
        if backend == "inductor":
            run = torch.compile(run, mode="max-autotune-no-cudagraphs", dynamic=False)
        return functools.partial(run, a, b)
    activation = "none" if bias is None else "relu"
    key = Settings(p.stride, p.padding, p.dilation, p.groups, activation, backend).encode()
    if case.computes == "forward":
        return lambda: ops.forward(a, b, bias, None, key)
    if case.direction == "grad_input":
        return lambda: ops.grad_input(a, b, p.input_shape, key)
    return lambda: ops.grad_weight(a, b, p.weight_shape, False, key)[0]


def pytorch(
    p: ConvProblem, direction: Direction, like: torch.Tensor, bias: torch.Tensor | None = None
) -> Callable[..., torch.Tensor]:
    """PyTorch's own `direction` of a problem, from two operands; its backward computes the one gradient alone.

    With a bias: a convolution with it, and then a ReLU in place, as networks have them.
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


def refusal(case: Case, backend: str, layout: str, device: torch.device) -> str | None:
    """Why `backend` does not do a case, or None."""
    if backend in BASELINES:
        return None
    found = backends.get(backend)
    return found.unavailable() or found.refuses(case.problem(layout), case.computes, device)
