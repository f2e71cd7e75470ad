"""torch.func and forward-mode AD of our functions, nested and compiled, give PyTorch's results in float64."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lanes import INTERPRETING, OURS, Lane
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import gpuconv
from gpuconv import functional
from gpuconv.ops.act_backward import act_backward
from gpuconv.settings import Settings

Function = Callable[[torch.Tensor], torch.Tensor]


def along(f: Function) -> Function:
    """The derivative of f in the direction of its argument squared, in forward mode."""
    return lambda q: jvp(f, (q,), (q * q,))[1]


def dual(f: Function) -> Function:
    def tangent(q: torch.Tensor) -> torch.Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(q, q * q))).tangent

    return tangent


def total(f: Function) -> Function:
    return lambda q: f(q).pow(2).sum()


def batched(f: Function) -> Function:
    return lambda q: vmap(f)(torch.stack((q, 2 * q)))


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "jvp": along,
    "dual": dual,
    "jvp of jvp": lambda f: along(along(f)),
    "jvp of jvp of jvp": lambda f: along(along(along(f))),
    "dual of grad": lambda f: dual(grad(total(f))),
    "jvp of grad": lambda f: along(grad(total(f))),
    "grad of jvp": lambda f: grad(total(along(f))),
    "grad of jvp of jvp": lambda f: grad(total(along(along(f)))),
    "jvp of grad of jvp": lambda f: along(grad(total(along(f)))),
    "jvp of jvp of grad": lambda f: along(along(grad(total(f)))),
    "vmap of jvp of jvp": lambda f: batched(along(along(f))),
    "jvp of vmap of jvp": lambda f: along(batched(along(f))),
    "vmap of grad": lambda f: batched(grad(total(f))),
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(total(f))),
    "hessian": lambda f: hessian(total(f)),
}


def small(q: torch.Tensor, axes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, weight and bias of a convolution with two groups, all of them functions of q, which has 8 elements."""
    x = (q * q).reshape(1, 4, *(1,) * (axes - 1), 2)
    return x, torch.stack((q, q.sin())).reshape(8, 2, *(1,) * axes), q


def convolution(axes: int, namespace: object, transposed: bool, **more: object) -> Function:
    def f(q: torch.Tensor) -> torch.Tensor:
        x, w, b = small(q, axes)
        if transposed:
            w = w.reshape(4, 4, *w.shape[2:])
            return getattr(namespace, f"conv_transpose{axes}d")(x, w, b, stride=2, padding=0, groups=2, **more)
        return getattr(namespace, f"conv{axes}d")(x, w, b, stride=1, padding=1, groups=2, **more)

    return f


def activated(activation: str, backend: str | None) -> Function:
    def f(q: torch.Tensor) -> torch.Tensor:
        x, w, b = small(q, 2)
        if backend is not None:
            residual = q.reshape(1, 8, 1, 1).expand(1, 8, 1, 2)
            return functional.conv2d_act(x, w, b, groups=2, activation=activation, residual=residual, backend=backend)
        z = torch.conv2d(x, w, b, groups=2) + q.reshape(1, 8, 1, 1)
        if activation == "gelu_tanh":
            return F.gelu(z, approximate="tanh")
        return getattr(F, activation)(z)

    return f


def causal(backend: str | None, states: bool) -> Function:
    def f(q: torch.Tensor) -> torch.Tensor:
        x, w, b, s = q.reshape(1, 2, 4), q.sin()[:4].reshape(2, 2), q[:2], q[4:6].cos().reshape(1, 2, 1)
        if backend is not None:
            return functional.causal_conv1d(
                x, w, b, initial_states=s if states else None, activation="silu", backend=backend
            )
        return F.silu(torch.conv1d(torch.cat((s if states else 0 * s, x), -1), w.unsqueeze(1), b, groups=2))

    return f


def act_gradient(activation: str, backend: str | None) -> Function:
    """silu's or tanh's gradient in a direction, as a function of both."""

    def f(q: torch.Tensor) -> torch.Tensor:
        gy, z = q.reshape(1, 2, 4), q.sin().reshape(1, 2, 4)
        if backend is None:
            t = torch.tanh(z)
            s = torch.sigmoid(z)
            return gy * (1 - t * t if activation == "tanh" else s * (1 + z * (1 - s)))
        key = Settings((1,), ((0, 0),), (1,), 1, activation, backend).encode()
        return act_backward(gy, z.tanh() if activation == "tanh" else z, False, key)[0]

    return f


def functions(backend: str | None) -> dict[str, Function]:
    """Functions to transform, by the backend; by PyTorch if None."""
    more = {} if backend is None else {"backend": backend}
    namespace = torch if backend is None else gpuconv
    found = {
        f"conv{'_transpose' * transposed}{axes}d": convolution(axes, namespace, transposed, **more)
        for axes in (1, 2, 3)
        for transposed in (False, True)
    }
    found |= {a: activated(a, backend) for a in ("relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "hardswish")}
    found |= {"causal_conv1d": causal(backend, False), "causal_conv1d with states": causal(backend, True)}
    return found | {f"gradient of {a}": act_gradient(a, backend) for a in ("silu", "tanh")}


NAMES = list(functions(None))
Q = torch.tensor([0.5, -1.2, 0.8, 2.0, -0.7, 1.1, 0.3, -0.4], dtype=torch.float64)


@functools.cache
def expected(name: str, transform: str) -> torch.Tensor:
    return TRANSFORMS[transform](functions(None)[name])(Q)


def hold(name: str, transform: str, got: torch.Tensor) -> None:
    # PyTorch's hardswish has 1/6 in float32 in its gradient
    tolerance = 1e-6 if name == "hardswish" else 1e-9
    torch.testing.assert_close(got, expected(name, transform), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("lane", "name"),
    [  # the backend matters to the ops alone, and the others are slow
        pytest.param(lane, name, id=f"{name}-{lane}")
        for lane in OURS
        for name in (NAMES if lane.backend == "numpy" else ("conv2d", "conv_transpose2d", "silu"))
    ],
)
def test_transforms_on_top_of_each_other_are_pytorchs(lane: Lane, name: str) -> None:
    fewer = INTERPRETING or lane.backend == "cuda"
    for transform in ("jvp of jvp", "jvp of grad") if fewer else TRANSFORMS:
        got = TRANSFORMS[transform](functions(lane.backend)[name])(Q.to(lane.device))
        hold(name, transform, got.cpu())


QUICK = ("jvp", "dual", "jvp of jvp", "jvp of grad", "vmap of grad", "jacrev")
COMPILED = [
    pytest.param(transform, name, id=f"{name}, {transform}", marks=() if quick else pytest.mark.full)
    for name in ("silu", "conv_transpose2d", "causal_conv1d with states", "gradient of silu")
    for transform in TRANSFORMS
    if transform != "jvp of jvp of grad"  # which PyTorch does not compile for its own convolutions either
    for quick in [(name == "silu" and transform in QUICK) or transform == "jvp"]
]


@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")  # Inductor's own
@pytest.mark.parametrize(("transform", "name"), COMPILED)
def test_a_compiled_transform_is_pytorchs_in_one_graph(transform: str, name: str, pytestconfig: pytest.Config) -> None:
    if INTERPRETING:
        pytest.skip("compiled code calls the same ops, whose kernels are interpreted in the other tests")
    backends = ["aot_eager"]
    if pytestconfig.getoption("--full"):
        backends += ["eager", "inductor"]
    for backend in backends:
        torch._dynamo.reset()
        f = TRANSFORMS[transform](functions("numpy")[name])
        hold(name, transform, torch.compile(f, backend=backend, fullgraph=True)(Q))


def test_settings_may_be_inputs_of_compiled_code() -> None:
    """Ints that are inputs, or come from sizes, are symbols for the compiler."""
    x, w = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(4, 4, 3, 3, dtype=torch.float64)

    def settings(x: torch.Tensor, w: torch.Tensor, n: int, namespace: object, **more: object) -> list[torch.Tensor]:
        c = x.shape[1]
        return [
            namespace.conv2d(x, w, None, n, w.shape[2] // 2, **more),
            namespace.conv2d(x, w, None, 1, "same", (n, 1), **more),
            namespace.conv2d(x, w[:, :1], None, (1, n), [n, 0], 1, c, **more),
            namespace.conv_transpose2d(x, w, None, n, n - 1, n - 1, 1, (n, 1), **more),
        ]

    torch._dynamo.reset()
    ours = functools.partial(settings, namespace=gpuconv, backend="numpy")
    compiled = torch.compile(ours, backend="eager", fullgraph=True, dynamic=True)
    for n in (2, 3):
        torch.testing.assert_close(compiled(x, w, n), settings(x, w, n, torch), rtol=1e-12, atol=1e-12)


def test_a_causal_weight_may_be_an_input_of_dynamic_code() -> None:
    torch._dynamo.reset()

    def run(x: torch.Tensor, w: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return functional.causal_conv1d(x, w, w[:, 0], initial_states=states, backend="numpy")

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, channels, length, width in ((2, 3, 7, 4), (3, 5, 9, 4), (2, 3, 2, 3)):
        x, w = torch.randn(batch, channels, length), torch.randn(channels, width)
        states = torch.randn(batch, channels, width - 1)
        torch.testing.assert_close(compiled(x, w, states), run(x, w, states))
