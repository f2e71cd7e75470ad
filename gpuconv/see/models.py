"""What is to be seen: a model by name or from a run folder, and images in the form that it takes."""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpuconv import pictures
from gpuconv.see.layers import channels_of
from gpuconv.train import data as datasets, run as runs
from gpuconv.train.config import UserError

SIDE = 224


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, and what its images are like."""

    name: str
    model: nn.Module
    channels: int
    size: tuple[int, int] | None = None  # (H, W) if it takes no other
    mean: Tensor | None = None  # [C, 1, 1]: what images 0 … 1 are normalised with before the model sees them
    std: Tensor | None = None
    images: Tensor | None = None  # [N, C, H, W], 0 … 1: some of its own

    def normalized(self, images: Tensor) -> Tensor:
        """Images 0 … 1 as the model takes them."""
        return images if self.mean is None or self.std is None else (images - self.mean) / self.std


def load(target: str, trained: bool = True) -> Subject:
    """`timm:NAME`, `torchvision:NAME`, or the folder of a run; from the first two with their published weights.

    trained=False: with random weights instead, which needs no network. Raises UserError with one line that says what
    is wrong.
    """
    source, colon, name = target.partition(":")
    if colon and source in _SOURCES:
        return _SOURCES[source](name, trained)
    if colon and not Path(target).exists():
        raise UserError(f"a model is RUN, timm:NAME or torchvision:NAME, but got {target!r}")
    return load_run(Path(target))


def load_run(path: Path) -> Subject:
    """The network of a run that `gpuconv train` made, and its held-out images. Raises UserError for a damaged run."""
    network, config = runs.load_run(path, device="cpu", backend="auto")
    channels, height, width = runs.load_shapes(path)[0]
    data = datasets.load(config, (height, width))
    images = data.pixels(data.test_images, torch.float32)
    return Subject(str(path), network.float(), channels, (height, width), images=images)


def _timm(name: str, trained: bool) -> Subject:
    timm = _package("timm")
    _known(name.partition(".")[0], timm.list_models(), "timm")
    model = _made("timm", name, lambda: timm.create_model(name, pretrained=trained))
    settings = model.pretrained_cfg
    return _subject(f"timm:{name}", model, settings.get("mean"), settings.get("std"))


def _torchvision(name: str, trained: bool) -> Subject:
    models = _package("torchvision").models
    _known(name, models.list_models(), "torchvision")
    model = _made("torchvision", name, lambda: models.get_model(name, weights="DEFAULT" if trained else None))
    return _subject(f"torchvision:{name}", model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


_SOURCES: dict[str, Callable[[str, bool], Subject]] = {"timm": _timm, "torchvision": _torchvision}


def _package(name: str) -> Any:
    try:
        return __import__(f"{name}.models") if name == "torchvision" else __import__(name)
    except ImportError as error:
        raise UserError(f"{name}: models need: pip install {name} ({error})") from error


def _known(name: str, names: list[str], source: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise UserError(f"{source} has no model {name!r}; the nearest names are {', '.join(near)}")


def _made(source: str, name: str, make: Callable[[], nn.Module]) -> Any:
    try:
        return make()
    except Exception as error:  # whatever a package or a network says
        advice = "; --untrained takes random weights, which need no network"
        raise UserError(f"{source}:{name} cannot be had: {type(error).__name__}: {error}{advice}") from error


def _subject(name: str, model: nn.Module, mean: Any, std: Any) -> Subject:
    channels = channels_of(model)
    if mean is None or std is None or len(mean) != channels:
        return Subject(name, model, channels)
    return Subject(name, model, channels, None, *(torch.tensor(v).view(-1, 1, 1) for v in (mean, std)))


# ---- images ---------------------------------------------------------------------------------------------------------


def read_image(path: Path, channels: int) -> Tensor:
    """An image file, or a NumPy file [H, W], [C, H, W] or [H, W, C], as [C, H, W] with values 0 … 1.

    A picture is read as in training, see `gpuconv.pictures`: grey for one channel and coloured for three. Of a NumPy
    file integers are divided by the greatest of their type; numbers with a point are taken as they are. Raises
    UserError for a file that is no image or has other channels.
    """
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file")
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else pictures.read(path, channels).pixels
    except Exception as error:  # Pillow and NumPy raise whatever a damaged file makes them stumble over
        raise UserError(f"{path} is no image: {str(error) or type(error).__name__}") from error
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape or array.dtype.kind not in "buif":
        raise UserError(
            f"{path} is {list(array.shape)} of {array.dtype}, but the model takes images of {channels} channel"
            f"{'s' * (channels != 1)}; a .npy file of [{channels}, H, W] is an image of any number of channels"
        )
    white = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
    values = np.ascontiguousarray(array / white, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} is no image: it holds values that are not finite")
    return torch.from_numpy(values)


def fitted(image: Tensor, size: tuple[int, int] | int) -> Tensor:
    """[C, H, W] made smaller or larger: to (H, W), its middle cut out first, or to a longer side."""
    height, width = image.shape[1:]
    if isinstance(size, int):
        scale = size / max(height, width)
        wanted = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        wanted = size
        scale = min(height / wanted[0], width / wanted[1])
        keep = max(1, round(wanted[0] * scale)), max(1, round(wanted[1] * scale))
        top, left = (height - keep[0]) // 2, (width - keep[1]) // 2
        image = image[:, top : top + keep[0], left : left + keep[1]]
    if tuple(image.shape[1:]) == wanted:
        return image
    return F.interpolate(image[None], wanted, mode="bilinear", antialias=True)[0].clamp(image.min(), image.max())
