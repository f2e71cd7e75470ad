"""Real networks by name, and one step of them in a form that can be compared."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch.overrides import TorchFunctionMode


def _torchvision(name: str, **settings: Any) -> torch.nn.Module:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    return models.get_model(name, weights=None, **settings)


def _timm(name: str) -> torch.nn.Module:
    return pytest.importorskip("timm", reason="timm is not installed").create_model(name)


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet18": lambda: _torchvision("resnet18"),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "convnext_tiny": lambda: _torchvision("convnext_tiny"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "densenet121": lambda: _torchvision("densenet121"),
    "deeplabv3_resnet50": lambda: _torchvision("deeplabv3_resnet50", weights_backbone=None),
    "resnext50_32x4d": lambda: _timm("resnext50_32x4d"),
    "convmixer_768_32": lambda: _timm("convmixer_768_32"),  # 7 × 7 depthwise on 32 layers
    "tf_efficientnet_b0": lambda: _timm("tf_efficientnet_b0"),  # Conv2dSame
    "resnetv2_50x1_bit": lambda: _timm("resnetv2_50x1_bit"),  # StdConv2d
    "test_resnet": lambda: _timm("test_resnet"),  # the smallest of timm's
    "test_nfnet": lambda: _timm("test_nfnet"),  # ScaledStdConv2d
}


def make(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model called `name` with weights that are the same every time."""
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def images(size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


class Step(NamedTuple):
    """Logits, and the gradients of all parameters one after the other, in float64."""

    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]

    def all_gradients(self) -> torch.Tensor:
        return torch.cat([g.flatten() for g in self.gradients.values()])


def step(model: torch.nn.Module, x: torch.Tensor) -> Step:
    torch.manual_seed(2)  # of dropout and stochastic depth
    model.zero_grad()
    y = model(x)
    y = y["out"] if isinstance(y, dict) else y
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return Step(y.detach().double(), gradients)


def error(got: torch.Tensor, exact: torch.Tensor, least: float = 0.0) -> float:
    """‖got − exact‖ / ‖exact‖, the latter no less than `least`."""
    return float((got - exact).norm() / max(float(exact.norm()), least, math.ulp(0)))


class SameKinks(TorchFunctionMode):
    """Every ReLU and max-pooling of later runs decides as in the first one.

    A ReLU whose argument rounds to the other side of zero changes a gradient by a thousand times its rounding error, in
    PyTorch's float32 as in ours. With the decisions of the float64 run, what is left is the error of the arithmetic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[torch.Tensor] = []
        self.next: int | None = None  # recording

    @contextlib.contextmanager
    def run(self) -> Any:
        """One run of the model: the first records, the others follow."""
        with self:
            yield
        assert self.next in (None, len(self.decisions)), "another network than that of the first run"
        self.next = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        functions = torch.nn.functional
        if func in (torch.relu, torch.relu_, functions.relu):
            return args[0] * self._decision(lambda: args[0] > 0)
        if func in (functions.relu6, functions.hardtanh):
            x, top = args[0], 6.0
            low, high = self._decision(lambda: torch.stack([x > 0, x < top]))
            return torch.where(high, x * low, top)
        if func is functions.max_pool2d:
            x = args[0]
            kwargs = {k: v for k, v in kwargs.items() if k != "return_indices"}
            at = self._decision(lambda: functions.max_pool2d(*args, **kwargs, return_indices=True)[1])
            return x.flatten(2).gather(2, at.flatten(2)).reshape(at.shape)
        return func(*args, **kwargs)

    def _decision(self, decide: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.next is None:
            self.decisions.append(decide())
            return self.decisions[-1]
        self.next += 1
        return self.decisions[self.next - 1]
