"""The run folder, and what is done with one: `train` fills it or goes on with it, `evaluate` and `predict` read it.

    config.json             the settings, and what the network was built for
    metrics.jsonl           a line for each epoch, and for each step asked for
    model.safetensors       the weights and the normalisation of the images; saved after every epoch
    checkpoint.safetensors  all that it takes to go on, bit for bit as if nothing had happened
    curves.png              loss and accuracy by epoch

Files are replaced whole or not at all, so whatever stops a run, its last save is usable.
"""

import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

import gpuconv
from gpuconv.train import checkpoint, data as datasets, loop, networks, ranks
from gpuconv.train.config import Config, UserError
from gpuconv.train.data import Data
from gpuconv.train.watch import Watch, draw_curves

CONFIG, METRICS, MODEL, CURVES = "config.json", "metrics.jsonl", "model.safetensors", "curves.png"
CHECKPOINT = "checkpoint.safetensors"
_FEW_PIXELS = 1 << 16


def new_folder(data: str) -> Path:
    """runs/<data>-<date>-<time>, with a number behind it where that exists. Makes nothing."""
    stem = f"{data.partition(':')[0]}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    tries = (Path("runs", f"{stem}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in tries if not path.exists())


def check_new(path: Path) -> None:
    """Raise UserError where a run could not be written to `path`, as far as can be told without writing."""
    for name in (CONFIG, METRICS, MODEL, CHECKPOINT):
        if os.path.lexists(path / name):
            raise UserError(f"{path} already holds a run: {name} is there; choose another --out, or --resume it")
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise UserError(f"cannot write to {path}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no permission to write in {nearest}")


class _Run:
    """A run under way: what it has measured so far, and its folder, into which process 0 alone writes."""

    def __init__(
        self, path: Path, config: Config, data: Data, training: loop.Training, watches: Sequence[Watch]
    ) -> None:
        self.path, self.config, self.data, self.training, self.watches = path, config, data, training, watches
        self.writes = ranks.rank() == 0
        self.score: dict[str, Any] = {}  # with patience the best, else the last
        self.stale = 0  # epochs since a better one
        self.done = False
        self.images, self.busy, self.seconds = 0.0, 0.0, 0.0
        self.about = {"image_shape": [*data.image_shape], "classes": [*data.classes], "images": len(data.labels)}

    def create(self) -> None:
        """The folder, with a checkpoint of step 0."""
        if self.writes:
            versions = {"versions": {"gpuconv": gpuconv.__version__, "torch": torch.__version__}}
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
            text = json.dumps(dataclasses.asdict(self.config) | self.about | versions, indent=2)
            checkpoint.write(self.path / CONFIG, f"{text}\n".encode())
        torch.manual_seed(self.config.seed + ranks.rank())  # dropout differs between processes
        self.save(model=False)

    def resume(self) -> None:
        """Go on where the folder's checkpoint was written; what was reported after it will be reported again."""
        found, path = _read_json(self.path), self.path / CHECKPOINT
        for name, now in self.about.items():
            if found.get(name) != now:
                raise UserError(f"{self.config.data} has changed: {name} was {found.get(name)}, and is {now}")
        vars(self).update(checkpoint.unpack(self.training, _read(path), path, self.tally()))
        if self.writes:
            kept = [line for line in metrics(self.path) if line["step"] <= self.training.at.step]
            checkpoint.write(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def tally(self) -> dict[str, Any]:
        """What a checkpoint holds beside the training."""
        return {name: getattr(self, name) for name in ("score", "stale", "done", "images", "busy", "seconds")}

    def record(self, kind: str, **values: Any) -> None:
        """A line for metrics.jsonl and whoever watches."""
        at = self.training.at
        line = {"kind": kind, "epoch": at.epoch, "step": at.step} | values
        if self.writes:
            try:
                with open(self.path / METRICS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self.path / METRICS}: {error.strerror}") from None
        for watch in self.watches:
            watch.record(at, line)

    def save(self, model: bool) -> None:
        """A checkpoint, and before it the model: a run killed in between makes the same model again."""
        content = checkpoint.pack(self.training, self.tally())
        if model and self.writes:
            checkpoint.write(self.path / MODEL, checkpoint.sealed(self.training.best.state_dict()))
        if self.writes:
            checkpoint.write(self.path / CHECKPOINT, content)

    def end_epoch(self) -> None:
        """Judge the network and report. Raises UserError where training has diverged."""
        at, patience = self.training.at, self.config.patience
        sums = torch.cat([at.sums, at.sums.new_tensor([at.images, at.images - at.since[1]])])
        loss, right, images, new = ranks.total(sums).tolist()
        busy = time.perf_counter() - at.since[0]
        loss, accuracy, rate = loss / images, right / images, new / busy
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {at.epoch} is {loss}: training diverged; try a smaller --lr")
        self.images, self.busy = self.images + new, self.busy + busy
        score = loop.evaluate(self.training.best, self.data, self.config) if self.writes else loop.Score(0, 0, 0)
        share, mean = ranks.total(torch.tensor([score.accuracy, score.loss], dtype=torch.float64)).tolist()
        better = not self.score or share > self.score["accuracy"]
        self.stale = 0 if better else self.stale + 1
        if better or not patience:
            self.score = {"accuracy": share, "loss": _finite(mean)}
        self.done = at.ended or 0 < patience <= self.stale
        self.seconds = time.perf_counter() - self.began
        self.record(
            "epoch", loss=loss, accuracy=accuracy, test_loss=_finite(mean), test_accuracy=share,
            seconds=round(self.seconds, 3), images_per_second=round(rate, 1), lr=at.lr,
        )  # fmt: skip

    def go(self, log_every: int | None, checkpoint_every: int | None, stopped_by: list[str]) -> dict[str, Any]:
        """Train to the end or until a signal comes; tells how it ended."""
        at, losses, stop = self.training.at, list[float | None](), ""
        self.began = time.perf_counter() - self.seconds
        for _ in () if self.done else loop.fit(self.training, self.data, self.config):
            for watch in self.watches:
                watch.step(at)
            if log_every is not None and at.step % log_every == 0:
                losses.append(_finite(at.loss()))
                self.record("step", loss=losses[-1], lr=at.lr)
            if at.epoch_ended:
                self.end_epoch()
            if ranks.any_of(bool(stopped_by)) and not self.done:
                stop = (stopped_by or ["SIGTERM"])[0]
                self.record("stopped", signal=stop)
            self.seconds = time.perf_counter() - self.began
            if stop or at.epoch_ended or (checkpoint_every and at.step % checkpoint_every == 0):
                better = self.stale == 0 if at.epoch_ended else not self.score
                self.save(model=bool(stop or at.epoch_ended) and (better or not self.config.patience))
            if stop or self.done:
                break
        epochs = [line for line in metrics(self.path) if line["kind"] == "epoch"] if self.writes else []
        if epochs:
            draw_curves(epochs, png := io.BytesIO())
            checkpoint.write(self.path / CURVES, png.getvalue())
        score = {} if stop else self.score
        return {
            "run": str(self.path),
            "accuracy": score.get("accuracy"),
            "loss": score.get("loss"),
            "n": len(self.data.test_labels),
            "epochs": at.epoch if at.epoch_ended else at.epoch - 1,
            "steps": at.step,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.busy, 1) if self.busy else None,
            "losses": losses,
            "stopped_by": stop or None,
        }


def train(
    config: Config,
    path: Path,
    watches: Sequence[Watch] = (),
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a network by `config`, write the run to `path`, and tell how it ended.

    `path` is a folder that holds no run yet or, with `resume`, that of a run with this config, which goes on. Every
    `log_every`-th step gets a line in metrics.jsonl. A checkpoint is written at the start, after every epoch and every
    `checkpoint_every`-th step. SIGINT and SIGTERM end the run after the step under way, with everything saved and the
    signal's name as `stopped_by`; a second one kills the process. Raises UserError or BackendUnavailable; nothing is
    written unless training could begin.
    """
    config.check()
    if not resume and ranks.rank() == 0:
        check_new(path)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(ranks.together(torch.device(config.device)))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(config.seed)
        data = datasets.load(config).to(device)
        last = (len(data.labels) - 1) % config.batch_size + 1
        if last < ranks.world():
            raise UserError(
                f"an epoch's last batch has {last} images for {ranks.world()} processes: change --batch-size"
            )
        network = networks.build(config.model, data.image_shape, len(data.classes), config.channels_last)
        network.to(device, config.weight_dtype)
        networks.measure(network, data.images, data.top)
        stack.enter_context(computing(config, data.image_shape))
        loop.rehearse(network, data, config)
        run = _Run(path, config, data, loop.Training(network, config, len(data.labels)), watches)
        if resume:
            run.resume()
        else:
            run.create()
        stopped_by = stack.enter_context(_first_signal())
        for watch in watches:
            stack.enter_context(watch)
            if data.skipped:
                watch.note(f"left out {len(data.skipped)} broken images: {', '.join(data.skipped)}")
        return run.go(log_every, checkpoint_every, stopped_by)


def load_run(path: Path, **other: str | None) -> tuple[nn.Module, Config]:
    """The network of the run at `path`, in evaluation mode on its device, and the settings, some replaced by `other`.

    Raises UserError where the folder is damaged or a setting is wrong.
    """
    config = dataclasses.replace(load_config(path), **{k: v for k, v in other.items() if v is not None})  # type: ignore[arg-type]  # all are str
    config.check()
    image_shape, classes = load_shapes(path)
    network = networks.build(config.model, image_shape, len(classes), config.channels_last)
    checkpoint.fill(network, checkpoint.unsealed(_read(path / MODEL), path / MODEL)[0], path / MODEL)
    return network.to(torch.device(config.device), config.weight_dtype).eval(), config


def load_config(path: Path) -> Config:
    """The settings of the run at `path`. Raises UserError where there is no run or its config.json is damaged."""
    found = _read_json(path)
    try:
        return Config.of(found)
    except UserError as error:
        raise UserError(f"{path / CONFIG} is damaged: {error}") from None


def load_shapes(path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The shape of the images, [C, H, W], and the classes that the network of the run at `path` is for."""
    found = _read_json(path)
    shape, classes = (found.get(name) for name in ("image_shape", "classes"))
    sizes = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if shape is None or not (
        sizes and isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    ):
        raise UserError(f"{path / CONFIG} is damaged: image_shape or classes is missing or wrong")
    return tuple(shape), tuple(classes)


def evaluate(path: Path, **other: str | None) -> loop.Score:
    """The run's network on the held-out images of its data; `other` replaces settings. Raises as `load_run` does."""
    network, config = load_run(path, **other)
    data, (image_shape, classes) = datasets.load(config).to(torch.device(config.device)), load_shapes(path)
    if (data.image_shape, data.classes) != (image_shape, classes):
        have, had = (
            f"{len(c)} classes of {list(s)}" for s, c in ((data.image_shape, data.classes), (image_shape, classes))
        )
        raise UserError(f"{config.data} does not go with the run: it has {have}, but the network was made for {had}")
    with computing(config, image_shape):
        return loop.evaluate(network, data, config)


def predict(path: Path, files: Sequence[Path], **other: str | None) -> list[dict[str, float]]:
    """For each image file the probability of every class, the likeliest first. Raises as `load_run` does."""
    network, config = load_run(path, **other)
    (channels, height, width), classes = load_shapes(path)
    if channels not in (1, 3):
        raise UserError(f"{path} learned images of {channels} channels, and files have 1 or 3")
    mode = "L" if channels == 1 else "RGB"
    images = np.stack([datasets.read_image(file, mode, (width, height)) for file in files])
    with computing(config, (channels, height, width)), torch.no_grad():
        pixels = torch.from_numpy(images).to(config.device, config.weight_dtype) / 255
        shares = loop.probabilities(loop.judged(network, pixels, config), config).tolist()
    found = (sorted(zip(share, classes, strict=True), reverse=True) for share in shares)
    return [{name: value for value, name in pairs} for pairs in found]


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to the first that is not whole."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        for text in (path / METRICS).read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(text))
    return lines


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path} is not a run: there is no such folder")
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} is not a run: cannot read {CONFIG} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError and JSONDecodeError
        raise UserError(f"{path / CONFIG} is damaged: it is not JSON ({error})") from None
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def computing(config: Config, image_shape: tuple[int, ...]) -> Iterator[None]:
    """With the run's backend, in a way that gives the same bits every time.

    A step on few pixels uses one CPU thread, in PyTorch and in NumPy's BLAS. More would share a millisecond of work
    and, where the machine does something else as well, wait for each other most of the time: 40 times slower was seen.
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


@contextlib.contextmanager
def _first_signal() -> Iterator[list[str]]:
    """A list that gets the name of the first SIGINT or SIGTERM; the next one ends the process at once."""
    received: list[str] = []
    watched = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for each in watched if ranks.world() == 1 else ():  # torchrun sends a second one by itself
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
