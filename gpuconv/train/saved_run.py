"""A saved run: loading its settings and its network, evaluation and prediction."""

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gpuconv
from gpuconv import image_files
from gpuconv.errors import UserError
from gpuconv.text import first_few
from gpuconv.train import checkpoint, data as datasets, loop, networks
from gpuconv.train.config import Config

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
_FEW_PIXELS = 1 << 16
_PREDICTION_BATCH = 256


def _ignore(note: str) -> None:
    """Do nothing with a note."""


def load_run(path: Path, **other: str | None) -> tuple[nn.Module, Config]:
    """The network of the run at `path`, in evaluation mode on its device, and the settings, some replaced by `other`.

    Raises UserError where the folder is damaged or a setting is wrong.
    """
    config = dataclasses.replace(load_config(path), **{k: v for k, v in other.items() if v is not None})  # type: ignore[arg-type]  # all are str
    config.check()
    image_shape, classes = load_shapes(path)
    network = networks.build(config.model, image_shape, len(classes), config.channels_last)
    checkpoint.load_weights(network, checkpoint.from_bytes(read(path / MODEL), path / MODEL)[0], path / MODEL)
    return network.to(torch.device(config.device), config.weight_dtype).eval(), config


def load_config(path: Path) -> Config:
    """The settings of the run at `path`. Raises UserError where there is no run or its config.json is damaged."""
    found = read_json(path)
    try:
        return Config.of(found)
    except UserError as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from None


def load_shapes(path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The shape of the images, [C, H, W], and the classes of the run at `path`."""
    found = read_json(path)
    shape, classes = (found.get(name) for name in ("image_shape", "classes"))
    sizes = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if shape is None or not (
        sizes and isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    ):
        raise UserError(f"{path / CONFIG} is damaged: image_shape or classes is missing or wrong")
    return tuple(shape), tuple(classes)


def evaluate(path: Path, say: Callable[[str], None] = _ignore, **other: str | None) -> loop.Score:
    """The score of a run's network on the test images of its data; `other` replaces settings.

    `say` gets notes on the data for the user. Raises as `load_run` does.
    """
    network, config = load_run(path, **other)
    image_shape, classes = load_shapes(path)
    data = datasets.load(config, (image_shape[1], image_shape[2])).to(torch.device(config.device))
    for note in data.notes:
        say(note)
    if (data.image_shape, data.classes) != (image_shape, classes):
        have, had = (
            f"{len(c)} classes of {list(s)}" for s, c in ((data.image_shape, data.classes), (image_shape, classes))
        )
        raise UserError(f"{config.data} does not go with the run: it has {have}, but the network was made for {had}")
    with computing(config, image_shape):
        return loop.evaluate(network, data, config)


def predict(path: Path, files: Sequence[Path], **other: str | None) -> list[dict[str, float]]:
    """The probability of every class for each image file, the likeliest first. Raises as `iter_predictions` does."""
    return [shares for _, shares in iter_predictions(path, files, _ignore, **other)]


def iter_predictions(
    path: Path, files: Sequence[Path], say: Callable[[str], None] = _ignore, **other: str | None
) -> Iterator[tuple[Path, dict[str, float]]]:
    """The image files, those below folders included, each with the probability of every class, the likeliest first.

    Images are resized to those of the training: scaled to cover that size, then cropped to the middle. `say` gets notes
    on what is left out of folders because it is no image or cannot be read. Raises as `load_run` does, and UserError
    for a file that cannot be read, and for a folder without images.
    """
    network, config = load_run(path, **other)
    (channels, height, width), classes = load_shapes(path)
    if channels not in (1, 3):
        raise UserError(f"{path} learned images of {channels} channels, and files have 1 or 3")
    left_out, remarks = image_files.LeftOut(), dict[str, list[str]]()

    def read(file: Path, named: bool) -> Tensor | None:
        try:
            picture = image_files.read(file, channels)
        except ValueError as error:
            if named:
                raise UserError(f"cannot read the image {file}: {error}") from None
            left_out.add(image_files.BROKEN, file)
            return None
        if picture.remark:
            remarks.setdefault(picture.remark, []).append(str(file))
        pixels = image_files.fit(picture.pixels, (height, width))
        values = torch.from_numpy(np.array(pixels)).to(config.device, config.weight_dtype)
        return values / 255 if pixels.dtype == np.uint8 else values

    wanted = _image_files(files, left_out)
    with computing(config, (channels, height, width)), torch.no_grad():
        while batch := list(itertools.islice(wanted, _PREDICTION_BATCH)):
            read_ones = [(file, image) for file, named in batch if (image := read(file, named)) is not None]
            if read_ones:
                outputs = loop.evaluation_outputs(network, torch.stack([image for _, image in read_ones]), config)
                for (file, _), share in zip(read_ones, loop.probabilities(outputs, config).tolist(), strict=True):
                    yield file, {name: value for value, name in sorted(zip(share, classes, strict=True), reverse=True)}
    for line in (*left_out.lines(), *(f"{remark}: {first_few(names)}" for remark, names in remarks.items())):
        say(line)


def _image_files(files: Sequence[Path], left_out: image_files.LeftOut) -> Iterator[tuple[Path, bool]]:
    """The files, and those below folders, each with whether it was named itself."""
    for file in files:
        if not file.is_dir():
            yield file, True
            continue
        try:
            inside = list(image_files.files_in(file, left_out))
        except OSError as error:
            raise UserError(f"cannot read {error.filename or file}: {error.strerror or error}") from None
        if not inside:
            raise UserError("; ".join([f"{file} has no images", *left_out.lines()]))
        yield from ((each, False) for each in inside)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to the first incomplete one."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        for text in (path / METRICS).read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(text))
    return lines


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path} is not a run: there is no such folder")
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} is not a run: cannot read {CONFIG} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError and JSONDecodeError
        raise UserError(f"{path / CONFIG} is damaged: it is not JSON ({error})") from None
    return found


@contextlib.contextmanager
def computing(config: Config, image_shape: tuple[int, ...]) -> Iterator[None]:
    """The run's backend, with deterministic results, while the block runs.

    A step on few pixels uses one CPU thread, in PyTorch and in NumPy's BLAS. More would share a millisecond of work
    and, on a machine that is busy, wait for each other most of the time: 40 times slower was measured.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    few = config.batch_size * math.prod(image_shape) < _FEW_PIXELS
    torch.set_num_threads(1 if few else threads)
    torch.backends.cudnn.deterministic = True  # `auto` and `aten` may come to cuDNN
    try:
        with threadpool_limits(1 if few else None, "blas"), gpuconv.use_backend(config.backend):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
