"""The three ops are closed under differentiation: to any order, under torch.func, compiled and exported."""

import functools
import io
import warnings

import pytest
import torch
from lanes import INTERPRETING, LANES, Lane, each_lane
from torch.utils.flop_counter import FlopCounterMode

import gpuconv
from gpuconv import ops
from gpuconv.settings import Settings

OURS = [lane for lane in LANES if lane.backend != "aten"]  # `aten` has no ops of ours in its way
each_of_ours = pytest.mark.parametrize("lane", OURS, ids=str)
SETTINGS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
PADS = ((1, 1), (0, 0))
# Input, weight and bias, and what comes out; tiny where it takes long.
SHAPES = ((1, 2, 4, 5), (2, 1, 2, 2), (2,)) if INTERPRETING else ((2, 4, 5, 6), (4, 2, 3, 2), (4,))
OUTPUT = (1, 2, 3, 3) if INTERPRETING else (2, 4, 3, 4)
ACTIVATIONS = ["relu", "leaky_relu(0.2)", "silu", "gelu", "gelu_tanh", "hardswish", "relu6", "sigmoid", "tanh"]


def fast(lane: Lane) -> dict[str, bool]:
    """A random projection of the Jacobian where every call takes long."""
    return {"fast_mode": INTERPRETING or lane == Lane("cuda", "cpu")}


def key_of(lane: Lane, activation: str = "none") -> str:
    return Settings((2, 1), PADS, (1, 2), 2, activation, lane.backend).encode()


def tensors(lane: Lane, requires_grad: bool = True) -> list[torch.Tensor]:
    """input, weight, bias of a small grouped problem, float64."""
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, device=lane.device, requires_grad=requires_grad) for s in SHAPES]


def conv(lane: Lane):
    return lambda x, w, b: gpuconv.conv2d(x, w, b, **SETTINGS, backend=lane.backend)


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
    """Of (Σ y³)² in the directions x and w by turns."""
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
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(lane: Lane, dynamic: bool, layout: torch.memory_format) -> None:
    torch._dynamo.reset()

    def f(x, w, b):
        return conv(lane)(x.relu(), w, b).square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    n, c, _, width = SHAPES[0]
    for size in (5, 7):
        _, w, b = tensors(lane)
        x = torch.randn(n, c, size, width, dtype=torch.float64, device=lane.device).contiguous(memory_format=layout)
        x.requires_grad_()
        got = torch.autograd.grad(compiled(x, w, b), (x, w, b))
        expected = torch.autograd.grad(f(x, w, b), (x, w, b))
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def once_on_the_cpu(lane: Lane) -> None:
    """Skip the slower backends of the CPU where nothing depends on which it is."""
    if lane.device == "cpu" and lane.backend != "numpy":
        pytest.skip("numpy has shown it: nothing here depends on the backend, and this one is slow")


class Six(torch.nn.Module):
    """One layer of each kind, side by side."""

    def __init__(self, nn, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(0)
        settings = dict(stride=2, padding=1, groups=2, dtype=dtype, device=device)
        self.layers = torch.nn.ModuleList()
        for d in (1, 2, 3):
            self.layers.append(getattr(nn, f"Conv{d}d")(4, 6, 3, **settings))
            self.layers.append(getattr(nn, f"ConvTranspose{d}d")(4, 6, 3, **settings, output_padding=1))

    def forward(self, *images: torch.Tensor) -> list[torch.Tensor]:
        return [layer(images[i // 2]) for i, layer in enumerate(self.layers)]


def three_images(dtype: torch.dtype, device: str, size: int = 4) -> list[torch.Tensor]:
    """One for each number of axes."""
    shapes = [(2, 4, *(size, 3, 5)[:d]) for d in (1, 2, 3)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def gradients(net, images: list[torch.Tensor], parameters) -> list[torch.Tensor]:
    loss = sum((y * y.conj()).real.sum() for y in net(*images))
    return list(torch.autograd.grad(loss, (*images, *parameters)))


def same(got, expected) -> None:
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10)


@each_of_ours
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_function_compiles_without_a_graph_break(lane: Lane, dynamic: bool) -> None:
    once_on_the_cpu(lane)
    for dtype in (torch.float64, torch.complex128) if not dynamic else (torch.float64,):
        torch._dynamo.reset()
        net, theirs = Six(gpuconv.nn, dtype, lane.device), Six(torch.nn, dtype, lane.device)
        compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for size in (4, 6)[: 1 + dynamic]:
            images = three_images(dtype, lane.device, size)
            with gpuconv.use_backend(lane.backend):
                got = gradients(compiled, images, net.parameters())
            same(got, gradients(theirs, images, theirs.parameters()))


@each_of_ours
def test_every_layer_is_exported_with_its_gradients(lane: Lane) -> None:
    once_on_the_cpu(lane)
    net = Six(gpuconv.nn, device=lane.device)
    auto = torch.export.Dim.AUTO
    images = three_images(torch.float64, lane.device)
    with gpuconv.use_backend(lane.backend):
        program = torch.export.export(
            net, tuple(images), dynamic_shapes={"images": tuple({0: auto, 2: auto} for _ in images)}
        )
        text = str(program.graph)
        assert text.count("gpuconv.conv_forward") == text.count("gpuconv.conv_grad_input") == 3
        images = three_images(torch.float64, lane.device, 7)
        expected = gradients(net, images, net.parameters())
    loaded = program.module()
    same(
        gradients(loaded, images, [dict(loaded.named_parameters())[name] for name, _ in net.named_parameters()]),
        expected,
    )


@each_of_ours
def test_the_flop_counter_counts_what_it_counts_for_pytorch(lane: Lane) -> None:
    once_on_the_cpu(lane)
    images = three_images(torch.float64, lane.device)
    counts = []
    for nn, backend in ((torch.nn, "aten"), (gpuconv.nn, lane.backend)):
        net = Six(nn, device=lane.device)
        with gpuconv.use_backend(backend), FlopCounterMode(display=False) as counter:
            outputs = net(*images)
            forward = counter.get_total_flops()
            sum(y.sum() for y in outputs).backward()
        by_layer = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        counts.append((forward, by_layer))
    assert counts[0] == counts[1]
    assert 0 < counts[0][0] < counts[0][1]["Global"]


@each_of_ours
def test_compiled_code_follows_use_backend(lane: Lane) -> None:
    torch._dynamo.reset()
    x, w, b = tensors(lane, False)
    graphs = []

    def look(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(lambda x: gpuconv.conv2d(x, w, b, **SETTINGS), fullgraph=True, backend=look)
    with gpuconv.use_backend("aten"):
        compiled(x)
    with gpuconv.use_backend(lane.backend):
        compiled(x)
    assert "gpuconv" not in graphs[0] and f"backend={lane.backend}" in graphs[1]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = gpuconv.nn.Conv2d(SHAPES[0][1], SHAPES[1][0], SHAPES[1][2:], **SETTINGS).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


@each_of_ours
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_an_exported_program_saved_and_loaded_still_gives_gradients(lane: Lane, strict: bool) -> None:
    net = Net().to(lane.device)
    x = tensors(lane)[0]
    with gpuconv.use_backend(lane.backend):
        program = torch.export.export(net, (x,), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        assert "conv_forward" in str(program.graph)
        expected = net(x)
    got = loaded(x)
    torch.testing.assert_close(got, expected)
    expected_gx, expected_gw = torch.autograd.grad(expected.sum(), (x, net.conv.weight))
    (got_gx,) = torch.autograd.grad(got.sum(), x, retain_graph=True)
    got.sum().backward()
    torch.testing.assert_close(got_gx, expected_gx)
    torch.testing.assert_close(dict(loaded.named_parameters())["conv.weight"].grad, expected_gw)


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
