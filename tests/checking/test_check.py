"""`gpuconv check`: our backends pass it, and it finds mistakes such as kernels have."""

import json

import planted
import pytest
import torch
from lanes import LANES

from gpuconv import backends
from gpuconv.checking import check
from gpuconv.checking.problems import CURATED, as_code, random_problem
from gpuconv.cli import main
from gpuconv.problem import DIRECTIONS, ConvProblem

FEW = ("3x3-same", "3x3-stride2-dilation3", "3x3-groups2", "one-channel-each", "1d")
CPU = torch.device("cpu")


def run(cls: type, dtype: str = "float32", directions: tuple = DIRECTIONS, problems=FEW) -> check.Report:
    torch.manual_seed(0)
    name = backends.load(f"planted:{cls.__name__}")
    return check.check_backend(name, CPU, check.select_cases(directions, (dtype,), problems))


@pytest.mark.parametrize("name", [lane.backend for lane in LANES if lane.device == "cpu" and lane.backend != "aten"])
def test_our_backends_pass(name: str) -> None:
    dtypes = ("float32", "float16")
    report = check.check_backend(
        name, CPU, check.select_cases(dtypes=dtypes, problems=FEW[:4] if name == "numpy" else FEW[:1])
    )
    assert report.ok, "\n".join(map(str, report.failures))
    assert all(report.passed[direction] for direction in DIRECTIONS)


def test_what_the_mistakes_are_planted_in_passes() -> None:
    assert run(planted.Planted).ok


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("cls", "kind", "dtype"),
    [
        (planted.DroppedTap, "value", "float32"),
        (planted.WrongPad, "value", "float32"),
        (planted.UnmaskedStore, "memory", "float32"),
        (planted.Float16Sums, "value", "float16"),
    ],
)
def test_planted_mistakes_are_found(cls: type, kind: str, dtype: str, direction: str) -> None:
    report = run(cls, dtype, (direction,))
    assert not report.ok
    assert kind in {failure.check for failure in report.failures}


def test_a_load_beyond_the_end_is_found() -> None:
    assert {"forward", "grad_input"} <= {f.case.direction for f in run(planted.UnmaskedLoad).failures}


def test_a_racy_sum_is_found() -> None:
    report = run(planted.RacySum, problems=("3x3-output-is-one-pixel", "one-channel-each", "long-sums"))
    assert {(f.check, f.case.direction) for f in report.failures} == {("bits", "grad_weight")}


def test_only_what_a_backend_claims_is_checked() -> None:
    report = run(planted.Float16Sums, "float64")
    assert not report.ok and not report.failures and set(report.refused) == {"it does float16"}

    class ForwardAlone(backends.Backend):
        name = "forward-alone"

        def forward(self, problem, *tensors, activation):
            return backends.get("numpy").forward(problem, *tensors, activation)

    backends.register(ForwardAlone())
    report = check.check_backend("forward-alone", CPU, check.select_cases(dtypes=("float32",), problems=("3x3-same",)))
    assert report.ok and set(report.passed) == {"forward"}
    assert set(report.refused) == {"it has no grad_input", "it has no grad_weight"}


def test_a_failure_says_how_to_see_it_again() -> None:
    failure = next(f for f in run(planted.DroppedTap).failures if f.check == "value")
    assert failure.again in str(failure) and "times too large" in str(failure)
    assert eval(as_code(failure.case.problem), {"ConvProblem": ConvProblem, "torch": torch}) == failure.case.problem


def test_problems_are_written_as_code() -> None:
    for problem in (*CURATED.values(), *map(random_problem, range(20))):
        assert eval(as_code(problem), {"ConvProblem": ConvProblem, "torch": torch}) == problem


def test_only_triton_kernels_are_excused_under_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    report = run(planted.DroppedTap, "bfloat16", ("forward",), ("3x3-same",))
    assert not report.refused and {failure.check for failure in report.failures} == {"value"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "must be package.module:Class or one of triton"),
        ("no.such.module:Class", "cannot be loaded: ModuleNotFoundError"),
        ("planted:Nonsense", "cannot be loaded: AttributeError"),
        ("gpuconv.problem:ConvProblem", "cannot be loaded: TypeError"),
        ("gpuconv.backends.numpy:NumpyBackend", "one of gpuconv's own"),
        ("planted:torch", "must be a gpuconv.backends.Backend"),
    ],
)
def test_a_backend_that_cannot_be_loaded_is_said_to_be(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backends.load(spec)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["check", "--problem", "3x3-same", "--dtype", "float32", "--backend"]
    assert main.run([*few, "numpy"]) == 0
    assert "numpy on cpu: " in capsys.readouterr().out
    assert main.run([*few, "planted:WrongPad", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and report["failures"][0]["name"] == "3x3-same"
    assert main.run([*few, "planted:WrongPad"]) == 1
    assert "--problem '3x3-same' --direction" in capsys.readouterr().out
    for wrong, words in (
        (["--dtype", "float8"], "float8"),
        (["--problem", "4x4"], "4x4"),
        (["--device", "moon"], "moon"),
    ):
        assert main.run(["check", "--backend", "numpy", *wrong]) == 1
        assert words in capsys.readouterr().err
