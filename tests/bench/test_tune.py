"""`gpuconv tune`: candidates are checked, timed and recorded, problem by problem."""

import json
from pathlib import Path

import pytest
import torch

import gpuconv
from gpuconv import backends
from gpuconv.backends.numpy import NumpyBackend
from gpuconv.bench import suites, tune
from gpuconv.cli import main
from gpuconv.planning import plan, tuned
from gpuconv.problem import DIRECTIONS
from gpuconv.settings import Settings

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("cache")


def asked(name: str = "resnet18.conv5_3x3", batch: int = 1) -> plan.Asked:
    problem = suites.layer(name, batch, torch.float32)
    return plan.Asked(problem, "forward", CPU, plan.contiguous_operands(problem, "forward"))


class Wrong(NumpyBackend):
    """Quick, and wrong."""

    name = "wrong"

    def forward(self, problem, input, weight, bias, residual, activation):
        return torch.zeros(problem.output_shape, dtype=input.dtype)


class Broken(NumpyBackend):
    name = "broken"

    def forward(self, problem, input, weight, bias, residual, activation):
        raise RuntimeError("out of memory")


def test_the_fastest_of_the_right_ones_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for ours in (Wrong(), Broken()):
        monkeypatch.setitem(backends._loaded, ours.name, ours)
    found = tune.tune(asked(), ("wrong", "broken", "numpy", "aten"), budget=0.01)
    assert set(found.winners) == {"numpy", "aten"} and found.best in ("numpy", "aten")
    assert "wrong None: error" in found.wrong[0] and found.wrong[1] == "broken None: RuntimeError: out of memory"
    assert [(t.backend, t.predicted) for t in found.timed] == [("numpy", None), ("aten", None)]
    assert {t.backend: t.seconds for t in found.timed} == {name: m.seconds for name, m in found.winners.items()}
    table = tuned.look_up(asked().problem, "forward", "cpu", asked().operands)
    assert table == found.winners


def test_a_model_s_problems_are_recorded_and_then_taken(cache: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).float()
    gpuconv.convert(net)
    x = torch.randn(2, 3, 8, 8)
    with plan.listening() as heard, gpuconv.use_backend("fastest"):
        gpuconv.warmup(net, x)
    problems = tune.distinct(heard)
    assert sorted(a.direction for a in problems) == ["forward"] * 2 + ["grad_input"] + ["grad_weight"] * 2
    done = list(tune.tune_each(problems, ("numpy", "aten"), limit=60, budget=0.01))
    assert len(done) == 5 and len(json.loads(tuned.path().read_text())["problems"]) == 5
    with plan.listening() as heard, gpuconv.use_backend("fastest"):
        net(x)
    for one in heard:
        settings = Settings(one.problem.stride, one.problem.padding, one.problem.dilation, 1, backend="fastest")
        best = next(d.best for d in done if d.asked.problem == one.problem and d.asked.direction == one.direction)
        assert plan.choose(*one[:3], settings, one.operands).backend.name == best


def test_time_is_limited_and_what_was_done_is_kept() -> None:
    problems = [asked(), asked(batch=2)]
    assert len(list(tune.tune_each(problems, ("aten",), limit=-1, budget=0.01))) == 0
    first = tune.tune_each(problems, ("aten",), limit=60, budget=0.01)
    next(first)
    first.close()  # as Ctrl-C does
    assert tuned.look_up(problems[0].problem, "forward", "cpu", problems[0].operands)
    assert not tuned.look_up(problems[1].problem, "forward", "cpu", problems[1].operands)


def test_the_command_says_what_it_found_and_where(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    command = ["tune", "--device", "cpu", "--layer", "resnet18.conv5_3x3", "--batch", "1", "--layout", "contiguous"]
    command += ["--backend", "aten", "--backend", "numpy"]
    assert main.run([*command, "--direction", "forward"]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 problems tuned on cpu" in text and f"recorded in {cache / 'tuned.json'}" in text
    assert main.run([*command, "--json"]) == 0
    assert [one["direction"] for one in json.loads(capsys.readouterr().out)] == list(DIRECTIONS)


def a_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3))


def with_small_maps() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 9), torch.nn.BatchNorm2d(4))


def a_failure() -> torch.nn.Module:
    raise ZeroDivisionError("its weights\nare gone")


OF_A_MODEL = ("--model", "test_tune:with_small_maps", "--input")


def test_a_model_is_tuned_or_only_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    command = ["tune", "--device", "cpu", "--model", "test_tune:a_network", "--input", "2x3x9x9", "--backend", "aten"]
    assert main.run([*command, "--compile-only"]) == 0
    assert "5 problems are planned" in capsys.readouterr().out and not tuned.path().exists()
    assert main.run(command) == 0
    assert "5 of 5 problems tuned on cpu; fastest: aten 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "resnet18.conv1", "--compile-only"], "--compile-only needs a --model"),
        ([], "either --layer or --model"),
        (["--layer", "resnet18.conv9"], "no layer is called 'resnet18.conv9'"),
        (["--model", "torch.nn:NoSuch"], "cannot make model 'torch.nn:NoSuch'"),
        (["--model", "builtins:dict"], "makes a dict, not a torch.nn.Module"),
        (["--layer", "resnet18.conv1", "--backend", "abacus"], "'abacus'"),
        (
            [*OF_A_MODEL, "1x3x9x9"],
            "of 1x3x9x9: ValueError: Expected more than 1 value per channel when training",
        ),
        ([*OF_A_MODEL, "3x9x9"], "cannot take a training step on an input of 3x9x9: "),
        ([*OF_A_MODEL, "2x5x9x9"], "to have 3 channels, but got 5 channels"),
        ([*OF_A_MODEL, "2x3x-9x9"], "with an input of '2x3x-9x9': RuntimeError: "),
        (["--model", "test_tune:a_failure"], "cannot make model 'test_tune:a_failure' with an input of"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert main.run(["tune", "--device", "cpu", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
