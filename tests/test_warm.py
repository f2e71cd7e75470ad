"""`gpuconv.warmup` plans everything, leaves the model as it was, and lets processes take turns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpuconv
from gpuconv import plan

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
