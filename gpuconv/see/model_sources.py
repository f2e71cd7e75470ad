"""Loading the model to be seen from timm, torchvision, or the folder of a run."""

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
from gpuconv.see.layers import channels_of
from gpuconv.text import did_you_mean
from gpuconv.train import data as datasets, networks, run as runs

DEFAULT_SIDE = 224  # the longer side of images, in pixels


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, and what images it takes."""

    name: str
    model: nn.Module
    channels: int
    trained: bool = dataclasses.field(default=True, kw_only=True)  # else its weights are random
    size: tuple[int, int] | None = None  # (H, W) if it takes no other
    mean: Tensor | None = None  # [C, 1, 1]: what images 0 … 1 are normalised with before the model sees them
    std: Tensor | None = None
    images: Tensor | None = None  # [N, C, H, W], 0 … 1: those that came with it

    def normalized(self, images: Tensor) -> Tensor:
        """Images 0 … 1 as the model takes them."""
        return images if self.mean is None or self.std is None else (images - self.mean) / self.std


def load(target: str, trained: bool = True) -> LoadedModel:
    """The model `timm:NAME` or `torchvision:NAME`, with its published weights, or that of a run's folder.

    trained=False: with random weights instead, which needs no network. Raises UserError with one line that says what
    is wrong.
    """
    source, colon, name = target.partition(":")
    if colon and source in _SOURCES:
        return _SOURCES[source](name, trained)
    if colon and not Path(target).exists():
        raise UserError(f"a model is RUN, timm:NAME or torchvision:NAME, but got {target!r}")
    return load_run(Path(target))


def load_run(path: Path) -> LoadedModel:
    """The network of a run that `gpuconv train` made, and its held-out images. Raises UserError for a damaged run."""
    network, config = runs.load_run(path, device="cpu", backend="auto")
    channels, height, width = runs.load_shapes(path)[0]
    data = datasets.load(config, (height, width))
    images = data.pixels(data.test_images, torch.float32)
    return LoadedModel(str(path), network.float(), channels, (height, width), images=images)


def _timm(name: str, trained: bool) -> LoadedModel:
    timm = _package("timm")
    _check_known(name.partition(".")[0], timm.list_models(), "timm")
    model = _create("timm", name, trained, lambda: timm.create_model(name, pretrained=trained))
    settings = model.pretrained_cfg
    return _loaded(f"timm:{name}", model, trained, settings.get("mean"), settings.get("std"))


def _torchvision(name: str, trained: bool) -> LoadedModel:
    models = _package("torchvision").models
    _check_known(name, models.list_models(), "torchvision")
    make = functools.partial(models.get_model, name, weights="DEFAULT")
    model = _create("torchvision", name, trained, make if trained else lambda: networks.of_torchvision(name))
    return _loaded(f"torchvision:{name}", model, trained, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


_SOURCES: dict[str, Callable[[str, bool], LoadedModel]] = {"timm": _timm, "torchvision": _torchvision}


def _package(name: str) -> Any:
    try:
        return __import__(f"{name}.models") if name == "torchvision" else __import__(name)
    except ImportError as error:
        raise UserError(f"{name}: models need: pip install {name} ({error})") from error


def _check_known(name: str, names: list[str], source: str) -> None:
    if name not in names:
        raise UserError(f"{source} has no model {name!r}{did_you_mean(name, names)}")


def _create(source: str, name: str, trained: bool, make: Callable[[], nn.Module]) -> Any:
    advice = "; --untrained takes random weights, which need no network" if trained else ""
    host = _HOSTS[source]
    try:
        with _downloads(allowed=not trained or _reachable(host)):
            return make()
    except Exception as error:  # whatever a package or a network says
        if trained and not _reachable(host):
            what = f"its weights are not on this machine, and {host} cannot be reached"
            raise UserError(f"{source}:{name}: {what}{advice}") from error
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{source}:{name} cannot be had: {type(error).__name__}: {said}{advice}") from error


_HOSTS = {"timm": "huggingface.co", "torchvision": "download.pytorch.org"}  # where the published weights are
_TIMEOUT = 4.0  # seconds


@functools.cache
def _reachable(host: str) -> bool:
    """Whether a host answers within a few seconds."""
    if urllib.request.getproxies():
        return True  # only the proxy could tell
    answers = []

    def call() -> None:
        with suppress(OSError), socket.create_connection((host, 443), timeout=_TIMEOUT):
            answers.append(True)

    caller = threading.Thread(target=call, daemon=True)  # looking up the name has no timeout of its own
    caller.start()
    caller.join(_TIMEOUT)
    return bool(answers)


@contextmanager
def _downloads(allowed: bool) -> Iterator[None]:
    """Unless `allowed`, weights are only looked for on this machine: huggingface_hub would try twelve times."""
    if allowed:
        with redirect_stdout(sys.stderr):  # where downloads are announced
            yield
        return
    hub = sys.modules.get("huggingface_hub.constants")
    before, timeout = getattr(hub, "HF_HUB_OFFLINE", None), socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    if hub is not None:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # where failures are announced
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        if hub is not None:
            hub.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _loaded(name: str, model: nn.Module, trained: bool, mean: Any, std: Any) -> LoadedModel:
    channels = channels_of(model)
    if mean is None or std is None or len(mean) != channels:
        return LoadedModel(name, model, channels, trained=trained)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    return LoadedModel(name, model, channels, None, mean, std, trained=trained)
