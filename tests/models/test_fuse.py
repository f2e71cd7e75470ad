"""`gpuconv.fuse`, which rewrites a model: the same function of the same weights, fewer kernels, and a report."""

import copy
import operator
import pickle

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gpuconv

NETWORKS = {  # of torchvision and timm: how many convolutions, how many of them fused
    "resnet18": (20, 20),
    "mobilenet_v2": (52, 52),
    "densenet121": (120, 59),
    "test_resnet": (15, 15),
    "tf_efficientnet_b0": (81, 76),
}
MORE_WITH_FULL = {"deeplabv3_resnet50": (61, 60), "resnext50_32x4d": (53, 53), "efficientnet_b0": (81, 81)}


def with_statistics(model: nn.Module) -> nn.Module:
    """`model` in float64 and evaluation mode, its BatchNorms as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for name, low, high in (("running_mean", -0.1, 0.1), ("running_var", 0.5, 1.5)):
                getattr(module, name).uniform_(low, high, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
    return model.double().eval()


def same(model: nn.Module, *inputs: torch.Tensor, tolerance: float = 1e-9) -> gpuconv.FusionReport:
    """The report, after `model` and its fused copy were found to give the same, and `model` to be as before."""
    before = copy.deepcopy(model.state_dict())
    fused, report = gpuconv.fuse(model)
    with torch.no_grad():
        expected, got = (m(*(x.clone() for x in inputs)) for m in (model, fused))  # which may change its input
    expected, got = (y["out"] if isinstance(y, dict) else y for y in (expected, got))
    assert (got - expected).norm() <= tolerance * expected.norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return report


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_WITH_FULL)])
def test_networks_give_the_same_logits(name: str) -> None:
    model = with_statistics(models.make(name, torch.float64))
    report = same(model, models.images(64, 1, torch.float64))
    count, fused = (NETWORKS | MORE_WITH_FULL)[name]
    assert len(report.fused) == fused
    assert len({name for name, _ in (*report.fused, *report.kept)}) == count
    assert not report.untraced
    assert str(report).startswith(f"{fused} of {count} convolutions are fused")


def test_fused_resnet_computes_with_one_kernel_a_convolution_and_can_be_compiled_and_trained() -> None:
    model = with_statistics(models.make("test_resnet", torch.float64))
    fused, _ = gpuconv.fuse(model)
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.ReLU)) for m in fused.modules())
    assert [type(m).__name__ for m in fused.modules() if isinstance(m, nn.Conv2d)] == ["_ConvAct2d"] * 15
    x = models.images(32, 1, torch.float64)
    with gpuconv.use_backend("numpy"):
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
    fused(x).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())
    assert {name for name, _ in fused.named_parameters()} >= {"conv1.0.weight", "layer1.0.conv1.weight"}
    copy.deepcopy(fused)(x)


class Net(nn.Module):
    """A convolution, and whatever `rest` makes of its output and its input."""

    def __init__(self, rest, *modules: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.others = nn.ModuleList(modules)
        self.rest = rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.conv(x), x, *self.others)


def after(rest, *modules: nn.Module) -> tuple[str, str]:
    """The report on a convolution followed by `rest`: what it became, and why nothing more. Values must be equal."""
    torch.manual_seed(0)
    report = same(with_statistics(Net(rest, *modules)), torch.randn(2, 4, 5, 6, dtype=torch.float64))
    return dict(report.fused).get("conv", "conv"), dict(report.kept).get("conv", "")


FUSED = {
    "conv+relu": lambda y, x: y.relu(),
    "conv+relu ": lambda y, x: F.relu_(y),
    "conv+relu6": lambda y, x: F.relu6(y),
    "conv+leaky_relu": lambda y, x: F.leaky_relu(y),
    "conv+leaky_relu(0.3)": lambda y, x: F.leaky_relu(y, 0.3, inplace=True),
    "conv+gelu": lambda y, x: F.gelu(y),
    "conv+gelu_tanh": lambda y, x: F.gelu(y, approximate="tanh"),
    "conv+silu": lambda y, x: F.silu(y, inplace=True),
    "conv+sigmoid": lambda y, x: torch.sigmoid(y),
    "conv+tanh": lambda y, x: y.tanh(),
    "conv+residual": lambda y, x: y + x,
    "conv+residual ": lambda y, x: x + y,
    "conv+residual+relu": lambda y, x: operator.iadd(y, x).relu_(),
    "conv+residual+silu": lambda y, x: F.silu(torch.add(x, y)),
}


@pytest.mark.parametrize("what", FUSED)
def test_functions_behind_a_convolution(what: str) -> None:
    assert after(FUSED[what])[0] == what.strip()


MODULES = {
    "relu": nn.ReLU(inplace=True), "relu6": nn.Hardtanh(0, 6), "leaky_relu(0.2)": nn.LeakyReLU(0.2),
    "hardswish": nn.Hardswish(), "gelu_tanh": nn.GELU("tanh"),
}  # fmt: skip


@pytest.mark.parametrize("what", MODULES)
def test_modules_behind_a_convolution(what: str) -> None:
    tolerance_free = lambda y, x, bn, nothing, drop, act: act(drop(nothing(bn(y))))  # noqa: E731
    assert after(tolerance_free, nn.BatchNorm2d(4), nn.Identity(), nn.Dropout(), MODULES[what])[0] == f"conv+bn+{what}"
    plain = nn.BatchNorm2d(4, affine=False)
    assert after(lambda y, x, bn, act: act(bn(y) + x), plain, MODULES[what])[0] == f"conv+bn+residual+{what}"


def hooked() -> nn.Module:
    act = nn.ReLU()
    act.register_forward_hook(lambda *_: None)
    return act


NOT_FUSED = {
    "softmax follows": (lambda y, x: y.softmax(1),),
    "more than once": (lambda y, x: y.relu() + y,),
    "no other tensor": (lambda y, x: y + 1.5,),
    "no other tensor ": (lambda y, x: y + y,),
    "follows": (lambda y, x: torch.add(y, x, alpha=2),),
    "to another tensor in place": (lambda y, x: (x * 1.0).add_(y),),
    "no running statistics": (lambda y, x, bn: bn(y), nn.BatchNorm2d(4, track_running_stats=False)),
    "Hardtanh follows": (lambda y, x, act: act(y), nn.Hardtanh()),
    "hooks": (lambda y, x, act: act(y), hooked()),
}


@pytest.mark.parametrize("why", NOT_FUSED)
def test_what_is_not_fused_has_a_reason(why: str) -> None:
    what, reason = after(*NOT_FUSED[why])
    assert what == "conv" and why.strip() in reason


class Hidden(nn.Module):
    """Has control flow, so that torch.fx cannot look into it, and changes its input in place."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) if x.sum() < 1e9 else x


@torch.fx.wrap
def hidden(x: torch.Tensor) -> torch.Tensor:
    return x.clamp_(min=0) if x.sum() < 1e9 else x


def negated(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda module, args: (args[0].neg_(),))
    return module


MEANWHILE = {
    "mul_": (lambda y, x: (x.mul_(2), y.relu())[1],),
    "imul": (lambda y, x: (operator.imul(x, 2), y.relu())[1],),
    "a view": (lambda y, x: (x[:, :1].zero_(), y.relu())[1],),
    "out=": (lambda y, x: (torch.neg(x, out=x), y.relu())[1],),
    "inplace=True": (lambda y, x: (F.relu(x, inplace=True), y.relu())[1],),
    "inplace by place": (lambda y, x: (F.hardtanh(x, -0.1, 0.1, True), y.relu())[1],),
    "relu module": (lambda y, x, act: (act(x), y.relu())[1], nn.ReLU(inplace=True)),
    "hidden module": (lambda y, x, act: (act(x), y.relu())[1], Hidden(nn.ReLU(inplace=True))),
    "hidden function": (lambda y, x: (hidden(x), y.relu())[1],),
    "hook": (lambda y, x, other: (other(x), y.relu())[1], negated(nn.Sigmoid())),
    "module within PyTorch's": (
        lambda y, x, other: (other(x), y.relu())[1],
        nn.DataParallel(Hidden(nn.ReLU(inplace=True))),
    ),
    "residual": (lambda y, x, act: (z := x * 1.0, s := y + z, act(z), s.relu())[-1], Hidden(nn.ReLU(inplace=True))),
}  # fmt: skip


@pytest.mark.parametrize("how", MEANWHILE)
def test_nothing_is_moved_past_what_may_change_its_input(how: str) -> None:
    what, reason = after(*MEANWHILE[how])
    assert what == ("conv+residual" if how == "residual" else "conv")
    assert reason.startswith("meanwhile ") and ("in place" in reason)


def test_it_is_moved_past_what_surely_changes_nothing() -> None:
    pure = (
        lambda y, x, a, b: (
            z := b(a(x.abs()) + gpuconv.conv2d(x, x.mean((0, 2, 3)).expand(4, 4)[..., None, None])),
            y.relu() * z,
        )[1],
    )
    with torch.no_grad():
        assert after(*pure, nn.Sequential(nn.Tanh(), nn.AvgPool2d(1)), gpuconv.nn.Conv2d(4, 4, 1))[0] == "conv+relu"


def test_batchnorm_is_not_folded_into_weights_that_forward_takes_by_themselves() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv_transpose2d(self.bn(self.conv(x)).relu(), self.conv.weight)

    report = same(with_statistics(Tied()), torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert "looks at the weights" in dict(report.kept)["conv"]


def test_buffers_that_forward_changes_go_on_changing() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return self.conv(x).relu() * self.calls

    model, x = with_statistics(Counts()), torch.randn(1, 4, 5, 5, dtype=torch.float64)
    fused, report = gpuconv.fuse(model)
    assert report.fused
    for _ in range(3):
        torch.testing.assert_close(fused(x), model(x))
    assert fused.calls == model.calls == 3


@pytest.mark.parametrize("where", ["", "block", "block.inner"])
@pytest.mark.parametrize("how", ["hook", "own forward"])
def test_hooks_and_forwards_of_ones_own_go_on_working(where: str, how: str) -> None:
    def block(*more: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), *more)

    model, x = nn.Sequential(), torch.randn(1, 4, 5, 5, dtype=torch.float64)
    model.add_module("block", block())
    model.block.add_module("inner", block())
    calls = []
    module = model.get_submodule(where)
    if how == "hook":
        module.register_forward_hook(lambda module, args, output: calls.append(1) or output + 1)
    else:
        forward = module.forward
        module.forward = lambda x: calls.append(1) or forward(x) + 1
    report = same(with_statistics(model), x)
    assert len(calls) == 2 and [name for name, _ in report.untraced] == [where]
    assert "hooks, or a forward of its own" in report.untraced[0][1]


@pytest.mark.parametrize("statement", ["iadd", "imul", "isub", "itruediv"])
def test_statements_that_change_a_tensor_change_it_for_all_who_hold_it(statement: str) -> None:
    def rest(y: torch.Tensor, x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
        again, (_, _, rows, columns) = x, x.shape
        rows += 1  # a number: nobody else sees that
        x = getattr(operator, statement)(x, 3)
        return conv(x).relu() * again + (rows - y.shape[2]) * columns

    model = with_statistics(Net(rest, nn.Conv2d(4, 4, 3, padding=1)))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert same(model, x).fused == (("others.0", "conv+relu"),)
    reloaded = pickle.loads(pickle.dumps(gpuconv.fuse(nn.Sequential(Statement(statement)).eval())[0]))
    torch.testing.assert_close(reloaded(x.clone()), Statement(statement)(x.clone()))


class Statement(nn.Module):
    def __init__(self, statement: str) -> None:
        super().__init__()
        self.statement = statement

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        again = x
        return getattr(operator, self.statement)(x, 3) * again


def test_batchnorm_in_training_mode_stays() -> None:
    model = with_statistics(Net(lambda y, x, bn: bn(y).relu(), nn.BatchNorm2d(4)))
    model.others[0].train()
    fused, report = gpuconv.fuse(model)
    assert report.kept == (("conv", "BatchNorm is in training mode"),)
    assert any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_residuals_that_are_broadcast_are_added_as_pytorch_adds() -> None:
    assert after(lambda y, x: (y + x[:, :1]).relu())[0] == "conv+residual+relu"
    assert after(lambda y, x: y + x.mean((2, 3), keepdim=True))[0] == "conv+residual"


class Twice(nn.Module):
    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.conv, self.branch = nn.Conv2d(4, 4, 1), branch
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        if self.branch and x.sum() > 0:
            x = -x
        x = self.tail(self.conv(self.conv(x).relu()).relu())
        return x if scale is None else x * scale


def test_shared_and_transposed_convolutions_and_subclasses_are_left() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert dict(same(with_statistics(Twice()), x).kept) == {"conv": "it is called more than once"}
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), Own(4, 4, 1), nn.ReLU(), gpuconv.nn.Conv2d(4, 4, 1))
    kept = dict(same(with_statistics(model), x).kept)
    assert "transposed" in kept["0"] and "subclass" in kept["2"] and kept["4"] == "nothing follows it"


def test_defaults_of_forward_are_fixed_and_nothing_is_silently_wrong() -> None:
    model = with_statistics(Twice())
    fused, _ = gpuconv.fuse(model)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    with pytest.raises((AssertionError, TypeError)):
        fused(x, torch.ones(()).double())


def test_models_that_cannot_be_traced_are_fused_below() -> None:
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    report = same(with_statistics(nn.Sequential(Twice(branch=True), nn.Conv2d(4, 4, 1), nn.Tanh())), x)
    assert dict(report.fused) == {"0.tail.0": "conv+bn+relu", "1": "conv+tanh"}
    assert [name for name, _ in report.untraced] == ["0"]
    assert "torch.fx cannot trace: 1 (0): " in str(report)
    alone = same(with_statistics(Twice(branch=True)), x)
    assert dict(alone.fused) == {"tail.0": "conv+bn+relu"} and alone.untraced[0][0] == ""
    assert "control flow" in alone.untraced[0][1]


def test_one_and_three_axes_and_other_types() -> None:
    for d in (1, 3):
        conv, bn = (
            getattr(nn, f"Conv{d}d")(4, 6, 3, padding_mode="circular", padding=1),
            getattr(nn, f"BatchNorm{d}d")(6),
        )
        model = with_statistics(nn.Sequential(conv, bn, nn.SiLU()))
        assert same(model, torch.randn(2, 4, *(5, 6, 7)[:d], dtype=torch.float64)).fused == (("0", "conv+bn+silu"),)
    half = with_statistics(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))).to(torch.bfloat16)
    fused, _ = gpuconv.fuse(half.to(memory_format=torch.channels_last))
    conv = fused.get_submodule("0")
    assert conv.weight.dtype is conv.bias.dtype is torch.bfloat16
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got int"):
        gpuconv.fuse(3)
