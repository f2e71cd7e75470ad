"""The run folder, and the two things done with one: `train` fills it, `evaluate` reads it.

    config.json        the settings, and what the network was built for
    metrics.jsonl      a line for each epoch, and for each step asked for
    model.safetensors  the weights and the normalisation of the images; saved after every epoch

config.json and model.safetensors are replaced whole or not at all, so whatever stops a run, its last save is usable.
"""

import dataclasses
import datetime
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import gpuconv
from gpuconv.files import write_atomically
from gpuconv.train import loop
from gpuconv.train.config import Config, UserError
from gpuconv.train.data import DATASETS, Data
from gpuconv.train.model import NETWORKS, Normalize
from gpuconv.train.watch import Lines

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
_FEW_PIXELS = 1 << 16


def new_folder(data: str) -> Path:
    """runs/<data>-<date>-<time>, with a number behind it where that exists. Makes nothing."""
    stem = f"{data}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    tries = (Path("runs", f"{stem}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in tries if not path.exists())


def check_new(path: Path) -> None:
    """Raise UserError where a run could not be written to `path`, as far as can be told without writing."""
    for name in (CONFIG, METRICS, MODEL):
        if os.path.lexists(path / name):
            raise UserError(f"{path} already holds a run: {name} is there; choose another --out")
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise UserError(f"cannot write to {path}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no permission to write in {nearest}")


def train(config: Config, path: Path, watch: Lines, log_every: int | None = None) -> dict[str, Any]:
    """Train a network by `config`, write the run to `path`, a folder that holds no run yet, and tell how it ended.

    Every `log_every`-th step gets a line in metrics.jsonl. SIGINT and SIGTERM end the run after the step under way,
    with the weights saved and the signal's name as `stopped_by`; a second one kills the process. Raises UserError or
    BackendUnavailable; nothing is written unless training could begin.
    """
    config.check()
    check_new(path)
    torch.manual_seed(config.seed)
    data, network = _load(config)
    for module in network.modules():
        if isinstance(module, Normalize):
            module.measure(data.images)
    score, epochs, images, busy = None, 0, 0, 0.0
    losses: list[float | None] = []
    with _computing(config, data):
        loop.rehearse(network, data, config)
        _create(path, config, data)
        with _first_signal() as stopped_by, watch:
            started = time.perf_counter()
            for at in loop.fit(network, data, config):
                watch.step(at)
                if log_every is not None and at.step % log_every == 0:
                    losses.append(_finite(at.loss()))
                    line = {"kind": "step", "epoch": at.epoch, "step": at.step, "loss": losses[-1], "lr": at.lr}
                    _append(path, line)
                    watch.record(at, line)
                if at.epoch_ended:
                    loss, accuracy, rate = at.running()
                    if not math.isfinite(loss):
                        raise UserError(
                            f"the loss of epoch {at.epoch} is {loss}: training diverged; try a smaller --lr"
                        )
                    images, busy, epochs = images + at.images, busy + at.images / rate, at.epoch
                    score = loop.evaluate(network, data, config)
                    _save(path, network)
                    line = {"kind": "epoch", "epoch": at.epoch, "step": at.step, "loss": loss, "accuracy": accuracy,
                            "test_loss": _finite(score.loss), "test_accuracy": score.accuracy,
                            "seconds": round(time.perf_counter() - started, 3),
                            "images_per_second": round(rate, 1), "lr": at.lr}  # fmt: skip
                    _append(path, line)
                    watch.record(at, line)
                if stopped_by and not at.ended:
                    score = None
                    _save(path, network)
                    _append(path, {"kind": "stopped", "signal": stopped_by[0], "epoch": at.epoch, "step": at.step})
                    break
            seconds = time.perf_counter() - started
    return {
        "run": str(path),
        "accuracy": score and score.accuracy,
        "loss": score and _finite(score.loss),
        "n": len(data.test_labels),
        "epochs": epochs,
        "steps": at.step,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / busy, 1) if busy else None,
        "losses": losses,
        "stopped_by": None if at.ended else stopped_by[0],
    }


def evaluate(path: Path, **other: str | None) -> loop.Score:
    """The run's network on the held-out images of its data; `other` replaces settings: device, backend, dtype.

    Raises UserError where the folder is damaged or a setting is wrong.
    """
    config = dataclasses.replace(load_config(path), **{k: v for k, v in other.items() if v is not None})  # type: ignore[arg-type]  # all are str
    config.check()
    data, network = _load(config)
    load_weights(network, path / MODEL)
    with _computing(config, data):
        return loop.evaluate(network, data, config)


def load_config(path: Path) -> Config:
    """The settings of the run at `path`. Raises UserError where there is no run or its config.json is damaged."""
    if not path.is_dir():
        raise UserError(f"{path} is not a run: there is no such folder")
    try:
        return Config.of(json.loads((path / CONFIG).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} is not a run: cannot read {CONFIG} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError and JSONDecodeError
        raise UserError(f"{path / CONFIG} is damaged: it is not JSON ({error})") from None
    except UserError as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill the network from a safetensors file. Raises UserError where the file is damaged or another network's."""
    import safetensors.torch

    try:
        found = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    expected = network.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        shapes = [list(tensors[name].shape) if name in tensors else None for tensors in (expected, found)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} is another network's: expected {name} of shape {shapes[0]}, but got {shapes[1]}")
    network.load_state_dict(found)


def _write(path: Path, content: bytes) -> None:
    """Make `content` the file at `path`. Raises UserError where it cannot; a file that was there then stays."""
    try:
        write_atomically(path, content)
    except OSError as error:
        kept = "; the one saved before is still there" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error.strerror}{kept}") from None


def _load(config: Config) -> tuple[Data, nn.Module]:
    """The data and a network for them, on their device; its weights come from PyTorch's generator."""
    device = torch.device(config.device)
    data = DATASETS[config.data]().to(device, config.weight_dtype)
    network = NETWORKS[config.model](data.image_shape, len(data.classes))
    return data, network.to(device, config.weight_dtype)


def _create(path: Path, config: Config, data: Data) -> None:
    about = dataclasses.asdict(config) | {
        "image_shape": data.image_shape,
        "classes": data.classes,
        "versions": {"gpuconv": gpuconv.__version__, "torch": torch.__version__},
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from None
    _write(path / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with open(path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path / METRICS}: {error.strerror}") from None


def _save(path: Path, network: nn.Module) -> None:
    import safetensors.torch

    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    _write(path / MODEL, safetensors.torch.save(tensors))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


@contextmanager
def _computing(config: Config, data: Data) -> Iterator[None]:
    """With the run's backend, in a way that gives the same bits every time.

    A step on few pixels uses one CPU thread, in PyTorch and in NumPy's BLAS. More would share a millisecond of work
    and, where the machine does something else as well, wait for each other most of the time: 40 times slower was seen.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    few = config.batch_size * math.prod(data.image_shape) < _FEW_PIXELS
    torch.set_num_threads(1 if few else threads)
    torch.backends.cudnn.deterministic = True  # `auto` and `aten` may come to cuDNN
    try:
        with threadpool_limits(1 if few else None, "blas"), gpuconv.use_backend(config.backend):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic


@contextmanager
def _first_signal() -> Iterator[list[str]]:
    """A list that gets the name of the first SIGINT or SIGTERM; the next one ends the process at once."""
    received: list[str] = []
    watched = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for each in watched:
            signal.signal(each, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield received
        return
    before = {each: signal.signal(each, note) for each in watched}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
