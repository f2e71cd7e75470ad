"""The fused epilogue, conv2d_act and ConvAct2d: equal to convolution, addition and activation one after the other."""

import copy
import io
import pickle

import pytest
import torch
from lanes import LANES, Lane

import gpuconv
from gpuconv.activations import LIPSCHITZ, Activation, activate_tensor
from gpuconv.functional import conv1d_act, conv2d_act, conv3d_act

each_lane = pytest.mark.parametrize("lane", [lane for lane in LANES if lane != Lane("cuda", "cpu")], ids=str)
SETTINGS = dict(stride=(2, 1), padding=1, dilation=(1, 2), groups=2)


def operands(lane: Lane, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """input, weight, bias, residual."""
    shapes = ((2, 4, 7, 6), (6, 2, 3, 2), (6,), (2, 6, 4, 6))
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [t.to(lane.device, dtype).requires_grad_() for t in made]


def one_by_one(activation: str, x, w, b, residual=None) -> torch.Tensor:
    y = torch.conv2d(x, w, b, **SETTINGS)
    return activate_tensor(Activation.parse(activation), y if residual is None else y + residual)


def same(got, expected, tolerance: float = 1e-12) -> None:
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=tolerance, atol=tolerance)


def to_the_second_order(f, tensors) -> list[torch.Tensor]:
    """Value, gradients, and the gradients of a function of those."""
    y = f(*tensors)
    first = torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), tensors)
    return [y, *first, *second]


@each_lane
@pytest.mark.parametrize("activation", [*LIPSCHITZ, "leaky_relu(-0.2)"])
def test_values_and_derivatives_are_those_of_one_after_the_other(lane: Lane, activation: str) -> None:
    tensors = operands(lane)
    for count in (2, 3, 4):

        def fused(x, w, b=None, residual=None):
            return conv2d_act(x, w, b, **SETTINGS, activation=activation, residual=residual, backend=lane.backend)

        def unfused(x, w, b=None, residual=None):
            return one_by_one(activation, x, w, b, residual)

        same(to_the_second_order(fused, tensors[:count]), to_the_second_order(unfused, tensors[:count]), 1e-10)


@each_lane
def test_one_and_three_axes_and_unbatched_images(lane: Lane) -> None:
    torch.manual_seed(0)
    for d, function, conv in (
        (1, conv1d_act, torch.conv1d),
        (2, conv2d_act, torch.conv2d),
        (3, conv3d_act, torch.conv3d),
    ):
        x, w = (
            torch.randn(2, 4, *(5, 4, 3)[:d], dtype=torch.float64),
            torch.randn(6, 4, *(2,) * d, dtype=torch.float64),
        )
        x, w = x.to(lane.device), w.to(lane.device)
        y = conv(x, w)
        r = torch.randn_like(y)
        same([function(x, w, residual=r, backend=lane.backend)], [(y + r).relu()])
        same([function(x[0], w, residual=r[0], backend=lane.backend)], [(y[0] + r[0]).relu()])


@each_lane
def test_the_bias_alone_is_trained_in_one_pass(lane: Lane) -> None:
    """The derivative's kernel gives the bias's gradient where no gradient of the weight is asked for."""
    for activation in ("relu", "silu"):
        x, w, b, r = (t.detach() for t in operands(lane))
        b.requires_grad_()
        (got,) = torch.autograd.grad(
            conv2d_act(x, w, b, **SETTINGS, activation=activation, residual=r, backend=lane.backend).sum(), b
        )
        same([got], torch.autograd.grad(one_by_one(activation, x, w, b, r).sum(), b))


def test_nothing_is_kept_that_is_not_needed() -> None:
    lane = Lane("numpy", "cpu")

    def kept(activation: str, *frozen: int) -> list[torch.Size]:
        tensors = [t.detach() if i in frozen else t for i, t in enumerate(operands(lane))]
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.shape), t)[1], lambda t: t):
            x, w, b, r = tensors
            conv2d_act(x, w, b, **SETTINGS, activation=activation, residual=r, backend="numpy")
        return sorted(map(tuple, sizes))

    x, w, b, r = (tuple(t.shape) for t in operands(lane))
    for activation in ("relu", "relu6", "leaky_relu", "sigmoid", "tanh"):
        assert kept(activation) == sorted([x, w, r])  # r: the output
        assert kept(activation, 0) == sorted([x, r])
        assert kept(activation, 1, 2) == sorted([w, r])
    for activation in ("silu", "gelu", "gelu_tanh", "hardswish", "leaky_relu(-0.2)"):
        assert kept(activation) == sorted([x, w, b, r])  # r: the residual; no output


@each_lane
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_all_operands(lane: Lane, dtype: torch.dtype) -> None:
    tensors = operands(lane, torch.float32)
    x, w, b, r = tensors
    with torch.autocast(lane.device, dtype):
        y = conv2d_act(x, w, b, **SETTINGS, activation="silu", residual=r, backend=lane.backend)
    assert y.dtype is dtype
    got = torch.autograd.grad(y.float().sum(), tensors)
    expected = torch.autograd.grad(one_by_one("silu", *tensors).sum(), tensors)
    assert all(g.dtype is torch.float32 for g in got)
    same(got, expected, 0.1)


@each_lane
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_layer_compiles_without_a_graph_break(lane: Lane, dynamic: bool) -> None:
    torch._dynamo.reset()
    for activation in ("relu", "gelu"):
        layer = gpuconv.nn.ConvAct2d(4, 6, 3, padding=1, activation=activation, dtype=torch.float64, device=lane.device)
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for size in (5, 7)[: 1 + dynamic]:
            x = torch.randn(2, 4, size, 6, dtype=torch.float64, device=lane.device, requires_grad=True)
            residual = torch.randn(2, 6, size, 6, dtype=torch.float64, device=lane.device, requires_grad=True)
            leaves = (x, residual, *layer.parameters())
            with gpuconv.use_backend(lane.backend):
                got = torch.autograd.grad(compiled(x, residual).pow(2).sum(), leaves)
                same(got, torch.autograd.grad(layer(x, residual).pow(2).sum(), leaves))


def test_layer_is_exported_with_its_gradients() -> None:
    layer = gpuconv.nn.ConvAct2d(4, 6, 3, activation="tanh", dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    with gpuconv.use_backend("numpy"):
        program = torch.export.export(layer, (x,))
        expected = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert "activation=tanh" in str(program.graph)
    same(torch.autograd.grad(loaded(x).sum(), (x, dict(loaded.named_parameters())["weight"])), expected)


def test_torch_func_and_vmap() -> None:
    x, w, b, r = (t.detach() for t in operands(Lane("numpy", "cpu")))

    def loss(f, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return f(x, w, b, r).pow(2).sum()

    for activation in ("relu6", "gelu"):
        ours = lambda *t, a=activation: conv2d_act(*t[:3], **SETTINGS, activation=a, residual=t[3], backend="numpy")  # noqa: E731
        theirs = lambda *t, a=activation: one_by_one(a, *t)  # noqa: E731
        xs = torch.stack((x, -x))
        got, expected = (
            torch.vmap(torch.func.grad(lambda w, x, f=f: loss(f, w, x)), in_dims=(None, 0))(w, xs)
            for f in (ours, theirs)
        )
        same([got], [expected])


BAD = {
    "activation": (dict(activation="softmax"), ValueError, "activation must be one of none, relu"),
    "activation kind": (dict(activation=3), TypeError, "activation must be a str"),
    "residual size": (dict(residual=torch.zeros(1, 6, 4, 6)), RuntimeError, r"residual of size \[2, 6, 4, 6\]"),
    "residual type": (dict(residual=torch.zeros(2, 6, 4, 6)), RuntimeError, "residual type .* should be the same"),
}


@pytest.mark.parametrize("backend", ["aten", "numpy"])
@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case: str, backend: str) -> None:
    changes, kind, message = BAD[case]
    x, w, b, _ = operands(Lane("numpy", "cpu"))
    if "size" in case:
        changes = {"residual": changes["residual"].double()}
    with pytest.raises(kind, match=message):
        conv2d_act(x, w, b, **SETTINGS, backend=backend, **changes)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (torch.nn.SiLU(), "silu"), (torch.nn.ReLU(inplace=True), "relu"), (torch.nn.ReLU, "relu"),
        (torch.nn.LeakyReLU(0.2), "leaky_relu(0.2)"), (torch.nn.LeakyReLU, "leaky_relu"), (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU("tanh"), "gelu_tanh"), (torch.nn.Hardtanh(0, 6), "relu6"), (torch.nn.Identity(), "none"),
        (None, "none"), (torch.nn.functional.silu, "silu"), (torch.tanh, "tanh"), ("leaky_relu(0.01)", "leaky_relu"),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),  # without addresses: workers are to agree
)  # fmt: skip
def test_an_activation_may_be_pytorchs_module_or_function(given, name: str) -> None:
    layer = gpuconv.nn.ConvAct2d(4, 6, 3, activation=given)
    assert layer.activation == name
    x = torch.randn(1, 4, 5, 5)
    plain = torch.conv2d(x, layer.weight, layer.bias)
    expected = given()(plain) if isinstance(given, type) else given(plain.clone()) if callable(given) else layer(x)
    same([layer(x)], [expected], 1e-5)


@pytest.mark.parametrize(
    "given",
    [torch.nn.Softplus(), torch.nn.Softplus, torch.nn.Hardtanh(), torch.nn.functional.softplus, 3, [], "swoosh"],
)
def test_an_activation_that_is_not_known_is_one_clear_error(given) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^activation must be [^\n]*, but got [^\n]*$"):
        gpuconv.nn.ConvAct2d(4, 6, 3, activation=given)


def test_layers_are_convolutions_with_an_activation() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        gpuconv.nn.ConvAct2d(4, 6, 3, activation="softmax")
    for d in (1, 2, 3):
        layer = getattr(gpuconv.nn, f"ConvAct{d}d")(4, 6, 3, padding=1, padding_mode="circular", activation="silu")
        plain = getattr(torch.nn, f"Conv{d}d")(4, 6, 3, padding=1, padding_mode="circular")
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(2, 4, *(5, 6, 7)[:d])
        for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            same([other(x)], [torch.nn.functional.silu(plain(x))], 1e-5)
        assert "activation=silu" in repr(layer)
    assert not gpuconv.convert(torch.nn.Sequential(layer)).kept
