"""The networks by name. Each takes images with values 0 … 1 and normalises them itself: its weights are all it needs.

They are written with PyTorch's layers; `build` converts their convolutions to gpuconv's.
"""

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gpuconv
from gpuconv.errors import UserError
from gpuconv.text import did_you_mean

Shape = tuple[int, ...]  # [C, H, W]


def build(name: str, image_shape: Shape, classes: int, channels_last: bool = False) -> nn.Module:
    """The network called `name` for images of `image_shape`. Raises UserError where there is none."""
    library, _, theirs = name.partition(":")
    if theirs:
        parts = {"normalize": Normalize(image_shape[0]), "net": _from_library(library, theirs, image_shape[0], classes)}
        network: nn.Module = nn.Sequential(OrderedDict(parts))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images too small for a layer: using them raises
            network = NETWORKS[name](image_shape, classes)
    gpuconv.convert(network, torch.channels_last if channels_last else None)
    return network


def measure(network: nn.Module, images: Tensor, top: float) -> None:
    """Set what a network computes from its training images [N, C, H, W], values 0 … top: normalisation, whitening."""
    normalize: Any = network.normalize
    normalize.measure(images, top)
    if isinstance(network, AirBench94):
        network.whiten_by(normalize(images[:1000].to(normalize.mean) / top))


def _from_library(library: str, name: str, channels: int, classes: int) -> nn.Module:
    try:
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
        return of_torchvision(name, num_classes=classes)
    except ImportError:
        raise UserError(f"model {library}:{name} needs: pip install {library}") from None
    except (ValueError, RuntimeError, TypeError, KeyError) as error:  # raised for unknown names
        known = _names(library)
        near = "" if name in known else did_you_mean(name, known)
        raise UserError(f"{library} cannot make a model {name!r}: {error}{near}") from None


def of_torchvision(name: str, **settings: Any) -> nn.Module:
    """The model of torchvision with random weights throughout. Raises ValueError for an unknown name."""
    import torchvision

    takes = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    if "weights_backbone" in takes:  # its default would be downloaded
        settings["weights_backbone"] = None
    return torchvision.models.get_model(name, weights=None, **settings)


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models()


class Normalize(nn.Module):
    """(x − mean) / std for each channel of [N, C, H, W]; mean and std are buffers, saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def measure(self, images: Tensor, top: float = 1.0) -> None:
        """Set mean and std to those of `images` / top, [N, C, H, W]; a channel that never varies keeps its scale."""
        n = images.numel() / images.shape[1]

        def total(of: Callable[[Tensor], Tensor]) -> Tensor:  # [C, 1, 1], a thousand images at a time
            parts = [of(part.double()).sum((0, 2, 3), keepdim=True)[0] for part in images.split(1000)]
            return torch.stack(parts).sum(0)

        mean = total(lambda part: part) / n
        std = (total(lambda part: (part - mean).square()) / (n - 1)).sqrt()
        self.mean.copy_(mean / top)
        self.std.copy_(torch.where(std > 0, std / top, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def small(image_shape: Shape, classes: int) -> nn.Module:
    """conv → ReLU → pool → conv → ReLU → pool → fully connected; digits: 1×8×8 → 64×4×4 → 128×2×2 → 10."""
    channels, height, width = image_shape
    return nn.Sequential(OrderedDict(
        normalize=Normalize(channels),
        conv1=nn.Conv2d(channels, 64, 3, padding=1), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(64, 128, 3, padding=1), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(), fc=nn.Linear(128 * (height // 4) * (width // 4), classes),
    ))  # fmt: skip


def tutorial(image_shape: Shape, classes: int) -> nn.Module:
    """Three times convolution, ReLU and pooling, then a score for each class."""
    channels, height, width = image_shape
    return nn.Sequential(OrderedDict(
        normalize=Normalize(channels),                 # 32×32×3, with zero mean
        conv1=nn.Conv2d(channels, 12, 3, padding=1),   # 12 filters of 3×3×3: 32×32×12
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),                         # 16×16×12
        conv2=nn.Conv2d(12, 32, 3, padding=1),         # 32 filters of 3×3×12: 16×16×32
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),                         # 8×8×32
        conv3=nn.Conv2d(32, 64, 3, padding=1),         # 64 filters of 3×3×32: 8×8×64
        relu3=nn.ReLU(),
        pool3=nn.MaxPool2d(2),                         # 4×4×64
        flatten=nn.Flatten(),                          # 1,024 numbers
        fc=nn.Linear(64 * (height // 8) * (width // 8), classes),
    ))  # fmt: skip


class Residual(nn.Module):
    """act(shortcut(x) + body(x)); without an activation, the sum."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.body(x))


class Apply(nn.Module):
    """A function without weights, as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _conv_bn(c: int, k: int, size: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(c, k, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(k), *[nn.ReLU(inplace=True)] * relu)


def resnet9(image_shape: Shape, classes: int) -> nn.Module:
    """David Page's, for CIFAR-10: 64×32×32 → 128×16×16 and a residual → 256×8×8 → 512×4×4 and a residual → scores."""

    def residual(k: int) -> nn.Module:
        return Residual(nn.Sequential(_conv_bn(k, k), _conv_bn(k, k)))

    return nn.Sequential(OrderedDict(
        normalize=Normalize(image_shape[0]), prep=_conv_bn(image_shape[0], 64),
        layer1=_conv_bn(64, 128), pool1=nn.MaxPool2d(2), residual1=residual(128),
        layer2=_conv_bn(128, 256), pool2=nn.MaxPool2d(2),
        layer3=_conv_bn(256, 512), pool3=nn.MaxPool2d(2), residual3=residual(512),
        pool=Apply(lambda x: x.amax((2, 3))), fc=nn.Linear(512, classes, bias=False), scale=Apply(lambda x: x / 8),
    ))  # fmt: skip


def resnet18(image_shape: Shape, classes: int) -> nn.Module:
    """He et al.'s ResNet-18; its stem is a 3×3 layer for images of up to 64 pixels, else 7×7 and a pool."""

    def block(c: int, k: int, stride: int) -> nn.Module:
        body = nn.Sequential(_conv_bn(c, k, 3, stride), _conv_bn(k, k, relu=False))
        return Residual(body, None if c == k else _conv_bn(c, k, 1, stride, relu=False), nn.ReLU(inplace=True))

    few = max(image_shape[1:]) <= 64
    stem = _conv_bn(image_shape[0], 64, 3 if few else 7, 1 if few else 2)
    layers = {f"layer{n}": nn.Sequential(block(c, k, 1 if c == k else 2), block(k, k, 1))
              for n, (c, k) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1)}  # fmt: skip
    return nn.Sequential(OrderedDict(
        normalize=Normalize(image_shape[0]), stem=stem, pool1=nn.Identity() if few else nn.MaxPool2d(3, 2, 1),
        **layers, pool=Apply(lambda x: x.mean((2, 3))), fc=nn.Linear(512, classes),
    ))  # fmt: skip


class AirBench94(nn.Sequential):
    """Keller Jordan's airbench94: fixed whitening filters of the training patches, three groups of two layers, scores.

    CIFAR-10: 3×32×32 → 24×31×31 → 64×15×15 → 256×7×7 → 256×3×3 → 10. BatchNorm learns only its biases, at 64 times
    the learning rate (`bias_lr`); convolutions begin as the identity as far as their channels go.
    """

    bias_lr = 64
    whiten: nn.Conv2d

    def __init__(self, image_shape: Shape, classes: int) -> None:
        c = image_shape[0]
        super().__init__(OrderedDict(
            normalize=Normalize(c), whiten=nn.Conv2d(c, 8 * c, 2), act=nn.GELU(),
            group1=self._group(8 * c, 64), group2=self._group(64, 256), group3=self._group(256, 256),
            pool=Apply(lambda x: x.amax((2, 3))), fc=nn.Linear(256, classes, bias=False), scale=Apply(lambda x: x / 9),
        ))  # fmt: skip
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.get_parameter("whiten.bias"))

    @staticmethod
    def _group(c: int, k: int) -> nn.Module:
        convs = [nn.Conv2d(width, k, 3, padding=1, bias=False) for width in (c, k)]
        norms = [nn.BatchNorm2d(k, eps=1e-12, momentum=0.4) for _ in range(2)]
        for conv, norm in zip(convs, norms, strict=True):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
            norm.weight.requires_grad_(False)
        return nn.Sequential(convs[0], nn.MaxPool2d(2), norms[0], nn.GELU(), convs[1], norms[1], nn.GELU())

    @torch.no_grad()
    def whiten_by(self, images: Tensor) -> None:
        """Make the first filters the scaled eigenvectors, and their negatives, of the covariance of 2×2 patches."""
        patches = nn.functional.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)  # [patches, 4·C]
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


# Functions of the shape of an image, [C, H, W], and the number of classes.
NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "small": small, "tutorial": tutorial, "resnet9": resnet9, "resnet18": resnet18, "airbench94": AirBench94,
}  # fmt: skip
