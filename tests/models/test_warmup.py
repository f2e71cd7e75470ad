"""`gpuconv.warmup` plans everything, leaves the model as it was, and lets processes take turns."""

import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv.planning import plan

pytestmark = pytest.mark.usefixtures("cache")


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        gpuconv.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), gpuconv.nn.Conv2d(4, 5, 3, stride=2)
    )


def test_nothing_is_left_to_plan_and_nothing_has_changed() -> None:
    net, x = network(), torch.randn(2, 3, 9, 9)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net[0].weight.grad = gradient = torch.ones_like(net[0].weight)
    state = torch.get_rng_state()
    with gpuconv.use_backend("numpy"):
        gpuconv.warmup(net, x)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        assert net[0].weight.grad is gradient and torch.equal(gradient, torch.ones_like(gradient))
        assert net[3].weight.grad is None
        planned = dict(plan._plans)
        net(x).square().sum().backward()
        assert plan._plans == planned


def test_without_a_backward_pass_and_with_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.randn(2, 3, 9, 9)
    asked = lambda **how: sorted({a.direction for a in _heard(net, x, **how)})  # noqa: E731
    assert asked(backward=False) == ["forward"]
    assert asked(loss=lambda y: y[0, 0, 0, 0]) == ["forward", "grad_input", "grad_weight"]


def _heard(net: torch.nn.Module, x: torch.Tensor, **how: object) -> list[plan.Asked]:
    with plan.listening() as heard, gpuconv.use_backend("numpy"):
        gpuconv.warmup(net, (x,), **how)
    return heard


def test_what_cannot_be_warmed_up_is_said() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got function"):
        gpuconv.warmup(lambda x: x, torch.randn(1))
    with pytest.raises(ValueError, match="backward=False, or a loss"):
        gpuconv.warmup(torch.nn.ReLU(), torch.randn(1))
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        gpuconv.warmup(network(), torch.randn(2, 4, 9, 9))


def test_processes_take_turns(cache: Path, tmp_path: Path, clean_environment: dict[str, str]) -> None:
    code = (
        "import sys, time, torch, gpuconv\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        with open(sys.argv[1], 'a') as log: log.write('in\\n')\n"
        "        time.sleep(0.3)\n"
        "        with open(sys.argv[1], 'a') as log: log.write('out\\n')\n"
        "        return x\n"
        "gpuconv.warmup(Slow(), torch.zeros(1), backward=False)\n"
    )
    command, environment = (
        [sys.executable, "-c", code, tmp_path / "log"],
        clean_environment | {"GPUCONV_CACHE": str(cache)},
    )
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 3


class Careless(torch.nn.Module):
    """Changes in a forward pass all that a module may."""

    def __init__(self) -> None:
        super().__init__()
        self.first = gpuconv.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("absent", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        self.replaced = self.replaced + 1
        self.absent = torch.ones(1)
        self.register_buffer("new", torch.ones(1))
        x = x + random.random() + np.random.rand() + torch.rand(1)
        y = self.norm(self.first(x))
        self.norm.eval()
        return y


@pytest.mark.parametrize("fails", [False, True], ids=["", "after an error"])
def test_a_careless_model_leaves_no_trace(fails: bool) -> None:
    net, x = Careless(), torch.randn(2, 3, 9, 9)
    centre = torch.nn.Parameter(torch.zeros(4, 7, 7))
    names, values = list(dict(net.named_buffers())), {k: v.clone() for k, v in net.state_dict().items()}
    states, before, seen = (random.getstate(), torch.get_rng_state()), x.clone(), np.random.get_state()[1].copy()

    def loss(y: torch.Tensor) -> torch.Tensor:
        if fails:
            raise ZeroDivisionError
        return (y - centre).square().mean()

    with gpuconv.use_backend("numpy"), pytest.raises(ZeroDivisionError) if fails else nullcontext():
        gpuconv.warmup(net, x, loss=loss)
    assert torch.equal(x, before) and centre.grad is None
    assert list(dict(net.named_buffers())) == names and net.absent is None
    assert all(torch.equal(t, values[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and all(m.training for m in net.modules())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == seen).all()


def test_gradients_of_the_input_are_left_alone() -> None:
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    gpuconv.warmup(network(), x)
    assert x.grad is None
    x.grad = gradient = torch.ones_like(x)
    gpuconv.warmup(network(), x)
    assert x.grad is gradient and torch.equal(gradient, torch.ones_like(x))


def test_a_loss_plans_what_the_default_does_not() -> None:
    """The gradient of a channels-last output lies as the loss makes it."""
    net = gpuconv.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(1).square().sum()

    def left_to_plan(**how: object) -> int:
        plan.forget()
        with gpuconv.use_backend("numpy"):
            gpuconv.warmup(net, x, **how)
            planned = set(plan._plans)
            loss(net(x)).backward()
        return len(set(plan._plans) - planned)

    assert left_to_plan() == 1  # as the docstring says
    assert left_to_plan(loss=loss) == 0


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("cross entropy", TypeError, "loss must be a function of the model's output, but got str"),
        (lambda y: y, ValueError, r"a tensor of one number that has a gradient, but gave one of shape \(2, 5, 3, 3\)"),
        (lambda y: y.detach().sum(), ValueError, r"one number that has a gradient, but gave one of shape \(\)"),
        (lambda y: 1.0, ValueError, "but gave float"),
    ],
)
def test_a_loss_that_is_none_is_said_to_be(loss: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gpuconv.warmup(network(), torch.randn(2, 3, 9, 9), loss=loss)
