"""The table 'works with' of docs/models.md, line by line, and models that go through files and copies."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.ao.quantization as quantization
from pages import DOCS
from torch import nn
from torch.ao.quantization import quantize_fx

import gpuconv

TABLE = {  # line of the page's table: the tests of it, here or a file
    "hooks, parametrizations, DDP, FSDP, activation checkpointing, `torch.func`": "test_convert.py",
    "`torch.save`, `torch.load`, `pickle`, `copy.deepcopy`, `state_dict`": "test_models_go_through",
    "`torch.compile(fullgraph=True)`, `torch.export`, AOTInductor, `torch.fx`": "test_models_go_through",
    "`torch.onnx.export`": "test_onnx.py",
    "`torch.jit.trace`": "test_traced_models_have_pytorchs_convolutions",
    "`torch.jit.script`": "test_scripts_are_refused_in_one_line_and_work_reverted",
    "`torch.ao.quantization`": "test_quantisation_is_refused_in_one_line_and_works_reverted",
    "`torch.ao.quantization.fuse_modules`": "test_fuse_modules_works_reverted",
}


def test_the_page_has_this_table() -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    table = text[text.index("| with | what happens |") :].split("\n\n")[0]
    assert re.findall(r"^\| (.*?) \| ", table, re.MULTILINE)[2:] == list(TABLE)
    for tests in TABLE.values():
        for test in tests.split(", "):
            assert test in globals() or (Path(__file__).parent / test).is_file(), test


def net() -> nn.Sequential:
    torch.manual_seed(0)
    convolution, last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), last).double().eval()


def image(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def converted() -> nn.Module:
    model = net()
    gpuconv.convert(model)
    return model


def fused() -> nn.Module:
    return gpuconv.fuse(net())[0]


def with_defaults() -> nn.Module:
    """Fused, with an argument that has a default, a buffer and a module that torch.fx cannot look into."""

    class Opaque(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() < 1e9 else -x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.opaque = net(), Opaque()
            self.register_buffer("one", torch.ones((), dtype=torch.float64))

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.opaque(self.layers(x)) * self.one * scale

    globals()["Opaque"] = Opaque  # for pickle
    Opaque.__qualname__ = "Opaque"
    return gpuconv.fuse(Model().eval())[0]


MODELS = {"converted": converted, "fused": fused, "fused with more": with_defaults}


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def reloaded(model: nn.Module) -> nn.Module:
    file, other = io.BytesIO(), copy.deepcopy(model)
    torch.save(model.state_dict(), file)
    file.seek(0)
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def exported(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (image(),)), file)
    file.seek(0)
    return torch.export.load(file).module()


def exported_for_others(model: nn.Module) -> nn.Module:
    with gpuconv.use_backend("aten"):
        program = torch.export.export(model, (image(),))
    assert "gpuconv" not in str(program.graph)
    return program.module()


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle twice": lambda model: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model)))),
    "torch.save": saved,
    "deepcopy": copy.deepcopy,
    "state_dict": reloaded,
    "torch.export": exported,
    "torch.export with aten": exported_for_others,
    "torch.fx": torch.fx.symbolic_trace,
    "fuse": lambda model: gpuconv.fuse(model)[0],
    "revert": gpuconv.revert,
}


RECORDED = ("torch.export", "torch.export with aten", "torch.fx")  # in which values of tensors may not be read


@pytest.mark.parametrize("patched", [False, True], ids=["", "patched"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in MODELS for way in WAYS if kind != "fused with more" or way not in RECORDED],
)
def test_models_go_through(kind: str, way: str, patched: bool) -> None:
    model, expected = MODELS[kind](), net()(image())
    with gpuconv.use_backend("numpy"), gpuconv.patch() if patched else torch.enable_grad():
        got = WAYS[way](model)(image())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("kind", ["converted", "fused", "patched"])
def test_traced_models_have_pytorchs_convolutions(kind: str, gradients: bool) -> None:
    model = net() if kind == "patched" else MODELS[kind]()
    with gpuconv.use_backend("numpy"), torch.set_grad_enabled(gradients):
        if kind == "patched":
            with gpuconv.patch():
                traced = torch.jit.trace(model, image())
        else:
            traced = torch.jit.trace(model, image())
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "aten::_convolution" in str(loaded.inlined_graph) and "gpuconv::" not in str(loaded.inlined_graph)
    x, y = image(3).requires_grad_(), image(3).requires_grad_()
    got, expected = loaded(x), net()(y)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for output in (got, expected):
        output.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)


def test_scripts_are_refused_in_one_line_and_work_reverted() -> None:
    model = converted()
    with pytest.raises(RuntimeError, match=r"^torch.jit.script cannot .* Conv2d: call gpuconv.revert\(model\) first$"):
        torch.jit.script(model)
    assert type(model[0]) is gpuconv.nn.Conv2d
    torch.testing.assert_close(torch.jit.script(gpuconv.revert(model))(image()), net()(image()))
    with pytest.raises(RuntimeError, match=r"_ConvAct2d: PyTorch has no such layer; take the model as it was before"):
        torch.jit.script(fused())


def eager(model: nn.Module) -> nn.Module:
    model = nn.Sequential(quantization.QuantStub(), model, quantization.DeQuantStub())
    model.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(model)
    prepared(image().float())
    return quantization.convert(prepared)


def aware(model: nn.Module) -> nn.Module:
    model.qconfig = quantization.default_qat_qconfig
    return quantization.prepare_qat(model.train()).eval()


def by_fx(model: nn.Module) -> nn.Module:
    mapping = quantization.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(model, mapping, (image().float(),))
    prepared(image().float())
    return quantize_fx.convert_fx(prepared)


@pytest.mark.filterwarnings("ignore")  # what torch.ao.quantization says of itself
@pytest.mark.parametrize("quantise", [eager, aware, by_fx])
def test_quantisation_is_refused_in_one_line_and_works_reverted(quantise: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    expected = model(image().float())
    gpuconv.convert(model)
    with pytest.raises(RuntimeError, match=r"^torch.ao.q.* gpuconv's Conv2d: call gpuconv.revert\(model\) first$"):
        quantise(copy.deepcopy(model))
    gpuconv.revert(model)
    made = quantise(model)
    assert any("Quantized" in str(m) or "quantized" in type(m).__module__ or "qat" in type(m).__module__
               for m in made.modules())  # fmt: skip
    assert (made(image().float()) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_layers_that_are_not_to_be_quantised_keeps_ours() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(80, 2)).eval()
    gpuconv.convert(model)
    expected = model(image().float())
    made = quantization.quantize_dynamic(model, {nn.Linear})
    assert type(made[0]) is gpuconv.nn.Conv2d and "quantized" in type(made[2]).__module__
    torch.testing.assert_close(made(image().float()), expected, rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore")
def test_what_was_prepared_for_quantisation_is_not_converted() -> None:
    model = net()
    model.qconfig = quantization.default_qconfig
    quantization.prepare(model, inplace=True)
    report = gpuconv.convert(model)
    assert not report.converted and {reason for _, reason in report.kept} == {
        "it has a qconfig: torch.ao.quantization would not know it again"
    }


@pytest.mark.filterwarnings("ignore")
def test_fuse_modules_works_reverted() -> None:
    model, names = converted(), [["0", "1", "2"]]
    with pytest.raises(AssertionError, match=r"gpuconv\.nn\.Conv2d"):
        quantization.fuse_modules(model, names)
    made = quantization.fuse_modules(gpuconv.revert(model), names)
    torch.testing.assert_close(made(image()), net()(image()))
    torch.testing.assert_close(nn.utils.fuse_conv_bn_eval(*converted()[:2])(image()), net()[:2](image()))
