"""Every backend, direction and dtype agrees with the oracle within its bound, on odd problems, in every layout."""

import pytest
import torch
from lanes import INTERPRETING, Lane, each_lane_and_gpu

from gpuconv import ops, reference
from gpuconv.activations import Activation
from gpuconv.checking.check import ACTIVATIONS
from gpuconv.checking.problems import CURATED, LAYOUTS, random_problem, tensors
from gpuconv.problem import ConvProblem, memory_format_of
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_problem = pytest.mark.parametrize("name", CURATED)
EPILOGUES = [(dtype, activation) for activation in ACTIVATIONS for dtype in (torch.float32, torch.bfloat16)]
# Those with constants that float32 would round.
EPILOGUES += [(torch.float64, activation) for activation in ("leaky_relu(0.2)", "gelu_tanh", "hardswish")]


def key_of(problem: ConvProblem, lane: Lane, activation: str = "none") -> str:
    return Settings(
        problem.stride, problem.padding, problem.dilation, problem.groups, activation, lane.backend
    ).encode()


def hold(lane: Lane, got: torch.Tensor, exact: reference.Exact, context: str, direction: str) -> None:
    """assert_close_to_oracle, except where PyTorch's own kernels are known to miss the bound: that is reported."""
    if lane.backend == "aten" and got.dtype is torch.float16 and direction != "forward":
        ratio, _ = reference.worst_violation(got, exact)
        if ratio > 1:
            pytest.xfail(f"PyTorch's own float16 {direction}: error {ratio:.3g} × the bound")
        return
    tf32 = lane.on_gpu and got.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert_close_to_oracle(got, exact, context, tf32=tf32)


def check(lane: Lane, problem: ConvProblem, name: str, dtype: torch.dtype, layout: str, directions: str) -> None:
    t = tensors(problem, name, dtype, lane.device, layout)
    n = {key: as_numpy(value) for key, value in t.items()}
    key, exactly = key_of(problem, lane), reference.precision_for(dtype)
    context = f"{lane} {layout} seed of {name!r}: {problem}"
    results = {}
    if "y" in directions:
        y = ops.forward(t["input"], t["weight"], t["bias"], None, key)
        hold(lane, y, reference.forward(problem, n["input"], n["weight"], n["bias"], dtype=exactly), context, "forward")
        results["input", "weight"] = y
    if "x" in directions:
        gx = ops.grad_input(t["grad_output"], t["weight"], problem.input_shape, key)
        exact = reference.grad_input(problem, n["grad_output"], n["weight"], exactly)
        hold(lane, gx, exact, context + " grad_input", "grad_input")
        results["grad_output", "weight"] = gx
    if "w" in directions:
        gw, gb = ops.grad_weight(t["grad_output"], t["input"], problem.weight_shape, True, key)
        exact = reference.grad_weight(problem, n["grad_output"], n["input"], exactly)
        hold(lane, gw, exact, context + " grad_weight", "grad_weight")
        hold(lane, gb, reference.grad_bias(problem, n["grad_output"], exactly), context + " grad_bias", "grad_bias")
        results["grad_output", "input"] = gw
    for (a, b), result in results.items():
        expected = memory_format_of(t[a], t[b])
        assert result.is_contiguous(memory_format=expected), f"{context}: strides {result.stride()} from {a}, {b}"
        assert result.dtype is dtype and result.device == t[a].device


@each_lane_and_gpu
@each_dtype
@each_problem
@pytest.mark.parametrize("directions", "yxw")
def test_agrees_with_the_oracle(
    lane: Lane, dtype: torch.dtype, name: str, directions: str, request: pytest.FixtureRequest
) -> None:
    index = list(CURATED).index(name)
    if INTERPRETING and not request.config.getoption("--full") and (index % 6 or dtype is not torch.float32):
        pytest.skip("what is compiled runs on the emulator: a few that are interpreted, all of them with --full")
    if lane.gpu and not request.config.getoption("--full"):
        pytest.skip("tests/emulator/test_sweep.py has each problem in each direction; every type with --full")
    layout = LAYOUTS[index % 3]  # each problem in one layout; all of them below
    check(lane, CURATED[name], name, dtype, layout, directions)


@each_lane_and_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3-same", "3x3-groups2-stride2", "3x3-asymmetric-padding", "1d", "3d"])
def test_every_layout_agrees_with_the_oracle(
    lane: Lane, layout: str, name: str, request: pytest.FixtureRequest
) -> None:
    if INTERPRETING and not request.config.getoption("--full") and name != "3x3-groups2-stride2":
        pytest.skip("what is compiled runs on the emulator: one that is interpreted, all of them with --full")
    check(lane, CURATED[name], name, torch.float32, layout, "yxw")


@each_lane_and_gpu
def test_random_problems_agree_with_the_oracle(lane: Lane, random_seed: int, request: pytest.FixtureRequest) -> None:
    if lane.gpu and not request.config.getoption("--full"):
        pytest.skip("tests/emulator/test_sweep.py has them; in one type and layout each, all together, with --full")
    dtype = DTYPES[random_seed % 3 if random_seed % 2 else 0]
    layout = LAYOUTS[random_seed % len(LAYOUTS)]
    directions = "y" if lane.backend == "aten" and dtype is torch.float16 else "yxw"
    check(lane, random_problem(random_seed), f"random {random_seed}", dtype, layout, directions)


@each_lane_and_gpu
@pytest.mark.parametrize(("dtype", "activation"), EPILOGUES, ids=lambda v: str(v).removeprefix("torch."))
def test_epilogue_agrees_with_the_oracle(lane: Lane, dtype: torch.dtype, activation: str) -> None:
    name = "3x3-groups2"
    problem = CURATED[name]
    t = tensors(problem, name, dtype, lane.device)
    n = {key: as_numpy(value) for key, value in t.items()}
    y = ops.forward(t["input"], t["weight"], t["bias"], t["residual"], key_of(problem, lane, activation))
    exact = reference.forward(problem, n["input"], n["weight"], n["bias"], n["residual"], Activation.parse(activation))
    hold(lane, y, exact, f"{lane} {activation}", "forward")


@each_lane_and_gpu
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["3x3-same", "3x3-stride2", "3x3-groups2"])
def test_no_nan_or_infinity_is_lost(lane: Lane, value: float, name: str) -> None:
    problem = CURATED[name]
    key = key_of(problem, lane)
    for planted in ("input", "weight", "grad_output"):
        t = tensors(problem, name, torch.float32, lane.device)
        t[planted].view(-1)[t[planted].numel() // 2] = value
        n = {k: as_numpy(v) for k, v in t.items()}
        pairs = []
        if planted != "grad_output":
            y = ops.forward(t["input"], t["weight"], None, None, key)
            pairs.append((y, reference.forward(problem, n["input"], n["weight"])))
        if planted != "input":
            gx = ops.grad_input(t["grad_output"], t["weight"], problem.input_shape, key)
            pairs.append((gx, reference.grad_input(problem, n["grad_output"], n["weight"])))
        if planted != "weight":
            gw, _ = ops.grad_weight(t["grad_output"], t["input"], problem.weight_shape, False, key)
            pairs.append((gw, reference.grad_weight(problem, n["grad_output"], n["input"])))
        for got, exact in pairs:
            lost = ~torch.from_numpy(exact.value).isfinite() & got.cpu().isfinite()
            if lane.backend == "aten" and lost.any():
                pytest.xfail(f"PyTorch's own loses {value} in {planted} where it meets padding")
            assert not lost.any(), f"{lane}: {value} in {planted} is lost in {int(lost.sum())} places"


@each_lane_and_gpu
@pytest.mark.parametrize("name", ["3x3-same", "3x3-stride2-dilation3", "3x3-depthwise"])
def test_same_bits_every_time(lane: Lane, name: str) -> None:
    problem = CURATED[name]
    t = tensors(problem, name, torch.float32, lane.device)
    key = key_of(problem, lane)

    def run() -> list[torch.Tensor]:
        return [
            ops.forward(t["input"], t["weight"], t["bias"], None, key),
            ops.grad_input(t["grad_output"], t["weight"], problem.input_shape, key),
            *ops.grad_weight(t["grad_output"], t["input"], problem.weight_shape, True, key),
        ]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@each_dtype
@pytest.mark.parametrize("name", ["3x3", "3x3-groups2", "7x7-depthwise", "1d-dilation3"])
def test_a_dropped_tap_fails(dtype: torch.dtype, name: str) -> None:
    problem = CURATED[name]
    t = tensors(problem, name, dtype)
    n = {key: as_numpy(value) for key, value in t.items()}
    lame = t["weight"].clone()
    lame[(0, 0, *(r // 2 for r in problem.filter_size))] = 0
    y = ops.forward(t["input"], lame, None, None, key_of(problem, Lane("numpy", "cpu")))
    exact = reference.forward(problem, n["input"], n["weight"])
    with pytest.raises(AssertionError, match="times too large"):
        assert_close_to_oracle(y, exact, "planted")
