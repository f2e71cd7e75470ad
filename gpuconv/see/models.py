"""What is to be seen: a model by name or from a run folder, and images in the form that it takes."""

import dataclasses
import functools
import io
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpuconv.errors import UserError
from gpuconv.see.images import fitted, read_image
from gpuconv.see.layers import channels_of
from gpuconv.text import like
from gpuconv.train import data as datasets, networks, run as runs

__all__ = ["SIDE", "Subject", "fitted", "load", "load_run", "read_image"]
SIDE = 224


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, and what its images are like."""

    name: str
    model: nn.Module
    channels: int
    trained: bool = dataclasses.field(default=True, kw_only=True)  # else its weights are random
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
    model = _made("timm", name, trained, lambda: timm.create_model(name, pretrained=trained))
    settings = model.pretrained_cfg
    return _subject(f"timm:{name}", model, trained, settings.get("mean"), settings.get("std"))


def _torchvision(name: str, trained: bool) -> Subject:
    models = _package("torchvision").models
    _known(name, models.list_models(), "torchvision")
    make = functools.partial(models.get_model, name, weights="DEFAULT")
    model = _made("torchvision", name, trained, make if trained else lambda: networks.of_torchvision(name))
    return _subject(f"torchvision:{name}", model, trained, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


_SOURCES: dict[str, Callable[[str, bool], Subject]] = {"timm": _timm, "torchvision": _torchvision}


def _package(name: str) -> Any:
    try:
        return __import__(f"{name}.models") if name == "torchvision" else __import__(name)
    except ImportError as error:
        raise UserError(f"{name}: models need: pip install {name} ({error})") from error


def _known(name: str, names: list[str], source: str) -> None:
    if name not in names:
        raise UserError(f"{source} has no model {name!r}{like(name, names)}")


def _made(source: str, name: str, trained: bool, make: Callable[[], nn.Module]) -> Any:
    advice = "; --untrained takes random weights, which need no network" if trained else ""
    place = _PLACES[source]
    try:
        with _impatient(trained and not _reached(place)):
            return make()
    except Exception as error:  # whatever a package or a network says
        if trained and not _reached(place):
            what = f"its weights are not on this machine, and {place} cannot be reached"
            raise UserError(f"{source}:{name}: {what}{advice}") from error
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{source}:{name} cannot be had: {type(error).__name__}: {said}{advice}") from error


_PLACES = {"timm": "huggingface.co", "torchvision": "download.pytorch.org"}  # where the published weights are
_PATIENCE = 4.0  # seconds


@functools.cache
def _reached(place: str) -> bool:
    """Whether a machine answers, as far as can be told in a few seconds."""
    if urllib.request.getproxies():
        return True  # then others ask for us
    answers = []

    def call() -> None:
        with suppress(OSError), socket.create_connection((place, 443), timeout=_PATIENCE):
            answers.append(True)

    caller = threading.Thread(target=call, daemon=True)  # looking up the name has no timeout of its own
    caller.start()
    caller.join(_PATIENCE)
    return bool(answers)


@contextmanager
def _impatient(offline: bool) -> Iterator[None]:
    """While nobody answers, weights are only looked for on this machine: huggingface_hub would call twelve times."""
    if not offline:
        with redirect_stdout(sys.stderr):  # where downloads are announced
            yield
        return
    hub = sys.modules.get("huggingface_hub.constants")
    before, timeout = getattr(hub, "HF_HUB_OFFLINE", None), socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # and what cannot be downloaded, too
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        if hub is not None:
            hub.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _subject(name: str, model: nn.Module, trained: bool, mean: Any, std: Any) -> Subject:
    channels = channels_of(model)
    if mean is None or std is None or len(mean) != channels:
        return Subject(name, model, channels, trained=trained)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    return Subject(name, model, channels, None, mean, std, trained=trained)
