"""Which backend a call uses, and what is said when it cannot."""

import subprocess
import sys
import threading

import pytest
import torch

import gpuconv
from gpuconv import backends
from gpuconv.backends import Backend, BackendUnavailable
from gpuconv.backends.base import Tile
from gpuconv.planning import plan
from gpuconv.problem import ConvProblem, allocate
from gpuconv.settings import Settings


class Constant(Backend):
    """Fills outputs with a number: tells which backend ran."""

    def __init__(self, name: str, number: float, refusal: str | None = None, absence: str | None = None) -> None:
        self.name, self.number, self.refusal, self.absence = name, number, refusal, absence

    def unavailable(self):
        return self.absence

    def refuses(self, problem, direction, device):
        return self.refusal

    def forward(self, problem, input, weight, bias, residual, activation):
        return allocate(problem.output_shape, input, problem.memory_format).fill_(self.number)

    def grad_input(self, problem, grad_output, weight):
        return allocate(problem.input_shape, grad_output, problem.memory_format).fill_(self.number)

    def grad_weight(self, problem, grad_output, input, with_bias):
        gw = allocate(problem.weight_shape, grad_output, problem.memory_format).fill_(self.number)
        return gw, grad_output.new_full((problem.out_channels,), self.number) if with_bias else None


@pytest.fixture(autouse=True)
def backends_of_this_test(monkeypatch):
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    backends.register(Constant("seven", 7.0))
    backends.register(Constant("eight", 8.0))
    backends.register(Constant("picky", 9.0, refusal="it does not like these"))
    backends.register(Constant("absent", 9.0, absence="its hardware is elsewhere"))
    yield
    plan._plans.clear()


X, W = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)


def test_argument_beats_context_beats_environment_beats_auto(monkeypatch):
    assert not (gpuconv.conv2d(X, W) == 7).any()
    monkeypatch.setattr(backends, "_default", "seven")
    assert (gpuconv.conv2d(X, W) == 7).all()
    with gpuconv.use_backend("eight"):
        assert (gpuconv.conv2d(X, W) == 8).all()
        assert (gpuconv.conv2d(X, W, backend="seven") == 7).all()
        with gpuconv.use_backend("auto"):
            torch.testing.assert_close(gpuconv.conv2d(X, W), torch.conv2d(X, W))
        assert (gpuconv.conv2d(X, W) == 8).all()
    assert (gpuconv.conv2d(X, W) == 7).all()


def test_environment_variable_names_the_default(clean_environment):
    code = "import gpuconv; print(gpuconv.backends.selected())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment | {"GPUCONV_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "numpy", run.stderr


def test_unknown_backend_in_the_environment_is_named_when_first_used(monkeypatch):
    monkeypatch.setattr(backends, "_default", "cudnn")
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*numpy.*, but got 'cudnn'"):
        gpuconv.conv2d(X, W)


def test_context_ends_with_an_exception_and_does_not_leak_to_other_threads():
    seen = []
    with pytest.raises(KeyError), gpuconv.use_backend("seven"):
        thread = threading.Thread(target=lambda: seen.append(backends.selected()))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == ["auto"] and backends.selected() == "auto"


def test_backward_uses_the_backend_of_the_forward_pass():
    w = W.clone().requires_grad_()
    with gpuconv.use_backend("eight"):
        y = gpuconv.conv2d(X, w)
    y.sum().backward()  # outside the context, and on PyTorch's own thread where there is a GPU
    assert (w.grad == 8).all()


@pytest.mark.parametrize(
    "use", [lambda name: gpuconv.conv2d(X, W, backend=name), lambda name: gpuconv.use_backend(name).__enter__()]
)
def test_unknown_backend_is_a_value_error_that_lists_the_known(use):
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*aten.*, but got 'cudnn'"):
        use("cudnn")


def test_backend_that_refuses_says_why_and_what_to_use_instead():
    with pytest.raises(
        BackendUnavailable, match=r"forward of 1×2×5×5, 3 filters 3×3.*does not like these.*'auto' or 'aten'"
    ):
        gpuconv.conv2d(X, W, backend="picky")


def test_backend_that_cannot_run_here_says_so_at_once():
    with pytest.raises(
        BackendUnavailable, match="'absent' cannot run here: its hardware is elsewhere; use 'auto' or 'aten'"
    ):
        gpuconv.use_backend("absent").__enter__()
    with pytest.raises(BackendUnavailable, match="its hardware is elsewhere"):
        gpuconv.conv2d(X, W, backend="absent")


def test_auto_passes_over_what_refuses_and_remembers_the_reason(monkeypatch):
    monkeypatch.setitem(backends._AUTO, "cpu", ("picky", "absent", "seven"))
    assert (gpuconv.conv2d(X, W) == 7).all()
    settings = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    chosen = plan.choose(ConvProblem.of(X.shape, W.shape), "forward", X.device, settings)
    assert chosen.backend.name == "seven"
    assert chosen.passed_over == (("picky", "it does not like these"), ("absent", "its hardware is elsewhere"))


class Tiled(Backend):
    """Takes its one tile for everything."""

    def __init__(self, name: str, tile: Tile) -> None:
        self.name, self.tile = name, tile

    def tiles(self, problem, direction, gpu, operands):
        return (self.tile,)

    def bind(self, problem, direction, device, activation, operands=None, tile=None):
        assert tile is self.tile
        return lambda *_: tile


def test_auto_takes_the_kernel_that_is_predicted_to_be_quickest_whichever_backend_has_it(monkeypatch):
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    small, large = Tile(16, 16, 16, 4, 2), Tile(256, 16, 16, 4, 2)
    for name, tile in (("one", small), ("two", large), ("three", large)):
        backends.register(Tiled(name, tile))
    monkeypatch.setitem(backends._AUTO, "cpu", ("picky", "one", "two", "three", "aten"))
    settings = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    problem = ConvProblem.of((4, 8, 32, 32), (8, 8, 3, 3))
    chosen = plan.choose(problem, "forward", X.device, settings)
    assert chosen.backend.name == "two" and chosen.tile is large
    reasons = dict(chosen.passed_over)
    assert list(reasons) == ["picky", "three", "one"]
    assert reasons["one"].startswith("predicted to take ") and ", and two " in reasons["one"]


def test_numpy_refuses_what_it_cannot_do():
    numpy = backends.get("numpy")
    problem = ConvProblem.of(X.shape, W.shape)
    assert "CPU" in numpy.refuses(problem, "forward", torch.device("cuda", 0))
    integers = ConvProblem.of(X.shape, W.shape, dtype=torch.int64)
    assert "int64" in numpy.refuses(integers, "forward", torch.device("cpu"))
    with pytest.raises(BackendUnavailable, match="not float8_e5m2"):
        gpuconv.conv2d(X.to(torch.float8_e5m2), W.to(torch.float8_e5m2), backend="numpy")


def test_integers_go_to_aten_by_default():
    x, w = torch.arange(50).reshape(1, 2, 5, 5), torch.arange(54).reshape(3, 2, 3, 3)
    assert torch.equal(gpuconv.conv2d(x, w), torch.conv2d(x, w))


def test_only_backends_with_names_can_be_registered():
    with pytest.raises(TypeError, match=r"must be a gpuconv.backends.Backend, but got str"):
        backends.register("numpy")
    with pytest.raises(ValueError, match="needs a name"):
        backends.register(Constant("auto", 0))


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(plan, "_MOST_PLANS", 5)
    for n in range(12):
        gpuconv.conv2d(torch.randn(1, 2, 5 + n, 5), W, backend="numpy")
        assert len(plan._plans) <= 5


def test_a_repeated_call_is_planned_once(monkeypatch):
    calls = []
    real = plan.choose
    monkeypatch.setattr(plan, "choose", lambda *a: calls.append(a) or real(*a))
    for _ in range(3):
        gpuconv.conv2d(X, W, backend="numpy")
        gpuconv.conv2d(X.clone(), W, backend="numpy")
    assert len(calls) == 1
    gpuconv.conv2d(X.double(), W.double(), backend="numpy")
    gpuconv.conv2d(X, W, padding=1, backend="numpy")
    assert len(calls) == 3


@pytest.mark.parametrize(
    "key", ["", "stride=1", "stride=a padding=0:0 dilation=1 groups=1 activation=none backend=auto", "x y z"]
)
def test_a_key_of_another_form_is_refused(key):
    with pytest.raises(ValueError, match="key must be of the form 'stride=1,1 padding=0:0,0:0 "):
        Settings.decode(key)


def test_settings_survive_their_text_form():
    settings = Settings((2, 1), ((1, 0), (3, 4)), (1, 2), 5, "leaky_relu(0.2)", "numpy")
    assert Settings.decode(settings.encode()) == settings
