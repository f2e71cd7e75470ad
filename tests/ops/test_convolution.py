"""The three ops are closed under differentiation: to any order, and under torch.func."""

import functools
import warnings

import pytest
import torch
from lanes import INTERPRETING, Lane, each_lane, each_of_ours
from small_problem import OUTPUT, SETTINGS, SHAPES, conv, same, tensors

import gpuconv
from gpuconv import ops
from gpuconv.settings import Settings

PADS = ((1, 1), (0, 0))
ACTIVATIONS = ["relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh"]


def fast(lane: Lane) -> dict[str, bool]:
    """A random projection of the Jacobian where every call takes long."""
    return {"fast_mode": INTERPRETING or lane == Lane("cuda", "cpu")}


def key_of(lane: Lane, activation: str = "none") -> str:
    return Settings((2, 1), PADS, (1, 2), 2, activation, lane.backend).encode()


@each_lane
def test_gradcheck_and_gradgradcheck(lane: Lane) -> None:
    assert torch.autograd.gradcheck(conv(lane), tensors(lane), **fast(lane))
    assert torch.autograd.gradgradcheck(conv(lane), tensors(lane), **fast(lane))


@each_of_ours
@pytest.mark.parametrize("activation", ["relu", "silu"] if INTERPRETING else [*ACTIVATIONS, "leaky_relu(-0.5)"])
def test_gradcheck_through_the_epilogue(lane: Lane, activation: str) -> None:
    if lane == Lane("cuda", "cpu") and activation in ("relu6", "sigmoid", "tanh"):
        pytest.skip("the host check compiles each activation anew; test_act_backward.py has their derivatives")
    x, w, b = tensors(lane)
    residual = torch.randn(OUTPUT, dtype=torch.float64, device=lane.device, requires_grad=True)

    def fused(*t: torch.Tensor) -> torch.Tensor:
        return ops.forward(*t, key_of(lane, activation))

    assert torch.autograd.gradcheck(fused, (x, w, b, residual), **fast(lane))
    assert torch.autograd.gradgradcheck(fused, (x, w, b, residual), **fast(lane))


@each_of_ours
def test_gradients_of_the_gradient_ops(lane: Lane) -> None:
    x, w, _ = tensors(lane)
    gy = torch.randn(OUTPUT, dtype=torch.float64, device=lane.device, requires_grad=True)
    for call, arguments in (
        (lambda gy, w: ops.grad_input(gy, w, x.shape, key_of(lane)), (gy, w)),
        (lambda gy, x: ops.grad_weight(gy, x, w.shape, True, key_of(lane)), (gy, x)),
        (lambda gy, x: ops.grad_weight(gy, x, w.shape, False, key_of(lane))[0], (gy, x)),
    ):
        assert torch.autograd.gradcheck(call, arguments, **fast(lane))
        assert torch.autograd.gradgradcheck(call, arguments, **fast(lane))


def third_derivative(f, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The third derivative of (Σ y³)², in the directions x and w by turns."""
    value = f(x, w, b).pow(3).sum().pow(2)
    for t in (x, w, x):
        (g,) = torch.autograd.grad(value, t, create_graph=True)
        value = g.pow(2).sum()
    return value


@each_of_ours
def test_third_derivatives_are_pytorchs(lane: Lane) -> None:
    got = third_derivative(conv(lane), *tensors(lane))
    expected = third_derivative(lambda x, w, b: torch.conv2d(x, w, b, **SETTINGS), *tensors(lane))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


@each_of_ours
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no-grad", "grad"])
def test_opcheck(lane: Lane, layout: str, requires_grad: bool) -> None:
    x, w, b = tensors(lane, False)
    gy = torch.randn(OUTPUT, dtype=torch.float64, device=lane.device)
    if layout == "channels_last":
        x, w, gy = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, gy))
    elif layout == "sliced":
        x, w, gy = (torch.cat([t, t], -1)[..., : t.shape[-1]] for t in (x, w, gy))
    x, w, b, gy = (t.detach().requires_grad_(requires_grad) for t in (x, w, b, gy))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opcheck's own imports
        for op, arguments in (
            (torch.ops.gpuconv.conv_forward, (x, w, b, None, key_of(lane))),
            (torch.ops.gpuconv.conv_forward, (x, w, b, gy, key_of(lane, "silu"))),
            (torch.ops.gpuconv.conv_grad_input, (gy, w, x.shape, key_of(lane))),
            (torch.ops.gpuconv.conv_grad_weight, (gy, x, w.shape, True, key_of(lane))),
        ):
            torch.library.opcheck(op.default, arguments)


@each_of_ours
def test_only_gradients_that_are_needed_are_computed(lane: Lane, monkeypatch) -> None:
    backend = gpuconv.backends.get(lane.backend)
    ran = []
    bind = type(backend).bind

    def watch(self, problem, direction, *rest, **more):
        run = bind(self, problem, direction, *rest, **more)
        return lambda *a: (ran.append(direction), run(*a))[1]

    monkeypatch.setattr(type(backend), "bind", watch)
    gpuconv.planning.plan._plans.clear()
    for needed, expected in (
        ((True, False, False), ["grad_input"]),
        ((False, True, False), ["grad_weight"]),
        ((False, True, True), ["grad_weight"]),
        ((False, False, True), []),
        ((True, True, True), ["grad_input", "grad_weight"]),
    ):
        given = [t.requires_grad_(need) for t, need in zip(tensors(lane, False), needed, strict=True)]
        y = conv(lane)(*given)
        ran.clear()
        y.sum().backward()
        assert ran == expected
        assert [t.grad is not None for t in given] == list(needed)
    gpuconv.planning.plan._plans.clear()


@each_of_ours
def test_incoming_gradient_is_left_alone_and_may_be_expanded(lane: Lane) -> None:
    x, w, b = tensors(lane)
    y = conv(lane)(x, w, b)
    g = torch.ones(1, dtype=y.dtype, device=y.device).expand(y.shape)
    y.backward(g)
    assert (g == 1).all()
    torch.testing.assert_close(b.grad, torch.full_like(b, y.numel() / b.numel()))


@each_of_ours
def test_func_grad_and_hessian_are_pytorchs(lane: Lane) -> None:
    x, w, b = tensors(lane, False)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got = transform(lambda w: conv(lane)(x, w, b).pow(3).sum())(w)
        expected = transform(lambda w: torch.conv2d(x, w, b, **SETTINGS).pow(3).sum())(w)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@each_of_ours
@pytest.mark.parametrize(
    "in_dims", [(0, None, None), (1, None, None), (None, 0, None), (None, 2, 0), (0, 1, None), (None, None, 0)]
)
def test_vmap_is_a_loop(lane: Lane, in_dims: tuple[int | None, ...]) -> None:
    given = tensors(lane, False)
    given = [t if d is None else torch.stack([t, 2 * t, t - 1], d) for t, d in zip(given, in_dims, strict=True)]

    def loss_and_gradients(x, w, b):
        g, y = torch.func.grad_and_value(lambda t: conv(lane)(*t).pow(3).sum())((x, w, b))
        return (y, *g)

    got = torch.vmap(loss_and_gradients, in_dims)(*given)
    for i in range(3):
        one = [t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)]
        for g, e in zip(got, loss_and_gradients(*one), strict=True):
            torch.testing.assert_close(g[i], e, rtol=1e-10, atol=1e-10)


@each_of_ours
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["float64", "complex128"])
@pytest.mark.parametrize(
    "settings",  # the second with more output_padding than the stride leaves open
    [dict(stride=2, padding=1), dict(output_padding=2, dilation=3, padding=1)],
    ids=["stride", "output_padding"],
)
def test_transposed_and_complex_under_torch_func(lane: Lane, dtype: torch.dtype, settings: dict) -> None:
    if INTERPRETING:
        pytest.skip("the interpreter is slow, and the ops are transformed above")
    x, w, b = (t.detach().to(dtype) for t in tensors(lane))
    if dtype.is_complex:
        x, w, b = x * (1 + 2j), w * (0.5 - 1j), b * 1j
    ours = functools.partial(gpuconv.conv_transpose2d, groups=2, **settings, backend=lane.backend)
    theirs = functools.partial(torch.conv_transpose2d, groups=2, **settings)

    def gradients(f, *t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.grad(lambda t: f(*t).abs().pow(2).sum())(t)

    same(gradients(ours, x, w, b), gradients(theirs, x, w, b))
    tangents = (3 * x, w + 1, b)
    same(torch.func.jvp(ours, (x, w, b), tangents), torch.func.jvp(theirs, (x, w, b), tangents))
    xs, ws = (torch.stack([t, 2 * t, t - 1]) for t in (x, w))
    got = torch.vmap(lambda x, w: gradients(ours, x, w, b))(xs, ws)
    for i in range(3):
        same([g[i] for g in got], gradients(theirs, xs[i], ws[i], b))


@each_of_ours
def test_functional_call_and_checkpointing_of_a_transposed_layer(lane: Lane) -> None:
    layer = gpuconv.nn.ConvTranspose2d(SHAPES[0][1], 3, 3, stride=2, dtype=torch.float64, device=lane.device)
    x = tensors(lane)[0]
    parameters = dict(layer.named_parameters())
    with gpuconv.use_backend(lane.backend):
        loss = lambda p: torch.func.functional_call(layer, p, (x,)).pow(2).sum()  # noqa: E731
        got = torch.func.grad(loss)(parameters)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        expected = torch.autograd.grad(y.pow(2).sum(), layer.parameters())
    same(got.values(), expected)


@each_of_ours
@pytest.mark.parametrize("of", ["output", "gradient"])
def test_vmap_of_jvp(lane: Lane, of: str) -> None:
    x, w, b = tensors(lane, False)
    tangents = torch.randn(3, *w.shape, dtype=w.dtype, device=w.device)

    def f(w: torch.Tensor) -> torch.Tensor:
        if of == "output":
            return conv(lane)(x, w, b)
        return torch.func.grad(lambda x: conv(lane)(x, w, b).pow(3).sum())(x)

    got = torch.vmap(lambda t: torch.func.jvp(f, (w,), (t,))[1])(tangents)
    step = 1e-6
    for g, t in zip(got, tangents, strict=True):
        numeric = (f(w + step * t) - f(w - step * t)) / (2 * step)
        torch.testing.assert_close(g, numeric, rtol=1e-5, atol=1e-5)


@each_of_ours
def test_forward_mode_works_outside_torch_func(lane: Lane) -> None:
    assert torch.autograd.gradcheck(
        conv(lane), tensors(lane), check_forward_ad=True, check_backward_ad=False, **fast(lane)
    )


@each_of_ours
def test_epilogue_under_torch_func_is_the_same_function(lane: Lane) -> None:
    x, w, b = tensors(lane, False)
    for activation in ACTIVATIONS:
        key = key_of(lane, activation)
        residual = torch.randn(OUTPUT, dtype=torch.float64, device=lane.device)
        got = torch.func.grad(lambda w: ops.forward(x, w, b, residual, key).pow(2).sum())(w)  # noqa: B023  # called now
        w_grad = w.clone().requires_grad_()
        (expected,) = torch.autograd.grad(ops.forward(x, w_grad, b, residual, key).pow(2).sum(), w_grad)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@each_of_ours
def test_checkpointing_and_inference_mode(lane: Lane) -> None:
    x, w, b = tensors(lane)
    expected = torch.autograd.grad(conv(lane)(x, w, b).sum(), w)[0]
    y = torch.utils.checkpoint.checkpoint(conv(lane), x, w, b, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), w)[0], expected)
    with torch.inference_mode():
        assert conv(lane)(x, w, b).is_inference()
    with torch.no_grad():
        assert not conv(lane)(x, w, b).requires_grad


@each_of_ours
def test_a_large_batch_of_backward_passes_on_threads(lane: Lane) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(seed: int) -> torch.Tensor:
        x = torch.randn(1, SHAPES[0][1], 5 + seed % 3, 6, dtype=torch.float64, device=lane.device)
        _, w, b = tensors(lane)
        conv(lane)(x, w, b).sum().backward()
        expected = torch.autograd.grad(torch.conv2d(x, w, b, **SETTINGS).sum(), w)[0]
        return (w.grad - expected).abs().max()

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(one, range(16))) < 1e-10
