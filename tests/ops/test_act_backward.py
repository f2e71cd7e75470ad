"""The backward pass of activations: right, differentiable, deterministic, on every backend, in every layout."""

import warnings

import numpy as np
import pytest
import torch
from lanes import INTERPRETING, Lane, each_lane, each_lane_and_gpu
from torch.utils._python_dispatch import TorchDispatchMode

from gpuconv import reference
from gpuconv.activations import LIPSCHITZ, Activation, activate_tensor, backward_tensor, derivative
from gpuconv.backends.derived import matrix, steps
from gpuconv.backends.elementwise import Elementwise
from gpuconv.ops.act_backward import act_backward
from gpuconv.reference import as_numpy, assert_close_to_oracle
from gpuconv.settings import Settings

ACTIVATIONS = [*LIPSCHITZ][1:]
FORMATS = {3: [None], 4: [torch.contiguous_format, torch.channels_last], 5: [torch.channels_last_3d]}
SHAPES = [(3, 5, 7, 6), (2, 16, 5, 4), (2, 3, 19), (2, 5, 3, 4, 2), (1, 70, 1, 33), (2, 1, 40, 40)]


def key_of(lane: Lane, activation: str) -> str:
    return Settings((1,), ((0, 0),), (1,), 1, activation, lane.backend).encode()


def given(activation: str, shape, dtype, memory_format, device="cpu", seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient, and what a forward would have saved."""
    generator = torch.Generator().manual_seed(seed)
    gy, z = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    a = Activation.parse(activation)
    saved = activate_tensor(a, 3 * z) if a.from_output else 3 * z
    gy, saved = (t.to(device, dtype) for t in (gy, saved))
    return gy, saved if memory_format is None else saved.contiguous(memory_format=memory_format)


def hold(lane: Lane, activation: str, gy: torch.Tensor, saved: torch.Tensor, with_bias: bool) -> None:
    gz, gb = act_backward(gy, saved, with_bias, key_of(lane, activation))
    precision = reference.precision_for(gy.dtype)
    exact_gz, exact_gb = reference.act_backward(Activation.parse(activation), as_numpy(gy), as_numpy(saved), precision)
    context = f"{lane} {activation} {tuple(gy.shape)} {gy.stride()} {gy.dtype}"
    assert_close_to_oracle(gz, exact_gz, context)
    assert gz.stride() == saved.stride()
    if with_bias:
        assert_close_to_oracle(gb, exact_gb, f"{context} bias")
    else:
        assert not gb.numel()


@each_lane_and_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_agrees_with_the_oracle_in_every_layout(lane: Lane, dtype: torch.dtype) -> None:
    costly = lane == Lane("cuda", "cpu") or lane.gpu is not None  # each kernel is compiled for it
    fewer = costly and dtype in (torch.float64, torch.float16)
    for turn, shape in enumerate(SHAPES[: 1 if fewer else 2 if lane.gpu else None]):
        for memory_format in FORMATS[len(shape)]:
            activation = "silu"
            gy, saved = given(activation, shape, dtype, memory_format, lane.device, turn)
            alike = gy if memory_format is None else gy.contiguous(memory_format=memory_format)
            sliced = torch.cat((gy, gy), -1)[..., : gy.shape[-1]]
            for grad in (alike, sliced, gy[:, :1, :1].expand(shape)):
                for with_bias in (False, True):
                    hold(lane, activation, grad, saved, with_bias)


@each_lane
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "leaky_relu(-0.5)"])
def test_every_activation_agrees_with_the_oracle(lane: Lane, activation: str) -> None:
    gy, saved = given(activation, (2, 5, 3, 4), torch.float32, torch.channels_last, lane.device)
    hold(lane, activation, gy, saved, True)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "leaky_relu(-0.5)", "leaky_relu(0.0)"])
def test_derivatives_are_those_of_the_activation(activation: str) -> None:
    """Where z is, whether told from z or from y; and PyTorch's own gradient agrees."""
    a = Activation.parse(activation)
    assert Activation.parse(a.encode()) == a
    z = torch.linspace(-7.01, 7.02, 400, dtype=torch.float64, requires_grad=True)
    y = activate_tensor(a, z)
    (expected,) = torch.autograd.grad(y.sum(), z)
    saved = (y if a.from_output else z).detach()
    got = derivative(a, saved.numpy())
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(reference.activate(a, z.detach().numpy()), y.detach().numpy(), rtol=0, atol=1e-12)
    torch.testing.assert_close(backward_tensor(a, torch.ones_like(saved), saved), expected, rtol=0, atol=1e-12)


def test_hardswish_in_float64_is_not_pytorchs_whose_kernel_on_gpus_has_a_sixth_in_float32() -> None:
    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.overloadpacket.__name__)
            return function(*args, **kwargs or {})

    for dtype, expected in ((torch.float64, set()), (torch.float32, {"hardswish", "hardswish_backward"})):
        called: set[str] = set()
        with Called():
            z = torch.linspace(-7, 7, 5, dtype=dtype, requires_grad=True)
            torch.autograd.grad(activate_tensor(Activation("hardswish"), z).sum(), z)
            backward_tensor(Activation("hardswish"), torch.ones_like(z), z)
        assert {name for name in called if "hardswish" in name} == expected


def test_nan_is_not_lost_and_empty_tensors_are_no_error() -> None:
    for activation in ACTIVATIONS:
        gy, saved = given(activation, (1, 2, 3, 3), torch.float32, None)
        gy[0, 1, 1, 1] = float("nan")
        gz, gb = act_backward(gy, saved.abs() + 0.5, True, key_of(Lane("numpy", "cpu"), activation))
        assert gb[1].isnan() and not gb[0].isnan()
    gz, gb = act_backward(gy[:0], saved[:0], True, key_of(Lane("numpy", "cpu"), "relu"))
    assert gz.shape == (0, 2, 3, 3) and torch.equal(gb, torch.zeros(2))


@each_lane
@pytest.mark.parametrize("activation", ["sigmoid", "silu"] if INTERPRETING else ACTIVATIONS)
def test_gradcheck_to_the_second_order(lane: Lane, activation: str) -> None:
    if lane == Lane("cuda", "cpu") and activation not in ("tanh", "gelu_tanh"):
        pytest.skip("the host check is slow, and the formulas are those of backend numpy")
    gy, saved = given(activation, (2, 2, 2, 3), torch.float64, None, lane.device)
    if activation.startswith("relu"):  # not at a kink
        saved = torch.where(saved == 0, -1.0, torch.where(saved == 6, 7.0, saved))
    gy, saved = gy.requires_grad_(), saved.requires_grad_()
    for with_bias in (False, True):

        def f(*t: torch.Tensor, with_bias: bool = with_bias) -> object:
            result = act_backward(*t, with_bias, key_of(lane, activation))
            return result if with_bias else result[0]

        assert torch.autograd.gradcheck(f, (gy, saved), fast_mode=INTERPRETING)
        assert torch.autograd.gradgradcheck(f, (gy, saved), fast_mode=True)


@each_lane
def test_opcheck(lane: Lane) -> None:
    for requires_grad, memory_format in ((True, torch.channels_last), (False, torch.contiguous_format)):
        gy, saved = given("silu", (2, 3, 4, 5), torch.float64, memory_format, lane.device)
        gy, saved = gy.requires_grad_(requires_grad), saved.requires_grad_(requires_grad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # opcheck's own imports
            torch.library.opcheck(torch.ops.gpuconv.act_backward.default, (gy, saved, True, key_of(lane, "silu")))


@each_lane
def test_the_same_bits_every_time_and_inputs_left_alone(lane: Lane) -> None:
    gy, saved = given("gelu", (3, 40, 17, 5), torch.float32, torch.channels_last, lane.device)
    before = gy.clone(), saved.clone()
    results = [act_backward(gy, saved, True, key_of(lane, "gelu")) for _ in range(3)]
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    assert torch.equal(gy, before[0]) and torch.equal(saved, before[1])


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_tile_is_taken_by_one_program(memory_format: torch.memory_format, multiprocessors: int) -> None:
    shape = (64, 128, 56, 56)
    strides = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    for with_bias in (False, True):
        e = Elementwise(shape, torch.float16, memory_format, strides, with_bias, Activation("relu"))
        m = matrix(e)
        across, along, each = steps(m, 16, 128, multiprocessors)
        down, right = -(-m.rows // 16), -(-m.columns // 128)
        assert across == (down if m.sum == "rows" else right)
        assert (along - 1) * each < (right if m.sum == "rows" else down) <= along * each
        if with_bias and multiprocessors > 1 and m.sum == "columns":
            assert 4 * multiprocessors <= across * along <= 8 * multiprocessors + across


def test_errors_name_what_does_not_fit() -> None:
    gy, saved = given("relu", (2, 3, 4, 5), torch.float32, None)
    key = key_of(Lane("numpy", "cpu"), "relu")
    with pytest.raises(RuntimeError, match=r"expected grad_output of size \[2, 3, 4, 5\]"):
        act_backward(gy[:1], saved, False, key)
    with pytest.raises(RuntimeError, match="Grad_output type"):
        act_backward(gy.double(), saved, False, key)
    for text in ("softmax", "relu(2)", "leaky_relu(a)", "leaky_relu(0.1"):
        with pytest.raises(ValueError, match="activation must be one of"):
            Activation.parse(text)
