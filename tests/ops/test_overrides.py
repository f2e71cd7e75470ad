"""Tensor-likes with a `__torch_function__` of their own override our functions as they do PyTorch's."""

from typing import Any

import pytest
import torch
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils.flop_counter import FlopCounterMode

import gpuconv

X, W, B = torch.randn(2, 4, 5, 5), torch.randn(4, 2, 3, 3), torch.randn(4)


class Duck:
    """No tensor, but knows what PyTorch's functions do with it, and which it was asked for."""

    asked: list[str] = []  # noqa: RUF012  # emptied by the tests

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls is not Duck:
            return NotImplemented
        Duck.asked.append(func.__name__)
        return Duck(func(*(a.tensor if isinstance(a, Duck) else a for a in args), **(kwargs or {})))


class Ignorant(Duck):
    pass


class Labelled(torch.Tensor):
    """A tensor as those of fastai and of torchvision's transforms: its handler wraps that of Tensor."""

    label = "none"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        result.label = next(a.label for a in args if isinstance(a, Labelled))
        return result


class Plain(torch.Tensor):
    pass


CALLS = {
    "conv2d": lambda x, f=gpuconv: f.conv2d(x, W, B, groups=2, padding=1),
    "conv_transpose2d": lambda x, f=gpuconv: f.conv_transpose2d(x, W, B, groups=2, stride=2),
}


@pytest.fixture(autouse=True)
def empty() -> None:
    Duck.asked.clear()


def computed_by_us(call: Any) -> tuple[Any, bool]:
    with gpuconv.use_backend("numpy"), FlopCounterMode(display=False) as counter:
        result = call()
    return result, next(str(op) for op in counter.get_flop_counts()["Global"]).startswith("gpuconv")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", ["patch", "call"])
def test_a_tensor_like_is_asked_and_what_it_convolves_is_ours(name: str, way: str) -> None:
    call = CALLS[name]
    if way == "call":
        y, ours = computed_by_us(lambda: call(Duck(X)))
    else:
        with gpuconv.patch():
            y, ours = computed_by_us(lambda: call(Duck(X), torch.nn.functional))
    assert type(y) is Duck and ours and Duck.asked == [name]
    torch.testing.assert_close(y.tensor, call(X, torch), rtol=1e-4, atol=1e-4)
    assert type(gpuconv.conv2d(Duck(X), W, groups=2)) is Duck  # on backend auto, too
    with pytest.raises(TypeError, match=f"no implementation found .*{name}.* Ignorant"):
        call(Ignorant(X))
    with pytest.raises(TypeError, match=f"{name}.*NotImplemented"):
        call(Ignorant(X), torch)


def test_an_epilogue_asks_again() -> None:
    y = gpuconv.functional.conv2d_act(Duck(X), W, groups=2, activation="silu", backend="numpy")
    assert type(y) is Duck and Duck.asked == ["conv2d", "silu"]


@pytest.mark.parametrize("name", CALLS)
def test_subclasses_of_tensor_stay_what_they_are(name: str) -> None:
    expected = CALLS[name](X, torch)
    labelled = X.as_subclass(Labelled)
    labelled.label = "cat"
    for given in (labelled, X.as_subclass(Plain)):
        y, ours = computed_by_us(lambda: CALLS[name](given))  # noqa: B023  # called now
        assert type(y) is type(given) and ours
        torch.testing.assert_close(y.as_subclass(torch.Tensor), expected, rtol=1e-4, atol=1e-4)
        assert getattr(y, "label", "cat") == "cat"


@pytest.mark.parametrize("way", ["convert", "patch"])
def test_gradients_of_each_sample_are_pytorchs(way: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(150, 2))
    call_for_per_sample_grads(model)(X).square().sum().backward()
    expected = [p.grad_sample for p in model.parameters()]
    for p in model.parameters():
        p.grad_sample = None
    if way == "convert":
        gpuconv.convert(model)
        y, ours = computed_by_us(lambda: call_for_per_sample_grads(model)(X))
    else:
        with gpuconv.patch():
            y, ours = computed_by_us(lambda: call_for_per_sample_grads(model)(X))
    y.square().sum().backward()
    assert ours
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad_sample, e, rtol=1e-4, atol=1e-4)
