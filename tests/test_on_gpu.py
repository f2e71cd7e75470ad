"""The GPU backends on a real GPU: CUDA graphs, streams, a second GPU, compiled code around the ops."""

from collections.abc import Callable

import pytest
import torch

import gpuconv
from gpuconv import backends, ops, reference
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

PROBLEM = ConvProblem.of((4, 32, 14, 13), (24, 32, 3, 3), padding=1, dtype=torch.float16)
DTYPES = (torch.float16, torch.float32)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(params=["triton", "cuda"], ids="{}-cuda".format)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that runs on the GPUs of this machine."""
    reason = backends.get(request.param).unavailable()
    if reason is None and not torch.cuda.is_available():
        reason = "there is no NVIDIA GPU"  # and it is the host check or the interpreter that runs
    if reason is not None:
        pytest.skip(f"backend {request.param!r} cannot run here: {reason}")
    return request.param


def operands(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """input, weight, grad_output, channels last."""
    generator = torch.Generator().manual_seed(3)
    shapes = PROBLEM.input_shape, PROBLEM.weight_shape, PROBLEM.output_shape
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [t.contiguous(memory_format=torch.channels_last) for t in made]


def key_of(backend: str) -> str:
    return Settings(PROBLEM.stride, PROBLEM.padding, PROBLEM.dilation, PROBLEM.groups, backend=backend).encode()


def all_three(backend: str) -> Callable[..., list[torch.Tensor]]:
    """forward, grad_input and grad_weight with grad-bias, as a function of input, weight and grad_output."""
    key = key_of(backend)

    def run(x: torch.Tensor, w: torch.Tensor, gy: torch.Tensor) -> list[torch.Tensor]:
        return [
            ops.forward(x, w, None, None, key),
            ops.grad_input(gy, w, PROBLEM.input_shape, key),
            *ops.grad_weight(gy, x, PROBLEM.weight_shape, True, key),
        ]

    return run


def assert_right(results: list[torch.Tensor], x: torch.Tensor, w: torch.Tensor, gy: torch.Tensor) -> None:
    x, w, gy = (as_numpy(t) for t in (x, w, gy))
    exact = (
        reference.forward(PROBLEM, x, w),
        reference.grad_input(PROBLEM, gy, w),
        reference.grad_weight(PROBLEM, gy, x),
        reference.grad_bias(PROBLEM, gy),
    )
    for got, wanted in zip(results, exact, strict=False):  # not every test asks for the bias's
        assert_close_to_oracle(got, wanted, f"{PROBLEM}", tf32=gpuconv.planning.plan.uses_tf32(got))


@each_dtype
def test_captured_in_a_cuda_graph(backend: str, dtype: torch.dtype) -> None:
    given, run = operands(dtype, "cuda"), all_three(backend)
    expected = run(*given)
    static = [torch.zeros_like(t) for t in given]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*static)  # compiles, which a capture does not allow
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*static)
    for mine, theirs in zip(static, given, strict=True):
        mine.copy_(theirs)
    graph.replay()
    assert all(map(torch.equal, captured, expected))


@each_dtype
def test_on_the_stream_that_is_current(backend: str, dtype: torch.dtype) -> None:
    given, run = operands(dtype, "cuda"), all_three(backend)
    expected = run(*given)
    late = [torch.full_like(t, float("nan")) for t in given]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # cycles: whatever does not wait for this stream reads NaN
        for mine, theirs in zip(late, given, strict=True):
            mine.copy_(theirs)
        results = run(*late)
    side.synchronize()
    assert all(map(torch.equal, results, expected))


@each_dtype
def test_on_a_gpu_that_is_not_current(backend: str, dtype: torch.dtype) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    run = all_three(backend)
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        given = operands(dtype, device)
        results = run(*given)
        assert torch.cuda.current_device() == 0
        assert {t.device for t in results} == {torch.device(device)}
        assert_right(results, *given)


@each_dtype
def test_inside_compiled_code(backend: str, dtype: torch.dtype) -> None:
    x, w, gy = operands(dtype, "cuda")
    x.requires_grad_(), w.requires_grad_()

    @torch.compile(fullgraph=True)
    def doubled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return 2 * gpuconv.conv2d(x, w, padding=1, backend=backend)

    y = doubled(x, w)
    gx, gw = torch.autograd.grad(y, (x, w), gy)
    assert_right([y.detach() / 2, gx / 2, gw / 2], x.detach(), w.detach(), gy)


@each_dtype
def test_agrees_with_the_oracle_with_many_threads_calling(backend: str, dtype: torch.dtype) -> None:
    from concurrent.futures import ThreadPoolExecutor

    given, run = operands(dtype, "cuda"), all_three(backend)
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: run(*given), range(16)):
            assert_right(results, *given)
