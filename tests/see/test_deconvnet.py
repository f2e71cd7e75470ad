"""The way back to the pixels: deconvnet and receptive fields, against what PyTorch and plain perturbation say."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gpuconv
from gpuconv import see
from gpuconv.errors import UserError
from gpuconv.see.deconvnet import unpool


def image(channels: int = 3, height: int = 17, width: int = 15, seed: int = 0) -> Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return nn.Sequential(*layers).double()


class Residual(nn.Module):
    """conv → norm → activation → conv, beside a 1×1 convolution of stride 2."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(3, 5, 3, 2, 1),
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 4, 3, padding=2, dilation=2),
        )
        self.beside, self.activation = nn.Conv2d(3, 4, 1, 2), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.activation(self.norm(self.a(x)))) + self.beside(x)


# ---- deconvnet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aten", "numpy"])
def test_without_relu_and_pooling_it_is_the_input_gradient(backend: str) -> None:
    model, pixels = made(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, dilation=2)), image()
    with gpuconv.use_backend(backend):
        shown = see.deconvnet(model, pixels, "2", 3, (1, 2))
    leaf = pixels.clone().requires_grad_()
    output = model.eval()(leaf[None])[0, 3, 1, 2]
    (gradient,) = torch.autograd.grad(output, leaf)
    assert shown.activation == pytest.approx(output.item())
    torch.testing.assert_close(shown.values, gradient * output.detach())


@pytest.mark.filterwarnings("ignore:max_unpooling2d")  # of PyTorch's own: it says that it is not deterministic
def test_by_hand_it_is_transposed_filters_switches_and_relu() -> None:
    model, pixels = (
        made(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU()),
        image(),
    )
    shown = see.deconvnet(model, pixels, "4")
    first, second = model[0], model[3]
    pooled, switches = F.max_pool2d(F.relu(first(pixels[None])), 2, return_indices=True)
    maps = F.relu(second(pooled))
    signal = torch.zeros_like(maps)
    signal[0][shown.at] = maps[0][shown.at]
    assert shown.activation == maps.max().item() == pytest.approx(signal.max().item())
    back = gpuconv.conv_transpose2d(F.relu(signal), second.weight)
    back = F.relu(F.max_unpool2d(back, switches, 2, output_size=(17, 15)))
    back = gpuconv.conv_transpose2d(back, first.weight, padding=1)
    torch.testing.assert_close(shown.values, back[0])
    assert len(shown.switches) == 1 and torch.equal(shown.switches[0], switches)


@pytest.mark.filterwarnings("ignore:max_unpooling2d")  # of PyTorch's own: it says that it is not deterministic
@pytest.mark.parametrize("settings", [{"kernel_size": 2}, {"kernel_size": 3, "padding": 1}], ids=str)
def test_unpooling_is_pytorchs(settings: dict[str, int]) -> None:
    pixels = image()[None]
    values, switches = F.max_pool2d(pixels, **settings, return_indices=True)
    expected = F.max_unpool2d(values, switches, **settings, output_size=pixels.shape[2:])
    assert torch.equal(unpool(values, switches, tuple(pixels.shape)), expected)


@pytest.mark.parametrize(
    "rectify",
    [nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.1, inplace=True)],
    ids=lambda rectify: type(rectify).__name__,
)
def test_every_rectifier_goes_back_as_relu(rectify: nn.Module) -> None:
    model, pixels = made(nn.Conv2d(3, 6, 3), rectify, nn.Conv2d(6, 2, 3)), image()
    shown = see.deconvnet(model, pixels, "2", 1, (4, 4))
    signal = torch.zeros(1, 2, 13, 11, dtype=torch.float64)
    signal[0, 1, 4, 4] = model(pixels[None])[0, 1, 4, 4].detach()
    back = F.relu(F.conv_transpose2d(signal, model[2].weight))
    torch.testing.assert_close(shown.values, F.conv_transpose2d(back, model[0].weight)[0])


def test_branches_and_statements_that_work_in_place() -> None:
    class InPlace(Residual):
        def forward(self, x: Tensor) -> Tensor:
            inside = self.norm(self.a(x))
            inside.relu_()
            return self.b(inside) + self.beside(x)

    models = [made(kind(nn.ReLU())) for kind in (Residual, InPlace)]
    torch.testing.assert_close(*(see.deconvnet(model, image(), "0").values for model in models))


def test_the_model_comes_out_as_it_went_in() -> None:
    model = nn.Sequential(gpuconv.nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = image().float()
    see.deconvnet(model, pixels, "2")
    see.activation_maps(model, pixels, "1")
    see.receptive_field(model, (9, 9), "2")
    assert [type(layer) for layer in model] == [gpuconv.nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]
    assert [layer.training for layer in model] == [True, False, True] and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model)
    assert model[0].weight.grad.eq(1).all() and model[2].weight.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: see.deconvnet(m, image(), "layre1"), r"no layer 'layre1' \(did you mean layer1\?\)"),
        (lambda m: see.deconvnet(m, image(), "layer1", 4), "channel must be from 0 to 3 in layer 'layer1', but got 4"),
        (lambda m: see.deconvnet(m, image(), "layer1", 0, (99, 0)), r"at must lie within the map \[15, 13\]"),
        (lambda m: see.deconvnet(m, image(), "flat"), "'flat' gives .*, no maps"),
        (lambda m: see.deconvnet(m, image(2), "layer1"), r"cannot take an image \[1, 2, 17, 15\]"),
        (lambda m: see.deconvnet(m, image()[0], "layer1"), r"image must be .* but got \[17, 15\]"),
        (lambda m: see.activation_maps(m, image(), "spare"), "'spare' is not used"),
        (lambda m: see.filters(m, "flat"), "'flat' is a Flatten and has no filters"),
        (lambda m: see.explain_output(m, image(), "flat", (0, 0, 0)), "'flat' computes no 2-D convolution"),
        (lambda m: see.receptive_field(nn.Linear(3, 3), (5, 5), "0"), "has no 2-D convolution"),
        (lambda m: see.receptive_field(m, (9, 9), "layer1", (7, 0)), r"at must lie within the map \[7, 7\]"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(call: Callable[[nn.Module], object], message: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.flat, self.spare = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(self.layer1(x))

    with pytest.raises(UserError, match=message) as caught:
        call(Model().double())
    assert "\n" not in str(caught.value)


# ---- receptive fields -----------------------------------------------------------------------------------------------


def perturbed(model: nn.Module, pixels: Tensor, at: tuple[int, int], by: float) -> Tensor:
    """Which pixels [H, W] change the outputs at `at` when they change."""
    _, height, width = pixels.shape
    with torch.no_grad():
        before = model(pixels[None])[0, :, at[0], at[1]]
        changed = pixels.repeat(height * width, 1, 1, 1)
        changed.view(height * width, 3, -1).diagonal(dim1=0, dim2=2).add_(by)
        after = model(changed)[:, :, at[0], at[1]]
    return (after != before).any(1).view(height, width)


SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "stride, padding": lambda: made(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 4, 5, padding=2)),
    "dilation": lambda: made(nn.Conv2d(3, 4, 2, dilation=3), nn.GELU(), nn.Conv2d(4, 4, 3, dilation=2)),
    "groups, mean": lambda: made(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, groups=6)),
    "branches": lambda: made(Residual(nn.SiLU())),
}


@pytest.mark.parametrize("at", [(1, 2), (0, 0), (3, 3)], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_receptive_fields_are_those_of_perturbed_pixels(name: str, at: tuple[int, int]) -> None:
    model = SMOOTH[name]().eval()
    field = see.receptive_field(model, (17, 15), str(len(model) - 1), at)
    expected = perturbed(model, image() * 0.3, at, 0.5)
    assert torch.equal(field.mask, expected)
    rows, columns = expected.any(1).nonzero(), expected.any(0).nonzero()
    assert field.rows == (rows.min(), rows.max() + 1) and field.columns == (columns.min(), columns.max() + 1)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 3, ceil_mode=True), nn.MaxPool2d(2, 2, dilation=2)],
    ids=str,
)
def test_receptive_fields_through_max_pooling(pool: nn.Module) -> None:
    model = made(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 2, 2))
    for parameter in model.parameters():
        parameter.data.abs_()  # then a pixel that is raised far enough wins every maximum
    for at in ((0, 0), (1, 2)):
        field = see.receptive_field(model, (17, 15), "3", at)
        assert torch.equal(field.mask, perturbed(model, image().abs(), at, 1e6))


def test_the_first_layer_sees_its_filter_and_later_ones_more() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = torchvision.models.resnet18(weights=None)
    sizes = [
        see.receptive_field(model, (224, 224), name).size for name in ("conv1", "layer1.0.conv1", "layer1.1.conv2")
    ]
    assert sizes == [(7, 7), (19, 19), (43, 43)]  # 7, + pooling 4, + 8 for each 3×3 at stride 4
