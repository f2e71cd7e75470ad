"""Backends with one typical mistake each, for `gpuconv check` and the gate of `gpuconv bench` to find."""

import dataclasses
import os
import time

import torch

from gpuconv import reference
from gpuconv.backends.base import Tile
from gpuconv.backends.numpy import NumpyBackend
from gpuconv.problem import ConvProblem, Direction
from gpuconv.reference import as_numpy


class Planted(NumpyBackend):
    """NumPy's arithmetic on tensors that a subclass has spoilt, or with a result that it spoils."""

    name = "right"

    def problem(self, problem: ConvProblem) -> ConvProblem:
        return problem

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def result(self, result: torch.Tensor) -> torch.Tensor:
        return result

    def forward(self, problem, input, weight, bias, residual, activation):
        y = super().forward(self.problem(problem), input, self.weight(weight), bias, residual, activation)
        return self.result(y)

    def grad_input(self, problem, grad_output, weight):
        return self.result(super().grad_input(self.problem(problem), grad_output, self.weight(weight)))

    def grad_weight(self, problem, grad_output, input, with_bias):
        gw, gb = super().grad_weight(self.problem(problem), grad_output, input, with_bias)
        return self.result(self.weight(gw)), gb


class DroppedTap(Planted):
    """The last tap of every filter takes no part."""

    name = "dropped-tap"

    def weight(self, weight):
        weight = weight.clone()
        weight[(..., *(-1,) * (weight.dim() - 2))] = 0
        return weight


class WrongPad(Planted):
    """Padding sits on the wrong side: one row more at the top is one less at the bottom."""

    name = "wrong-pad"

    def problem(self, problem):
        moved = tuple((low + 1, high - 1) if high else (low, high) for low, high in problem.padding)
        return dataclasses.replace(problem, padding=moved)


class UnmaskedStore(Planted):
    """Results are stored in blocks of 32 elements, the last of them whole."""

    name = "unmasked-store"

    def result(self, result):
        n = -(-result.numel() // 32) * 32
        result.as_strided((n,), (1,), result.storage_offset())[result.numel() :] = 0
        return result


class UnmaskedLoad(Planted):
    """The weight is read in blocks of 32 elements, the last of them whole; what is beyond is multiplied by zero."""

    name = "unmasked-load"

    def weight(self, weight):
        if not weight.is_contiguous() or weight.storage_offset() == 0:  # no neighbour to read
            return weight
        n = -(-weight.numel() // 32) * 32
        beyond = weight.as_strided((n,), (1,), weight.storage_offset())[weight.numel() :]
        return weight + 0 * beyond.sum()


class Float16Sums(Planted):
    """Taps are added up in float16."""

    name = "float16-sums"

    def refuses(self, problem: ConvProblem, direction: Direction, device: torch.device) -> str | None:
        return None if problem.dtype is torch.float16 else "it does float16"

    def _by_tap(self, run, weight):
        total = 0
        for tap in range(weight[0, 0].numel()):
            one = torch.zeros_like(weight)
            one.flatten(2)[..., tap] = weight.flatten(2)[..., tap]
            total = total + run(one)
        return total

    def forward(self, problem, input, weight, bias, residual, activation):
        y = self._by_tap(lambda w: super(Planted, self).forward(problem, input, w, None, None, activation), weight)
        return y if bias is None else y + bias.view(-1, *(1,) * problem.ndim)

    def grad_input(self, problem, grad_output, weight):
        return self._by_tap(lambda w: super(Planted, self).grad_input(problem, grad_output, w), weight)

    def grad_weight(self, problem, grad_output, input, with_bias):
        one = dataclasses.replace(problem, batch=1)
        images = zip(grad_output.split(1), input.split(1), strict=True)
        parts = [NumpyBackend().grad_weight(one, gy, x, False)[0] for gy, x in images]
        gw, gb = super().grad_weight(problem, grad_output, input, with_bias)
        return (sum(parts[1:], parts[0]) if parts else gw), gb


class RacySum(Planted):
    """The gradients of the images are added up in whatever order they come, as by atomics."""

    name = "racy-sum"

    def grad_weight(self, problem, grad_output, input, with_bias):
        gw, gb = super().grad_weight(problem, grad_output, input, with_bias)
        one = dataclasses.replace(problem, batch=1)
        total = torch.zeros(gw.shape, dtype=torch.promote_types(gw.dtype, torch.float32))
        for i in torch.randperm(problem.batch):
            pair = (grad_output[i : i + 1].to(total.dtype), input[i : i + 1].to(total.dtype))
            total += NumpyBackend().grad_weight(dataclasses.replace(one, dtype=total.dtype), *pair, False)[0]
        return gw.copy_(total), gb


class Families(NumpyBackend):
    """Two families of kernels, right and wrong, as a backend with tiles has them. The wrong one is predicted to be
    quicker, and drops the last tap of a float32 forward; act_backward forgets a factor."""

    name = "families"
    factor = 0.5

    def tiles(self, problem, direction, gpu, operands):
        return (Tile(16, 16, 16, 4, 2, kernel="right"), Tile(64, 64, 64, 4, 2, kernel="wrong"))

    def bind(self, problem, direction, device, activation, operands=None, tile=None):
        wrong = tile.kernel == "wrong" and direction == "forward" and problem.dtype is torch.float32
        return (DroppedTap if wrong else NumpyBackend)().bind(problem, direction, device, activation)

    def bind_act_backward(self, elementwise, device):
        def run(grad_output, saved):
            exact = reference.act_backward(elementwise.activation, as_numpy(grad_output), as_numpy(saved))
            gz, gb = (torch.from_numpy(one.value).to(saved.dtype) for one in exact)
            return torch.empty_like(saved).copy_(self.factor * gz), gb

        return run


class Deadly(NumpyBackend):
    """Ends the process that calls its forward, and never comes back from its float64 grad_input."""

    name = "deadly"

    def forward(self, problem, input, weight, bias, residual, activation):
        os.abort()

    def grad_input(self, problem, grad_output, weight):
        while problem.dtype is torch.float64:
            time.sleep(1)
        return super().grad_input(problem, grad_output, weight)


class Noted(NumpyBackend):
    """Notes in the file $NOTED which process calls its forward."""

    name = "noted"

    def forward(self, problem, input, weight, bias, residual, activation):
        with open(os.environ["NOTED"], "a") as file:
            print(os.getpid(), file=file)
        return super().forward(problem, input, weight, bias, residual, activation)
