"""`gpuconv doctor --self-test`: it tries every family, finds planted mistakes, and has the planner pass them over."""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import planted
import pytest
import torch

import gpuconv
from gpuconv import BackendUnavailable, backends, packages
from gpuconv.backends.numpy import NumpyBackend
from gpuconv.bench import suites
from gpuconv.checking import check, isolated, self_test
from gpuconv.checking.precision import NUMBERS
from gpuconv.checking.problems import CURATED, OF_FAMILIES
from gpuconv.cli import main
from gpuconv.cli.self_test import processes_for
from gpuconv.gpu import INTERPRETER, KNOWN
from gpuconv.planning import distrust, plan
from gpuconv.planning.distrust import Kernels
from gpuconv.problem import DIRECTIONS, ConvProblem
from gpuconv.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SUPPORT = Path(planted.__file__).parent
PROBLEM = ConvProblem.of((2, 3, 9, 8), (5, 3, 3, 3), padding=1)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def few_problems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer than the command takes: two number types, and one of each kind where a backend has no tiles."""
    monkeypatch.setattr(self_test, "_PROBLEMS_WITHOUT_TILES", 1)
    monkeypatch.setattr(self_test, "NUMBERS", {name: NUMBERS[name] for name in ("float32", "float64")})
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    yield


def run_self_test(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main.run(["doctor", "--self-test", "--device", "cpu", *options])
    found = capsys.readouterr()
    assert not found.err
    return status, found.out


def chosen(backend: str, dtype: torch.dtype = torch.float32, direction: str = "forward") -> plan.Plan:
    problem = ConvProblem.of(PROBLEM.input_shape, PROBLEM.weight_shape, padding=1, dtype=dtype)
    settings = Settings(problem.stride, problem.padding, problem.dilation, 1, backend=backend)
    return plan.choose(problem, direction, CPU, settings)


# ---- what is tried ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["T4", "A100", "L4", "H100", "B200"])
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_whatever_the_planner_may_choose_is_tried(name: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each family, direction, number type and layout of the layers of real networks, with sums split and not."""
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")
    from gpuconv.backends.cuda.backend import CudaBackend

    backend = CudaBackend() if name == "cuda" else backends.get("triton")
    if backend.refuses_gpu(KNOWN[gpu]):
        pytest.skip(f"{name} refuses a {gpu}")
    monkeypatch.setitem(backends._loaded, name, backend)
    monkeypatch.setattr(type(backend), "refuses", lambda *_: None)  # that there is no GPU here
    monkeypatch.setattr(self_test, "NUMBERS", NUMBERS)
    tried = {
        (*t.kernels[1:], "last" if t.case.layout == "channels_last" else "contiguous", t.tile.splits > 1)
        for t in self_test.trials(name, KNOWN[gpu], CUDA)
        if t.tile is not None and t.case.layout in ("contiguous", "channels_last")
    }
    layers = [f"thirty.{layer}" for layer in suites.SUITES["thirty"].layers]
    layers += ["replknet31.stage3_31x31", "mamba.causal_1536", "resnext50.conv3_3x3"]
    for layer in set(layers) & set(suites.names()):
        for numbers, dtype in NUMBERS.items():
            for memory_format in (torch.contiguous_format, torch.channels_last):
                problem = suites.layer(layer, 2, dtype, memory_format)
                layout = "contiguous" if problem.memory_format is torch.contiguous_format else "last"
                for direction in DIRECTIONS:
                    operands = plan.contiguous_operands(problem, direction, problem.memory_format)
                    for tile in backend.tiles(
                        problem, direction, KNOWN[gpu], operands._replace(tf32=numbers == "tf32")
                    ):
                        assert (tile.family, direction, numbers, layout, tile.splits > 1) in tried


def test_there_is_something_to_compute_and_it_is_small() -> None:
    for name, problem in self_test._PROBLEMS.items():
        assert 0 < problem.flops < 3e8, name
    assert not OF_FAMILIES.keys() & CURATED.keys()


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_a_wrong_family_is_found_remembered_and_not_planned_until_it_passes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.register(planted.Families())
    assert chosen("families").tile.kernel == "wrong"
    status, output = run_self_test(capsys, "--backend", "families")
    assert status == 1
    lines = {tuple(line.split()[:2]): line for line in output.splitlines()}
    assert lines["families", "right"].endswith(" ok") and lines["families", "wrong"].endswith(" FAILED")
    assert lines["families", "act_backward"].endswith(" FAILED")
    assert "forward float32 contiguous" in output and "ConvProblem.of((" in output and "times too large" in output
    assert "FAILED: families wrong forward float32, families act_backward float32" in output
    assert f"the planner does not use these on cpu until they pass a self-test: {distrust.path()}" in output
    # Nothing else is held against it.
    assert chosen("families").tile.kernel == "right"
    assert "failed the self-test on this CPU on 20" in dict(chosen("families").passed_over)["families wrong"]
    assert chosen("families", torch.float64).tile.kernel == "wrong"
    assert chosen("families", direction="grad_weight").tile.kernel == "wrong"
    x, w = torch.randn(PROBLEM.input_shape), torch.randn(PROBLEM.weight_shape)
    torch.testing.assert_close(gpuconv.conv2d(x, w, backend="families"), torch.conv2d(x, w))
    layer = gpuconv.nn.ConvAct2d(3, 4, 3, activation="silu")
    expected = torch.autograd.grad(layer(x).sum(), layer.bias)
    with gpuconv.use_backend("families"):
        torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), layer.bias), expected)
    # Another process, and doctor and plan, know it too.
    plan.forget()
    assert chosen("families").tile.kernel == "right"
    assert main.run(["doctor"]) == 0
    assert "families wrong forward float32 on cpu: failed the self-test on this CPU" in capsys.readouterr().out
    assert main.run(["doctor", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["failed"]
    assert ("families", "wrong", "forward", "float32") in [tuple(one[n] for n in Kernels._fields) for one in known]
    # `check`, which judges by itself, looks at the wrong one, and leaves it passed over.
    assert not check.check_backend("families", CPU, check.select_cases(("forward",), ("float32",), ("3x3-same",))).ok
    assert chosen("families").tile.kernel == "right"
    # It is mended.
    monkeypatch.setattr(planted.Families, "bind", lambda self, *given: NumpyBackend().bind(*given[:4]))
    monkeypatch.setattr(planted.Families, "factor", 1.0)
    assert run_self_test(capsys, "--backend", "families")[0] == 0
    assert chosen("families").tile.kernel == "wrong" and not distrust.failed("cpu")
    assert json.loads(distrust.path().read_text())["failed"] == {}


def test_without_the_record_it_is_planned_again(capsys: pytest.CaptureFixture[str]) -> None:
    backends.register(planted.Families())
    run_self_test(capsys, "--backend", "families")
    assert chosen("families").tile.kernel == "right"
    distrust.path().unlink()
    plan.forget()
    assert chosen("families").tile.kernel == "wrong"


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    backends.register(planted.Families())
    status, output = run_self_test(capsys, "--json", "--backend", "families")
    found = json.loads(output)
    assert status == 1 and found["ok"] is False and found["finished"] is True and found["device"] == "cpu"
    assert found["versions"].keys() == {"gpuconv", "torch", "triton", "cupy", "driver"}
    by_name = {family["family"]: family for family in found["families"]}
    assert by_name.keys() == {"right", "wrong", "act_backward"}
    assert (
        by_name["right"]["status"] == "ok" and 0 < by_name["right"]["worst"] <= 1 and not by_name["right"]["failures"]
    )
    failure = by_name["wrong"]["failures"][0]
    assert failure["check"] == "value" and failure["tile"]["kernel"] == "wrong" and failure["worst"] > 1
    made = eval(failure["code"], {"ConvProblem": ConvProblem, "torch": torch})
    assert made == CURATED.get(failure["problem"], OF_FAMILIES.get(failure["problem"]))
    assert {"backend": "families", "family": "wrong", "direction": "forward", "numbers": "float32"} in found["failed"]
    assert found["remembered_in"] == str(distrust.path()) and found["trouble"] is None


def test_all_that_runs_here_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is interpreted or host-checked, of a few kinds alone: see tests/kernels."""
    status, output = run_self_test(capsys, "--backend", "numpy", "--backend", "aten")
    assert status == 0 and "all passed" in output
    assert [line.split()[0] for line in output.splitlines() if " problems  worst" in line] == ["numpy", "aten"]
    assert "measured, not judged" in output  # PyTorch's float16 gradients miss the bound on a CPU, and are what is left
    assert not distrust.path().exists()


def test_cuda_kernels_in_the_host_check() -> None:
    import host_cuda

    if not host_cuda.COMPILER:
        pytest.skip("the host check needs g++")
    backends.register(host_cuda.HostChecked())
    trials = [t for t in self_test.trials("cuda", INTERPRETER, CPU) if t.kernels.numbers == "float32"]
    few = {t.kernels[:3]: t for t in reversed(trials)}.values()
    for trial in list(few)[:4]:
        assert self_test.attempt(trial, CPU).status == "ok", trial


# ---- what a kernel can do to its process -----------------------------------------------------------------------------


def test_a_kernel_that_kills_its_process_or_never_ends_costs_no_more_than_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(SUPPORT)  # the child finds the backend there
    name = backends.load("planted:Deadly")
    trials = [t for t in self_test.trials(name, INTERPRETER, CPU) if t.case.layout != "sliced"]
    trials = [t for t in trials if t.kernels.numbers in ("float32", "float64")]
    outcomes = isolated.attempts(trials, CPU, ["planted:Deadly"], most_seconds=5, processes=2)
    status = {t.kernels[2:]: (o.status, o.message) for t, o in zip(trials, outcomes, strict=True)}
    assert status["forward", "float32"] == ("failed", "the process ended by signal 6")
    assert status["grad_input", "float64"] == ("failed", "nothing came in 5 s")
    assert {status[kind][0] for kind in (("grad_input", "float32"), ("grad_weight", "float64"))} == {"ok"}


@pytest.mark.parametrize(
    ("cores", "free", "processes"),
    [(16, 79 << 30, 16), (64, 79 << 30, 16), (8, 6 << 30, 6), (2, 9 << 30, 2), (4, 0, 1)],
)
def test_processes_are_as_many_as_cores_and_memory_allow(cores: int, free: int, processes: int) -> None:
    assert processes_for(cores, free) == processes


# ---- what is remembered ----------------------------------------------------------------------------------------------


def failed(direction: str = "forward", numbers: str = "float32", family: str = "wrong") -> distrust.Failed:
    kernels = Kernels("families", family, direction, numbers)
    return distrust.Failed("cpu", kernels, "2026-11-26", "a problem", "a message", distrust.software())


def test_it_holds_for_these_versions_on_this_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.register(planted.Families())
    distrust.record("cpu", {failed().kernels: failed()})
    assert chosen("families").tile.kernel == "right" and not distrust.failed("NVIDIA H100 PCIe")
    distrust.record("NVIDIA H100 PCIe", {failed().kernels: failed()._replace(device="NVIDIA H100 PCIe")})
    assert distrust.failed("H100") and not distrust.failed("L4")  # `gpuconv plan --gpu h100` says it
    for changed in ({"__version__": "99"}, None):
        with monkeypatch.context() as patch:
            if changed:
                patch.setattr(gpuconv, "__version__", "99")
            else:
                patch.setattr(packages, "driver", lambda: "999.1")
            assert chosen("families").tile.kernel == "wrong"
    assert chosen("families").tile.kernel == "right"


def test_auto_is_never_left_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.register(planted.Families())
    monkeypatch.setitem(backends._AUTO, "cpu", ("families", "aten"))
    assert chosen("auto").backend.name == "families"
    found = {one.kernels: one for one in (failed(family="right"), failed())}
    found |= {
        Kernels("aten", "", "forward", "float32"): failed()._replace(kernels=Kernels("aten", "", "forward", "float32"))
    }
    distrust.record("cpu", found)
    assert chosen("auto").backend.name == "aten"
    with pytest.raises(BackendUnavailable, match="families right: failed the self-test on this CPU on 2026-11-26: a m"):
        chosen("families")


def test_tune_does_not_try_what_failed() -> None:
    from gpuconv.bench import tune

    backends.register(planted.Families())
    asked = plan.Asked(PROBLEM, "forward", CPU, plan.contiguous_operands(PROBLEM, "forward"))
    distrust.record("cpu", {failed().kernels: failed()})
    assert [tile.kernel for _, tile in tune.candidates(asked, ["families"])] == ["right"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"version": 7}', '{"version": 1, "failed": {"x": {"device": 3}}}', '{"version": 1, "failed": []}'],
)
def test_a_damaged_record_is_ignored_with_one_warning(cache: Path, text: str) -> None:
    backends.register(planted.Families())
    cache.mkdir()
    distrust.path().write_text(text)
    with pytest.warns(UserWarning, match=r"self-test\.json is ignored"):
        assert chosen("families").tile.kernel == "wrong"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen("families", direction="grad_input")
    with pytest.warns(UserWarning, match="kept as"):
        distrust.record("cpu", {failed().kernels: failed()})
    assert chosen("families").tile.kernel == "right"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_where_nothing_can_be_written_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCONV_CACHE", "/proc/gpuconv")
    backends.register(planted.Families())
    status, output = run_self_test(capsys, "--backend", "families")
    assert status == 1 and "cannot be written" in output and "nothing is recorded" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "numpy"], "--backend and --device are options of --self-test"),
        (["--self-test", "--backend", "abacus"], "'abacus'"),
        (["--self-test", "--device", "moon"], "device must be cpu, cuda or cuda:N, but got 'moon'"),
        (["--self-test", "--device", "cpu", "--backend", "absent"], "backend 'absent': its hardware is elsewhere"),
    ],
)
def test_what_cannot_be_tested_is_said_in_a_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Absent(backends.Backend):
        name = "absent"

        def unavailable(self):
            return "its hardware is elsewhere"

    backends.register(Absent())
    assert main.run(["doctor", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(clean_environment: dict[str, str], cache: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs POSIX terminals")
    code = "import planted, sys; from gpuconv.cli import main; sys.exit(main.run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "doctor", "--self-test", "--device", "cpu", "--backend", "planted:Families"]
    ours, theirs = pty.openpty()
    environment = clean_environment | {"GPUCONV_CACHE": str(cache), "TERM": "xterm"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SUPPORT), environment.get("PYTHONPATH"))))
    seen = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.append(part)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert run.returncode == 1 and "families wrong" in " ".join(run.stdout.split())
    assert "\x1b" not in run.stdout and b"self-test families" in b"".join(seen)
