"""`gpuconv.see` on models that are not plain, on images in every form; and no model is changed by being looked at."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

import gpuconv
from gpuconv import see
from gpuconv.errors import UserError


class Own(nn.Module):
    """Parameters, buffers and constants of its own, outside of convolutions; a write into a new tensor; a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.mix = nn.Parameter(torch.full((4, 1, 1), 0.5)), nn.Parameter(torch.rand(4, 4) + 0.1)
        self.register_buffer("shift", torch.ones(4, 1, 1))
        self.constant = torch.full((1, 4, 1, 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("kc,nchw->nkhw", self.mix, x * self.scale + self.shift) * self.constant
        out = torch.zeros(x.shape, dtype=torch.float32)
        out[:, ::2] = x[:, ::2].float()
        out[:, 1::2] = torch.matmul(x.float()[:, 1::2], torch.eye(x.shape[3]))
        return out.to(self.scale.dtype)


INSIDE: dict[str, Callable[[], nn.Module]] = {
    "PReLU": lambda: nn.PReLU(4),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
    "own parameters": Own,
    "attention": lambda: Attention(),
    "SELU": nn.SELU,
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.of(tokens, tokens, tokens)[0].transpose(1, 2).view(x.shape)


def around(inside: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), inside, nn.Conv2d(4, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inside", INSIDE)
def test_receptive_fields_of_models_of_any_type(inside: str, dtype: torch.dtype) -> None:
    model = around(INSIDE[inside]()).to(dtype)
    field = see.receptive_field(model, (11, 12), "2", (1, 2))
    expected = {"ConvTranspose2d": (4, 4), "attention": (11, 12)}.get(inside, (5, 5))
    assert field.size == expected
    found = see.top_patches(model, torch.rand(3, 3, 11, 12), "2", 1, count=2)
    assert found.values.shape[2:] == expected and found.values.dtype == dtype


def test_receptive_fields_of_many_layers_lose_no_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(60)))
    assert see.receptive_field(model, (130, 9), "60", (65, 4)).size == (123, 9)  # its rim has a share of 9⁻⁶¹


# ---- models that are not plain --------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A network whose middle is computed in some way."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.how = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), how
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), Functions())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.how(self.middle, self.first(x)))


class Functions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * x - 0.1) + F.gelu(x)


def without_gradients(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def plainly(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


@pytest.mark.parametrize("layer", ["middle.0", "middle.3", "last"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "how",
    [lambda module, x: checkpoint(module, x, use_reentrant=False), without_gradients],
    ids=["checkpointed", "no_grad"],
)
def test_the_way_back_leads_through_checkpoints_and_no_grad(how: Any, layer: str, training: bool) -> None:
    image = torch.randn(3, 14, 13, generator=torch.Generator().manual_seed(1))
    plain, wrapped = Wrapped(plainly).train(training), Wrapped(how).train(training)
    expected, got = (see.deconvnet(model, image, layer) for model in (plain, wrapped))
    assert torch.equal(got.values, expected.values) and len(got.switches) == len(expected.switches)
    fields = [see.receptive_field(model, (14, 13), layer) for model in (plain, wrapped)]
    assert torch.equal(fields[0].mask, fields[1].mask) and fields[0].mask.any()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the old checkpoint
@pytest.mark.parametrize(
    ("how", "layer"),
    [
        (lambda module, x: module(x.detach()), "last"),
        (lambda module, x: checkpoint(module, x, use_reentrant=True), "last"),
        (lambda module, x: torch.from_numpy(module(x).detach().numpy()), "last"),
    ],
    ids=["detached", "old checkpoint", "numpy"],
)
def test_where_there_is_no_way_back_a_line_says_so(how: Any, layer: str) -> None:
    model, image = Wrapped(how), torch.randn(3, 14, 13)
    assert see.activation_maps(model.requires_grad_(False), image, layer).values.shape[0] == 2
    model.requires_grad_()
    for call in (lambda: see.deconvnet(model, image, layer), lambda: see.receptive_field(model, (14, 13), layer)):
        with pytest.raises(UserError, match=r"^layer 'last' cannot be followed back to the pixels: [^\n]+$"):
            call()


def test_a_forward_that_wants_more_than_an_image_is_told_in_a_line() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.conv(x * mask)

    for call in (
        lambda: see.activation_maps(Two(), torch.rand(3, 8, 8), "conv"),
        lambda: see.receptive_field(Two(), (8, 8), "conv"),
    ):
        with pytest.raises(UserError, match=r"cannot take an image \[1, 3, 8, 8\]: .*missing 1 .* 'mask'$"):
            call()


def test_a_shared_layer_answers_to_each_of_its_names() -> None:
    model = around(nn.ReLU())
    model.again = model[0]
    image = torch.rand(3, 9, 9)
    assert torch.equal(see.activation_maps(model, image, "0").values, see.activation_maps(model, image, "again").values)
    assert see.filters(model, "again").weight.shape == (4, 3, 3, 3)
    assert list(see.convolutions(model)) == ["0", "2"]


def test_a_lazy_model_is_told_to_look_once() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyConv2d(2, 3))
    for call in (lambda: see.filters(model, "0"), lambda: see.activation_maps(model, torch.rand(3, 9, 9), "0")):
        with pytest.raises(UserError, match=r"0\.weight has no shape yet: let the model see an image once"):
            call()
    assert type(model[0]) is nn.LazyConv2d


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), middle, nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


@pytest.mark.parametrize("backend", ["aten", "numpy"])
@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (lambda model: gpuconv.fuse(model)[0], ""),
        (torch.fx.symbolic_trace, ""),
        (nn.DataParallel, "module."),
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
    ],
    ids=["fused", "torch.fx", "DataParallel", "compiled"],
)
def test_models_made_of_others_show_the_same(make: Any, prefix: str, backend: str) -> None:
    image = torch.rand(3, 11, 10)
    model = make(plain_net())
    with gpuconv.use_backend(backend):
        close = {"rtol": 1e-4, "atol": 1e-5}
        expected, got = (see.deconvnet(m, image, name) for m, name in ((plain_net(), "5"), (model, f"{prefix}5")))
        torch.testing.assert_close(got.values, expected.values, **close)
        fields = [see.receptive_field(m, (11, 10), name) for m, name in ((plain_net(), "5"), (model, f"{prefix}5"))]
        assert torch.equal(fields[0].mask, fields[1].mask) and fields[0].size == (7, 7)
        output = see.explain_output(model, image, f"{prefix}3", (0, 1, 2))
        assert output.sum == pytest.approx(see.explain_output(plain_net(), image, "3", (0, 1, 2)).sum, rel=1e-4)
        assert output.sum == pytest.approx(output.output, rel=1e-4, abs=1e-6)
    assert "forward" not in vars(model.get_submodule(f"{prefix}3"))


def test_torchscript_is_told_to_be_closed() -> None:
    model, image = torch.jit.trace(plain_net(), torch.rand(1, 3, 11, 10)), torch.rand(3, 11, 10)
    for call in (lambda: see.activation_maps(model, image, "5"), lambda: see.deconvnet(model, image, "5")):
        with pytest.raises(UserError, match="TorchScript cannot be looked into: see the model that it was made from"):
            call()


# ---- nothing is changed ---------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """Counts, draws random numbers and keeps what it saw, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.last, self.count = None, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)).to(self.mean.dtype)
        self.last, self.count = x, self.count + 1
        return F.dropout(x, 0.5, training=True) + torch.rand(1)


SEEN = {
    "activation_maps": lambda model, image: see.activation_maps(model, image, "2"),
    "filters": lambda model, image: see.filters(model, "2"),
    "explain_output": lambda model, image: see.explain_output(model, image, "2", (0, 1, 1)),
    "deconvnet": lambda model, image: see.deconvnet(model, image, "2"),
    "receptive_field": lambda model, image: see.receptive_field(model, (9, 8), "2"),
    "top_patches": lambda model, image: see.top_patches(model, image, "2", 0, count=2),
    "convolutions": lambda model, image: see.convolutions(model),
    "an error": lambda model, image: not_taken(model, image[:2]),
}


def not_taken(model: nn.Module, image: Tensor) -> None:
    with pytest.raises(UserError, match="cannot take an image"):
        see.activation_maps(model, image, "2")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, spectral_norm], ids=["parametrized", "hook"])
@pytest.mark.parametrize("name", SEEN)
def test_a_model_is_as_it_was_before_it_was_looked_at(name: str, norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Remembers(), norm(nn.Conv2d(4, 2, 3)), nn.BatchNorm2d(2))
    gpuconv.convert(model[0])
    model[3].eval()
    image = torch.rand(3, 9, 8)
    before = copy.deepcopy(model.state_dict())
    tensors = {key: id(value) for key, value in (*model.named_parameters(), *model.named_buffers())}
    attributes = [{key: id(value) for key, value in vars(module).items()} for module in model.modules()]
    kinds, flags = ([f(m) for m in model.modules()] for f in (type, lambda m: m.training))
    random, given = torch.get_rng_state(), image.clone()
    SEEN[name](model, image)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(image, given)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert tensors == {key: id(value) for key, value in (*model.named_parameters(), *model.named_buffers())}
    assert attributes == [{key: id(value) for key, value in vars(module).items()} for module in model.modules()]
    assert kinds == [type(m) for m in model.modules()] and flags == [m.training for m in model.modules()]
    assert not any(p.grad is not None for p in model.parameters()) and all(p.requires_grad for p in model.parameters())


# ---- images in every form -------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
FLOATS = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255


def stored(path: Path, array: Any = PIXELS) -> Path:
    Image.fromarray(array).save(path)
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda folder: stored(folder / "image.png"),
    "str": lambda folder: str(stored(folder / "image.png")),
    "Pillow": lambda folder: Image.fromarray(PIXELS),
    "Pillow with alpha": lambda folder: Image.fromarray(PIXELS).convert("RGBA"),
    "open file": lambda folder: Image.open(stored(folder / "image.png")),
    "[H, W, C] uint8": lambda folder: PIXELS,
    "[C, H, W] uint8": lambda folder: PIXELS.transpose(2, 0, 1),
    "[H, W, C] uint16": lambda folder: PIXELS.astype(np.uint16) * 257,
    "[H, W, C] float": lambda folder: PIXELS / 255,
    "[C, H, W] float32": lambda folder: FLOATS.numpy(),
    "[1, H, W, C] uint8": lambda folder: PIXELS[None],
    "not contiguous": lambda folder: PIXELS[::-1][::-1],
    "tensor": lambda folder: FLOATS,
    "[1, C, H, W] tensor": lambda folder: FLOATS[None],
    "float64 tensor": lambda folder: FLOATS.double(),
    "uint8 tensor": lambda folder: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "list": lambda folder: [PIXELS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_function_takes_images_in_every_form(form: str, tmp_path: Path) -> None:
    model, image = around(nn.ReLU()), FORMS[form](tmp_path)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(
        see.activation_maps(model, image, "2").values, see.activation_maps(model, FLOATS, "2").values, **close
    )
    torch.testing.assert_close(
        see.deconvnet(model, image, "2", 1).values, see.deconvnet(model, FLOATS, "2", 1).values, **close
    )
    assert see.explain_output(model, image, "2", (0, 1, 2)).sum == pytest.approx(
        see.explain_output(model, FLOATS, "2", (0, 1, 2)).sum, rel=1e-4, abs=1e-6
    )
    torch.testing.assert_close(see.top_patches(model, [image, image], "2", 0).values[0].shape, torch.Size([3, 5, 5]))


def test_a_grey_model_gets_grey_pictures(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    expected = see.activation_maps(model, FLOATS[:1], "0").values
    for image in (PIXELS[:, :, 0], Image.fromarray(PIXELS[:, :, 0]), stored(tmp_path / "grey.png", PIXELS[:, :, 0])):
        torch.testing.assert_close(see.activation_maps(model, image, "0").values, expected)
    assert see.activation_maps(model, Image.fromarray(PIXELS), "0").values.shape == expected.shape


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "image must be a tensor, an array, an image of Pillow or a path, but got int"),
        (None, "but got NoneType"),
        ("nowhere.png", r"cannot read nowhere\.png: there is no such file"),
        (np.zeros((9, 8, 4), np.uint8), r"image is \[9, 8, 4\] of uint8, but the model takes images of 3 channels"),
        (np.zeros((2, 9, 8, 4)), r"image is \[9, 8, 4\] of float64"),
        (np.zeros(5), r"image is \[5\] of float64"),
        (np.full((9, 8, 3), np.nan), "holds values that are not finite"),
        (np.array([["a"]]), r"image is \[1, 1, 1\] of <U1"),
        ([], "images must be of one size, but got none at all"),
        ([PIXELS, PIXELS[1:]], r"images must be of one size, but got \[3, 8, 8\] and \[3, 9, 8\]"),
        (torch.zeros(9, 8), r"image must be \[C, H, W\] or \[N, C, H, W\], but got \[9, 8\]"),
    ],
)
def test_what_is_no_image_is_told_in_a_line(image: Any, message: str) -> None:
    model = around(nn.ReLU())
    for call in (see.activation_maps, see.deconvnet, lambda m, i, layer: see.top_patches(m, i, layer, 0)):
        with pytest.raises(UserError, match=message) as caught:
            call(model, image, "2")
        assert "\n" not in str(caught.value)
