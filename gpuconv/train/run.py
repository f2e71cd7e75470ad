"""Training into a run folder, new or resumed; what is done with a saved one is in `saved_run`, importable from here.

    config.json             the settings, and what the network was built for
    metrics.jsonl           a line for each epoch, and for each step asked for
    model.safetensors       the weights and the normalisation of the images; saved after every epoch
    checkpoint.safetensors  all that it takes to resume, bit for bit as if the run had not stopped
    curves.png              loss and accuracy by epoch

Files are replaced as a whole or not at all, so the last save is usable whatever stops a run.
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
from gpuconv.train import checkpoint, data as datasets, distributed, loop, networks
from gpuconv.train.config import Config
from gpuconv.train.data import Data
from gpuconv.train.progress import Callback, draw_curves
from gpuconv.train.saved_run import (
    CONFIG,
    METRICS,
    MODEL,
    computing,
    evaluate as evaluate,
    iter_predictions as iter_predictions,
    load_config as load_config,
    load_run as load_run,
    load_shapes as load_shapes,
    metrics,
    predict as predict,
    read,
    read_json,
)

CHECKPOINT, CURVES = "checkpoint.safetensors", "curves.png"


def new_folder(data: str) -> Path:
    """A path runs/<data>-<date>-<time>, with a number appended where that exists. Creates nothing."""
    stem = f"{data.partition(':')[0]}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    tries = (Path("runs", f"{stem}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in tries if not path.exists())


def check_new(path: Path) -> None:
    """Raise UserError where a run could not be written to `path`, as far as can be known without writing."""
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
    """A run in progress: what it has measured so far, and its folder, into which only process 0 writes."""

    def __init__(
        self, path: Path, config: Config, data: Data, training: loop.Training, callbacks: Sequence[Callback]
    ) -> None:
        self.path, self.config, self.data, self.training, self.callbacks = path, config, data, training, callbacks
        self.writes = distributed.rank() == 0
        self.score: dict[str, Any] = {}  # on the part that is monitored: with patience the best, else the last
        self.stale = 0  # epochs since the best one
        self.done = False
        self.images, self.busy, self.seconds = 0.0, 0.0, 0.0
        self.about = {"image_shape": [*data.image_shape], "classes": [*data.classes], "images": len(data.labels)}

    def create(self) -> None:
        """Create the folder, with a checkpoint of step 0."""
        if self.writes:
            versions = {"versions": {"gpuconv": gpuconv.__version__, "torch": torch.__version__}}
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
            text = json.dumps(dataclasses.asdict(self.config) | self.about | versions, indent=2)
            checkpoint.write(self.path / CONFIG, f"{text}\n".encode())
        torch.manual_seed(self.config.seed + distributed.rank())  # dropout differs between processes
        self.save(model=False)

    def resume(self) -> None:
        """Continue from the folder's checkpoint; metrics that were recorded after it are dropped."""
        found, path = read_json(self.path), self.path / CHECKPOINT
        for name, now in self.about.items():
            if found.get(name) != now:
                raise UserError(f"{self.config.data} has changed: {name} was {found.get(name)}, and is {now}")
        vars(self).update(checkpoint.unpack(self.training, read(path), path, self.tally()))
        if self.writes:
            kept = [line for line in metrics(self.path) if line["step"] <= self.training.at.step]
            checkpoint.write(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def tally(self) -> dict[str, Any]:
        """The values that a checkpoint holds besides the training."""
        return {name: getattr(self, name) for name in ("score", "stale", "done", "images", "busy", "seconds")}

    def record(self, kind: str, **values: Any) -> None:
        """Write a line to metrics.jsonl and pass it to the callbacks."""
        at = self.training.at
        line = {"kind": kind, "epoch": at.epoch, "step": at.step} | values
        if self.writes:
            try:
                with open(self.path / METRICS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self.path / METRICS}: {error.strerror}") from None
        for callback in self.callbacks:
            callback.record(at, line)

    def save(self, model: bool) -> None:
        """Write the model, then a checkpoint: a run killed in between makes the same model again."""
        content = checkpoint.pack(self.training, self.tally())
        if model and self.writes:
            checkpoint.write(self.path / MODEL, checkpoint.to_bytes(self.training.network_to_save.state_dict()))
        if self.writes:
            checkpoint.write(self.path / CHECKPOINT, content)

    def end_epoch(self) -> None:
        """Evaluate the network and record the epoch. Raises UserError where training has diverged."""
        at, patience = self.training.at, self.config.patience
        sums = torch.cat([at.sums, at.sums.new_tensor([at.images, at.images - at.since[1]])])
        loss, right, images, new = distributed.sum_over_ranks(sums).tolist()
        busy = time.perf_counter() - at.since[0]
        loss, accuracy, rate = loss / images, right / images, new / busy
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {at.epoch} is {loss}: training diverged; try a smaller --lr")
        self.images, self.busy = self.images + new, self.busy + busy
        part = self.data.monitored
        share, mean = self.evaluate(self.training.network_to_save, part)
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

    def evaluate(self, network: nn.Module, part: str) -> tuple[float, float]:
        """(accuracy, loss) on a part of the data, measured by process 0 and passed to all."""
        score = loop.evaluate(network, self.data, self.config, part) if self.writes else loop.Score(0, 0, 0)
        share, mean = distributed.sum_over_ranks(
            torch.tensor([score.accuracy, score.loss], dtype=torch.float64)
        ).tolist()
        return share, mean

    def test(self) -> dict[str, Any]:
        """The score of the saved network on test images, which had no influence on what was saved."""
        network = copy.deepcopy(self.training.network_to_save)
        if self.writes:
            file = self.path / MODEL
            checkpoint.load_weights(network, checkpoint.from_bytes(read(file), file)[0], file)
        share, mean = self.evaluate(network, "test")
        if not any(line["kind"] == "test" for line in metrics(self.path)):  # a resumed run may have ended already
            self.record("test", test_loss=_finite(mean), test_accuracy=share)
        return {"accuracy": share, "loss": _finite(mean)}

    def train(self, log_every: int | None, checkpoint_every: int | None, stopped_by: list[str]) -> dict[str, Any]:
        """Train to the end or until a signal comes; returns a summary."""
        at, losses, stop = self.training.at, list[float | None](), ""
        self.began = time.perf_counter() - self.seconds
        for _ in () if self.done else loop.fit(self.training, self.data, self.config):
            for callback in self.callbacks:
                callback.step(at)
            if log_every is not None and at.step % log_every == 0:
                losses.append(_finite(at.loss()))
                self.record("step", loss=losses[-1], lr=at.lr)
            if at.epoch_ended:
                self.end_epoch()
            if distributed.true_on_any_rank(bool(stopped_by)) and not self.done:
                stop = (stopped_by or ["SIGTERM"])[0]
                self.record("stopped", signal=stop)
            self.seconds = time.perf_counter() - self.began
            if stop or at.epoch_ended or (checkpoint_every and at.step % checkpoint_every == 0):
                better = self.stale == 0 if at.epoch_ended else not self.score
                self.save(model=bool(stop or at.epoch_ended) and (better or not self.config.patience))
            if stop or self.done:
                break
        score = {} if stop else self.score if self.data.monitored == "test" else self.test()
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
    callbacks: Sequence[Callback] = (),
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a network as `config` says and write the run to `path`; returns a summary.

    `path` is a folder that holds no run yet or, with `resume`, that of a run with this config, which is continued.
    Every `log_every`-th step gets a line in metrics.jsonl. A checkpoint is written at the start, after every epoch and
    every `checkpoint_every`-th step. SIGINT and SIGTERM end the run after the current step, with everything saved and
    the signal's name as `stopped_by`; a second one kills the process. Raises UserError or BackendUnavailable; nothing
    is written unless training could begin.
    """
    config.check()
    if not resume and distributed.rank() == 0:
        check_new(path)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(distributed.process_group(torch.device(config.device)))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(config.seed)
        data = datasets.load(config).to(device)
        network = networks.build(config.model, data.image_shape, len(data.classes), config.channels_last)
        network.to(device, config.weight_dtype)
        networks.measure(network, data.images, data.top)
        stack.enter_context(computing(config, data.image_shape))
        min_images = loop.dry_run(network, data, config)
        notes = [*data.notes, *_last_batch_notes(config, len(data.labels), min_images)]
        training = loop.Training(
            network, config, len(data.labels), min_images * distributed.world_size() if min_images > 1 else 1
        )
        run = _Run(path, config, data, training, callbacks)
        if resume:
            run.resume()
        else:
            run.create()
        stopped_by = stack.enter_context(_first_signal())
        for callback in callbacks:
            stack.enter_context(callback)
            for note in notes:
                callback.note(note)
        return run.train(log_every, checkpoint_every, stopped_by)


def _last_batch_notes(config: Config, images: int, min_images: int) -> list[str]:
    """A note on an epoch's last batch, if there is any. Raises UserError where batches have too few images.

    min_images: the least number of images of a batch in each process.
    """
    world = distributed.world_size()
    most, last = min(config.batch_size, images), (images - 1) % config.batch_size + 1
    among = f" for {world} processes" if world > 1 else ""
    if min_images > 1 and most < min_images * world:
        raise UserError(
            f"model {config.model} cannot be trained on one image at a time (BatchNorm needs two or more), but a batch "
            f"has {most}{among}: take a larger --batch-size, or more images"
        )
    if last < world and min_images == 1:
        raise UserError(f"an epoch's last batch has {last} images for {world} processes: change --batch-size")
    if last >= min_images * world:
        return []
    return [
        f"an epoch's last batch would have {last} image{'s' * (last > 1)}{among}, too few for BatchNorm: it joins the "
        f"batch before it, which then has {config.batch_size + last}"
    ]


def _finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def _first_signal() -> Iterator[list[str]]:
    """A list to which the name of the first SIGINT or SIGTERM is added; the next one ends the process at once."""
    received: list[str] = []
    signals = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for each in signals if distributed.world_size() == 1 else ():  # torchrun sends a second one by itself
            signal.signal(each, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield received
        return
    before = {each: signal.signal(each, note) for each in signals}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
