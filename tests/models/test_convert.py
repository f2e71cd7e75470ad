"""`convert`, `revert` and `patch`: models of PyTorch are computed by gpuconv, and nothing else about them changes."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import gpuconv

SIX = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 4, 3, stride=2)
    ).double()


def image() -> torch.Tensor:
    return torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Counting(gpuconv.backends.get("numpy").__class__):
    """The numpy backend, which counts what it is asked for."""

    name = "counting"
    calls = 0

    def bind(self, *arguments, **more):
        run = super().bind(*arguments, **more)

        def counted(*tensors):
            type(self).calls += 1
            return run(*tensors)

        return counted


@pytest.fixture
def counting():
    gpuconv.backends.register(Counting())
    Counting.calls = 0
    with gpuconv.use_backend("counting"):
        yield Counting


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SIX, *("Lazy" + name for name in SIX)])
def test_each_module_becomes_ours_and_back(name: str, counting) -> None:
    ndim = int(name[-2])
    module = getattr(torch.nn, name)(*(() if "Lazy" in name else (3,)), 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, *(5,) * ndim, dtype=torch.float64)
    identity, parameters = id(module), list(map(id, module.parameters()))
    report = gpuconv.convert(module)
    assert isinstance(report, gpuconv.ConversionReport)
    assert report.converted == ("",) and not report.kept
    assert type(module) is getattr(gpuconv.nn, name) and id(module) == identity
    assert list(map(id, module.parameters())) == parameters
    y = module(x)
    assert counting.calls == 1 and type(module) is getattr(gpuconv.nn, name.removeprefix("Lazy"))
    assert gpuconv.revert(module) is module
    assert type(module) is getattr(torch.nn, name.removeprefix("Lazy"))
    torch.testing.assert_close(module(x), y, rtol=0, atol=1e-12)
    assert counting.calls == 1


def test_a_lazy_module_can_be_reverted_before_its_first_call() -> None:
    module = torch.nn.LazyConv2d(4, 3)
    gpuconv.convert(module)
    gpuconv.revert(module)
    module(torch.randn(1, 3, 5, 5))
    assert type(module) is torch.nn.Conv2d


def test_names_hooks_flags_and_state_stay(counting) -> None:
    model = net().eval()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append("forward"))
    model[0].register_full_backward_hook(lambda module, *grads: seen.append("backward"))
    model[2].weight.requires_grad_(False)
    model[0].note = "kept"
    state, shown, expected = model.state_dict(), repr(model), model(image())
    seen.clear()
    gpuconv.convert(model)
    assert repr(model) == shown and not any(module.training for module in model.modules())
    assert model[0].note == "kept" and not model[2].weight.requires_grad
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in model.state_dict().items())
    y = model(image().requires_grad_())
    y.sum().backward()
    assert seen == ["forward", "backward"]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_a_module_used_twice_is_converted_once_and_shared() -> None:
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    assert gpuconv.convert(model).converted == ("0",)
    assert model[0] is model[2] and type(layer) is gpuconv.nn.Conv2d


def test_converting_twice_says_the_same() -> None:
    model = net()
    assert gpuconv.convert(model) == gpuconv.convert(model)


def test_copies_and_pickles_stay_converted(counting) -> None:
    model = net()
    gpuconv.convert(model)
    expected = model(image())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is gpuconv.nn.Conv2d and torch.equal(other(image()), expected)
        gpuconv.revert(other)
        assert type(other[0]) is torch.nn.Conv2d and type(model[0]) is gpuconv.nn.Conv2d


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_modules_stay_parametrized(normalise, counting) -> None:
    module = normalise(torch.nn.Conv2d(3, 4, 3).double()).eval()
    expected, keys = module(image()), module.state_dict().keys()
    twin = copy.deepcopy(module)
    gpuconv.convert(module)
    assert counting.calls == 0
    torch.testing.assert_close(module(image()), expected, rtol=0, atol=1e-12)
    assert counting.calls == 1
    assert parametrize.is_parametrized(module, "weight") and module.state_dict().keys() == keys
    assert isinstance(module, gpuconv.nn.Conv2d) and not isinstance(twin, gpuconv.nn.Conv2d)
    assert gpuconv.convert(module).converted == ("",)
    assert isinstance(copy.deepcopy(module), gpuconv.nn.Conv2d)

    gpuconv.revert(module)
    assert not isinstance(module, gpuconv.nn.Conv2d) and torch.equal(module(image()), expected)
    gpuconv.convert(module)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is gpuconv.nn.Conv2d
    torch.testing.assert_close(module(image()), expected, rtol=0, atol=1e-12)


def test_parametrizing_a_converted_module_and_reverting_it() -> None:
    module = torch.nn.Conv2d(3, 4, 3).double()
    gpuconv.convert(module)
    parametrizations.weight_norm(module)
    gpuconv.revert(module)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is torch.nn.Conv2d


def test_asking_for_a_report_is_not_a_step_of_spectral_norm() -> None:
    module = parametrizations.spectral_norm(torch.nn.Conv2d(3, 4, 3))
    before = module.parametrizations.weight[0]._u.clone()
    gpuconv.convert(module)
    assert torch.equal(module.parametrizations.weight[0]._u, before)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [weight_norm, spectral_norm, lambda module: prune.l1_unstructured(module, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_weights_made_by_hooks_keep_being_made(change, counting) -> None:
    module = change(torch.nn.Conv2d(3, 4, 3).double()).eval()
    expected = module(image())
    gpuconv.convert(module)
    torch.testing.assert_close(module(image()), expected, rtol=0, atol=1e-12)
    assert counting.calls == 1


def test_memory_format() -> None:
    model = net()
    assert "torch.channels_last" in gpuconv.convert(model).advice
    report = gpuconv.convert(model, memory_format=torch.channels_last)
    assert report.advice is None and model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert gpuconv.convert(model).advice is None
    assert gpuconv.convert(torch.nn.Conv1d(3, 4, 3)).advice is None
    assert "channels_last_3d" in gpuconv.convert(torch.nn.Conv3d(3, 4, 3)).advice


# ---- what is not converted ------------------------------------------------------------------------------------------


class Standardised(torch.nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return torch.nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


class Renamed(torch.nn.Conv2d):
    pass


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_report_names_what_was_left_and_why() -> None:
    replaced = torch.nn.Conv2d(3, 3, 1)
    replaced.forward = lambda x: x
    model = torch.nn.ModuleDict(
        {
            "plain": torch.nn.Conv2d(3, 3, 1),
            "ours": gpuconv.nn.Conv2d(3, 3, 1),
            "standardised": Standardised(3, 3, 1),
            "renamed": Renamed(3, 3, 1),
            "replaced": replaced,
            "scripted": torch.jit.script(torch.nn.Conv2d(3, 3, 1)),
            "quantised": torch.ao.nn.quantized.Conv2d(3, 3, 1),
            "imitated": torch.ao.nn.qat.Conv2d(3, 3, 1, qconfig=torch.ao.quantization.default_qat_qconfig),
            "linear": torch.nn.Linear(3, 3),
        }
    )
    report = gpuconv.convert(model)
    assert report.converted == ("plain", "ours")
    reasons = dict(report.kept)
    assert reasons.keys() == model.keys() - {"plain", "ours", "linear"}
    assert (
        "Standardised is a subclass of torch.nn.Conv2d that overrides forward; gpuconv.patch()"
        in reasons["standardised"]
    )
    assert "Renamed is a subclass" in reasons["renamed"]
    assert "`forward` was replaced" in reasons["replaced"]
    assert "TorchScript" in reasons["scripted"]
    assert "quantised" in reasons["quantised"] and "quantised" in reasons["imitated"]
    text = str(report)
    assert text.startswith("2 of 8 convolutions are computed by gpuconv\n")
    assert "not converted: 1 (standardised): " in text
    assert type(model["standardised"]) is Standardised


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got function"):
        gpuconv.convert(lambda x: x)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got int"):
        gpuconv.revert(3)
    with pytest.raises(
        TypeError, match=r"memory_format must be a torch.memory_format or None, but got 'channels_last'"
    ):
        gpuconv.convert(net(), memory_format="channels_last")


# ---- patch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
@pytest.mark.parametrize("where", [torch, torch.nn.functional], ids=["torch", "functional"])
def test_patch_routes_calls_of_the_function(name: str, where, counting) -> None:
    ndim = int(name[-2])
    x, w = torch.randn(2, 3, *(5,) * ndim), torch.randn(3, 3, *(3,) * ndim)
    expected = getattr(where, name)(x, w, padding=1)
    assert counting.calls == 0
    with gpuconv.patch():
        torch.testing.assert_close(getattr(where, name)(input=x, weight=w, padding=1), expected)
    assert counting.calls == 1
    getattr(where, name)(x, w)
    assert counting.calls == 1


def test_patch_reaches_a_subclass_with_its_own_forward_and_its_gradients(counting) -> None:
    module = Standardised(3, 4, 3, padding=1).double()
    (expected,) = torch.autograd.grad(module(image()).square().sum(), module.weight)
    with gpuconv.patch():
        y = module(image())
    (gradient,) = torch.autograd.grad(y.square().sum(), module.weight)  # outside of it
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    assert counting.calls == 2


@pytest.mark.parametrize("backend", ["aten", "numpy", "auto"])
def test_patch_does_not_call_itself(backend: str) -> None:
    model = net()
    expected = model(image())
    gpuconv.convert(model)
    with gpuconv.patch(), gpuconv.patch(), gpuconv.use_backend(backend):
        y = model(image())
        y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


# ---- what PyTorch does with models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["around-it", "within-it"])
def test_patch_works_with_compile_without_graph_breaks(inside: bool) -> None:
    torch._dynamo.reset()
    module = Standardised(3, 4, 3, padding=1).double()
    expected = module(image())

    def within(x):
        with gpuconv.patch():
            return module(x)

    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(within if inside else module, backend=keep, fullgraph=True)
    with gpuconv.use_backend("numpy"):
        if inside:
            y = compiled(image())
        else:
            with gpuconv.patch():
                y = compiled(image())
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert any(node.target is torch.ops.gpuconv.conv_forward.default for node in graphs[0].graph.nodes)
    if not inside:
        compiled(image())  # outside the context: compiled again, as PyTorch's own
        assert len(graphs) == 2 and "gpuconv" not in graphs[1].code


@pytest.mark.skipif(
    torch.__version__ < "2.14", reason="PyTorch 2.11 does not look whether a module's class is still what it compiled"
)
def test_a_model_compiled_before_it_is_converted_is_compiled_again(counting) -> None:
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(image())
    gpuconv.convert(model)
    torch.testing.assert_close(compiled(image()), expected, rtol=0, atol=1e-12)
    assert counting.calls == 2
    gpuconv.revert(model)
    compiled(image())
    assert counting.calls == 2


def test_inductor_trains_a_converted_model() -> None:
    torch._dynamo.reset()
    model, stock = net(), net()
    gpuconv.convert(model)
    with gpuconv.use_backend("numpy"):
        torch.compile(model, fullgraph=True)(image()).square().sum().backward()
    stock(image()).square().sum().backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_export_of_a_converted_model_keeps_gradients(backend: str) -> None:
    model, x = net(), image()
    expected = model(x)
    gpuconv.convert(model)
    with gpuconv.use_backend(backend):
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    y = exported(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert exported(x[:1].repeat(3, 1, 1, 1)).shape[0] == 3
    y.sum().backward()
    assert all(p.grad is not None for p in exported.parameters())


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # PyTorch 2.11's own
def test_aot_inductor_packages_a_converted_model(tmp_path) -> None:
    model, x = net(), image()
    expected = model(x)
    gpuconv.convert(model)
    with gpuconv.use_backend("numpy"), torch.no_grad():
        program = torch.export.export(model, (x,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
def test_activation_checkpointing_recomputes_with_the_same_backend(reentrant: bool, counting) -> None:
    model, stock = net(), net()
    gpuconv.convert(model)
    x = image().requires_grad_()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    stock(image()).square().sum().backward()
    assert counting.calls == 8  # forward and both gradients of two layers, and forward again
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_checkpointing_outside_use_backend_takes_a_context_function(counting) -> None:
    model = net()
    gpuconv.convert(model)
    use = gpuconv.use_backend
    y = torch.utils.checkpoint.checkpoint(
        model, image().requires_grad_(), use_reentrant=False, context_fn=lambda: (use("counting"), use("counting"))
    )
    with use("aten"):
        y.sum().backward()
    assert counting.calls == 8


def test_functional_call_and_per_sample_gradients_of_a_converted_model(counting) -> None:
    model = net()
    gpuconv.convert(model)
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (x.unsqueeze(0),)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, image())
    assert counting.calls
    model(image()).square().sum().backward()
    for name, p in parameters.items():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-10, atol=1e-10)
