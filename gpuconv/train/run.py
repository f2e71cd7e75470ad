"""The run folder, which `train` fills or goes on with; what is done with one that was saved stands in `saved`.

    config.json             the settings, and what the network was built for
    metrics.jsonl           a line for each epoch, and for each step asked for
    model.safetensors       the weights and the normalisation of the images; saved after every epoch
    checkpoint.safetensors  all that it takes to go on, bit for bit as if nothing had happened
    curves.png              loss and accuracy by epoch

Files are replaced whole or not at all, so whatever stops a run, its last save is usable.
"""

import contextlib
import copy
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
from gpuconv.errors import UserError
from gpuconv.files import writable_or_raise
from gpuconv.train import checkpoint, data as datasets, loop, networks, ranks
from gpuconv.train.config import Config
from gpuconv.train.data import Data
from gpuconv.train.progress import Watch, draw_curves
from gpuconv.train.saved import (
    CONFIG,
    METRICS,
    MODEL,
    computing,
    evaluate as evaluate,
    load_config as load_config,
    load_run as load_run,
    load_shapes as load_shapes,
    metrics,
    predict as predict,
    predictions as predictions,
    read,
    read_json,
)

CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"


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
    try:
        writable_or_raise(path, folder=True)
    except OSError as error:
        raise UserError(str(error)) from None


class _Run:
    """A run under way: what it has measured so far, and its folder, into which process 0 alone writes."""

    def __init__(
        self, path: Path, config: Config, data: Data, training: loop.Training, watches: Sequence[Watch]
    ) -> None:
        self.path, self.config, self.data, self.training, self.watches = path, config, data, training, watches
        self.writes = ranks.rank() == 0
        self.score: dict[str, Any] = {}  # of the part that is watched: with patience the best, else the last
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
        found, path = read_json(self.path), self.path / CHECKPOINT
        for name, now in self.about.items():
            if found.get(name) != now:
                raise UserError(f"{self.config.data} has changed: {name} was {found.get(name)}, and is {now}")
        vars(self).update(checkpoint.unpack(self.training, read(path), path, self.tally()))
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
        part = self.data.watched
        share, mean = self.judge(self.training.best, part)
        better = not self.score or share > self.score["accuracy"]
        self.stale = 0 if better else self.stale + 1
        if better or not patience:
            self.score = {"accuracy": share, "loss": _finite(mean)}
        self.done = at.ended or 0 < patience <= self.stale
        self.seconds = time.perf_counter() - self.began
        self.record(
            "epoch", loss=loss, accuracy=accuracy, **{f"{part}_loss": _finite(mean), f"{part}_accuracy": share},
            seconds=round(self.seconds, 3), images_per_second=round(rate, 1), lr=at.lr,
        )  # fmt: skip

    def judge(self, network: nn.Module, part: str) -> tuple[float, float]:
        """Accuracy and loss on a part of the data, which process 0 measures and all are told."""
        score = loop.evaluate(network, self.data, self.config, part) if self.writes else loop.Score(0, 0, 0)
        share, mean = ranks.total(torch.tensor([score.accuracy, score.loss], dtype=torch.float64)).tolist()
        return share, mean

    def test(self) -> dict[str, Any]:
        """The score of the network that was kept on test images that had no say in that."""
        network = copy.deepcopy(self.training.best)
        if self.writes:
            file = self.path / MODEL
            checkpoint.fill(network, checkpoint.unsealed(read(file), file)[0], file)
        share, mean = self.judge(network, "test")
        if not any(line["kind"] == "test" for line in metrics(self.path)):  # a run may be resumed that has ended
            self.record("test", test_loss=_finite(mean), test_accuracy=share)
        return {"accuracy": share, "loss": _finite(mean)}

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
        score = {} if stop else self.score if self.data.watched == "test" else self.test()
        epochs = [line for line in metrics(self.path) if line["kind"] == "epoch"] if self.writes else []
        if epochs:
            draw_curves(epochs, png := io.BytesIO())
            checkpoint.write(self.path / CURVES, png.getvalue())
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
        network = networks.build(config.model, data.image_shape, len(data.classes), config.channels_last)
        network.to(device, config.weight_dtype)
        networks.measure(network, data.images, data.top)
        stack.enter_context(computing(config, data.image_shape))
        each = loop.rehearse(network, data, config)
        notes = [*data.notes, *_batches(config, len(data.labels), each)]
        training = loop.Training(network, config, len(data.labels), each * ranks.world() if each > 1 else 1)
        run = _Run(path, config, data, training, watches)
        if resume:
            run.resume()
        else:
            run.create()
        stopped_by = stack.enter_context(_first_signal())
        for watch in watches:
            stack.enter_context(watch)
            for note in notes:
                watch.note(note)
        return run.go(log_every, checkpoint_every, stopped_by)


def _batches(config: Config, images: int, each: int) -> list[str]:
    """What is to be said of an epoch's last batch. Raises UserError where batches have too few images.

    each: images that a process needs in a batch.
    """
    world = ranks.world()
    most, last = min(config.batch_size, images), (images - 1) % config.batch_size + 1
    among = f" for {world} processes" if world > 1 else ""
    if each > 1 and most < each * world:
        raise UserError(
            f"model {config.model} cannot be trained on one image at a time (BatchNorm needs two or more), but a batch "
            f"has {most}{among}: take a larger --batch-size, or more images"
        )
    if last < world and each == 1:
        raise UserError(f"an epoch's last batch has {last} images for {world} processes: change --batch-size")
    if last >= each * world:
        return []
    return [
        f"an epoch's last batch would have {last} image{'s' * (last > 1)}{among}, too few for BatchNorm: it joins the "
        f"batch before it, which then has {config.batch_size + last}"
    ]


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


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
