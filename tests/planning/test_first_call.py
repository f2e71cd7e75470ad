"""A kernel that cannot be built or launched here is dropped on its first call, and the next is taken.

The kernels are compiled by the real compilers, for GPUs that need not be here, and refused by them.
"""

import warnings
from functools import cache

import pytest
import torch
from lanes import INTERPRETING

import gpuconv
from gpuconv import BackendUnavailable, backends
from gpuconv.activations import IDENTITY
from gpuconv.backends.base import Tile
from gpuconv.backends.numpy import NumpyBackend
from gpuconv.bench import tune
from gpuconv.gpu import KNOWN
from gpuconv.planning import plan
from gpuconv.planning.ranking import ranked
from gpuconv.problem import DIRECTIONS, ConvProblem
from gpuconv.settings import Settings

triton = pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from gpuconv.backends.triton.backend import TritonBackend, launches  # noqa: E402
from gpuconv.backends.triton.compiler import compile_for  # noqa: E402

CPU, LAST = torch.device("cpu"), torch.channels_last
PROBLEM = ConvProblem.of((2, 16, 9, 8), (32, 16, 3, 3), padding=1, dtype=torch.float16, memory_format=LAST)
GOOD = Tile(16, 16, 16, 4, 2)
NO_POWER_OF_TWO = Tile(48, 16, 16, 4, 2)  # the compiler refuses it
TOO_LARGE = Tile(128, 128, 128, 8, 5)  # its shared memory does not fit

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(INTERPRETING, reason="kernels are interpreted in this process, not compiled"),
]


@triton.jit
def unknown_instruction(out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.inline_asm_elementwise("no.such $0, $1;", "=r,r", [at], tl.int32, True, 1))


@cache
def compiled(problem: ConvProblem, direction: str, operands: plan.Operands, tile: Tile) -> None:
    """Compile what this tile launches for an A100, as its first call there does. Raises what that raises."""
    gpu = KNOWN["A100"]
    for launch in launches(problem, direction, operands, tile):
        needed = compile_for(launch, 80).metadata.shared
        if needed > gpu.shared_memory:  # as Triton says it when it loads a kernel
            raise OutOfResources(needed, gpu.shared_memory, "shared memory")


class Compiled(TritonBackend):
    """The Triton backend, whose kernels are compiled when first called and then leave the rest to NumPy."""

    name = "compiled"
    menu: tuple[Tile, ...] = (NO_POWER_OF_TWO, TOO_LARGE, GOOD)

    def unavailable(self):
        return None

    def refuses(self, problem, direction, device):
        return None

    def tiles(self, problem, direction, gpu, operands):
        return self.menu

    def bind(self, problem, direction, device, activation, operands=None, tile=None):
        right = NumpyBackend().bind(problem, direction, device, activation)

        def run(*tensors):
            compiled(problem, direction, operands, tile)
            return right(*tensors)

        return run

    def bind_act_backward(self, elementwise, device):
        def run(*tensors):
            source = ASTSource(unknown_instruction, {"out": "*i32", "SIZE": "constexpr"}, {(1,): 128})
            triton.compile(source, target=GPUTarget("cuda", 80, 32))
            raise AssertionError("ptxas knows this instruction")

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    found = Compiled()
    backends.register(found)
    return found


def choose() -> plan.Plan:
    settings = Settings(PROBLEM.stride, PROBLEM.padding, PROBLEM.dilation, 1, backend="compiled")
    return plan.choose(PROBLEM, "forward", CPU, settings, plan.contiguous_operands(PROBLEM, "forward", LAST))


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    shapes = PROBLEM.input_shape, PROBLEM.weight_shape
    x, w = (torch.randn(shape).half().contiguous(memory_format=LAST) for shape in shapes)
    return x, w


def test_what_is_refused_is_predicted_to_be_quickest(backend: Compiled) -> None:
    """Else the tests below would show nothing."""
    operands = plan.contiguous_operands(PROBLEM, "forward", LAST)
    in_order = [tile for tile, _ in ranked(backend, backend.menu, PROBLEM, "forward", plan.Gpu.of(CPU), False)]
    assert in_order[-1] == GOOD
    for tile, error in ((NO_POWER_OF_TWO, CompilationError), (TOO_LARGE, OutOfResources)):
        with pytest.raises(error) as refused:
            compiled(PROBLEM, "forward", operands, tile)
        assert backend.cannot_build(refused.value)


def test_a_training_step_takes_the_next_tile_and_says_so_once_for_each(backend: Compiled) -> None:
    x, w = (t.requires_grad_() for t in tensors())
    expected = torch.autograd.grad(gpuconv.conv2d(x, w, padding=1, backend="numpy").square().sum(), (x, w))
    with pytest.warns(UserWarning) as said:
        y = gpuconv.conv2d(x, w, padding=1, backend="compiled")
        got = torch.autograd.grad(y.square().sum(), (x, w))
    assert all(map(torch.equal, got, expected))
    texts = [str(warning.message) for warning in said]
    assert len(texts) == len(set(texts)) == 2 * len(DIRECTIONS)
    for direction in DIRECTIONS:
        assert sum(f"{direction} of {PROBLEM}" in text for text in texts) == 2
    assert all("backend 'compiled' cannot build or launch its tile gather " in text for text in texts)
    assert sum("out of resource: shared memory, Required: " in text for text in texts) == 3
    assert sum("CompilationError" in text for text in texts) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpuconv.conv2d(x, w, padding=1, backend="compiled").square().sum().backward()
    assert choose().tile == GOOD
    assert "arange's range must be a power of 2" in dict(choose().passed_over)["compiled gather"]


def test_a_repeated_call_finds_what_the_backend_bound_and_nothing_around_it(
    backend: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = []
    bind = Compiled.bind
    monkeypatch.setattr(Compiled, "bind", lambda *given: bound.append(bind(*given)) or bound[-1])
    x, w = tensors()
    key = Settings(PROBLEM.stride, PROBLEM.padding, PROBLEM.dilation, 1, backend="compiled").encode()
    with pytest.warns(UserWarning, match="the next is taken"):
        plan.forward(x, w, None, None, key)(x, w, None, None)
    assert plan.forward(x, w, None, None, key) is bound[-1] and len(bound) == 3


def test_a_named_backend_without_any_tile_left_says_why(backend: Compiled) -> None:
    backend.menu = (NO_POWER_OF_TWO, TOO_LARGE)
    x, w = tensors()
    with pytest.warns(UserWarning), pytest.raises(BackendUnavailable, match=r"compiled gather: .*'auto' or 'aten'"):
        gpuconv.conv2d(x, w, padding=1, backend="compiled")


def test_auto_goes_on_with_pytorch_s(backend: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.menu = (NO_POWER_OF_TWO, TOO_LARGE)
    monkeypatch.setitem(backends._AUTO, "cpu", ("compiled", "aten"))
    x, w = tensors()
    with pytest.warns(UserWarning) as said:
        y = gpuconv.conv2d(x, w, padding=1)
    assert len(said) == 2
    torch.testing.assert_close(y, torch.conv2d(x, w, padding=1))


def test_an_activation_s_backward_pass_goes_on_with_pytorch_s(backend: Compiled) -> None:
    backend.menu = (GOOD,)
    layer = gpuconv.nn.ConvAct2d(3, 4, 3, activation="silu")
    x = torch.randn(2, 3, 7, 6)
    expected = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    with gpuconv.use_backend("compiled"), pytest.warns(UserWarning, match=r"act_backward of silu .* PTXASError: "):
        got = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_warmup_and_tune_go_on(backend: Compiled) -> None:
    net = gpuconv.nn.Conv2d(16, 32, 3, padding=1).half().to(memory_format=LAST)
    with gpuconv.use_backend("compiled"), pytest.warns(UserWarning, match="the next is taken"):
        gpuconv.warmup(net, tensors()[0])
    asked = plan.Asked(PROBLEM, "forward", CPU, plan.contiguous_operands(PROBLEM, "forward", LAST))
    found = tune.tune(asked, ("compiled", "aten"), budget=0.01)
    assert found.winners["compiled"].tile == GOOD and "aten" in found.winners
    refused = {f"compiled {tile}" for tile in (NO_POWER_OF_TWO, TOO_LARGE)}
    assert {text.split(": ", 1)[0] for text in found.wrong} == refused


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        ValueError("of the user's own"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:24]}",
)
def test_what_says_something_else_goes_to_the_caller(
    backend: Compiled, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(self, *arguments):
        def run(*tensors):
            raise error

        return run

    monkeypatch.setattr(Compiled, "bind", bind)
    x, w = tensors()
    with pytest.raises(type(error)) as raised:
        gpuconv.conv2d(x, w, padding=1, backend="compiled")
    assert raised.value is error
    for name in ("triton", "cuda"):
        assert not backends.get(name).cannot_build(error)


def test_what_cannot_be_bound_is_dropped_too(backend: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may compile when it binds."""
    bind = Compiled.bind

    def eager(self, problem, direction, device, activation, operands=None, tile=None):
        compiled(problem, direction, operands, tile)
        return bind(self, problem, direction, device, activation, operands, tile)

    monkeypatch.setattr(Compiled, "bind", eager)
    with pytest.warns(UserWarning) as said:
        assert choose().tile == GOOD
    assert len(said) == 2


def test_a_cuda_kernel_that_the_compiler_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    import host_cuda

    if not host_cuda.COMPILER:
        pytest.skip("the host check needs g++")

    bad = Tile(96, 32, 16, 6, 2, kernel="simt")  # 192 threads cannot share the fetching evenly

    class Refused(host_cuda.HostChecked):
        name = "refused"

        def tiles(self, problem, direction, gpu, operands):
            return bad, Tile(64, 32, 16, 4, 2, kernel="simt")

    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    backends.register(Refused())
    x, w = tensors()
    with pytest.warns(UserWarning, match="cannot build or launch its tile simt 96×32×16, 6 warps") as said:
        y = gpuconv.conv2d(x, w, padding=1, backend="refused")
    assert len(said) == 1
    torch.testing.assert_close(y, torch.conv2d(x, w, padding=1), rtol=1e-2, atol=1e-2)
    with pytest.raises(host_cuda.CompileError, match="static assertion failed"):
        operands = plan.contiguous_operands(PROBLEM, "forward", LAST)
        Refused().bind(PROBLEM, "forward", CPU, IDENTITY, operands, bad)(x, w, None, None)
