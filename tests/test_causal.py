"""causal_conv1d: against the oracle, under autograd, compiled, under autocast; and its errors for wrong arguments."""

import pytest
import torch
from lanes import Lane, each_lane
from torch import Tensor

import gpuconv
from gpuconv import reference
from gpuconv.activations import Activation
from gpuconv.functional import causal_conv1d
from gpuconv.problem import ConvProblem
from gpuconv.reference import as_numpy, assert_close_to_oracle

B, D, L = 2, 8, 21


def draw(
    width: int, dtype: torch.dtype = torch.float32, channels_last: bool = False, length: int = L, device: str = "cpu"
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    x, states = normal(B, D, length), normal(B, D, width - 1)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return {"x": x, "weight": normal(D, width), "bias": normal(D), "initial_states": states}


def by_pytorch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    before = torch.zeros(B, D, weight.shape[1] - 1, dtype=x.dtype) if initial_states is None else initial_states
    z = torch.conv1d(torch.cat((before, x), -1), weight.unsqueeze(1), bias, groups=D)
    return z if activation is None else torch.nn.functional.silu(z)


@each_lane
@pytest.mark.parametrize(
    ("width", "dtype", "channels_last", "states", "activation"),
    [
        (4, torch.float32, False, False, "silu"),
        (4, torch.bfloat16, True, True, "swish"),
        (2, torch.float16, True, False, None),
        (8, torch.float64, False, True, None),
    ],
    ids=str,
)
def test_agrees_with_the_oracle(
    lane: Lane, width: int, dtype: torch.dtype, channels_last: bool, states: bool, activation: str | None
) -> None:
    if lane.backend == "aten" and dtype.itemsize == 2:
        pytest.skip("PyTorch's own rounds before the activation")
    given = draw(width, dtype, channels_last, device=lane.device)
    before = given["initial_states"] if states else torch.zeros_like(given["initial_states"])
    whole = torch.cat((before, given["x"]), -1)
    if not states:
        del given["initial_states"]
    y = causal_conv1d(**given, activation=activation, backend=lane.backend)
    problem = ConvProblem.of(whole.shape, (D, 1, width), groups=D, dtype=dtype)
    exact = reference.forward(
        problem, as_numpy(whole), as_numpy(given["weight"].unsqueeze(1)), as_numpy(given["bias"]), None,
        Activation("silu" if activation else "none"),
        reference.precision_for(dtype),
    )  # fmt: skip
    assert_close_to_oracle(y, exact, str(lane))
    assert y.stride() == given["x"].stride()


@pytest.mark.parametrize("backend", ["numpy", "aten"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_derivatives_of_both_orders(backend: str, activation: str | None) -> None:
    given = {name: t[:, :2] if t.dim() > 2 else t[:2] for name, t in draw(3, torch.float64, length=4).items()}
    inputs = tuple(t.clone().requires_grad_() for t in given.values())

    def run(x: Tensor, weight: Tensor, bias: Tensor, states: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, initial_states=states, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@each_lane
def test_gradients_are_pytorch_s(lane: Lane) -> None:
    for channels_last, states in ((False, False), (True, True)):
        given = draw(4, torch.float64, channels_last, device=lane.device)
        if not states:
            del given["initial_states"]
        ours, theirs = ({n: t.detach().requires_grad_() for n, t in given.items()} for _ in range(2))
        y = causal_conv1d(**ours, activation="silu", backend=lane.backend)
        expected = by_pytorch(**theirs, activation="silu")
        grad = torch.randn(y.shape, dtype=y.dtype, device=y.device)
        y.backward(grad)
        expected.backward(grad)
        for name in given:
            torch.testing.assert_close(ours[name].grad, theirs[name].grad)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("states", [False, True])
def test_a_sequence_in_two_parts_is_the_whole_sequence(length: int, states: bool) -> None:
    """Shorter than the filter, too."""
    given = draw(4, torch.float64)
    if not states:
        del given["initial_states"]
    x = given.pop("x")
    whole, last = causal_conv1d(x, **given, return_final_states=True)
    out = torch.full((B, D, 3), float("nan"), dtype=x.dtype)
    first, passed_on = causal_conv1d(x[..., :length], **given, return_final_states=True, final_states_out=out)
    assert passed_on is out
    given["initial_states"] = passed_on
    second, last_of_second = causal_conv1d(x[..., length:], **given, return_final_states=True)
    torch.testing.assert_close(torch.cat((first, second), -1), whole)
    assert torch.equal(last, last_of_second) and torch.equal(last, x[..., -3:])


def test_compiles_in_one_graph() -> None:
    given = draw(4)
    run = torch.compile(
        lambda x, weight, bias, initial_states: causal_conv1d(
            x, weight, bias, initial_states=initial_states, activation="silu", backend="numpy"
        ),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    inputs = {name: t.requires_grad_() for name, t in given.items()}
    y = run(**inputs)
    torch.testing.assert_close(y, by_pytorch(**inputs, activation="silu"))
    grads = torch.autograd.grad(y.square().sum(), inputs.values())
    expected = torch.autograd.grad(by_pytorch(**inputs, activation="silu").square().sum(), inputs.values())
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_autocast_takes_its_dtype() -> None:
    given = draw(4)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = causal_conv1d(**given, return_final_states=True, backend="numpy")
    assert y.dtype is last.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), by_pytorch(**given), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_sequences_in_a_row_do_not_see_each_other(dtype: torch.dtype) -> None:
    given = draw(4, dtype, channels_last=True)
    del given["initial_states"]
    given["x"][0, :, 6] = torch.nan  # in the second of three sequences: the third is clean
    starts, seq_idx = (0, 5, 11), torch.tensor([0] * 5 + [1] * 6 + [2] * 10, dtype=torch.int32).expand(B, L)
    tensors = [t.requires_grad_() for t in given.values()]
    y = causal_conv1d(**given, seq_idx=seq_idx, activation="silu")
    parts = [
        causal_conv1d(given["x"][..., a:b], given["weight"], given["bias"], activation="silu", backend="numpy")
        for a, b in zip(starts, (*starts[1:], L), strict=True)
    ]
    assert y.dtype is dtype and torch.isfinite(y[0, :, 11:]).all() and torch.isnan(y[0, :, 6:10]).all()
    tolerance = {"rtol": 0.01, "atol": 0.01} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(y, torch.cat(parts, -1), equal_nan=True, **tolerance)
    ours, theirs = (torch.autograd.grad(out[1:].sum(), tensors) for out in (y, torch.cat(parts, -1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a[1:] if a.dim() == 3 else a, b[1:] if b.dim() == 3 else b, equal_nan=True, **tolerance
        )


def test_padding_gives_zeros_and_takes_no_part() -> None:
    given = draw(4, channels_last=True)
    del given["initial_states"]
    for activation in (None, "silu"):
        expected = causal_conv1d(**given, activation=activation)
        padded = {name: t.clone() for name, t in given.items()}
        padded["x"][1, :, 15:] = torch.nan  # whatever lies there
        tensors = [t.requires_grad_() for t in padded.values()]
        seq_idx = torch.zeros(B, L, dtype=torch.int64)
        seq_idx[1, 15:] = -1
        y = causal_conv1d(**padded, seq_idx=seq_idx, activation=activation)
        assert not y[1, :, 15:].any()
        torch.testing.assert_close(y[0], expected[0])
        torch.testing.assert_close(y[1, :, :15], expected[1, :, :15])
        _, gw, gb = torch.autograd.grad(y.sum(), tensors)
        part = [t.detach()[1:, :, :15] if t.dim() == 3 else t.detach() for t in given.values()]
        whole = [given["x"][:1], given["weight"], given["bias"]]
        both = [[t.clone().requires_grad_() for t in some] for some in (part, whole)]
        sums = [torch.autograd.grad(causal_conv1d(*some, activation=activation).sum(), some) for some in both]
        torch.testing.assert_close(gw, sums[0][1] + sums[1][1])
        torch.testing.assert_close(gb, sums[0][2] + sums[1][2])


@each_lane
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("states", [False, True], ids=["no states", "states"])
def test_filters_may_be_float32_where_the_sequence_is_not(lane: Lane, dtype: torch.dtype, states: bool) -> None:
    """The filters are not rounded, and the result is rounded once, as in the tests of causal_conv1d."""
    given = draw(4, channels_last=True, device=lane.device)
    rounded = {name: given[name].to(dtype) for name in ("x", "initial_states")[: 1 + states]}
    filters = {name: given[name].clone().requires_grad_() for name in ("weight", "bias")}
    y, last = causal_conv1d(**rounded, **filters, activation="silu", return_final_states=True, backend=lane.backend)
    wide = {name: t.float() for name, t in rounded.items()}
    expected = causal_conv1d(**wide, **filters, activation="silu", backend=lane.backend)
    assert y.dtype is last.dtype is dtype and torch.equal(y, expected.to(dtype))
    gw, gb = torch.autograd.grad(y.float().sum(), filters.values())
    assert gw.dtype is gb.dtype is torch.float32
    assert lane.backend == "aten" or y.stride() == given["x"].stride()  # PyTorch goes its own way
    if not states:
        seq_idx = torch.zeros(B, L, dtype=torch.int32, device=lane.device)
        packed = causal_conv1d(**rounded, **filters, seq_idx=seq_idx, activation="silu")
        torch.testing.assert_close(packed, y)


@pytest.mark.parametrize("transform", ["vmap", "grad of vmap"])
def test_states_alone_may_be_a_batch_under_vmap(transform: str) -> None:
    given = draw(4, torch.float64)
    states = given.pop("initial_states")

    def run(states: Tensor) -> Tensor:
        return causal_conv1d(**given, initial_states=states, activation="silu", backend="numpy")

    stacked = torch.stack((states, 2 * states))
    if transform == "vmap":
        torch.testing.assert_close(torch.vmap(run)(stacked), torch.stack([run(s) for s in stacked]))
    else:
        got = torch.func.grad(lambda s: torch.vmap(run)(s).pow(2).sum())(stacked)
        expected = [torch.func.grad(lambda s: run(s).pow(2).sum())(s) for s in stacked]
        torch.testing.assert_close(got, torch.stack(expected))


def wrong(**changed: object) -> dict[str, object]:
    return {**draw(4), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (wrong(seq_idx=torch.zeros(B, L)), RuntimeError, "seq_idx must be of an integer type"),
        (wrong(seq_idx=torch.zeros(B, 3, dtype=torch.int32)), RuntimeError, r"have shape \[2, 21\], but got"),
        (wrong(seq_idx=[0]), TypeError, "seq_idx must be a torch.Tensor or None"),
        (wrong(seq_idx=torch.zeros(B, L, dtype=torch.int32)), ValueError, "are for one sequence"),
        (wrong(activation="relu"), NotImplementedError, "activation must be None, 'silu' or 'swish', but got 'relu'"),
        (wrong(x=[1.0]), TypeError, "x must be a torch.Tensor, but got list"),
        (wrong(x=torch.ones(D, L)), RuntimeError, r"x must have shape \[B, D, L\], but got \[8, 21\]"),
        (wrong(x=torch.ones(B, D, L, dtype=torch.int32)), RuntimeError, "x must be of a floating type"),
        (wrong(x=torch.ones(B, D, 0)), RuntimeError, "x must not be empty"),
        (wrong(weight=torch.ones(D, 9)), RuntimeError, r"weight must have shape \[8, W\] with W from 2 to 8"),
        (wrong(bias=torch.ones(3)), RuntimeError, r"bias must have shape \[8\], but got \[3\]"),
        (wrong(bias=1.0), TypeError, "bias must be a torch.Tensor or None"),
        (wrong(initial_states=torch.ones(B, D, 4)), RuntimeError, "initial_states must have shape"),
        (wrong(final_states_out=torch.ones(B, D, 3)), ValueError, "return_final_states"),
        (wrong(weight=torch.ones(D, 4).double()), RuntimeError, "weight type"),
        (wrong(weight=torch.ones(D, 4).bfloat16()), RuntimeError, r"Weight type .*bfloat16\) and bias type .*float32"),
        (wrong(initial_states=torch.ones(B, D, 3).half(), weight=torch.ones(D, 4).half(), bias=None), RuntimeError,
         r"X type .*float32\) and initial_states type .*float16"),
        (wrong(backend="fast"), ValueError, "backend must be one of"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        causal_conv1d(**arguments)


def test_is_where_the_other_functions_are() -> None:
    assert gpuconv.functional.causal_conv1d is causal_conv1d
