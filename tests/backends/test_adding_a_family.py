"""A new family takes one file and one line: from then on it is planned, listed, refused, judged and run as all are.

The file is tests/support/direct_family.py, the line is in `registered`.
"""

from collections.abc import Iterator

import pytest
import torch
from lanes import INTERPRETING, Lane

import gpuconv
from gpuconv import reference
from gpuconv.backends.base import contiguous_operands
from gpuconv.checking import self_test
from gpuconv.checking.problems import tensors
from gpuconv.cli import main
from gpuconv.emulator import device as emulator
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan, ranking
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from direct_family import FAMILY

from gpuconv.backends.triton.backend import FAMILIES

CPU, H100 = torch.device("cpu"), KNOWN["H100"]
TINY = ConvProblem.of((2, 2, 7, 9), (5, 2, 3, 2), padding=1, stride=(1, 2))
LARGE = ConvProblem.of((32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=torch.float16)

pytestmark = pytest.mark.skipif(INTERPRETING, reason="what is interpreted is not compiled")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, FAMILY.name, FAMILY)  # the line
    yield
    plan.forget()


@pytest.fixture
def h100() -> Iterator[emulator.VirtualGpu]:
    if emulator.why_not() is not None:
        pytest.skip(f"no GPU can be emulated: {emulator.why_not()}")
    with Lane("triton", "cpu", "h100").emulated() as gpu:
        yield gpu


def test_the_planner_takes_it_where_it_predicts_it_to_be_quickest(h100: emulator.VirtualGpu) -> None:
    for problem, taken in ((TINY, True), (LARGE, False)):
        settings = Settings(problem.stride, problem.padding, problem.dilation, 1, backend="triton")
        chosen = plan.choose(problem, "forward", CPU, settings)
        assert chosen.tile is not None and (chosen.tile.kernel == FAMILY.name) is taken


def test_plan_lists_it_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    found, refused = ranking.candidates(LARGE, "forward", H100, contiguous_operands(LARGE, "forward"))
    (ours,) = [one for one in found if one.tile.kernel == FAMILY.name]
    assert ours.backend == "triton" and ours.prediction.seconds > found[0].prediction.seconds
    assert "triton direct" not in refused
    command = ["plan", "--layer", "resnet50.conv2_3x3", "--layout", "contiguous", "--gpu", "h100"]
    assert main.run([*command, "--direction", "forward"]) == 0
    assert "triton  direct " in capsys.readouterr().out


def test_where_it_refuses_plan_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    for problem, direction, reason in (
        (LARGE, "grad_input", "a forward pass and nothing else"),
        (ConvProblem.of((1, 4, 8, 8), (4, 2, 3, 3), groups=2), "forward", "two axes and one group"),
    ):
        found, refused = ranking.candidates(problem, direction, H100, contiguous_operands(problem, direction))
        assert reason in refused["triton direct"]
        assert FAMILY.name not in {one.tile.kernel for one in found}
    assert main.run(["plan", "--layer", "resnet50.conv2_3x3", "--gpu", "h100", "--direction", "grad_weight"]) == 0
    assert "the toy has a forward pass and nothing else" in capsys.readouterr().out


def test_a_call_runs_it_and_gives_what_the_oracle_says(h100: emulator.VirtualGpu) -> None:
    given = tensors(TINY, "direct", torch.float32, "cpu")
    x, w, b = (given[name] for name in ("input", "weight", "bias"))
    y = gpuconv.conv2d(x, w, b, stride=(1, 2), padding=1, backend="triton")
    assert [counters.kernel for counters in h100.counters()] == ["direct_forward"]
    assert_close_to_oracle(y, reference.forward(TINY, as_numpy(x), as_numpy(w), as_numpy(b)), "direct")


def test_the_self_test_knows_it_and_finds_it_right(h100: emulator.VirtualGpu) -> None:
    """With every activation, residuals in any layout, tensors surrounded by numbers that must stay."""
    trials = [trial for trial in self_test.trials("triton", H100, CPU) if trial.kernels.family == FAMILY.name]
    assert {trial.kernels.numbers for trial in trials} == {"float16", "bfloat16", "float32"}
    for trial in trials:
        outcome = self_test.attempt(trial, CPU)
        assert outcome.status == "ok", f"{trial}: {outcome.message}"
