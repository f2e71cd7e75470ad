"""The convolutions behave as PyTorch's: arguments, layouts, autocast, and errors raised before any work."""

import gc
import inspect
import warnings
import weakref

import numpy as np
import pytest
import torch
from lanes import Lane, each_lane
from torch.utils.flop_counter import FlopCounterMode

import gpuconv
from gpuconv import functional, ops, transposed
from gpuconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from gpuconv.settings import Settings

CALLS = {
    "plain": {},
    "ints": dict(stride=2, padding=1, dilation=1),
    "tuples": dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "lists": dict(stride=[2, 1], padding=[1, 0], dilation=[1, 2]),
    "ones": dict(stride=(2,), padding=[1]),
    "same": dict(padding="same", dilation=2),
    "valid": dict(padding="valid"),
    "groups": dict(groups=2),
}


@each_lane
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
def test_conv2d_is_pytorchs(lane: Lane, call: str, with_bias: bool, unbatched: bool) -> None:
    arguments = CALLS[call]
    torch.manual_seed(0)
    x = torch.randn(4, 9, 8, dtype=torch.float64, device=lane.device)
    x = x if unbatched else torch.stack([x, x + 1])
    w = torch.randn(6, 4 // arguments.get("groups", 1), 3, 2, dtype=torch.float64, device=lane.device)
    b = torch.randn(6, dtype=torch.float64, device=lane.device) if with_bias else None
    for _ in range(2):  # planned, then repeated
        got = conv2d(x, w, b, **arguments, backend=lane.backend)
        torch.testing.assert_close(got, torch.nn.functional.conv2d(x, w, b, **arguments), rtol=0, atol=1e-12)


@each_lane
@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
def test_conv1d_is_pytorchs(lane: Lane, unbatched: bool) -> None:
    x = torch.randn(4, 19, dtype=torch.float64, device=lane.device)
    x = x if unbatched else torch.stack([x, x + 1])
    w = torch.randn(6, 2, 3, dtype=torch.float64, device=lane.device)
    b = torch.randn(6, dtype=torch.float64, device=lane.device)
    for arguments in (dict(stride=2, padding=1), dict(padding="same", dilation=3), dict(stride=(3,), padding=[2])):
        got = conv1d(x, w, b, groups=2, **arguments, backend=lane.backend)
        expected = torch.nn.functional.conv1d(x, w, b, groups=2, **arguments)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


CONVOLUTIONS = [conv1d, conv2d, conv3d]
TRANSPOSED = [conv_transpose1d, conv_transpose2d, conv_transpose3d]


@pytest.mark.parametrize("ours", [*CONVOLUTIONS, *TRANSPOSED], ids=lambda f: f.__name__)
def test_signature_is_pytorchs_and_backend(ours) -> None:
    names = list(inspect.signature(ours).parameters)
    first = ["input", "weight", "bias", "stride", "padding"]
    rest = ["output_padding", "groups", "dilation"] if ours in TRANSPOSED else ["dilation", "groups"]
    assert names == [*first, *rest, "backend"]
    assert getattr(gpuconv, ours.__name__) is ours


@each_lane
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_are_pytorchs_whatever_the_backend(lane: Lane, dtype: torch.dtype) -> None:
    if lane.device != "cpu":
        pytest.skip("PyTorch has integer convolutions on the CPU alone")
    x, w = (torch.randint(0, 9, size, dtype=dtype) for size in ((2, 4, 5, 6), (4, 2, 3, 2)))
    got = conv2d(x, w, groups=2, padding=1, backend=lane.backend)
    assert got.dtype is dtype and torch.equal(got, torch.conv2d(x, w, groups=2, padding=1))
    if dtype is torch.int64:
        got = conv_transpose2d(x, w, stride=2, groups=2, backend=lane.backend)
        assert torch.equal(got, torch.conv_transpose2d(x, w, stride=2, groups=2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("ours", [conv2d, conv_transpose2d], ids=lambda f: f.__name__)
def test_a_dtype_that_pytorch_refuses_raises_the_same_error(ours, dtype: torch.dtype) -> None:
    x, w = torch.zeros(1, 2, 4, 4).to(dtype), torch.zeros(2, 2, 3, 3).to(dtype)
    theirs = getattr(torch, ours.__name__)
    try:
        theirs(x, w)
    except RuntimeError as error:  # or NotImplementedError, which is one
        with pytest.raises(RuntimeError, match=r"not implemented for|computes float16, bfloat16, float32 and float64"):
            ours(x, w, backend="numpy")
        with pytest.raises(type(error)):
            ours(x, w, backend="auto")
    else:
        assert torch.equal(ours(x, w, backend="numpy"), theirs(x, w))
    with pytest.raises(ValueError, match="backend must be one of"):
        ours(x, w, backend="numby")


def test_uneven_same_warns_once_as_pytorch_does() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 2, 3)
    functional._keys.clear()
    functional._warn_of_uneven_padding.cache_clear()
    with pytest.warns(UserWarning, match="Using padding='same' with even kernel lengths and odd dilation") as caught:
        got = conv2d(x, w, padding="same", backend="numpy")
    assert caught[0].filename == __file__
    conv2d(x, w, padding="same", dilation=3, backend="numpy")  # warnings are errors here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(got, torch.conv2d(x, w, padding="same"))


def test_symbolic_tracing_keeps_the_choice_of_backend_open() -> None:
    net = torch.nn.Sequential(gpuconv.nn.Conv2d(2, 3, 3, padding=1), gpuconv.nn.ConvTranspose2d(3, 2, 3, stride=2))
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [
        functional._conv,
        transposed._conv_transpose,
    ]
    x = torch.randn(1, 2, 5, 5)
    for backend in ("auto", "numpy"):
        with gpuconv.use_backend(backend), FlopCounterMode(display=False) as counter:  # names the ops that ran
            torch.testing.assert_close(traced(x), net(x))
        assert ("gpuconv" in str(counter.get_flop_counts()["Global"])) == (backend == "numpy")


@each_lane
@pytest.mark.parametrize("empty", ["batch", "channels"])
def test_nothing_in_gives_what_pytorch_gives(lane: Lane, empty: str) -> None:
    shapes = ((0, 4, 8, 8), (3, 4, 3, 3)) if empty == "batch" else ((2, 0, 8, 8), (3, 0, 3, 3))
    x, w = (torch.randn(shape, device=lane.device, requires_grad=True) for shape in shapes)
    y = conv2d(x, w, padding=1, backend=lane.backend)
    assert y.shape == torch.nn.functional.conv2d(x, w, padding=1).shape
    gx, gw = torch.autograd.grad(y.sum(), (x, w))
    assert gx.shape == x.shape and gw.shape == w.shape and not gw.any()
    if empty == "batch":
        y = conv_transpose2d(x, w.transpose(0, 1), stride=2, backend=lane.backend)
        assert y.shape == (0, 3, 17, 17)
        gx, gw = torch.autograd.grad(y.sum(), (x, w))
        assert gx.shape == x.shape and not gw.any()


@each_lane
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_pytorch_does(lane: Lane, dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 6, 6, device=lane.device)
    w, b = torch.randn(3, 4, 3, 3, device=lane.device), torch.randn(3, device=lane.device)
    w.requires_grad_()
    with torch.autocast(lane.device, dtype):
        y = conv2d(x, w, b, backend=lane.backend)
        wide = conv2d(x.double(), w.double(), b.double(), backend=lane.backend)
    assert y.dtype is dtype and wide.dtype is torch.float64
    y.float().sum().backward()
    assert w.grad.dtype is torch.float32
    torch.testing.assert_close(y.double(), wide, rtol=0.02, atol=0.05)
    with torch.autocast(lane.device, dtype):
        y = conv_transpose2d(x, w.transpose(0, 1), b, stride=2, backend=lane.backend)
        if lane.backend != "aten":  # whose float16 takes a float64 bias
            with pytest.raises(RuntimeError, match="type"):
                conv_transpose2d(x, w.transpose(0, 1), b.double(), stride=2, backend=lane.backend)
    wide = torch.conv_transpose2d(x.double(), w.transpose(0, 1).double(), b.double(), stride=2)
    assert y.dtype is dtype
    w.grad = None
    y.float().sum().backward()
    assert w.grad.dtype is torch.float32
    torch.testing.assert_close(y.double(), wide, rtol=0.02, atol=0.05)


def test_deterministic_mode_and_cudnn_settings_change_nothing() -> None:
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3, requires_grad=True)

    def run() -> list[torch.Tensor]:
        y = [f(x, w, padding=1, backend="numpy") for f in (conv2d, conv_transpose2d)]
        return [*y, *torch.autograd.grad(sum(t.square().sum() for t in y), w)]

    before = run()
    torch.use_deterministic_algorithms(True)  # not with warn_only: what is not deterministic would raise
    with torch.backends.cudnn.flags(enabled=False, benchmark=True, deterministic=True):
        after = run()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
BAD = {
    "input of rank 2": (dict(input=X[0, 0]), RuntimeError, r"3D .unbatched. or 4D .* input .* size: \[8, 8\]"),
    "weight of rank 3": (dict(weight=W[0]), RuntimeError, r"4D weight for conv2d, but got weight of size: \[4, 3, 3\]"),
    "channels": (dict(input=X[:, :3]), RuntimeError, r"weight of size \[6, 4, 3, 3\].*to have 4 channels, but got 3"),
    "groups": (dict(groups=5), RuntimeError, "groups=5, expected weight to be divisible by 5"),
    "groups 0": (dict(groups=0), RuntimeError, "non-positive groups.*groups=0"),
    "padding": (dict(padding=(0, -1)), RuntimeError, "negative padding.*-1"),
    "padding word": (dict(padding="full"), RuntimeError, "Invalid padding string: 'full'"),
    "same with stride": (dict(padding="same", stride=2), RuntimeError, "padding='same' is not supported for strided"),
    "stride 0": (dict(stride=0), RuntimeError, "non-positive stride.*0"),
    "three strides": (dict(stride=(1, 2, 3)), RuntimeError, r"expected stride.*2 values.*\[1, 2, 3\]"),
    "float stride": (dict(stride=1.5), TypeError, "stride"),
    "dilation": (dict(dilation=0), RuntimeError, "dilation should be greater than zero.*0"),
    "filter too large": (dict(weight=torch.randn(6, 4, 9, 3)), RuntimeError, r"\(8 x 8\). Kernel size: \(9 x 3\)"),
    "bias too long": (dict(bias=torch.randn(7)), RuntimeError, r"bias to be 1-dimensional with 6 .* size \[7\]"),
    "bias of rank 2": (dict(bias=B[None]), RuntimeError, r"bias to be 1-dimensional with 6 .* size \[1, 6\]"),
    "weight dtype": (dict(weight=W.double()), RuntimeError, r"Input type .*float32\) and weight type .*float64"),
    "bias dtype": (dict(bias=B.double()), RuntimeError, r"Input type .*float32\) and bias type .*float64"),
    "weight device": (dict(weight=W.to("meta")), RuntimeError, "weight on the device of input .cpu., but got meta"),
    "groups None": (dict(groups=None), TypeError, "groups must be int, but got None|groups"),
    "padding None": (dict(padding=None), TypeError, "padding"),
    "input a list": (dict(input=[1.0]), TypeError, "input"),
    "weight None": (dict(weight=None), TypeError, "weight"),
    "bias a number": (dict(bias=1.0), TypeError, "bias"),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "aten", "numpy"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_naming_what_is_wrong(name: str, backend: str) -> None:
    changes, error, message = BAD[name]
    if name == "weight device" and backend != "numpy":
        pytest.skip("PyTorch accepts an input on the CPU with a weight on the meta device")
    arguments = dict(input=X, weight=W, bias=B) | changes
    with pytest.raises(error, match=message):
        conv2d(**arguments, backend=backend)


INTS = {
    "int": 2,
    "tuple": (2, 2),
    "list": [2, 2],
    "NumPy": np.int64(2),
    "tensor": torch.tensor(2),
    "size": torch.Size((2, 2)),
}
NO_INTS = [
    2.0,
    True,
    (2.0, 2),
    (2, 2.0),
    (True, 2),
    (2, None),
    "2",
    None,
    np.float64(2),
    np.bool_(True),
    range(2, 4),
    torch.ones(1),
]


@pytest.mark.parametrize("function", [conv2d, conv_transpose2d], ids=lambda f: f.__name__)
@pytest.mark.parametrize("argument", ["stride", "padding", "dilation", "groups"])
def test_only_ints_are_ints_whatever_was_called_before(function, argument: str) -> None:
    x, w = torch.randn(1, 4, 9, 9), torch.randn(4, 2, 3, 3)

    def call(value: object, backend: str) -> torch.Tensor:
        return function(x, w, **{"groups": 2} | {argument: value}, backend=backend)

    for _ in range(2):
        for name, value in INTS.items():
            if argument == "groups" and name in ("tuple", "list", "size"):
                continue
            torch.testing.assert_close(call(value, "numpy"), call(value, "aten"), rtol=1e-4, atol=1e-4)
        if function is conv2d or argument != "groups":  # 1, too, is equal to True
            call(1, "numpy") if argument != "groups" else conv2d(x, torch.randn(4, 4, 3, 3), groups=1, backend="numpy")
        for value in NO_INTS:
            for backend in ("numpy", "aten"):
                with pytest.raises((TypeError, RuntimeError), match=f"{argument}|Tensor, |Invalid padding string"):
                    call(value, backend)


class OutOfMemory(gpuconv.backends.Backend):
    name = "out-of-memory"

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("layer", ["conv", "transposed"])
@pytest.mark.parametrize("fault", ["channels", "memory", "backend"])
def test_a_caught_error_keeps_no_activation_alive(fault: str, layer: str, monkeypatch) -> None:
    gpuconv.backends.register(OutOfMemory())
    monkeypatch.setattr(OutOfMemory, "grad_input", OutOfMemory.forward, raising=False)
    function = conv2d if layer == "conv" else conv_transpose2d
    w = torch.randn(3, 3, 3, 3, requires_grad=True)
    alive = []

    def three_layers() -> None:
        a = function(torch.randn(1, 3, 9, 9), w, backend="numpy")
        b = function(a, w, backend="numpy")
        alive.extend(map(weakref.ref, (a, b)))
        if fault == "channels":
            function(b, w[:, :, :, :0] if layer == "transposed" else w[:, :2], backend="numpy")
        function(b, w, backend={"memory": "out-of-memory", "backend": "triton"}[fault])

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError) as caught:
                three_layers()
            assert all(ref() is not None for ref in alive[-2:])  # which the error itself shows
            del caught
        assert not any(ref() is not None for ref in alive)
    finally:
        gc.enable()
        gpuconv.backends._loaded.pop("out-of-memory")


def test_bad_input_raises_before_the_backend_runs(monkeypatch) -> None:
    monkeypatch.setattr(gpuconv.backends.get("numpy"), "forward", lambda *a, **k: pytest.fail("it ran"))
    for changes, error, _ in BAD.values():
        with pytest.raises(error):
            conv2d(**dict(input=X, weight=W, bias=B) | changes, backend="numpy")


def test_ops_called_by_hand_check_their_tensors_too() -> None:
    key = Settings((1, 1), ((0, 0), (0, 0)), (1, 1), 1, "none", "numpy").encode()
    gy = torch.randn(2, 6, 6, 6)
    with pytest.raises(RuntimeError, match=r"expected grad_output of size \[2, 6, 6, 6\], but got .*\[2, 6, 6, 5\]"):
        ops.grad_input(gy[..., :5], W, X.shape, key)
    with pytest.raises(RuntimeError, match=r"expected grad_output of size"):
        ops.grad_weight(gy[:1], X, W.shape, False, key)
    with pytest.raises(RuntimeError, match=r"expected residual of size \[2, 6, 6, 6\]"):
        ops.forward(X, W, None, gy[:1], key)
    with pytest.raises(RuntimeError, match=r"Grad_output type .* and weight type"):
        ops.grad_input(gy, W.double(), X.shape, key)
    with pytest.raises(ValueError, match="activation must be one of"):
        ops.forward(X, W, None, None, key.replace("none", "softmax"))


def test_inputs_are_left_alone() -> None:
    x, w, b = X.clone(), W.clone(), B.clone()
    conv2d(x, w, b, padding=1, backend="numpy")
    assert torch.equal(x, X) and torch.equal(w, W) and torch.equal(b, B)


def test_output_is_a_fresh_tensor() -> None:
    x, w = torch.randn(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    y = conv2d(x, w, backend="numpy")
    y.zero_()
    assert x.all()


def test_meta_and_fake_tensors_have_the_shape_of_the_result() -> None:
    assert conv2d(X.to("meta"), W.to("meta"), stride=2, backend="numpy").shape == (2, 6, 3, 3)
    with torch._subclasses.FakeTensorMode():
        assert conv2d(torch.empty(2, 4, 8, 8), torch.empty(6, 4, 3, 3), stride=2, backend="numpy").shape == (2, 6, 3, 3)
